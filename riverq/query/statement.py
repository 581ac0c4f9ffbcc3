"""Statements that the caller's session cannot bend: written in SQLAlchemy Core, compiled once, executed as text.

A statement often runs in the application's own session. Its `search_path` would send an unqualified name to another
table, its `schema_translate_map` rewrites `Table` constructs, its `json_serializer` rewrites JSONB parameters. So a
`Statement` compiles its Core expression once per kind of dialect and schema, and hands the text to the driver: every
table, type and function is written out with its schema, quoted.

Servers differ (`ServerCapabilities`): a statement that `notified` is part of, or that is built for a server, has one
text for each kind. Which server a connection leads to is known by its dialect, which an engine shares with all that was
made of it; a client remembers it there when it first looks the database up. Until then it is taken for a Postgres that
can do what all of them can.

Parameters cross as text, integers or None, and each is cast where it is used, so that no type is left to a driver's
guess: `text_param`, `integer_param`, `jsonb_param`, `time_param`, `array_param`. Times cross as ISO text with an offset
inwards and as microseconds since 1970 outwards, because a session's DateStyle and TimeZone change what a driver reads,
and one infinite timestamp would make a driver refuse its whole result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import NULLTYPE, TypeEngine

from riverq.driver import POSTGRES, ServerCapabilities

# The application may have set these on its connection; a server-side cursor would DECLARE our INSERT and fail.
_OPTIONS: Mapping[str, Any] = {"stream_results": False, "yield_per": None}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_LONGEST = timedelta(days=365 * 1000)  # longer waits are cut: the sum must stay a timestamp that Python can read

TIMESTAMP = pg.TIMESTAMP(timezone=True)

catalog = sa.func.pg_catalog
"""Functions of Postgres itself, written out so that a function of the same name in the search_path is never called."""

_Prepared = tuple[str, "tuple[str, ...] | None"]

_servers: WeakKeyDictionary[sa.Dialect, ServerCapabilities] = WeakKeyDictionary()


def remember_server(dialect: sa.Dialect, server: ServerCapabilities) -> None:
    """From here on, statements on engines with this dialect fit this server."""
    _servers[dialect] = server


def server_of(dialect: sa.Dialect) -> ServerCapabilities:
    """What is known of the server that engines with this dialect lead to."""
    return _servers.get(dialect, POSTGRES)


class Statement:
    """One statement: `build` gives its Core expression, and is called once per schema, kind of dialect and server."""

    def __init__(self, build: Callable[[str], sa.Executable]) -> None:
        self._build: Callable[[str, ServerCapabilities], sa.Executable] = lambda schema, _: build(schema)
        self._prepared: dict[tuple[type, str, str, ServerCapabilities], _Prepared] = {}

    @classmethod
    def by_server(cls, build: Callable[[str, ServerCapabilities], sa.Executable]) -> Statement:
        """A statement whose expression depends on what the server can do."""
        made = cls.__new__(cls)
        made._build, made._prepared = build, {}
        return made

    def execute(self, conn: sa.Connection, schema: str, /, **params: Any) -> sa.CursorResult[Any]:
        """Run it in `conn`'s transaction with `schema` written out. Every parameter must be given."""
        text, order = self.prepare(conn.dialect, schema)
        if order is None:
            return conn.exec_driver_sql(text, params, execution_options=_OPTIONS)
        return conn.exec_driver_sql(text, tuple([params[name] for name in order]), execution_options=_OPTIONS)

    def rows(self, conn: sa.Connection, schema: str, /, **params: Any) -> Sequence[sa.Row[Any]]:
        """Run it and return every row."""
        return self.execute(conn, schema, **params).all()

    def prepare(self, dialect: sa.Dialect, schema: str) -> _Prepared:
        """The text for the driver, and the order of parameters where its style is positional.

        Two threads may both compile; they store equal values, so no lock is needed.
        """
        server = server_of(dialect)
        key = (dialect.__class__, dialect.paramstyle, schema, server)
        prepared = self._prepared.get(key)
        if prepared is None:
            compiled = self._compile(dialect, schema, server)
            order = compiled.positiontup
            prepared = (compiled.string, None if order is None else tuple(order))
            self._prepared[key] = prepared
        return prepared

    def _compile(self, dialect: sa.Dialect, schema: str, server: ServerCapabilities) -> Any:
        compiled: Any = self._build(schema, server).compile(dialect=dialect)  # type: ignore[attr-defined]  # every Executable here is a ClauseElement
        if any(bind.value is not None or bind.expanding for bind in compiled.binds.values()):
            raise AssertionError(f"a value was bound at build time instead of a parameter: {compiled.string}")
        return compiled


def sqlstate(error: sa.exc.DBAPIError) -> str | None:
    """The server's code of an error that any of the adapters raised; pg8000 keeps it in a dictionary."""
    original = error.orig
    code = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    if code is None and original is not None and original.args and isinstance(original.args[0], dict):
        code = original.args[0].get("C")
    return code if isinstance(code, str) else None


