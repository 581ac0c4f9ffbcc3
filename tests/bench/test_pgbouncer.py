"""The bench through a real PgBouncer: it works, says whether notifications arrive, and leaves nothing behind."""

from __future__ import annotations

import pytest

from riverq.errors import PoolerError, RiverqError
from tests.bench.arrange import JOBS, Onlooker, run, small
from tests.fix_pgbouncer import PgBouncers

pytestmark = pytest.mark.pgbouncer


@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_it_measures_what_is_there(pgbouncers: PgBouncers, database_url: str, adapter: str, mode: str) -> None:
    plan = small()
    figures = await run(pgbouncers.url(mode), adapter, plan)
    assert figures.work.tally.completed == JOBS
    assert figures.work.tally.runs == JOBS
    assert figures.work.observed.error is None
    assert figures.latency.listens is (mode == "session")
    onlooker = Onlooker(database_url)
    with onlooker.conn:
        assert plan.schema not in onlooker.schemas()


async def test_statement_mode_is_refused(pgbouncers: PgBouncers, adapter: str) -> None:
    with pytest.raises(RiverqError, match="pool_mode=statement") as caught:
        await run(pgbouncers.url("statement"), adapter)
    assert isinstance(caught.value, PoolerError) or adapter == "asyncpg"
