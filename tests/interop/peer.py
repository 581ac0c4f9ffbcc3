"""riverq's twin of the oracle: the same operations, the same parameters, the same answers, done by riverq's clients.

That is what lets a scenario be written once and run in both directions. A sync adapter is driven by `riverq.Client`
with `def` workers, an async one by `riverq.AsyncClient` in a loop thread of its own with `async def` workers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import timedelta
from threading import Lock
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

import riverq
from riverq.client.loop_thread import LoopThread
from tests.fix_database import ASYNC_ADAPTERS, new_engine
from tests.interop.oracle import OracleError
from tests.interop.peer_jobs import JobOperations
from tests.interop.peer_work import WorkOperations

ERROR_KINDS = {
    riverq.JobNotFoundError: "not_found",
    riverq.JobRunningError: "running",
    riverq.JobConflictError: "conflict",
    riverq.QueueNotFoundError: "not_found",
}


class Peer(JobOperations, WorkOperations):
    """One engine, an insert-only client on it, and whatever a test starts. `call` does what `Oracle.call` does."""

    def __init__(self, url: str, schema: str, adapter: str, **engine_options: Any) -> None:
        self.schema = schema
        self.adapter = adapter
        self.is_async = adapter in ASYNC_ADAPTERS
        self._lock = Lock()
        self._transactions: dict[str, Any] = {}
        self._working: dict[str, Any] = {}
        self._thread = LoopThread("riverq_interop_peer") if self.is_async else None
        self.engine: Any = new_engine(url, adapter, pool_size=15, **engine_options)
        # The oracle makes a client for each request, which then always notifies; here the limit of one is out of reach.
        self.control: Any = self.client(riverq.Config(schema=schema, fetch_cooldown=timedelta(milliseconds=1)))

    def client(self, config: riverq.Config) -> Any:
        """A client of this peer's face."""
        if isinstance(self.engine, AsyncEngine):
            return riverq.AsyncClient(self.engine, config)
        return riverq.Client(self.engine, config)

    def wait(self, result: Any) -> Any:
        """The result of a call of either face."""
        if inspect.iscoroutine(result):
            assert self._thread is not None
            return self._thread.call(result)
        return result

    def call(self, op: str, /, **params: Any) -> Any:
        """Do one operation. Raises OracleError, from riverq's own error."""
        operation: Callable[..., Any] = getattr(self, f"op_{op}")
        try:
            return operation(**params)
        except (riverq.RiverqError, LookupError, TimeoutError) as error:
            kind = next((name for cls, name in ERROR_KINDS.items() if isinstance(error, cls)), "")
            raise OracleError(str(error), kind) from error

    def close(self) -> None:
        """Stop what runs, roll back what is open, and give up the engine."""
        try:
            self.leave()
        finally:
            self.wait(self.engine.dispose())
            if self._thread is not None:
                self._thread.close()

    def leave(self) -> None:
        """Stop what runs and roll back what is open; called again it does nothing."""
        for name in list(self._transactions):
            self.op_tx_end(tx=name, commit=False)
        for name in list(self._working):
            self.op_release(client=name)
            self.op_stop(client=name, cancel=True)

    # -- transactions

    def op_tx_begin(self, *, tx: str) -> None:
        self._transactions[tx] = self.wait(self._begin())

    def _begin(self) -> Any:
        if not isinstance(self.engine, AsyncEngine):
            connection = self.engine.connect()
            connection.begin()
            return connection

        async def begin() -> Any:
            connection = await self.engine.connect()
            await connection.begin()
            return connection

        return begin()

    def op_tx_end(self, *, tx: str, commit: bool) -> None:
        connection = self._transactions.pop(tx)
        self.wait(connection.commit() if commit else connection.rollback())
        self.wait(connection.close())

    def session(self, tx: str | None) -> Any:
        """The connection of an open transaction, to be given as `session=`; None without a name."""
        return None if tx is None else self._transactions[tx]
