"""Two minutes of a drained pool and an open transaction, on the four adapters at once."""

from __future__ import annotations

import asyncio

import pytest

from riverq.elector import ElectorTiming
from tests.client.drained import four_drained
from tests.fix_database import EngineMaker
from tests.fix_schema import SchemaPool

TWO_MINUTES = 120


@pytest.mark.slow  # two minutes on a real clock: eight leases, in which nothing may be missed
async def test_the_leader_stays_through_two_minutes_of_a_drained_pool(
    make_engine: EngineMaker, schema_pool: SchemaPool
) -> None:
    renewals = int(TWO_MINUTES / ElectorTiming().interval.total_seconds())
    async with four_drained(make_engine, schema_pool) as all_drained:
        await asyncio.gather(*(drained.renewals(renewals) for drained in all_drained))
