"""From a URL to a SQLAlchemy engine that works direct and behind PgBouncer, in session and in transaction mode.

pg8000 uses unnamed statements only, so nothing has to be switched off; but it uses them over several exchanges, so
every statement with parameters needs a transaction around it (`DriverCapabilities.autocommit`). `application_name` is
the only startup parameter that PgBouncer takes from everybody.

Two things are mended. When the server ends a connection it first says why; pg8000 keeps the reason, reads on, meets the
end of the stream, and reports only "network error". On engines made here a fatal error is raised when it is read, so
that a terminated backend and PgBouncer's refusals have their names; SQLAlchemy is told that the connection is gone.

And a notification is not decoded. pg8000 does so as ASCII, in the middle of the protocol: one with any other character
would fail the statement that met it, a COMMIT that succeeded, and leave the rest of the answer to the next statement.
Behind PgBouncer in transaction mode that takes no LISTEN of one's own: another client's stays on the server.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.pool import ConnectionPoolEntry

from riverq.driver import AnyEngine
from riverq.errors import DriverError

_ERROR_RESPONSE = b"E"
_NOTIFICATION_RESPONSE = b"A"
_FATAL = frozenset({"FATAL", "PANIC"})


def make_engine(url: URL, *, asynchronous: bool, application_name: str, options: dict[str, Any]) -> AnyEngine:
    """An engine of `postgresql+pg8000` for `url`, whatever driver the URL names. `options` win over ours."""
    if asynchronous:
        raise DriverError("driver pg8000 has no asynchronous interface (use psycopg or asyncpg for an async engine)")
    given = dict(options)
    connect_args = {"application_name": application_name, **given.pop("connect_args", {})}
    engine = create_engine(url.set(drivername="postgresql+pg8000"), connect_args=connect_args, **given)
    event.listen(engine, "connect", _mend, insert=True)
    event.listen(engine, "handle_error", _mark_fatal)
    return engine


def _mend(raw: Any, _record: ConnectionPoolEntry) -> None:
    usual = raw.message_types[_ERROR_RESPONSE]

    def raise_if_fatal(data: bytes, context: Any) -> None:
        usual(data, context)
        if _is_fatal(context.error):
            raise context.error

    raw.message_types[_ERROR_RESPONSE] = raise_if_fatal
    raw.message_types[_NOTIFICATION_RESPONSE] = _overhear


def _overhear(_data: bytes, _context: Any) -> None:
    """Nobody listens here (a listener puts in its own): another client's LISTEN, left on a pooled server."""


def _mark_fatal(context: ExceptionContext) -> None:
    if _is_fatal(context.original_exception):
        context.is_disconnect = True


def _is_fatal(error: BaseException) -> bool:
    fields = error.args[0] if error.args else None
    # V is the severity that is never translated; S may be, but is all that PgBouncer sends, in English.
    return isinstance(fields, dict) and fields.get("V", fields.get("S")) in _FATAL
