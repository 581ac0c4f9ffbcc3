"""Start wholly or not at all, stop in any order, one process and one loop: both clients, on every adapter."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL, Identifier
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

import riverq
from riverq.service import Service
from riverq.worker.producer import Producer
from tests.client.faces import Greet, make_client, settle
from tests.client.working import Act, Watch, acting_workers, call, config
from tests.fix_database import EngineMaker, adapter_url
from tests.fix_pgbouncer import Pooler
from tests.house.source import ROOT

PATIENCE = 20.0
OPEN = "SELECT pid FROM pg_stat_activity WHERE application_name = 'riverq_contract'"


@pytest.fixture
def client(adapter: str, make_engine: EngineMaker, schema: str) -> Any:
    """A client named after its engine's connections, so that they can be told from others'."""
    name = "riverq_contract"
    arguments = {"server_settings": {"application_name": name}} if adapter == "asyncpg" else {"application_name": name}
    return make_client(make_engine(adapter, connect_args=arguments), config(schema, acting_workers("async def")))


@pytest.fixture
def inserter(adapter: str, make_engine: EngineMaker, schema: str) -> Any:
    """Inserts through a pool of its own, whose connection stays open."""
    return make_client(make_engine(adapter), riverq.Config(schema=schema))


class Left:
    """What a client has left running: connections, threads, and tasks in this loop."""

    def __init__(self, url: str, pooler: Pooler | None) -> None:
        self._url = url
        self._pooler = pooler
        self._threads = set(threading.enumerate())
        self._tasks = asyncio.all_tasks()

    async def now(self) -> list[str]:
        pids = await asyncio.to_thread(self._connections)
        threads = [thread.name for thread in threading.enumerate() if thread not in self._threads]
        tasks = [task.get_name() for task in asyncio.all_tasks() - self._tasks]
        ours = [name for name in (*threads, *tasks) if name.startswith("riverq")]
        return [*(f"connection {pid}" for pid in pids), *ours]

    async def check(self) -> None:
        """What is on its way out gets a moment to go: a backend ends a little after its connection."""
        deadline = time.monotonic() + PATIENCE
        late = False
        while left := await self.now():
            assert not late, f"left running: {left}"
            await asyncio.sleep(0.02)
            late = time.monotonic() > deadline  # before the look: what was seen before a stall may be gone after it

    def _connections(self) -> list[int]:
        if self._pooler is not None:
            return self._pooler.clients_named("riverq_contract")
        with psycopg.connect(self._url, application_name="riverq_tests") as conn:
            return [pid for (pid,) in conn.execute(OPEN).fetchall()]


@pytest.fixture
async def left(database_url: str, pooler: Pooler | None) -> Left:
    return Left(database_url, pooler)


@contextmanager
def at_start(number: int, act: Callable[[], object]) -> Iterator[list[str]]:
    """`act` is called when the `number`th service of a client is started; lists those started until then.

    Not counted are the leader's services, which start by themselves some time later.
    """
    real, begun, lock = Service.start, [], threading.Lock()

    async def start(service: Service) -> None:
        task = asyncio.current_task()
        if task is None or task.get_name() != "riverq.Elector.on_gained":
            with lock:
                begun.append(service.name)
                is_it = len(begun) == number
            if is_it:
                act()
                await asyncio.sleep(0)
        await real(service)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Service, "start", start)
        yield begun


def refuse() -> None:
    raise ConnectionError("not today")


async def test_start_that_fails_at_any_service_leaves_nothing_and_works_when_repeated(
    client: Any, inserter: Any, left: Left, watch: Watch
) -> None:
    failed_at: list[str] = []
    for number in itertools.count(1):
        with at_start(number, refuse) as begun:
            try:
                await call(client.start)
            except ConnectionError:
                failed_at.append(begun[-1])
            else:
                break
        await left.check()
    await settle(inserter.insert(Act("complete")))
    await watch.state("completed")
    await call(client.stop)
    assert {"Completer", "Notifier", "Elector", "Producer"} <= set(failed_at)
    await left.check()


async def test_row_of_the_registry_is_there_before_the_first_claim(
    client: Any, left: Left, database_url: str, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it nobody could judge a claim whose client dies at once."""
    registered: list[int] = []
    real = Producer.start

    async def start(producer: Producer) -> None:
        registered.append(len(await asyncio.to_thread(_registry, database_url, schema)))
        await real(producer)

    monkeypatch.setattr(Producer, "start", start)
    await call(client.start)
    assert registered == [1]
    await call(client.stop)
    assert _registry(database_url, schema) == []
    await left.check()


def _registry(url: str, schema: str) -> list[Any]:
    with psycopg.connect(url, application_name="riverq_tests") as conn:
        table = Identifier(schema, "riverq_client")
        return conn.execute(SQL("SELECT client_id FROM {}").format(table)).fetchall()


@pytest.mark.parametrize("adapter", ["psycopg_async", "asyncpg"])
async def test_start_that_is_cancelled_at_any_service_leaves_nothing_and_works_when_repeated(
    client: Any, inserter: Any, left: Left, watch: Watch
) -> None:
    for number in itertools.count(1):
        starting = asyncio.create_task(client.start())
        with at_start(number, starting.cancel):
            await asyncio.wait([starting])
        if not starting.cancelled():
            break
        await left.check()
    assert number > 4
    await settle(inserter.insert(Act("complete")))
    await watch.state("completed")
    await client.stop()


