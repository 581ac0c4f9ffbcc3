"""`Config.error_handler` through both clients; what it may do is in tests/worker/test_error_handling.py."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import riverq
from tests.client.faces import make_client, settle
from tests.client.working import Act, Watch, acting_workers, config, working
from tests.fix_database import EngineMaker


class GivesUp:
    """Cancels what failed."""

    def __init__(self) -> None:
        self.told: list[tuple[int, str, bool]] = []

    def handle_error(self, row: riverq.JobRow, error: BaseException) -> riverq.ErrorResult | None:
        self.told.append((row.id, str(error), threading.current_thread().name.startswith("riverq_job")))
        return riverq.ErrorResult.CANCEL


class GivesUpAsync(GivesUp):
    async def handle_error(self, row: riverq.JobRow, error: BaseException) -> riverq.ErrorResult | None:  # type: ignore[override]  # one test for both
        await asyncio.sleep(0)
        return super().handle_error(row, error)


@pytest.mark.parametrize("handler", [GivesUp(), GivesUpAsync()], ids=["def", "async def"])
@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_both_clients_ask_handlers_of_either_style(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch, kind: str, handler: Any
) -> None:
    handler.told.clear()
    client = make_client(make_engine(adapter), config(schema, acting_workers(kind), error_handler=handler))
    async with working(client):
        await settle(client.insert_many([Act("error"), Act("complete"), Act("discard")]))
        rows = await watch.until(lambda rows: all(row["finalized_at"] for row in rows))
    assert [row["state"] for row in rows] == ["cancelled", "completed", "discarded"]
    assert rows[0]["errors"][0]["error"] == "ValueError: no such thing\\x00 here"
    assert handler.told == [(rows[0]["id"], "no such thing\0 here", type(handler) is GivesUp)]


@pytest.mark.parametrize("error", [KeyboardInterrupt("mine"), GeneratorExit("mine")], ids=repr)
async def test_in_the_thread_of_a_sync_client_a_worker_may_raise_anything(
    make_engine: EngineMaker, schema: str, watch: Watch, error: BaseException
) -> None:
    """Nobody presses a key there: passed on, it would end the loop of a client that seems to live."""
    workers = riverq.Workers()

    @workers.work
    async def act(job: riverq.Job[Act]) -> None:
        if job.args.how == "error":
            raise error

    handler = GivesUp()
    client = make_client(make_engine("psycopg"), config(schema, workers, error_handler=handler))
    async with working(client):
        client.insert(Act("error"))
        await watch.state("cancelled")
        client.insert(Act("complete"))
        await watch.state("completed")
    assert [told[1] for told in handler.told] == ["mine"]
