"""Every service that riverq has starts and stops as the contract says, hammered on a real database.

The services are those of a client as it is assembled, so a new one is hammered as soon as a client has it; one that no
client has fails the first test.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

import riverq
from riverq.client.assembly import Services, assemble
from riverq.client.lifecycle import Faces, Runtime
from riverq.periodic import PeriodicJob
from riverq.schedule import every
from riverq.service import Service
from tests.client.faces import Greet
from tests.fix_database import EngineMaker
from tests.service.stress import stress_start_stop

ADAPTERS = ("psycopg", "asyncpg")


def leaves(base: type[Service]) -> Iterator[type[Service]]:
    """The classes of riverq that are made, rather than derived from."""
    derived = [one for one in base.__subclasses__() if one.__module__.startswith("riverq.")]
    if not derived:
        yield base
    for one in derived:
        yield from leaves(one)


def every_service() -> list[str]:
    for module in pkgutil.walk_packages(riverq.__path__, "riverq."):
        if not module.name.startswith(("riverq.testing", "riverq.__main__", "riverq.bench", "riverq.demo")):
            importlib.import_module(module.name)
    return sorted({service.__name__ for service in leaves(Service)})


def services_of(services: Services) -> list[Service]:
    assert services.leading is not None
    found = [services.loop_watch, services.completer, services.liveness, services.notifier, *services.optional()]
    return [*found, *services.leading.maintainer.services, *services.producers.values()]


def greeting() -> Greet:
    return Greet("again")


def config(schema: str) -> riverq.Config:
    workers = riverq.Workers()

    @workers.work
    def greet(job: riverq.Job[Greet]) -> None:
        pass

    return riverq.Config(
        schema=schema,
        workers=workers,
        queues={"default": riverq.QueueConfig(max_workers=2)},
        periodic_jobs=[PeriodicJob(every(timedelta(hours=1)), greeting, run_on_start=True)],
    )


@pytest.fixture
async def services(adapter: str, make_engine: EngineMaker, schema: str) -> AsyncIterator[dict[str, Service]]:
    engine = make_engine(adapter)
    made: Any = riverq.AsyncClient if isinstance(engine, AsyncEngine) else riverq.Client
    client = made(engine, config(schema))

    def no_face() -> Any:
        raise AssertionError("no job runs here")

    runtime = Runtime(client._core, client._engines, Faces(no_face, no_face))
    databases = await runtime._connect()
    services = assemble(client._core, databases, runtime._faces)
    yield {type(service).__name__: service for service in services_of(services)}
    services.threads.shutdown(wait=False)
    for database in databases.owned:
        await database.close()


@pytest.mark.parametrize("adapter", ["psycopg"])
async def test_a_client_has_every_service_that_there_is(services: dict[str, Service]) -> None:
    assert sorted(services) == every_service()


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("name", every_service())
async def test_start_stop_stress(services: dict[str, Service], name: str) -> None:
    await stress_start_stop(services[name], tasks=5, rounds=4)