class _Notified(FunctionElement[str]):
    """`pg_notify(channel, payload)`, or NULL where the server has no such thing; it is looked up when compiled."""

    type = sa.Text()
    inherit_cache = False


@compiles(_Notified)
def _notified(element: _Notified, compiler: Any, **options: Any) -> str:
    arguments = compiler.process(element.clauses, **options)  # always, for every parameter given must be used
    if server_of(compiler.dialect).listen_notify:
        # As text: adapters disagree on what the type void is.
        return f"CAST(pg_catalog.pg_notify({arguments}) AS text)"
    return f"pg_catalog.concat({arguments})"


def notified(channel: sa.ColumnElement[str], payload: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
    """The side effect of telling whoever listens on `channel` when the transaction commits, where the server can."""
    return _Notified(channel, payload)


# -- parameters, cast where they are used


def text_param(name: str) -> sa.ColumnElement[str]:
    """`name` as text."""
    return sa.cast(_bind(name), sa.Text())


def integer_param(name: str) -> sa.ColumnElement[int]:
    """`name` as bigint."""
    return sa.cast(_bind(name), sa.BigInteger())


def jsonb_param(name: str) -> sa.ColumnElement[Any]:
    """`name`, encoded JSON, as jsonb. As text in between, so that no driver's JSON serializer touches it."""
    return sa.cast(text_param(name), pg.JSONB())


def time_param(name: str) -> sa.ColumnElement[datetime]:
    """`name`, which `stamp` made, as timestamptz."""
    return sa.cast(text_param(name), TIMESTAMP)


def now_param(name: str = "now") -> sa.ColumnElement[datetime]:
    """`name` where it is given (tests do), else the database's now."""
    return sa.func.coalesce(time_param(name), catalog.now(), type_=TIMESTAMP)


def array_param(name: str, of: TypeEngine[Any]) -> sa.ColumnElement[Any]:
    """`name`, a literal of `riverq.query.array`, as an array."""
    return sa.cast(text_param(name), pg.ARRAY(of))


def _bind(name: str) -> sa.BindParameter[Any]:
    # Without a type, SQLAlchemy adds no cast of its own on any dialect.
    return sa.bindparam(name, type_=NULLTYPE, required=True)


def input_rows(name: str, **columns: TypeEngine[Any]) -> sa.TableValuedAlias:
    """Parallel arrays, one parameter per column and named like it, as a table to join by id.

    The arrays are read through sub-selects to hide their length from the planner. It then expects ten rows, for one id
    as for a thousand, in a generic plan as in a custom one, and looks each up by the primary key instead of reading the
    table. docs/internals/statements.md tells more.
    """
    arrays = [sa.select(array_param(column, of)).scalar_subquery() for column, of in columns.items()]
    typed: list[Any] = [sa.column(column, of) for column, of in columns.items()]
    return sa.func.unnest(*arrays).table_valued(*typed).render_derived(name=name)


# -- time


def stamp(moment: datetime | None) -> str | None:
    """An aware datetime as the text that `time_param` reads: ISO 8601 with an offset, whatever the DateStyle."""
    return None if moment is None else moment.astimezone(UTC).isoformat()


def microseconds(duration: timedelta) -> int:
    """A duration for `later`."""
    return min(duration, _LONGEST) // _MICROSECOND


def from_us(us: int) -> datetime:
    """Microseconds since 1970 as a datetime in UTC."""
    return _EPOCH + timedelta(microseconds=us)


def to_us(moment: datetime) -> int:
    """The opposite of `from_us`, exact."""
    return (moment - _EPOCH) // _MICROSECOND


def later(us: sa.ColumnElement[int]) -> sa.ColumnElement[timedelta]:
    """`us` microseconds as an interval. Exact up to 285 years."""
    return sa.type_coerce(us * _interval("1 microsecond"), pg.INTERVAL())


def at_us(us: sa.ColumnElement[int]) -> sa.ColumnElement[datetime]:
    """`us` microseconds since 1970 as timestamptz; exact, and the same in every TimeZone, until the year 2255."""
    return sa.type_coerce(_time("epoch") + later(us), TIMESTAMP)


def us_of(column: sa.ColumnElement[Any], *, nullable: bool = False) -> sa.ColumnElement[int]:
    """A timestamptz as exact microseconds since 1970; what Python cannot hold, infinity too, comes as a far day."""
    clamped = sa.func.least(sa.func.greatest(column, _time("0001-01-02 00:00:00+00")), _time("9999-12-30 00:00:00+00"))
    us = sa.cast(sa.extract("epoch", clamped) * sa.literal_column("1000000"), sa.BigInteger())
    return sa.case((column.is_not(None), us)) if nullable else us


def _time(text: str) -> sa.ColumnElement[datetime]:
    return sa.cast(sa.literal_column(f"'{text}'"), TIMESTAMP)


def _interval(text: str) -> sa.ColumnElement[timedelta]:
    return sa.cast(sa.literal_column(f"'{text}'"), pg.INTERVAL())
