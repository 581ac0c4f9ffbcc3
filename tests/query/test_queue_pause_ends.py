from __future__ import annotations

from datetime import timedelta

import pytest
from psycopg.sql import SQL, Identifier

from riverq.query.queue import (
    queue_create_or_touch,
    queue_end_pauses,
    queue_pause,
    queue_pause_ends,
    queue_resume,
)
from tests.query.arrange import CLAIMED_AT as NOW
from tests.query.arrange import Caller, Table

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)


@pytest.fixture
def paused(call: Caller) -> Caller:
    """Three queues: one paused until an hour from now, one without an end, one that runs."""
    for name in ("mail", "lasting", "running"):
        call(queue_create_or_touch, name, now=NOW)
    call(queue_pause, "mail", until=NOW + HOUR, own_tables=True, now=NOW)
    call(queue_pause, "lasting", own_tables=True, now=NOW)
    return call


def test_only_pauses_that_have_an_end_are_told(paused: Caller) -> None:
    assert paused(queue_pause_ends) == {"mail": NOW + HOUR}


def test_there_are_none_where_nothing_is_paused(call: Caller) -> None:
    assert call(queue_pause_ends) == {}


def test_an_end_is_exact_and_the_last_one_given(paused: Caller) -> None:
    exact = NOW + timedelta(microseconds=1)
    paused(queue_pause, "mail", until=exact, own_tables=True, now=NOW + SECOND)
    paused(queue_pause, "lasting", until=HOUR, own_tables=True, now=NOW + SECOND)
    assert paused(queue_pause_ends) == {"mail": exact, "lasting": NOW + SECOND + HOUR}


def test_a_lasting_pause_takes_the_end_back(paused: Caller) -> None:
    paused(queue_pause, "mail", own_tables=True, now=NOW + SECOND)
    assert paused(queue_pause_ends) == {}


def test_all_queues_at_once(paused: Caller) -> None:
    paused(queue_pause, "*", until=NOW + 2 * HOUR, own_tables=True, now=NOW + SECOND)
    assert paused(queue_pause_ends) == dict.fromkeys(("mail", "lasting", "running"), NOW + 2 * HOUR)
    paused(queue_resume, "*", own_tables=True, now=NOW + 2 * SECOND)
    assert paused(queue_pause_ends) == {}


@pytest.mark.parametrize("by", ["own tables unknown", "another language"])
def test_an_intention_that_a_resume_made_void_is_not_told(paused: Caller, table: Table, by: str) -> None:
    if by == "another language":
        table.sql("UPDATE {queue} SET paused_at = NULL WHERE name = 'mail'")
    else:
        paused(queue_resume, "mail", own_tables=False, now=NOW + SECOND)
    assert paused(queue_pause_ends) == {}
    table.sql("UPDATE {queue} SET paused_at = %s WHERE name = 'mail'", NOW + 2 * SECOND)
    assert paused(queue_pause_ends) == {}, "this is another pause"


def test_an_end_that_is_due_is_told_until_somebody_resumes(paused: Caller) -> None:
    assert paused(queue_pause_ends) == {"mail": NOW + HOUR}
    assert paused(queue_end_pauses, now=NOW + HOUR).resumed == ["mail"]
    assert paused(queue_pause_ends) == {}


def test_an_intention_without_its_queue_is_not_told(paused: Caller, table: Table) -> None:
    table.sql("DELETE FROM {queue} WHERE name = 'mail'")
    own = Identifier(paused.schema, "riverq_queue")
    assert table.conn.execute(SQL("SELECT name FROM {}").format(own)).fetchall() == [{"name": "mail"}]
    assert paused(queue_pause_ends) == {}


def test_names_of_any_kind(call: Caller) -> None:
    name = "Grüße-☂_1"
    call(queue_create_or_touch, name, now=NOW)
    call(queue_pause, name, until=NOW + HOUR, own_tables=True, now=NOW)
    assert call(queue_pause_ends) == {name: NOW + HOUR}
