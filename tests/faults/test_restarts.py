"""What takes every connection at once, and kills nobody: a restarted pooler, a restarted server. Nobody is rescued.

The fleet is asked twice: do its jobs come to their end, and was any run taken from a client that lived? A standby that
takes over looks the same from a client: every lock and every connection is gone, the rows are there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.sql import SQL, Identifier

import riverq
from riverq import migrate
from riverq.demo.postgres import ThrowawayPostgres
from tests.faults import proof
from tests.faults.app import Task
from tests.faults.fleet import Fleet, running_fleet
from tests.faults.record import Record
from tests.faults.test_fleet import wait_until_done
from tests.fix_database import ADAPTERS, adapter_url
from tests.fix_pgbouncer import NO_PGBOUNCER, find_pgbouncer, running_pgbouncer
from tests.fix_skips import skip_or_fail

GRACE = 6.0
SCHEMA = "restarts"
JOBS = 120
SECONDS = 12.0
"""How long a job takes: longer than the grace, so that there are runs to take away all the time."""


@pytest.fixture
def server() -> Iterator[ThrowawayPostgres]:
    """A server of the test's own: it is restarted."""
    with ThrowawayPostgres(fsync=False, settings={"max_connections": "200"}) as server:
        with psycopg.connect(server.url(), autocommit=True) as conn:
            conn.execute(SQL("CREATE SCHEMA {}").format(Identifier(SCHEMA)))
        engine = sa.create_engine(adapter_url(server.url(), "psycopg"))
        migrate.up(engine, schema=SCHEMA)
        engine.dispose()
        yield server


class Restartable:
    """A PgBouncer in session mode that comes back on its port."""

    def __init__(self, command: str, url: str) -> None:
        self._start = partial(running_pgbouncer, command, url, "session", default_pool_size="100")
        self._running = self._start()
        self.url = self._running.__enter__()

    def restart(self) -> None:
        self.stop()
        self._running = self._start(listen_port=str(sa.make_url(self.url).port))
        self._running.__enter__()

    def stop(self) -> None:
        self._running.__exit__(None, None, None)


def work_through(server: ThrowawayPostgres, url: str, disturb: Callable[[int], None], folder: Path) -> None:
    """Work long jobs through `url`, with a `disturb(number)` now and then, and prove that nobody suffered."""
    record = Record(server.url(), SCHEMA)
    record.begin()
    engine = sa.create_engine(adapter_url(server.url(), "psycopg"))
    fleet = Fleet(url, SCHEMA, record, folder, grace=GRACE)
    with running_fleet(fleet):
        for adapter in ADAPTERS:
            fleet.start(adapter)
        time.sleep(2 * GRACE + 1)  # from here on the leader would dare to declare somebody dead
        client = riverq.Client(engine, riverq.Config(schema=SCHEMA))
        client.insert_many([Task(number, SECONDS) for number in range(JOBS)])
        for number in range(2):
            time.sleep(1.5 * GRACE)
            record.close()
            engine.dispose()
            disturb(number)
            record = fleet.record = Record(server.url(), SCHEMA)
        wait_until_done(record)
        for member in fleet.living():
            fleet.stop(member)
        proof.every_job_ran_and_was_completed_once(record, fleet, JOBS)
        proof.only_the_dead_were_rescued(record, fleet)
    record.close()
    engine.dispose()


def test_a_restarted_server_costs_no_living_client_a_run(server: ThrowawayPostgres, tmp_path: Path) -> None:
    def disturb(number: int) -> None:
        server.stop_server(immediate=bool(number))
        server.start_server()

    work_through(server, server.url(), disturb, tmp_path)


def test_a_restarted_pooler_costs_no_living_client_a_run(server: ThrowawayPostgres, tmp_path: Path) -> None:
    command = find_pgbouncer()
    if command is None:
        skip_or_fail(NO_PGBOUNCER)
    pooler = Restartable(command, server.url())
    try:
        work_through(server, pooler.url, lambda _: pooler.restart(), tmp_path)
    finally:
        pooler.stop()
