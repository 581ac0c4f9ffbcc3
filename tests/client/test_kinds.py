"""Kinds on their whole way through a client: aliases, and the kinds that a client knows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import riverq
from riverq.client.core import Core
from riverq.insert_opts import InsertItem
from riverq.maintenance.job_rescuer import StuckJobRules
from riverq.query.job_fetch import ClaimedRow, claimed_job
from riverq.query.job_rescue import RunFence, StuckRow
from riverq.retry_policy import DefaultRetryPolicy
from riverq.unique import unique_key
from tests.client.faces import make_client, settle
from tests.client.working import Act, Watch, acting_workers, config, working
from tests.fix_database import EngineMaker

BY_ARGS = riverq.UniqueOpts(by_args=True)


@riverq.job_args("new_name", aliases=["old_name"], unique_opts=BY_ARGS)
@dataclass
class Renamed:
    number: int


@riverq.job_args("old_name", unique_opts=BY_ARGS)
@dataclass
class Before:
    """The same class as an older process has it."""

    number: int


def renamed_workers(seen: list[tuple[str, int]]) -> riverq.Workers:
    workers = riverq.Workers()

    @workers.work
    def work(job: riverq.Job[Renamed]) -> None:
        seen.append((job.row.kind, job.args.number))

    return workers


@pytest.mark.parametrize("filtered", [False, True], ids=["every kind", "known kinds"])
async def test_jobs_of_the_old_kind_are_worked_under_their_own_name(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch, filtered: bool
) -> None:
    seen: list[tuple[str, int]] = []
    workers = renamed_workers(seen)
    older = make_client(make_engine(adapter), riverq.Config(schema=schema))
    client = make_client(make_engine(adapter), config(schema, workers, fetch_only_known_kinds=filtered))
    await settle(older.insert(Before(1)))
    async with working(client):
        await settle(client.insert(Renamed(2)))
        await settle(client.insert(riverq.RawArgs("old_name", {"number": 3})))  # known, though only as an alias
        rows = await watch.state("completed", 3)
    assert [(row["kind"], row["args"]["number"], row["attempt"]) for row in rows] == [
        ("old_name", 1, 1),
        ("new_name", 2, 1),
        ("old_name", 3, 1),
    ]
    assert sorted(seen) == [("new_name", 2), ("old_name", 1), ("old_name", 3)]


async def test_clients_of_one_queue_leave_each_other_their_kinds(
    adapter: str, make_engine: EngineMaker, schema: str, watch: Watch
) -> None:
    seen: list[tuple[str, int]] = []
    one = make_client(
        make_engine(adapter),
        config(schema, renamed_workers(seen), fetch_only_known_kinds=True, client_id="one"),
    )
    two = make_client(
        make_engine(adapter), config(schema, acting_workers("def"), fetch_only_known_kinds=True, client_id="two")
    )
    jobs = [item for n in range(20) for item in (Renamed(n), Act("complete"))]
    inserter = make_client(make_engine(adapter), riverq.Config(schema=schema))
    await settle(inserter.insert_many(jobs))
    async with working(one), working(two):
        rows = await watch.state("completed", 40)
    workers = {(row["kind"], *row["attempted_by"], row["errors"]) for row in rows}
    assert workers == {("new_name", "one", None), ("act", "two", None)}


def core(engine: Any, **settings: Any) -> Core:
    return Core(engine, riverq.Config(workers=renamed_workers([]), **settings))


def test_inserts_and_unique_keys_are_of_the_main_kind(make_engine: EngineMaker) -> None:
    """So a job of the old name is no duplicate of one of the new; without the kind in its key it is."""
    now = datetime.now(UTC)
    [params] = core(make_engine("psycopg")).prepare_many([Renamed(1)], {})
    assert params.kind == "new_name"

    def key(kind: str) -> bytes:
        return unique_key(BY_ARGS, kind=kind, encoded_args='{"number":1}', paths=(), at=now, queue="default")

    assert params.unique_key == key("new_name")
    assert params.unique_key != key("old_name")
    apart = {"unique_opts": riverq.UniqueOpts(by_args=True, exclude_kind=True)}
    keys = {core(make_engine("psycopg")).prepare_many([args], apart)[0].unique_key for args in (Renamed(1), Before(1))}
    assert len(keys) == 1


def test_a_periodic_job_is_of_the_main_kind(make_engine: EngineMaker) -> None:
    params = core(make_engine("psycopg")).prepare_item(InsertItem(Renamed(1)), datetime.now(UTC))
    assert params.kind == "new_name"


def test_inserting_the_old_class_needs_no_leave_where_the_alias_is_known(make_engine: EngineMaker) -> None:
    [params] = core(make_engine("psycopg")).prepare_many([Before(1)], {})
    assert params.kind == "old_name"
    with pytest.raises(riverq.UnknownJobKindError, match="did you mean 'old_name'"):
        core(make_engine("psycopg")).prepare_many([riverq.RawArgs("old_nam", {})], {})


def test_a_worker_given_its_kind_does_not_answer_to_aliases() -> None:
    workers = riverq.Workers()

    @workers.work(kind="third")
    def work(job: riverq.Job[Renamed]) -> None: ...

    assert workers.kinds() == ["third"]


def stuck_row(kind: str) -> StuckRow:
    """A job that has been running for long."""
    claimed = ClaimedRow(
        id=7,
        args='{"number":1}',
        kind=kind,
        attempt=1,
        max_attempts=25,
        attempted_at_us=1_767_323_045_123_400,
        created_at_us=1_767_323_045_000_000,
        scheduled_at_us=1_767_323_045_000_000,
        priority=1,
        metadata="{}",
        **dict.fromkeys(("tags", "errors", "attempted_by", "unique_key", "unique_states", "cancel_mark")),
    )
    row = claimed_job(claimed, queue="default", client_id="c1")
    return StuckRow(RunFence(7, claimed.attempted_at_us, "c1"), row, timedelta(days=1), False, False)


def test_the_rescuer_knows_aliases(make_engine: EngineMaker) -> None:
    workers = renamed_workers([])
    rules = StuckJobRules(
        core(make_engine("psycopg")).ctx,
        workers,
        job_timeout=timedelta(minutes=1),
        retry_policy=DefaultRetryPolicy(),
        on_unknown_kind="discard",
    )
    for kind, unknown in (("old_name", False), ("new_name", False), ("stranger", True)):
        assert rules.past_horizon(stuck_row(kind)).is_unknown is unknown
        assert rules.orphaned(stuck_row(kind)).is_unknown is unknown
