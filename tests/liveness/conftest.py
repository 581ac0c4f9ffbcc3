from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from riverq.driver import AnyEngine, load_driver
from riverq.liveness import Liveness, LivenessTiming
from riverq.service import ServiceContext
from tests.fix_database import EngineMaker
from tests.liveness.registry import HEART, LISTENER, Registry

GRACE = timedelta(seconds=30)
FAST = LivenessTiming(
    interval=timedelta(milliseconds=30),
    limit=timedelta(seconds=10),
    stop_limit=timedelta(seconds=10),
    first_backoff=timedelta(milliseconds=5),
)

LivenessMaker = Callable[..., Liveness]


@pytest.fixture
def registry(database_url: str, schema: str) -> Iterator[Registry]:
    registry = Registry(database_url, schema)
    yield registry
    registry.close()


def named(adapter: str, name: str) -> dict[str, Any]:
    """The connect_args that make every connection recognizable."""
    return {"server_settings": {"application_name": name}} if adapter == "asyncpg" else {"application_name": name}


@pytest.fixture
def heart_engine(make_engine: EngineMaker, adapter: str) -> AnyEngine:
    """What the heart connects like; a pool that is too small for anything else."""
    return make_engine(adapter, connect_args=named(adapter, HEART), pool_size=1, max_overflow=0)


@pytest.fixture
def listener_engine(make_engine: EngineMaker, adapter: str) -> AnyEngine:
    return make_engine(adapter, connect_args=named(adapter, LISTENER))


@pytest.fixture
async def make_liveness(ctx: ServiceContext, schema: str, heart_engine: AnyEngine) -> AsyncIterator[LivenessMaker]:
    """`make_liveness(engine=…, client_id=…, enabled=…, **timing)`; all are stopped after the test."""
    made: list[Liveness] = []

    def make(
        *,
        engine: AnyEngine = heart_engine,
        client_id: str = "me",
        enabled: bool = True,
        schema: str = schema,
        **timing: timedelta,
    ) -> Liveness:
        own = replace(ctx, client_id=client_id)
        liveness = Liveness(own, engine, load_driver(engine), schema=schema, grace=GRACE, enabled=enabled)
        liveness.timing = replace(FAST, **timing)
        for signal in (liveness.registered, liveness.beaten, liveness.failed, liveness.locked):
            signal.watch()
        made.append(liveness)
        return liveness

    yield make
    for liveness in made:
        await liveness.stop()


@pytest.fixture
async def liveness(make_liveness: LivenessMaker) -> Liveness:
    """One that has started."""
    liveness = make_liveness()
    await liveness.start()
    return liveness
