"""Runs query functions. The only place that knows whether an engine is sync or async.

A query is a plain function `fn(conn, schema, …)` of `riverq/query/`, written once on SQLAlchemy's sync `Connection`. On
an async engine it runs under `AsyncConnection.run_sync`, which costs nothing; on a sync engine the whole transaction
makes one hop to a daemon thread, never one hop per statement. What it returns must be plain values: a lazy result would
touch the connection after it has gone back to the pool.

    run          one transaction, READ COMMITTED whatever the engine's default is
    run_single   one statement without a transaction around it; about a third cheaper, because BEGIN and COMMIT are
                 round trips of their own (on an adapter without `autocommit` the same as `run`)
    run_outside  one statement that the server refuses inside a transaction, on every adapter
    limited      a lane: the same engine behind slots of its own, so that work that may wait (a locked row, a long
                 upkeep) never keeps work that must not (the leader's lease) from a connection
    share        a lane inside this one: at most so many of this one's own slots, so that the upkeep of the leader never
                 takes all slots from claims and completions

Cancelling the task that awaits: the function under way runs to its end, its transaction is rolled back instead of
committed (a single statement, or a COMMIT under way, stands), and its connection and slots are free then. What has not
begun does not. After two seconds it hangs, and its connection is cut; `riverq.driver.turn` says why not cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

from riverq.driver import AnyEngine, Driver
from riverq.driver.failures import let_go, translate
from riverq.driver.goodbye import close_all
from riverq.driver.line import Line
from riverq.driver.turn import Caller, Held, Turn
from riverq.errors import RiverqError, UnavailableError, UsageError
from riverq.threads import DaemonThreads

__all__ = ["Database", "control_engine", "translate", "translating"]

P = ParamSpec("P")
T = TypeVar("T")

GENERAL_SLOTS = 2
"""Transactions that a database runs at once, unless told otherwise; the control pool's third slot is the elector's."""

CHECKOUT_LIMIT = 5.0
"""Seconds to wait for a connection of the control pool. Its slots are counted, so a wait is a new connection's."""

RECYCLE = 1800
"""Seconds after which a connection of the control pool is replaced, as firewalls forget idle ones."""

HANG_LIMIT = 2.0
"""Seconds that a call gets to end by itself after its caller has given up."""

CLOSE_LIMIT = 2.0
"""Seconds that closing waits for transactions that run, and again for the connections' goodbyes."""

_ISOLATION = "READ COMMITTED"


def control_engine(engine: AnyEngine, *, size: int) -> AnyEngine:
    """An engine like `engine`, with at most `size` connections that the application cannot use up.

    It connects exactly as the application's does: its URL, connect_args, `creator`, and `do_connect` and `connect`
    listeners all apply, whatever the class and the size of the application's pool (a pool of one, NullPool and
    StaticPool included). Connections are opened when first needed. Execution options and listeners on statements do
    not carry over.

    Only public interfaces are used: a copy of the application's pool opens each connection, and gives it up to a pool
    of our own.
    """
    sync = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
    source = sync.pool.recreate()

    def connect() -> Any:
        fairy = source.connect()
        connection = fairy.dbapi_connection  # before detach, which forgets it
        fairy.detach()
        return connection

    pool_class = AsyncAdaptedQueuePool if isinstance(engine, AsyncEngine) else QueuePool
    pool = pool_class(
        connect, pool_size=size, max_overflow=0, timeout=CHECKOUT_LIMIT, recycle=RECYCLE, dialect=sync.dialect
    )
    own = Engine(pool, sync.dialect, sync.url, logging_name="riverq.control")
    return AsyncEngine(own) if isinstance(engine, AsyncEngine) else own


@contextmanager
def translating(driver: Driver) -> Iterator[None]:
    """What SQLAlchemy or the adapter raises inside comes out as riverq's exception, with the original as cause."""
    try:
        yield
    except RiverqError:
        raise
    except Exception as error:
        if not _is_of_database(error, driver):
            raise
        translated = translate(error, driver)
        if isinstance(translated, UnavailableError):
            let_go(error)
        raise translated from error


def _is_of_database(error: Exception, driver: Driver) -> bool:
    # Adapters raise some errors past SQLAlchemy, most of them while connecting.
    known = isinstance(error, SQLAlchemyError | OSError)
    return known or driver.sqlstate(error) is not None or driver.is_disconnect(error)


@dataclass(slots=True)
class _Shared:
    """What the lanes of one database have in common."""

    loop: asyncio.AbstractEventLoop | None = None
    # None until the first connection shows whether the engine's default has to be overridden.
    must_set_isolation: bool | None = None
    threads: list[DaemonThreads] = field(default_factory=list)
    running: dict[Future[Any], Line] = field(default_factory=dict)
    turns: set[Turn[Any]] = field(default_factory=set)
    closed: bool = False
    disposed: bool = False


