"""Schemas whose names need care: every statement and every channel must quote them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from riverq import migrate
from tests.client.faces import make_client, settle
from tests.client.working import SECOND, Act, Watch, acting_workers, config, working
from tests.fix_database import EngineMaker, new_engine

NAMES = ("My Jobs", '50%off "q":naïve')


@pytest.fixture(params=NAMES)
def odd_schema(request: pytest.FixtureRequest, database_url: str) -> Iterator[str]:
    name: str = request.param
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(SQL("CREATE SCHEMA {}").format(Identifier(name)))
        engine: Any = new_engine(database_url, "psycopg")
        try:
            migrate.up(engine, schema=name)
            yield name
        finally:
            engine.dispose()
            conn.execute(SQL("DROP SCHEMA {} CASCADE").format(Identifier(name)))


@pytest.mark.own_session("the search_path that its engine sets")
async def test_works_in_a_schema_of_any_name(
    adapter: str, make_engine: EngineMaker, database_url: str, odd_schema: str
) -> None:
    # The engine's own search_path is the only way to such a schema; River's `schema` setting takes plain names only.
    engine: Any = make_engine(adapter, search_path=odd_schema)
    client = make_client(engine, config(None, acting_workers("def")))
    watch = Watch(database_url, odd_schema)
    async with working(client):
        await settle(client.insert(Act("once")))
        await settle(client.insert_many_fast([Act("complete")]))
        await settle(client.insert(Act("output"), delay=SECOND))
        rows = await watch.state("completed", 3)
    assert sorted(row["args"]["how"] for row in rows) == ["complete", "once", "output"]
