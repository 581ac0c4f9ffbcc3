"""The sync face: inserts from any thread, and works jobs in a thread of its own that runs the one asyncio runtime."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from sqlalchemy import Connection, Engine

from riverq.client.control_verbs import ControlVerbs
from riverq.client.core import Core, look_up
from riverq.client.job_verbs import JobVerbs
from riverq.client.lifecycle import Engines, Faces, Runtime
from riverq.client.list_verbs import ListVerbs
from riverq.client.loop_thread import LoopThread
from riverq.client.queues import Change, Queues, refuse_in_own_loop, without_waiting
from riverq.client.session import SyncSession, sync_connection
from riverq.client.subscribing import Subscribing
from riverq.client.transact import in_transaction
from riverq.client.verb import Verb
from riverq.config import Config
from riverq.database import translating
from riverq.driver import Driver
from riverq.errors import ConfigError
from riverq.hook import chain_insert_sync, is_async
from riverq.insert import write, write_fast
from riverq.insert_opts import InsertOptions, InsertParams
from riverq.job import InsertResult
from riverq.periodic import PeriodicJobs
from riverq.threads import DaemonThreads
from riverq.worker.context import refuse_in_own_job

if TYPE_CHECKING:
    from riverq.client.async_client import AsyncClient

T = TypeVar("T")

BRIDGE_THREADS = 8
"""Transactions that `async def` workers of a sync client may have under way at once through `job.async_client`."""


class Client(JobVerbs, ListVerbs, ControlVerbs, Subscribing):
    """Inserts jobs, and works them when its config has queues, on a sync engine (psycopg or pg8000).

    `engine_or_driver` is the application's engine, or a riverq driver bound to one. `control_engine` and
    `listener_engine` replace the connections that riverq otherwise makes itself from the engine's pool settings;
    `share_pool=True` uses the application's own pool instead, for poolers with few connections.

    Raises ConfigError for an async engine or async middleware, DriverError for an engine that no driver serves.
    """

    def __init__(
        self,
        engine_or_driver: Engine | Driver,
        config: Config | None = None,
        *,
        control_engine: Engine | None = None,
        listener_engine: Engine | None = None,
        share_pool: bool = False,
    ) -> None:
        core = Core(engine_or_driver, config)
        if not isinstance(core.engine, Engine):
            raise ConfigError(f"Client takes a sync Engine, got: {core.engine!r} (use AsyncClient for an AsyncEngine)")
        for item in core.config.middleware:
            if is_async(item):
                raise ConfigError(f"Client takes sync middleware only, got: {item!r} (use AsyncClient)")
        core.check_other_engines(control_engine=control_engine, listener_engine=listener_engine)
        self._init(core, Engines(control_engine, listener_engine, share_pool=share_pool))

    def _init(self, core: Core, engines: Engines) -> None:
        self._core = core
        self._engines = engines
        self._lock = threading.Lock()
        self._thread: LoopThread | None = None
        self._runtime: Runtime | None = None

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
    def queues(self) -> Queues:
        """The queues that it works: `add`, `remove`, `update` and `list`, while it runs too."""
        return Queues(self)

    @property
    def periodic_jobs(self) -> PeriodicJobs:
        """Its periodic jobs: `add`, `remove` and more, while it runs too. Inserted only while this client leads."""
        return self._core.periodic_jobs

    # -- insert

    def insert(
        self, args: object, *, session: SyncSession | None = None, **options: Unpack[InsertOptions]
    ) -> InsertResult:
        """Insert one job, in a transaction of its own or in that of `session`.

        `args` is an instance of a class marked with `riverq.job_args`, or `riverq.RawArgs`. Options override those of
        the class. Workers hear of the job when the transaction commits. A unique duplicate returns the job that is
        there, with `unique_skipped_as_duplicate`. With `session`, ORM objects are not flushed here: flush first if the
        args hold an id that the database makes.

        Raises ConfigError (ArgsEncodeError for args) before anything is written, SessionError, SchemaError,
        DatabaseError; MayBeCommittedError where the answer to COMMIT was lost.
        """
        return self._insert([args], options, session)[0]

    def insert_many(self, items: Sequence[object], *, session: SyncSession | None = None) -> list[InsertResult]:
        """Insert many jobs in one statement; `items` are args or `InsertItem(args, **options)`.

        Results are in the order of `items`. Of equal unique keys in one batch the first wins, the others return its
        row as duplicates. Raises as `insert`, and ConfigError for an empty batch.
        """
        return self._insert(items, {}, session)

    def insert_many_fast(self, items: Sequence[object], *, session: SyncSession | None = None) -> int:
        """Insert many jobs by COPY, without reading rows back; returns how many were inserted.

        A batch with a unique job in it uses INSERT … ON CONFLICT DO NOTHING; duplicates are then not counted.
        """
        self._core.check_process()
        count = 0

        def write_fast_and_count(params: Sequence[InsertParams]) -> list[InsertResult]:
            nonlocal count
            count = self._write_fast(params, session)
            return []

        self._around(self._core.prepare_many(items, {}), write_fast_and_count)
        return count

    # -- work

    def start(self) -> None:
        """Begin to work the configured queues, in a thread of this client's own. Returns when everything runs.

        Starts wholly or raises and may be tried again. Does nothing while running; while stopping, waits for the end of
        that and starts anew.
        """
        self._core.check_process()
        while not self._start_or_see_running():
            self.stop()

    def _start_or_see_running(self) -> bool:
        """False while what runs is being stopped."""
        with self._lock:
            if self._runtime is not None:
                return not self._runtime.is_stopping
            thread = LoopThread(f"riverq.{self.id}")
            try:
                self._runtime = thread.call(self._make_runtime())
            except BaseException:
                thread.close()
                raise
            self._thread = thread
            return True

    def stop(self, *, timeout: timedelta | None = None) -> None:
        """Stop fetching, wait for running jobs, then end everything. `timeout` only limits this wait.

        With `soft_stop_timeout`, jobs still running after it are cancelled and given back. Raises TimeoutError when
        `timeout` passes; stopping then goes on, and `stop` may be called again. Does nothing while stopped.
        """
        self._stop(lambda runtime: runtime.stop(), timeout)

    def stop_and_cancel(self, *, timeout: timedelta | None = None) -> None:
        """Cancel running jobs, give them back, and end everything. May be called while `stop` waits."""
        self._stop(lambda runtime: runtime.stop_and_cancel(), timeout)

    @contextmanager
    def running(self) -> Iterator[Client]:
        """`with client.running():` starts, and stops at the end."""
        self.start()
        try:
            yield self
        finally:
            self.stop()

    # -- private

    async def _make_runtime(self) -> Runtime:
        from riverq.client.bridge import AsyncBridge, SyncJobFace  # which need this class

        bridges: list[AsyncClient] = []
        threads = DaemonThreads(BRIDGE_THREADS, name="riverq_bridge")

        def async_face() -> AsyncClient:
            if not bridges:
                bridges.append(AsyncBridge(self, threads, runtime))
            return bridges[0]

        sync_face = SyncJobFace(self, asyncio.get_running_loop())
        faces = Faces(lambda: sync_face, async_face, close=lambda: threads.shutdown(wait=False))
        runtime = Runtime(self._core, self._engines, faces)
        sync_face._runtime = runtime
        await runtime.start()
        return runtime

    def _stop(self, how: Callable[[Runtime], Any], timeout: timedelta | None) -> None:
        refuse_in_own_job(self.id)
        if self._thread is not None:
            self._core.check_process()  # a forked child has no such thread, and would wait for ever
        limit = None if timeout is None else timeout.total_seconds()
        late = f"the client has not stopped within {timeout} (it goes on stopping; call stop again)"
        if not self._lock.acquire(timeout=-1 if limit is None else limit):  # a start under way ends first
            raise TimeoutError(late)
        try:
            thread, runtime = self._thread, self._runtime
            if thread is None or runtime is None:
                return
            thread.callers += 1
        finally:
            self._lock.release()
        try:
            thread.call(how(runtime), limit)
        except TimeoutError as error:
            if runtime.is_stopped:
                raise
            raise TimeoutError(late) from error
        finally:
            self._leave(thread, runtime)

    def _leave(self, thread: LoopThread, runtime: Runtime) -> None:
        """The last of those who wait in a stopped thread ends it; the others would wait in a loop that is gone."""
        with self._lock:
            thread.callers -= 1
            if not runtime.is_stopped:
                return
            if self._runtime is runtime:
                self._thread = self._runtime = None  # whoever starts anew need not wait for those who still look on
            if thread.callers == 0:
                thread.close()

    def _in_runtime(self, change: Change) -> None:
        """Make a change in the runtime's loop, if there is one; a start under way ends first."""
        self._core.check_process()
        refuse_in_own_loop(self.id)
        with self._lock:
            thread, runtime = self._thread, self._runtime
            if thread is None or runtime is None:
                without_waiting(change(None))
                return
            thread.callers += 1
        try:
            thread.call(change(runtime))
        finally:
            self._leave(thread, runtime)

    def _control(self, session: SyncSession | None, verb: Verb[T]) -> T:
        self._core.check_process()
        schema = self._schema()
        return self._on(session, lambda conn: verb(conn, schema))

    def _insert(
        self, items: Sequence[object], options: Mapping[str, object], session: SyncSession | None
    ) -> list[InsertResult]:
        self._core.check_process()
        params = self._core.prepare_many(items, options)
        return self._around(params, lambda todo: self._write(todo, session))

    def _around(
        self, params: Sequence[InsertParams], do_write: Callable[[Sequence[InsertParams]], list[InsertResult]]
    ) -> list[InsertResult]:
        middleware = self._core.config.middleware
        return chain_insert_sync(middleware, do_write)(params) if middleware else do_write(params)

    def _write(self, params: Sequence[InsertParams], session: SyncSession | None) -> list[InsertResult]:
        schema = self._schema()
        return self._on(session, lambda conn: write(conn, schema, params, self._core.limiter))

    def _write_fast(self, params: Sequence[InsertParams], session: SyncSession | None) -> int:
        schema = self._schema()
        return self._on(session, lambda conn: write_fast(conn, schema, params, self._core.limiter, self._core.driver))

    def _on(self, session: SyncSession | None, fn: Callable[[Connection], T]) -> T:
        if session is None:
            return self._transact(fn)
        with translating(self._core.driver):
            conn = sync_connection(session)
            self._core.remember_server(conn)
            return fn(conn)

    def _transact(self, fn: Callable[[Connection], T]) -> T:
        return in_transaction(self._core.engine, self._core.driver, fn)

    def _schema(self) -> str:
        if self._core.schema is None:
            self._core.schema = self._find_schema()
        return self._core.schema

    def _find_schema(self) -> str:
        own, is_ours = self._engines.for_lookup(self._core.engine)
        try:
            found = in_transaction(own, self._core.driver, lambda conn: look_up(conn, "", self._core.config.schema))
            self._core.found(*found)
            return found[0]
        finally:
            if is_ours and isinstance(own, Engine):
                own.dispose()
