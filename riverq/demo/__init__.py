"""What `riverq demo` needs beyond the library: a throw-away Postgres, and something to watch.

Never imported by the library itself. The tests borrow `riverq.demo.postgres` for their server.
"""