@pytest.mark.parametrize("adapter", ["psycopg_async", "asyncpg"])
async def test_start_cancelled_twice_leaves_nothing(client: Any, left: Left) -> None:
    """The second time while what was started is being stopped."""
    starting = asyncio.create_task(client.start())
    real = Service.stop

    async def stop(service: Service) -> None:
        starting.cancel()
        await real(service)

    with pytest.MonkeyPatch.context() as patch, at_start(5, starting.cancel):
        patch.setattr(Service, "stop", stop)
        await asyncio.wait([starting])
    assert starting.cancelled()
    await left.check()


async def test_stops_before_any_start_do_nothing(client: Any, left: Left) -> None:
    for name in ("stop", "stop_and_cancel", "stop_and_cancel", "stop"):
        await call(getattr(client, name))
    await left.check()
    await call(client.start)
    await call(client.start)
    await call(client.stop)


@pytest.mark.parametrize("names", list(itertools.product(["stop", "stop_and_cancel"], repeat=3)), ids="+".join)
@pytest.mark.parametrize("adapter", ["psycopg", "asyncpg"])
async def test_stops_in_every_order_end_it_once(
    client: Any, inserter: Any, left: Left, watch: Watch, names: tuple[str, ...]
) -> None:
    await call(client.start)
    await settle(inserter.insert(Act("complete")))
    await watch.state("completed")
    await asyncio.gather(*(call(getattr(client, name)) for name in names))
    await call(getattr(client, names[0]))
    await left.check()


async def test_stops_during_the_start_stop_what_it_starts(client: Any, left: Left) -> None:
    loop = asyncio.get_running_loop()
    for number in (1, 4):
        begun = asyncio.Event()
        with at_start(number, partial(loop.call_soon_threadsafe, begun.set)):
            starting = asyncio.create_task(call(client.start))
            await begun.wait()
            await asyncio.gather(call(client.stop), call(client.stop_and_cancel))
            await starting
        await left.check()


async def test_start_during_a_stop_runs_anew(client: Any, inserter: Any, left: Left, watch: Watch) -> None:
    for expected in (1, 2, 3):
        await call(client.start)
        stopping = asyncio.create_task(call(client.stop))
        await asyncio.sleep(0)
        await asyncio.gather(call(client.start), call(client.start))
        await stopping
        await call(client.start)  # where both were quicker than the stop
        await settle(inserter.insert(Act("complete")))
        await watch.state("completed", expected)
    await call(client.stop)
    await left.check()


FORKED = """
import inspect, os, sys
import sqlalchemy as sa
import riverq
from tests.client.faces import Greet

def make(url):
    workers = riverq.Workers()

    @workers.work
    def greet(job: riverq.Job[Greet]) -> None:
        os.write(worked, b"w")

    queues = {"default": riverq.QueueConfig(max_workers=1)}
    return riverq.Client(sa.create_engine(url), riverq.Config(schema=sys.argv[2], workers=workers, queues=queues))

heard, worked = os.pipe()
client = make(sys.argv[1])
client.start()
client.insert(Greet("before"))
assert os.read(heard, 1) == b"w"
child = os.fork()
if child == 0:
    verbs = {
        "insert": lambda: client.insert(Greet("x")),
        "insert_many": lambda: client.insert_many([Greet("x")]),
        "insert_many_fast": lambda: client.insert_many_fast([Greet("x")]),
        "start": client.start,
        "stop": client.stop,
        "stop_and_cancel": client.stop_and_cancel,
        "job_delete_many": lambda: client.job_delete_many(unfiltered=True),
        "job_iter": lambda: next(iter(client.job_iter())),
    }
    arguments = {"job_id": 1, "name": "default", "params": None, "metadata": {}}
    for name, verb in inspect.getmembers(client, inspect.ismethod):
        if name.startswith(("job_", "queue_")) and name not in verbs:
            taken = inspect.signature(verb).parameters.values()
            needed = [arguments.get(p.name, 1) for p in taken if p.default is p.empty and p.kind != p.VAR_KEYWORD]
            verbs[name] = lambda verb=verb, needed=needed: verb(*needed)
    for name, verb in verbs.items():
        try:
            verb()
        except riverq.UsageError as error:
            assert "make the engine and the client after the fork" in str(error), error
        else:
            os.write(2, f"{name} was let through\\n".encode())
            os._exit(1)
    own = make(sys.argv[1])
    own.start()
    own.insert(Greet("child"))
    assert os.read(heard, 1) == b"w"
    own.stop()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
client.insert(Greet("after"))
assert os.read(heard, 1) == b"w"
client.stop()
print("unharmed")
"""


@pytest.mark.parametrize("adapter", ["psycopg", "pg8000"])
def test_forked_child_is_told_at_every_verb_and_may_make_its_own(adapter: str, database_url: str, schema: str) -> None:
    url = adapter_url(database_url, adapter).render_as_string(hide_password=False)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, url, schema],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("unharmed\n", 0), done.stderr


@pytest.mark.parametrize("adapter", ["psycopg_async", "asyncpg"])
def test_async_client_in_a_second_loop_is_told_and_the_first_goes_on(
    adapter: str, database_url: str, schema: str
) -> None:
    engine: AsyncEngine = create_async_engine(adapter_url(database_url, adapter))
    client = riverq.AsyncClient(engine, config(schema, acting_workers("async def")))

    async def insert() -> None:
        await client.insert(Greet("x"), session=None)

    async def elsewhere() -> None:
        for verb in (client.start, client.stop, client.stop_and_cancel, insert):
            with pytest.raises(riverq.UsageError, match="loop"):
                await verb()

    async def first() -> None:
        await client.start()
        await asyncio.to_thread(asyncio.run, elsewhere())
        await client.insert(Act("complete"))
        await client.stop()
        await engine.dispose()

    asyncio.run(first())
