"""Everything the catalog says about what River owns in a schema, as text that can be compared.

The text does not depend on the schema's name, on which client made the objects, or on what riverq adds (`riverq_*`).
Function bodies are compared by what they do, not by how they are written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import sqlalchemy as sa

OURS = r"^river(?!q_)"

# Each query gives an object's name and its facts, and takes the schema's oid as :ns.
_QUERIES = {
    "table": """
        SELECT c.relname, c.relkind::text, c.relpersistence::text, array_to_string(c.reloptions, ',')
        FROM pg_class c WHERE c.relnamespace = :ns AND c.relkind IN ('r', 'p', 'v', 'm') ORDER BY 1""",
    "column": """
        SELECT c.relname, row_number() OVER (PARTITION BY c.oid ORDER BY a.attnum), a.attname,
            format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'not null' END,
            'default ' || pg_get_expr(d.adbin, d.adrelid), a.attidentity::text, a.attgenerated::text,
            CASE WHEN a.attcollation <> t.typcollation THEN a.attcollation::regcollation::text END
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relnamespace = :ns AND c.relkind IN ('r', 'p') ORDER BY 1, 2""",
    "constraint": """
        SELECT c.relname, k.conname, pg_get_constraintdef(k.oid), CASE WHEN NOT k.convalidated THEN 'not valid' END
        FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
        WHERE c.relnamespace = :ns AND k.contype <> 'n' ORDER BY 1, 2""",
    "index": """
        SELECT c.relname, pg_get_indexdef(i.oid), CASE WHEN NOT x.indisvalid THEN 'invalid' END
        FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class c ON c.oid = x.indrelid
        WHERE c.relnamespace = :ns ORDER BY 1, 2""",
    "enum": """
        SELECT t.typname, string_agg(e.enumlabel, ' ' ORDER BY e.enumsortorder)
        FROM pg_type t JOIN pg_enum e ON e.enumtypid = t.oid WHERE t.typnamespace = :ns GROUP BY 1 ORDER BY 1""",
    "type": """
        SELECT t.typname, t.typtype::text FROM pg_type t
        WHERE t.typnamespace = :ns AND t.typtype <> 'c' AND t.typelem = 0 ORDER BY 1""",
    "function": """
        SELECT p.proname, pg_get_function_arguments(p.oid), 'returns ' || pg_get_function_result(p.oid), l.lanname,
            'volatility', p.provolatile::text, 'parallel', p.proparallel::text, 'kind', p.prokind::text,
            'strict', p.proisstrict, 'security definer', p.prosecdef, p.proconfig::text
        FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang WHERE p.pronamespace = :ns ORDER BY 1, 2""",
    "trigger": """
        SELECT c.relname, t.tgname, t.tgenabled::text, pg_get_triggerdef(t.oid)
        FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
        WHERE c.relnamespace = :ns AND NOT t.tgisinternal ORDER BY 1, 2""",
    "sequence": """
        SELECT s.relname, format_type(q.seqtypid, NULL), q.seqstart, q.seqincrement, q.seqmin, q.seqmax, q.seqcache,
            q.seqcycle, s.relpersistence::text, 'owned by ' || c.relname || '.' || a.attname, d.deptype::text
        FROM pg_class s JOIN pg_sequence q ON q.seqrelid = s.oid
        LEFT JOIN pg_depend d ON d.objid = s.oid AND d.classid = 'pg_class'::regclass AND d.refobjsubid > 0
        LEFT JOIN pg_class c ON c.oid = d.refobjid
        LEFT JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
        WHERE s.relnamespace = :ns ORDER BY 1""",
}


def catalog(connection: sa.Connection, schema: str) -> str:
    """One line a fact, sorted by kind and object. The connection's transaction is left as it was found."""
    lines: list[str] = []
    path = connection.scalar(sa.text("SELECT current_setting('search_path')"))
    ns = connection.scalar(sa.text("SELECT oid::bigint FROM pg_namespace WHERE nspname = :n"), {"n": schema})
    quoted = '"' + schema.replace('"', '""') + '"'
    # With River's schema on the path the server prints its objects without it; index definitions always have it.
    connection.execute(sa.text("SELECT set_config('search_path', :path, false)"), {"path": f"{quoted}, pg_catalog"})
    try:
        for section, query in _QUERIES.items():
            statement = sa.text(query.replace("::", r"\:\:"))
            for name, *facts in connection.execute(statement, {"ns": ns}):
                if re.match(OURS, name):
                    fact = " ".join(str(each) for each in facts if each not in (None, ""))
                    lines.append(f"{section} {name}: {_without_schema(fact, schema)}")
        lines += _behaviour(connection)
    finally:
        connection.execute(sa.text("SELECT set_config('search_path', :path, false)"), {"path": path})
    return "\n".join(lines) + "\n"


def _without_schema(fact: str, schema: str) -> str:
    quoted = '"' + schema.replace('"', '""') + '".'
    return fact.replace(quoted, "").replace(f" {schema}.", " ")


def _behaviour(connection: sa.Connection) -> Iterable[str]:
    """What `river_job_state_in_bitmask` answers to every state and every single bit, and to nothing."""
    name = "river_job_state_in_bitmask"
    found = connection.scalar(sa.text("SELECT to_regproc(:name) IS NOT NULL"), {"name": name})
    if not found:
        return []
    masks = (
        "(SELECT (1 << n)::bit(8) FROM generate_series(0, 7) n UNION ALL VALUES (B'00000000'), (B'11111111'), (NULL))"
    )
    states = "(SELECT unnest(enum_range(NULL::river_job_state)) UNION ALL SELECT NULL)"
    rows = connection.execute(
        sa.text(
            f"SELECT coalesce(s.s::text, '-') state, "
            "string_agg(coalesce(m.m::text, '-') || '=' || "
            f"coalesce({name}(m.m, s.s)::int::text, '-'), ' ' ORDER BY m.m) "
            f"FROM {states} s(s), {masks} m(m) GROUP BY 1 ORDER BY 1".replace("::", r"\:\:")
        )
    )
    return [f"behaviour {name}: {state} {answers}" for state, answers in rows]


def notification(connection: sa.Connection, schema: str) -> list[tuple[str, str]]:
    """What the trigger of versions 2 and 3 sends for an available and for a scheduled job. Needs psycopg; commits."""
    quoted = '"' + schema.replace('"', '""') + '"'
    raw = connection.connection.driver_connection
    assert raw is not None
    connection.execute(sa.text("LISTEN river_insert"))
    connection.commit()
    for queue, state in (("mail", "available"), ("late", "scheduled")):
        connection.execute(
            sa.text(
                f"INSERT INTO {quoted}.river_job (args, kind, max_attempts, queue, state, tags) "
                f"VALUES ('{{}}', 'k', 3, '{queue}', '{state}', '{{}}')".replace(":", r"\:")
            )
        )
    connection.execute(sa.text("NOTIFY river_insert, 'end'"))
    connection.commit()
    sent = []
    for notify in raw.notifies(timeout=10):
        if notify.payload == "end":
            break
        sent.append((notify.channel, notify.payload))
    return sent
