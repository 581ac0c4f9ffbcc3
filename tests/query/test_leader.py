from __future__ import annotations

import json
from datetime import timedelta

import pytest
import sqlalchemy as sa

from riverq.query.leader import (
    Leader,
    leader_attempt_elect,
    leader_attempt_reelect,
    leader_current,
    leader_get,
    leader_resign,
)
from riverq.query.statement import sqlstate
from tests.fix_server import audible
from tests.query.arrange import CLAIMED_AT as NOW
from tests.query.arrange import ME, Caller, Table, payloads

TTL = timedelta(seconds=15)
MICROSECOND = timedelta(microseconds=1)


def elect(call: Caller, leader_id: str = ME, *, after: timedelta = timedelta(0)) -> Leader | None:
    return call(leader_attempt_elect, leader_id=leader_id, ttl=TTL, now=NOW + after)


def renew(call: Caller, term: Leader, *, after: timedelta) -> Leader | None:
    return call(leader_attempt_reelect, leader_id=term.leader_id, elected_at=term.elected_at, ttl=TTL, now=NOW + after)


def test_the_first_bid_wins_a_term(call: Caller) -> None:
    assert call(leader_get) is None
    assert elect(call) == Leader(ME, NOW, NOW + TTL)
    assert call(leader_get) == Leader(ME, NOW, NOW + TTL)


def test_the_databases_clock_is_used_by_default(call: Caller, table: Table) -> None:
    before = table.now()
    term = call(leader_attempt_elect, leader_id=ME, ttl=TTL)
    assert term is not None
    assert before <= term.elected_at <= table.now()
    assert term.expires_at - term.elected_at == TTL
    again = call(leader_attempt_reelect, leader_id=ME, elected_at=term.elected_at, ttl=TTL)
    assert again is not None
    assert again.elected_at == term.elected_at
    assert again.expires_at > term.expires_at


def test_who_leads_now_is_whose_term_has_not_expired(call: Caller) -> None:
    assert call(leader_current, now=NOW) is None
    elect(call)
    leader = Leader(ME, NOW, NOW + TTL)
    assert call(leader_current, now=NOW) == call(leader_current, now=NOW + TTL) == leader
    over = NOW + TTL + MICROSECOND
    assert call(leader_current, now=over) is None, "from the moment on at which another's bid would win"
    assert call(leader_get) == leader, "though the row is left"
    renewed = renew(call, leader, after=TTL)
    assert call(leader_current, now=over) == renewed
    assert call(leader_resign, leader_id=ME, elected_at=NOW) is True
    assert call(leader_current, now=NOW) is None


def test_who_leads_now_is_asked_of_the_databases_clock(call: Caller, table: Table) -> None:
    term = call(leader_attempt_elect, leader_id=ME, ttl=timedelta(hours=1))
    assert call(leader_current) == term
    table.sql("UPDATE {leader} SET expires_at = now() - interval '1 second'")
    assert call(leader_current) is None


@pytest.mark.parametrize("bidder", [ME, "other"])
def test_a_term_that_runs_is_not_taken(call: Caller, bidder: str) -> None:
    elect(call)
    assert elect(call, bidder, after=TTL) is None
    assert elect(call, bidder, after=TTL + MICROSECOND) == Leader(
        bidder, NOW + TTL + MICROSECOND, NOW + 2 * TTL + MICROSECOND
    )


def test_only_the_own_running_term_is_renewed(call: Caller) -> None:
    term = elect(call)
    assert term is not None
    assert renew(call, term._replace(leader_id="other"), after=MICROSECOND) is None
    assert renew(call, term._replace(elected_at=NOW + MICROSECOND), after=MICROSECOND) is None
    assert renew(call, term, after=TTL) == Leader(ME, NOW, NOW + 2 * TTL)
    assert renew(call, term, after=2 * TTL + MICROSECOND) is None


def test_resigning_ends_the_term_and_says_so_once(call: Caller, table: Table) -> None:
    table.conn.execute(f'LISTEN "{call.schema}.river_leadership"')
    term = elect(call)
    assert term is not None
    assert call(leader_resign, leader_id=ME, elected_at=NOW + MICROSECOND) is False
    assert call(leader_resign, leader_id="other", elected_at=NOW) is False
    assert call(leader_resign, leader_id=ME, elected_at=NOW) is True
    assert call(leader_get) is None
    heard = payloads(table)
    assert heard == audible(['{"leader_id" : "me", "action" : "resigned"}'])
    assert [json.loads(each)["action"] for each in heard] == audible(["resigned"])


def test_an_id_is_quoted_in_the_payload(call: Caller, table: Table) -> None:
    table.conn.execute(f'LISTEN "{call.schema}.river_leadership"')
    elect(call, 'a"b\\c')
    assert call(leader_resign, leader_id='a"b\\c', elected_at=NOW) is True
    assert [json.loads(each) for each in payloads(table)] == audible([{"leader_id": 'a"b\\c', "action": "resigned"}])


def test_two_bids_at_once_make_one_leader(call: Caller, engine: sa.Engine) -> None:
    with engine.connect() as other:
        assert leader_attempt_elect(other, call.schema, leader_id="other", ttl=TTL) is not None

        def bid(conn: sa.Connection, schema: str) -> Leader | None:
            conn.exec_driver_sql("SET LOCAL lock_timeout = '50ms'")
            return leader_attempt_elect(conn, schema, leader_id=ME, ttl=TTL)

        with pytest.raises(sa.exc.DBAPIError) as caught:  # it waits for the other's transaction
            call(bid)
        assert sqlstate(caught.value) == "55P03"
        other.commit()
    assert call(bid) is None
