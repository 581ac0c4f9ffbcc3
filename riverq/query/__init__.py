"""All SQL of riverq: plain functions of a SQLAlchemy `Connection` and a schema, one file per noun and purpose.

Every function is synchronous, writes its own SQL out in full (schema, types, channels) and returns plain values. What
runs them in an event loop or in threads is `riverq.database`. How statements are compiled, how values cross, and why
the plans are pinned is in docs/internals/statements.md.
"""
