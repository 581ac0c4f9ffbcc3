from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from riverq.job import JobState
from riverq.state import cancelled, completed, errored
from riverq.worker.completer import CompleterConfig
from tests.worker.harness import ERROR, SHORT, House, Rows, finished, locked, report, run_sql, until


@pytest.mark.parametrize("plain", [True, False])
async def test_a_locked_row_holds_up_nobody_else(any_house: House, plain: bool) -> None:
    house = any_house
    ids = house.rows.insert(count=50)
    contexts = await house.claim()
    house.completer_config = CompleterConfig(lock_timeout=SHORT, lock_backoff=SHORT)
    await house.start(house.completer)
    with locked(house.rows, ids[7]) as other:
        for context in contexts:
            house.completer.report(finished(context, completed(context.run, metadata=None if plain else '{"a": 1}')))
        done = [await house.settled.wait() for _ in range(49)]
        assert ids[7] not in {each.finished.context.claimed.id for each in done}
        assert await house.completer.slow_tried.wait() == ids[7]
        assert house.completer.stats.slow == 1
        assert house.rows.states() == {"completed": 49, "running": 1}
        other.commit()
        settled = await house.settled.wait()
    assert (settled.finished.context.claimed.id, settled.lost, settled.state) == (ids[7], False, JobState.COMPLETED)
    assert house.rows.states() == {"completed": 50}
    assert house.completer.stats.slow == 0


async def test_an_open_duplicate_unique_insert_is_such_a_lock(house: House) -> None:
    key: dict[str, Any] = {"unique_key": b"k" * 32, "unique_states": "11111111"}
    ids = [*house.rows.insert(**key), *house.rows.insert(count=3)]
    contexts = await house.claim()
    house.completer_config = CompleterConfig(lock_timeout=SHORT, lock_backoff=SHORT)
    await house.start(house.completer)
    with house.rows.other() as other:
        run_sql(
            other,
            house.rows.schema,
            "INSERT INTO JOB AS job (kind, max_attempts, args, unique_key, unique_states) "
            "VALUES ('echo', 25, '{}', %(key)s, B'11111111') ON CONFLICT (unique_key) WHERE unique_key IS NOT NULL "
            "AND unique_states IS NOT NULL AND river_job_state_in_bitmask(unique_states, state) "
            "DO UPDATE SET kind = job.kind RETURNING id".replace(
                "river_job_state_in_bitmask", f'"{house.rows.schema}".river_job_state_in_bitmask'
            ),
            key=b"k" * 32,
        )
        await report(house, *[finished(context) for context in contexts[1:]])
        house.completer.report(finished(contexts[0]))
        assert await house.completer.slow_tried.wait() == ids[0]
        assert house.rows.states() == {"completed": 3, "running": 1}
        other.commit()
        await house.settled.wait()
    assert house.rows.states() == {"completed": 4}


async def test_a_locked_row_that_is_lost_meanwhile_is_settled(house: House) -> None:
    [job_id] = house.rows.insert()
    [context] = await house.claim()
    house.completer_config = CompleterConfig(lock_timeout=timedelta(seconds=30))
    await house.start(house.completer)
    with locked(house.rows, job_id) as other:
        house.completer.report(finished(context))
        await until(lambda: house.completer.stats.slow)
        run_sql(other, house.rows.schema, "UPDATE JOB SET state = 'available' WHERE id = %(id)s", id=job_id)
        other.commit()
    settled = await house.settled.wait()
    assert (settled.lost, settled.state) == (True, JobState.AVAILABLE)


async def test_stop_waits_for_the_slow_lane(house: House) -> None:
    ids = house.rows.insert(count=2)
    contexts = await house.claim()
    house.completer_config = CompleterConfig(lock_timeout=SHORT, lock_backoff=SHORT)
    await house.start(house.completer)
    with locked(house.rows, ids[0]) as other:
        for context in contexts:
            house.completer.report(finished(context))
        assert await house.completer.slow_tried.wait() == ids[0]
        stopping = asyncio.create_task(house.completer.stop())
        assert await house.completer.slow_tried.wait() == ids[0]
        assert not stopping.done()
        other.commit()
    await stopping
    assert house.rows.states() == {"completed": 2}


