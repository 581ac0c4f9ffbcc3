"""What asyncpg's exceptions say: the SQLSTATE, and whether the connection is gone.

SQLAlchemy re-raises asyncpg's exceptions as its own adapter's, with asyncpg's as the cause; both are understood.
"""

from __future__ import annotations

import asyncpg

_OWN = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)


def sqlstate(error: BaseException) -> str | None:
    """The SQLSTATE that the server gave, or None; asyncpg gives its own errors codes too, of class 08."""
    state = getattr(_original(error), "sqlstate", None)
    return state if isinstance(state, str) else None


def is_disconnect(error: BaseException) -> bool:
    """True when asyncpg says that it has no connection, or could not make one."""
    original = _original(error)
    # An InternalClientError is asyncpg's protocol in pieces, as when the server's last words met our statement.
    if isinstance(original, asyncpg.PostgresConnectionError | asyncpg.InternalClientError | OSError):
        return True
    # "connection is closed" and "another operation is in progress" are one class; only the first has no way on.
    return isinstance(original, asyncpg.InterfaceError) and original.args[:1] == ("connection is closed",)


def _original(error: BaseException) -> BaseException:
    cause = error.__cause__
    return cause if isinstance(cause, _OWN) else error