class Database:
    """Runs query functions on one engine and one schema, at most `slots` at a time.

    `schema` is resolved by the caller and written out in every statement. `owns_engine` says whether `close` disposes
    of the engine. A database on an async engine belongs to the event loop that uses it first.
    """

    def __init__(
        self,
        engine: AnyEngine,
        driver: Driver,
        *,
        schema: str,
        slots: int = GENERAL_SLOTS,
        owns_engine: bool = True,
    ) -> None:
        self.engine = engine
        self.driver = driver
        self.schema = schema
        self._owns_engine = owns_engine
        self._shared = _Shared()
        self._outer: Database | None = None
        self._check: Callable[[], None] | None = None
        self._make_lane(slots)

    def limited(self, slots: int) -> Database:
        """The same engine and schema behind `slots` of its own; closed with the database it came from."""
        lane = Database.__new__(Database)
        lane.engine, lane.driver, lane.schema = self.engine, self.driver, self.schema
        lane._owns_engine, lane._shared, lane._outer, lane._check = False, self._shared, None, None
        lane._make_lane(slots)
        return lane

    def share(self, slots: int, *, check: Callable[[], None] | None = None) -> Database:
        """The same lane, of whose slots at most `slots` are used at once through what is returned.

        `check` is called on the connection's side, right before each function's first statement, and may raise.
        """
        part = self.limited(slots)
        part._outer, part._check = self, check
        return part

    async def run(self, fn: Callable[Concatenate[Connection, str, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `fn(conn, schema, …)` in a transaction of its own, and commit it.

        Raises DatabaseError and its kinds, SchemaError, PoolExhaustedError; UsageError on another event loop.
        """
        return await self._run(self._in_transaction, partial(_call, fn, self.schema, args, kwargs))

    async def run_single(
        self, fn: Callable[Concatenate[Connection, str, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call `fn(conn, schema, …)`, which may execute one statement; it commits by itself.

        Raises what `run` raises.
        """
        if not self.driver.capabilities.autocommit:
            return await self.run(fn, *args, **kwargs)
        return await self._run(self._without_transaction, partial(_call, fn, self.schema, args, kwargs))

    async def run_outside(
        self, fn: Callable[Concatenate[Connection, str, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call `fn(conn, schema, …)`, which executes one statement without parameters, outside any transaction.

        Without parameters a statement is one exchange on every adapter, so this is safe behind every pooler.
        Raises what `run` raises.
        """
        return await self._run(self._without_transaction, partial(_call, fn, self.schema, args, kwargs))

    async def close(self) -> None:
        """Let go of threads and, if owned, of the engine's connections. Waits a few seconds at most; never raises."""
        if self._shared.closed:
            return
        self._shared.closed = True
        if self._shared.running:
            ends = {asyncio.wrap_future(future) for future in list(self._shared.running)}
            for end in ends:
                end.add_done_callback(_read_error)  # whoever asked has gone
            await asyncio.wait(ends, timeout=CLOSE_LIMIT)
            for line in list(self._shared.running.values()):
                line.cut()
        await self._end_turns()
        if self._owns_engine:
            self._shared.disposed = True
            for turn in self._shared.turns:
                turn.is_last = True
            if isinstance(self.engine, AsyncEngine):
                await close_all(self.engine, CLOSE_LIMIT)
            else:
                end = asyncio.wrap_future(self._threads.submit(self.engine.dispose))
                await asyncio.wait({end}, timeout=CLOSE_LIMIT)
                end.cancel()
        for threads in self._shared.threads:
            threads.shutdown(wait=False, cancel_futures=True)

    async def _end_turns(self) -> None:
        for _ in range(2):
            if self._shared.turns:
                await asyncio.wait({turn.task for turn in self._shared.turns}, timeout=CLOSE_LIMIT)
            for turn in self._shared.turns:
                turn.cut()

    # -- where it runs

    def _make_lane(self, slots: int) -> None:
        self._slots = asyncio.Semaphore(slots)
        self._threads = DaemonThreads(slots, name="riverq_database")
        self._shared.threads.append(self._threads)

    async def _run(
        self, how: Callable[[Caller, Callable[[Connection], T], Connection], T], call: Callable[[Connection], T]
    ) -> T:
        self._check_open()
        lane, slots = self, []
        while lane._outer is not None:
            slots.append(lane._slots)
            call, lane = partial(_checked, lane._check, call), lane._outer
        caller = Caller()
        with translating(self.driver):
            if isinstance(self.engine, AsyncEngine):
                self._check_loop()
                held = Held(*slots, lane._slots)
                return await self._in_a_task(self.engine, caller, partial(how, caller, call), held)
            return await lane._on_a_thread(self.engine, caller, partial(how, caller, call), Held(*slots))

    async def _on_a_thread(self, engine: Engine, caller: Caller, work: Callable[[Connection], T], held: Held) -> T:
        """One hop. A call that nobody waits for any more gets a moment to end; then its connection is cut."""
        await self._take(held)
        line, loop = Line(), asyncio.get_running_loop()
        try:
            future = self._threads.submit(self._on_thread, engine, work, line)
        except BaseException:  # no thread could be started
            held.release()
            raise
        self._shared.running[future] = line
        future.add_done_callback(partial(self._thread_ended, loop, held))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            caller.is_gone = True
            if not future.done():
                loop.call_later(HANG_LIMIT, line.cut)
            raise
        finally:
            del future  # else its error, this frame and the future hold each other, and the connection with them

    async def _in_a_task(self, engine: AsyncEngine, caller: Caller, work: Callable[[Connection], T], held: Held) -> T:
        """The same for an async engine."""
        await self._take(held)
        turn = Turn(engine, caller, work, self.driver.fileno)
        self._shared.turns.add(turn)
        turn.task.add_done_callback(partial(self._turn_ended, turn, held))
        try:
            await asyncio.wait({turn.task})
        except asyncio.CancelledError:
            caller.is_gone = True
            turn.task.add_done_callback(_read_error)
            asyncio.get_running_loop().call_later(HANG_LIMIT, turn.cut)
            raise
        if turn.was_dropped:  # raised as it is, it would look like the caller's own cancellation
            raise UnavailableError("the statement under way was cut short, as a stop does with one that hangs")
        try:
            return turn.task.result()
        finally:
            del turn  # as above

    async def _take(self, held: Held) -> None:
        """The slots are the call's until it has ended, whoever waits for it."""
        await held.take()
        if self._shared.closed:
            held.release()
            self._check_open()

    def _check_open(self) -> None:
        if self._shared.closed:
            raise UsageError("the client's database was closed (its client was stopped)")

    def _turn_ended(self, turn: Turn[Any], held: Held, _task: asyncio.Task[Any]) -> None:
        self._shared.turns.discard(turn)
        held.release()

    def _thread_ended(self, loop: asyncio.AbstractEventLoop, held: Held, ended: Future[Any]) -> None:
        self._shared.running.pop(ended, None)
        with suppress(RuntimeError):  # the loop is closed: nobody waits for a slot
            loop.call_soon_threadsafe(held.release)

    def _on_thread(self, engine: Engine, work: Callable[[Connection], T], line: Line) -> T:
        with engine.connect() as conn:
            line.hold(self.driver.fileno(conn.connection.driver_connection))
            try:
                return work(conn)
            finally:
                line.let_go()
                if self._shared.disposed:
                    conn.invalidate()  # it outlasted `close`: the pool it would go back to is nobody's any more

    def _check_loop(self) -> None:
        running = asyncio.get_running_loop()
        if self._shared.loop is None:
            self._shared.loop = running
        elif self._shared.loop is not running:
            raise UsageError(
                f"this client belongs to another event loop: made for {self._shared.loop!r}, used from {running!r} "
                "(make one client, with an engine of its own, per event loop)"
            )

    # -- how it runs: both on the sync face of a connection

    def _in_transaction(self, caller: Caller, call: Callable[[Connection], T], conn: Connection) -> T:
        caller.check()
        if self._must_set_isolation(conn):
            conn = conn.execution_options(isolation_level=_ISOLATION)
        with conn.begin():
            result = call(conn)
            caller.check()
            return result

    def _without_transaction(self, caller: Caller, call: Callable[[Connection], T], conn: Connection) -> T:
        """AUTOCOMMIT by the DBAPI's own attribute, which all adapters have and which costs no round trip.

        SQLAlchemy's execution option ends in the same attribute, but saves next to nothing: setting it and resetting
        it took as long as BEGIN and COMMIT do (psycopg 145 µs against 269, asyncpg 269 against 301).
        """
        caller.check()
        raw: Any = conn.connection.dbapi_connection
        usual = raw.autocommit
        if usual:
            return call(conn)
        raw.autocommit = True
        try:
            return call(conn)
        finally:
            if not conn.invalidated:
                try:
                    raw.autocommit = usual
                except self._dbapi_error(conn):
                    conn.invalidate()

    def _must_set_isolation(self, conn: Connection) -> bool:
        """Whether the engine's transactions would be something else; asked of the first connection only."""
        if self._shared.must_set_isolation is None:
            raw: Any = conn.connection.dbapi_connection
            self._shared.must_set_isolation = raw.autocommit or conn.get_isolation_level() != _ISOLATION
            conn.rollback()
        return self._shared.must_set_isolation

    @staticmethod
    def _dbapi_error(conn: Connection) -> type[BaseException]:
        error: type[BaseException] = conn.dialect.loaded_dbapi.Error
        return error


def _call(fn: Callable[..., T], schema: str, args: tuple[Any, ...], kwargs: dict[str, Any], conn: Connection, /) -> T:
    return fn(conn, schema, *args, **kwargs)


def _checked(check: Callable[[], None] | None, call: Callable[[Connection], T], conn: Connection) -> T:
    if check is not None:
        check()
    return call(conn)


def _read_error(ended: asyncio.Future[Any]) -> None:
    """Unread, asyncio would complain that it was never retrieved."""
    if not ended.cancelled():
        ended.exception()
