"""An application that has used up its own pool does not cost its client the leadership."""

from __future__ import annotations

import asyncio

import pytest

from tests.client.drained import four_drained
from tests.fix_database import EngineMaker
from tests.fix_schema import SchemaPool


@pytest.mark.slow  # two renewals at the real interval of 5 s; the four adapters wait together
async def test_no_renewal_is_missed_while_the_applications_pool_is_drained(
    make_engine: EngineMaker, schema_pool: SchemaPool
) -> None:
    async with four_drained(make_engine, schema_pool) as all_drained:
        assert len(all_drained) == 4
        await asyncio.gather(*(drained.renewals(3) for drained in all_drained))
