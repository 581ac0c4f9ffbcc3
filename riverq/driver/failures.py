"""What the database or an adapter said, in riverq's exceptions. Used by the database seam, the listeners and COPY.

Errors are told apart by SQLSTATE, because a server may speak any language. There is one exception: PgBouncer refuses a
startup parameter, and a transaction in statement mode, with the code that any protocol violation has (08P01), and
psycopg does not hand on even that. PgBouncer's texts are constants in its source, are not translated, and name a cure,
so two of them are looked for.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from traceback import walk_tb

from sqlalchemy import exc

from riverq.driver import Driver
from riverq.errors import DatabaseError, PoolerError, PoolExhaustedError, RiverqError, SchemaError, UnavailableError

_CONNECTION_CLASS = "08"
_GOING_AWAY = frozenset({"57P01", "57P02", "57P03", "57P05", "53300"})
# Table, schema, column, function, type, constraint of ON CONFLICT: any of them missing means missing or older tables.
_UNDEFINED = frozenset({"42P01", "3F000", "42703", "42883", "42704", "42P10"})

_REFUSED = ("28", "3D000")
"""SQLSTATEs with these beginnings: no such role or database, a wrong password. psycopg reports them without a code."""

_STARTUP_PARAMETER = "unsupported startup parameter"
_STATEMENT_MODE = "not allowed in statement pooling mode"
_FIRST_QUESTION = "pg_catalog.version()"
"""What SQLAlchemy asks every new engine's first connection, in a transaction."""

_CONNECTION_DOES_NOT_EXIST = "08003"
_CUT_AT_FIRST_WORD = (
    " (it accepted the login and hung up at the first statement: if this is PgBouncer, "
    "pool_mode=statement cannot work; use session or transaction)"
)
"""SQLAlchemy 2.0 does not pass on what PgBouncer said to asyncpg before it hung up."""


_SUSPENDABLE = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


def let_go(error: BaseException | None) -> None:
    """Free what the frames of a broken connection's error hold; its causes' too.

    SQLAlchemy keeps the error in a frame of its own traceback, so both live until the collector comes, and with them
    pg8000's socket, which is not closed while anybody has its file: an outage would pile up sockets. Frames that run
    refuse to be cleared. A suspended coroutine would be closed by it, so none is touched.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        for frame, _ in walk_tb(error.__traceback__):
            if not frame.f_code.co_flags & _SUSPENDABLE:
                with suppress(RuntimeError):
                    frame.clear()
        error = error.__cause__  # not __context__, which may be anybody's


def translate(error: BaseException, driver: Driver) -> RiverqError:
    """`error`, from SQLAlchemy or from the adapter itself, as the riverq exception to raise from it.

    PoolExhaustedError, PoolerError, UnavailableError, SchemaError where River's tables are missing or too old, and
    DatabaseError with the SQLSTATE for everything else. An exception of riverq's own comes back as it is.
    """
    if isinstance(error, RiverqError):
        return error
    if isinstance(error, exc.TimeoutError):
        return PoolExhaustedError(f"no connection became free in time: {error} (raise pool_size or pool_timeout)")
    original = _original(error)
    state = sqlstate(original, driver)
    text = message(original)
    pooler = _pooler_error(text, state)
    if pooler is not None:
        return pooler
    statement = error.statement if isinstance(error, exc.StatementError) else None
    if _is_unavailable(error, original, state, driver):
        was_cut = state in (None, _CONNECTION_DOES_NOT_EXIST) and (statement or "").endswith(_FIRST_QUESTION)
        hint = _CUT_AT_FIRST_WORD if was_cut else ""
        return UnavailableError(f"the database{_where(driver)} is not available: {text}{hint}", state)
    if state is not None and state.startswith(_REFUSED):
        return DatabaseError(
            f"the database{_where(driver)} refused the connection: {text} (check user, password and name in its URL)",
            state,
        )
    if state in _UNDEFINED and "river" in (statement or text):
        return SchemaError(f"River's tables are missing or too old here: {text} (run `riverq migrate-up`)")
    failed = "the database cannot be used" if state is None else "a statement failed"
    return DatabaseError(f"{failed}: {text}", state)


def sqlstate(error: BaseException, driver: Driver) -> str | None:
    """The SQLSTATE of an adapter's exception; also of another adapter's, as a session may be on any."""
    return driver.sqlstate(error) or _sqlstate_of_any(error)


def message(error: BaseException) -> str:
    """The first line of what the server or the adapter said; the rest would repeat the job's data."""
    fields = error.args[0] if error.args else None
    if isinstance(fields, dict):
        text = str(fields.get("M", fields))
    else:  # of SQLAlchemy's own errors only what they say: str() adds a link to its documentation
        text = str(fields if isinstance(error, exc.SQLAlchemyError) and fields else error)
    if text.startswith("<class '"):  # SQLAlchemy 2.0 puts asyncpg's class in front
        text = text.partition(">: ")[2]
    return text.strip().partition("\n")[0] or type(error).__name__


def _where(driver: Driver) -> str:
    url = driver.engine.url
    if not url.host:  # a socket, or an engine made with `creator`
        return f" {url.database!r}" if url.database else ""
    return f" {url.database or url.username!r} at {url.host}:{url.port or 5432}"


def _original(error: BaseException) -> BaseException:
    if isinstance(error, exc.StatementError) and error.orig is not None:
        return error.orig
    return error


def _sqlstate_of_any(error: BaseException) -> str | None:
    for name in ("sqlstate", "pgcode"):
        state = getattr(error, name, None)
        if isinstance(state, str):
            return state
    fields = error.args[0] if error.args else None
    return fields.get("C") if isinstance(fields, dict) else None


def _pooler_error(text: str, state: str | None) -> PoolerError | None:
    if _STARTUP_PARAMETER in text:
        return PoolerError(
            f"PgBouncer refused the connection: {text} (remove it from options, server_settings or startup_params; "
            "for a server-side setting use ALTER ROLE … SET)",
            state,
        )
    if _STATEMENT_MODE in text:
        return PoolerError(
            f"PgBouncer refused the transaction: {text} (pool_mode=statement cannot work; use session or transaction)",
            state,
        )
    return None


def _is_unavailable(error: BaseException, original: BaseException, state: str | None, driver: Driver) -> bool:
    if state is not None:
        return state.startswith(_CONNECTION_CLASS) or state in _GOING_AWAY
    if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
        return True
    return isinstance(original, OSError) or driver.is_disconnect(original)