@pytest.mark.parametrize("by", ["grace", "leave"])
async def test_what_stays_locked_is_left_to_rescue_and_named(
    house: House, caplog: pytest.LogCaptureFixture, by: str
) -> None:
    [job_id] = house.rows.insert()
    [context] = await house.claim()
    grace = timedelta(milliseconds=50) if by == "grace" else timedelta(hours=1)
    house.completer_config = CompleterConfig(lock_timeout=SHORT, lock_backoff=SHORT, stop_grace=grace)
    await house.start(house.completer)
    with locked(house.rows, job_id):
        house.completer.report(finished(context))
        await house.completer.slow_tried.wait()
        stopping = asyncio.create_task(house.completer.stop())
        if by == "leave":
            await house.completer.slow_tried.wait()
            house.completer.leave()
        await stopping
    assert f"job_id=[{job_id}]" in caplog.text
    assert house.rows.states() == {"running": 1}


async def test_a_poison_row_is_found_and_fails_alone(house: House) -> None:
    ids = house.rows.insert(count=9)
    contexts = await house.claim()
    poison = contexts[4]
    states = [cancelled(context.run, error=ERROR) for context in contexts]
    states[4] = completed(poison.run, metadata='{"a": "\\u0000"}')  # valid JSON that jsonb refuses
    await house.start(house.completer)
    settled = await report(house, *[finished(*each) for each in zip(contexts, states, strict=True)])
    assert len(settled) == 9
    assert house.rows.states() == {"cancelled": 8, "available": 1}
    row = house.rows.get(ids[4])
    assert row["errors"][0]["error"].startswith("the outcome of this attempt could not be stored: ")
    assert (row["metadata"], row["attempt"]) == ({}, 1)


async def test_a_poison_row_without_attempts_is_discarded(house: House) -> None:
    [job_id] = house.rows.insert(max_attempts=1)
    [context] = await house.claim()
    await house.start(house.completer)
    [settled] = await report(house, finished(context, completed(context.run, metadata='{"a": "\\u0000"}')))
    assert (settled.state, house.rows.get(job_id)["state"]) == (JobState.DISCARDED, "discarded")


async def test_a_state_that_the_unique_index_refuses_becomes_discarded(house: House) -> None:
    """Its mask has `available` but not `running`, and a twin took the key meanwhile."""
    key: dict[str, Any] = {"unique_key": b"k" * 32, "unique_states": "00000001"}
    [job_id] = house.rows.insert(**key)
    [context] = await house.claim()
    house.rows.insert(**key)
    await house.start(house.completer)
    [settled] = await report(
        house, finished(context, errored(context.run, error=ERROR, retry=timedelta(0), short=True))
    )
    assert (settled.state, house.rows.get(job_id)["state"]) == (JobState.DISCARDED, "discarded")


async def test_a_job_for_which_nothing_can_be_stored_is_left_to_rescue(
    house: House, scratch_schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = Rows(house.rows.url, scratch_schema)
    other = House(house.engine, rows)
    try:
        rows.sql(
            f"""CREATE FUNCTION "{scratch_schema}".refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$BEGIN IF NEW.state <> 'running' THEN RAISE 'not today'; END IF; RETURN NEW; END$$"""
        )
        rows.insert()
        rows.sql(
            f'CREATE TRIGGER refuse BEFORE UPDATE ON JOB FOR EACH ROW EXECUTE FUNCTION "{scratch_schema}".refuse()'
        )
        [context] = await other.claim()
        await other.start(other.completer)
        other.completer.report(finished(context))
        await until(lambda: other.completer.stats.abandoned)
        assert rows.states() == {"running": 1}
        assert "nothing can be stored for it" in caplog.text
    finally:
        await other.close()
        rows.close()
