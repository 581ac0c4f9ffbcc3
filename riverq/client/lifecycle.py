"""How a client's services start and stop, in which order and why, and what a hard end leaves behind.

Start, each before what needs it:
  1. the schema is looked up: wrong tables must stop the start before anything runs;
  2. the completer, so that whatever runs can be written;
  3. the notifier, so that the queues' first look at the tables comes after LISTEN;
  4. the elector, so that due jobs become available;
  5. the producers, which begin to claim.

Stop, the other way round, but the producers first and the completer last:
  1. the producers stop claiming and wait for running jobs; cancellations from outside still reach those;
  2. the elector resigns, so that another client leads at once;
  3. the notifier closes its connection;
  4. the completer writes what is left;
  5. the connections are closed.

A start that fails stops what it started and may be tried again. `stop` may be called any number of times; all calls
wait for the same stopping.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

from riverq.client.assembly import CONTROL_CONNECTIONS, Databases, Engines, Faces, Services, assemble, connect
from riverq.client.core import MIGRATE, Core, survey
from riverq.service import start_all, stop_all

__all__ = ["Engines", "Faces", "Runtime"]


class Runtime:
    """One run of a client: made and started together, stopped once."""

    def __init__(self, core: Core, engines: Engines, faces: Faces) -> None:
        self._core = core
        self._engines = engines
        self._faces = faces
        self._databases: Databases | None = None
        self._services: Services | None = None
        self._stopping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start everything, or nothing. Raises ConfigError, SchemaError or DatabaseError."""
        self._databases = await self._connect()
        try:
            self._services = services = assemble(self._core, self._databases, self._faces)
            await start_all([services.completer, services.notifier, services.elector, *services.producers])
        except BaseException:
            await self._close()
            raise
        self._core.ctx.log.info("Client: Started: %s", self.describe())

    async def stop(self) -> None:
        """Stop as the module says; running jobs are cancelled after `soft_stop_timeout`."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(), name="riverq.stop")
        await asyncio.shield(self._stopping)

    async def stop_and_cancel(self) -> None:
        """Stop, and cancel running jobs now; they are given back."""
        self.cancel_jobs()
        await self.stop()

    def cancel_jobs(self) -> None:
        """Tell every running job to end because the client stops."""
        if self._services is not None:
            for producer in self._services.producers:
                producer.cancel_jobs()

    async def abort(self, grace: timedelta) -> list[int]:
        """Stop without waiting for jobs, within `grace`; returns the ids of jobs that still run, for rescue.

        What is known of finished jobs is written. The others keep their rows `running`: their code may still be at
        work, and giving them back would run it twice at once.
        """
        if self._services is None:
            return []
        self.cancel_jobs()
        stopping = asyncio.ensure_future(self.stop())
        await asyncio.wait({stopping}, timeout=grace.total_seconds() / 2)  # polite jobs end, and are given back
        left = [job_id for producer in self._services.producers for job_id in producer.leave()]
        await asyncio.wait({stopping}, timeout=grace.total_seconds() / 2)
        self._services.completer.leave()
        return left

    @property
    def is_stopping(self) -> bool:
        """Whether a stop was asked for, by whomever; it is not taken back."""
        return self._stopping is not None

    @property
    def is_stopped(self) -> bool:
        """Whether the stop that was asked for has come to its end."""
        return self._stopping is not None and self._stopping.done()

    # -- what to say of it

    def describe(self) -> str:
        """Who works what, and how many connections that takes."""
        config = self._core.config
        queues = ", ".join(f"{name} ({queue.max_workers})" for name, queue in config.queues.items())
        return f"{self._core.client_id} works {queues}; {self._connections()}"

    def summary(self) -> str:
        """What was done."""
        if self._services is None:
            return "nothing was started"
        stats = self._services.completer.stats
        worked = f"{stats.written} job{'' if stats.written == 1 else 's'} worked"
        return worked + (f", {stats.lost} lost to another run" if stats.lost else "")

    @property
    def services(self) -> Services:
        """The running services, for tests and figures."""
        assert self._services is not None, "start() first"
        return self._services

    def _connections(self) -> str:
        listens = self._services is not None and not self._services.notifier.poll_only
        if self._engines.share_pool:
            listening = " and 1 to listen" if listens else ""
            return f"shares the application's pool for up to {CONTROL_CONNECTIONS + 1} connections{listening}"
        parts = [f"{CONTROL_CONNECTIONS} control", "1 while rows are locked"] + (["1 to listen"] if listens else [])
        return f"holds up to {CONTROL_CONNECTIONS + 1 + listens} connections ({', '.join(reversed(parts))})"

    # -- private

    async def _connect(self) -> Databases:
        unresolved = connect(self._core, self._engines, schema="", server=None)
        try:
            found = await unresolved.general.run(survey, self._core.config.schema)
        finally:
            for database in unresolved.owned:
                await database.close()
        self._core.schema = found.schema
        if not found.has_own_tables:
            self._core.ctx.log.warning(
                "Client: Found no tables of riverq's own in schema %s, and works without what needs them (run: %s)",
                found.schema,
                MIGRATE,
            )
        return connect(self._core, self._engines, found.schema, found.server)

    async def _stop(self) -> None:
        services = self.services
        await self._stop_producers(services)
        await stop_all([services.elector, services.notifier, services.completer])
        await self._close()
        self._core.ctx.log.info("Client: Stopped: %s: %s", self._core.client_id, self.summary())

    async def _stop_producers(self, services: Services) -> None:
        stops = [asyncio.create_task(producer.stop()) for producer in services.producers]
        limit = self._core.config.soft_stop_timeout
        _, pending = await asyncio.wait(stops, timeout=None if limit is None else limit.total_seconds())
        if pending:
            self._core.ctx.log.info("Client: Cancelling jobs that still run after %s", limit)
            self.cancel_jobs()
        await asyncio.gather(*stops)

    async def _close(self) -> None:
        self._faces.close()
        if self._services is not None:
            self._services.threads.shutdown(wait=False)
        if self._databases is not None:
            for database in self._databases.owned:
                await database.close()
