"""The async face: inserts and works jobs in the caller's event loop, on an async engine (psycopg or asyncpg)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TypeVar, Unpack

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from riverq.client.control_verbs import AsyncControlVerbs
from riverq.client.core import Core, look_up
from riverq.client.job_verbs import AsyncJobVerbs
from riverq.client.lifecycle import Engines, Faces, Runtime
from riverq.client.list_verbs import AsyncListVerbs
from riverq.client.queues import AsyncQueues, Change
from riverq.client.session import AsyncAnySession, run_in_session
from riverq.client.subscribing import AsyncSubscribing
from riverq.client.transact import in_transaction_async
from riverq.client.verb import Verb
from riverq.config import Config
from riverq.database import translating
from riverq.driver import Driver
from riverq.errors import ConfigError, UsageError
from riverq.hook import chain_insert_async
from riverq.insert import write, write_fast
from riverq.insert_opts import InsertOptions, InsertParams
from riverq.job import InsertResult
from riverq.periodic import PeriodicJobs
from riverq.worker.context import refuse_in_own_job

T = TypeVar("T")


class AsyncClient(AsyncJobVerbs, AsyncListVerbs, AsyncControlVerbs, AsyncSubscribing):
    """Inserts jobs, and works them when its config has queues, on an async engine (psycopg or asyncpg).

    `engine_or_driver` is the application's engine, or a riverq driver bound to one. `control_engine` and
    `listener_engine` replace the connections that riverq otherwise makes itself from the engine's pool settings;
    `share_pool=True` uses the application's own pool instead, for poolers with few connections.

    A client belongs to the event loop that first uses it, as its engine does. Raises ConfigError for a sync engine,
    DriverError for an engine that no driver serves.
    """

    def __init__(
        self,
        engine_or_driver: AsyncEngine | Driver,
        config: Config | None = None,
        *,
        control_engine: AsyncEngine | None = None,
        listener_engine: AsyncEngine | None = None,
        share_pool: bool = False,
    ) -> None:
        core = Core(engine_or_driver, config)
        if not isinstance(core.engine, AsyncEngine):
            raise ConfigError(f"AsyncClient takes an AsyncEngine, got: {core.engine!r} (use Client for a sync Engine)")
        core.check_other_engines(control_engine=control_engine, listener_engine=listener_engine)
        self._init(core, Engines(control_engine, listener_engine, share_pool=share_pool))

    def _init(self, core: Core, engines: Engines) -> None:
        self._core = core
        self._engines = engines
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting = asyncio.Lock()
        self._runtime: Runtime | None = None
        self._changes: set[asyncio.Task[None]] = set()

    # -- who it is

    @property
    def id(self) -> str:
        """The client's id, as written to `attempted_by`."""
        return self._core.client_id

    @property
    def config(self) -> Config:
        """The settings it was made with."""
        return self._core.config

    @property
    def queues(self) -> AsyncQueues:
        """The queues that it works: `add`, `remove`, `update` and `list`, while it runs too."""
        return AsyncQueues(self)

    @property
    def periodic_jobs(self) -> PeriodicJobs:
        """Its periodic jobs: `add`, `remove` and more, while it runs too. Inserted only while this client leads."""
        return self._core.periodic_jobs

    # -- insert

    async def insert(
        self, args: object, *, session: AsyncAnySession | None = None, **options: Unpack[InsertOptions]
    ) -> InsertResult:
        """Insert one job, in a transaction of its own or in that of `session`.

        `args` is an instance of a class marked with `riverq.job_args`, or `riverq.RawArgs`. Options override those of
        the class. Workers hear of the job when the transaction commits. A unique duplicate returns the job that is
        there, with `unique_skipped_as_duplicate`. With `session`, ORM objects are not flushed here: flush first if the
        args hold an id that the database makes.

        Raises ConfigError (ArgsEncodeError for args) before anything is written, SessionError, SchemaError,
        DatabaseError; MayBeCommittedError where the answer to COMMIT was lost.
        """
        return (await self._insert([args], options, session))[0]

    async def insert_many(
        self, items: Sequence[object], *, session: AsyncAnySession | None = None
    ) -> list[InsertResult]:
        """Insert many jobs in one statement; `items` are args or `InsertItem(args, **options)`.

        Results are in the order of `items`. Of equal unique keys in one batch the first wins, the others return its
        row as duplicates. Raises as `insert`, and ConfigError for an empty batch.
        """
        return await self._insert(items, {}, session)

    async def insert_many_fast(self, items: Sequence[object], *, session: AsyncAnySession | None = None) -> int:
        """Insert many jobs by COPY, without reading rows back; returns how many were inserted.

        A batch with a unique job in it uses INSERT … ON CONFLICT DO NOTHING; duplicates are then not counted.
        """
        self._check_use()
        count = 0

        async def write_fast_and_count(params: Sequence[InsertParams]) -> list[InsertResult]:
            nonlocal count
            count = await self._write_fast(params, session)
            return []

        await self._around(self._core.prepare_many(items, {}), write_fast_and_count)
        return count

    # -- work

    async def start(self) -> None:
        """Begin to work the configured queues, in this event loop. Returns when everything runs.

        Starts wholly or raises and may be tried again. Does nothing while running; while stopping, waits for the end of
        that and starts anew.
        """
        self._check_use()
        while True:
            async with self._starting:
                runtime = self._runtime
                if runtime is None:
                    self._runtime = await self._make_runtime()
                    return
            if not runtime.is_stopping:
                return
            await self._end(runtime, lambda stopping: stopping.stop())

    async def stop(self, *, timeout: timedelta | None = None) -> None:
        """Stop fetching, wait for running jobs, then end everything. `timeout` only limits this wait.

        With `soft_stop_timeout`, jobs still running after it are cancelled and given back. Raises TimeoutError when
        `timeout` passes; stopping then goes on, and `stop` may be called again. Does nothing while stopped.
        """
        await self._stop(lambda runtime: runtime.stop(), timeout)

    async def stop_and_cancel(self, *, timeout: timedelta | None = None) -> None:
        """Cancel running jobs, give them back, and end everything. May be called while `stop` waits."""
        await self._stop(lambda runtime: runtime.stop_and_cancel(), timeout)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[AsyncClient]:
        """`async with client.running():` starts, and stops at the end."""
        await self.start()
        try:
            yield self
        finally:
            await self.stop()

    # -- private

    async def _make_runtime(self) -> Runtime:
        from riverq.client.bridge import AsyncJobFace, SyncBridge  # which need this class

        sync_face = SyncBridge(self, asyncio.get_running_loop())
        async_face = AsyncJobFace(self)
        runtime = Runtime(self._core, self._engines, Faces(lambda: sync_face, lambda: async_face))
        sync_face._runtime = async_face._runtime = runtime
        await runtime.start()
        return runtime

    async def _stop(self, how: Callable[[Runtime], Awaitable[None]], timeout: timedelta | None) -> None:
        refuse_in_own_job(self.id)
        if self._runtime is None and not self._starting.locked():
            return
        self._check_use()
        stopping = asyncio.ensure_future(self._stop_what_runs(how))
        done, _ = await asyncio.wait({stopping}, timeout=None if timeout is None else timeout.total_seconds())
        if not done:
            raise TimeoutError(f"the client has not stopped within {timeout} (it goes on stopping; call stop again)")
        stopping.result()

    async def _stop_what_runs(self, how: Callable[[Runtime], Awaitable[None]]) -> None:
        async with self._starting:  # a start under way would otherwise outlive the stop
            runtime = self._runtime
        if runtime is not None:
            await self._end(runtime, how)

    async def _end(self, runtime: Runtime, how: Callable[[Runtime], Awaitable[None]]) -> None:
        try:
            await how(runtime)
        finally:
            if self._runtime is runtime and runtime.is_stopped:  # also where one of its services failed to stop
                self._runtime = None

    def _check_use(self) -> None:
        self._core.check_process()
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise UsageError(
                "this AsyncClient was first used in another event loop, to which its engine is bound "
                "(make the engine and the client inside the loop that uses them, one of each per loop)"
            )

    async def _in_runtime(self, change: Change) -> None:
        """Make a change; once begun it goes on, whoever waits for it. A start under way ends first."""
        self._check_use()
        async with self._starting:
            task = asyncio.create_task(change(self._runtime))
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        await asyncio.shield(task)

    async def _control(self, session: AsyncAnySession | None, verb: Verb[T]) -> T:
        self._check_use()
        schema = await self._schema()
        return await self._on(session, lambda conn: verb(conn, schema))

    async def _insert(
        self, items: Sequence[object], options: Mapping[str, object], session: AsyncAnySession | None
    ) -> list[InsertResult]:
        self._check_use()
        params = self._core.prepare_many(items, options)
        return await self._around(params, lambda todo: self._write(todo, session))

    async def _around(
        self,
        params: Sequence[InsertParams],
        do_write: Callable[[Sequence[InsertParams]], Awaitable[list[InsertResult]]],
    ) -> list[InsertResult]:
        middleware = self._core.config.middleware
        return await (chain_insert_async(middleware, do_write)(params) if middleware else do_write(params))

    async def _write(self, params: Sequence[InsertParams], session: AsyncAnySession | None) -> list[InsertResult]:
        schema = await self._schema()
        return await self._on(session, lambda conn: write(conn, schema, params, self._core.limiter))

    async def _write_fast(self, params: Sequence[InsertParams], session: AsyncAnySession | None) -> int:
        schema, driver = await self._schema(), self._core.driver
        return await self._on(session, lambda conn: write_fast(conn, schema, params, self._core.limiter, driver))

    async def _on(self, session: AsyncAnySession | None, fn: Callable[[Connection], T]) -> T:
        if session is None:
            return await self._transact(fn)

        def fn_there(conn: Connection) -> T:
            self._core.remember_server(conn)
            return fn(conn)

        with translating(self._core.driver):
            return await run_in_session(session, fn_there)

    async def _transact(self, fn: Callable[[Connection], T]) -> T:
        return await in_transaction_async(self._core.engine, self._core.driver, fn)

    async def _schema(self) -> str:
        if self._core.schema is None:
            self._core.schema = await self._find_schema()
        return self._core.schema

    async def _find_schema(self) -> str:
        own, is_ours = self._engines.for_lookup(self._core.engine)
        try:
            found = await in_transaction_async(
                own, self._core.driver, lambda conn: look_up(conn, "", self._core.config.schema)
            )
            self._core.found(*found)
            return found[0]
        finally:
            if is_ours and isinstance(own, AsyncEngine):
                await own.dispose()
