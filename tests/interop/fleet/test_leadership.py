"""One leader for a fleet of both: election, terms, and what follows when a leader stops, dies or stands still."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

import pytest
import sqlalchemy as sa

from tests.interop.conftest import ProcessMaker
from tests.interop.place import Place
from tests.interop.sides import Row, Side
from tests.interop.waiting import PATIENCE, leader_of, until, until_leader, until_state

KIND = "oracle_outcome"
TTL = timedelta(seconds=15)
BETWEEN_BIDS = timedelta(seconds=5)
"""A follower that hears nothing bids this often at most."""
LONG_AGO = "2020-01-01T00:00:00Z"


class Entry(NamedTuple):
    """What happened to the leader's row: `bid`, `elected`, `renewed`, `ended`; `now` is the transaction's."""

    what: str
    leader_id: str
    elected_at: datetime
    expires_at: datetime
    now: datetime


DIARY = """
CREATE TABLE "{schema}".leader_diary (
    id bigserial, what text, leader_id text, elected_at timestamptz, expires_at timestamptz, at timestamptz);
CREATE FUNCTION "{schema}".leader_diary_write() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_WHEN = 'BEFORE' THEN  -- also where somebody leads, and the row stays out
        INSERT INTO "{schema}".leader_diary (what, leader_id, elected_at, expires_at, at)
        VALUES ('bid', NEW.leader_id, NEW.elected_at, NEW.expires_at, now());
        RETURN NEW;
    END IF;
    IF TG_OP = 'DELETE' OR TG_OP = 'UPDATE' AND NEW.elected_at <> OLD.elected_at THEN
        INSERT INTO "{schema}".leader_diary (what, leader_id, elected_at, expires_at, at)
        VALUES ('ended', OLD.leader_id, OLD.elected_at, OLD.expires_at, now());
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO "{schema}".leader_diary (what, leader_id, elected_at, expires_at, at)
        VALUES (CASE WHEN TG_OP = 'UPDATE' AND NEW.elected_at = OLD.elected_at THEN 'renewed' ELSE 'elected' END,
                NEW.leader_id, NEW.elected_at, NEW.expires_at, now());
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER diary_of_bids BEFORE INSERT ON "{schema}".river_leader
    FOR EACH ROW EXECUTE FUNCTION "{schema}".leader_diary_write();
CREATE TRIGGER diary AFTER INSERT OR UPDATE OR DELETE ON "{schema}".river_leader
    FOR EACH ROW EXECUTE FUNCTION "{schema}".leader_diary_write();
"""
SHORTEN = """
ALTER TABLE "{schema}".river_leader DISABLE TRIGGER diary;
UPDATE "{schema}".river_leader SET expires_at = now() + interval '1 second';
ALTER TABLE "{schema}".river_leader ENABLE TRIGGER diary;
"""
NO_DIARY = """
DROP FUNCTION "{schema}".leader_diary_write CASCADE;
DROP TABLE "{schema}".leader_diary;
"""


class Diary:
    """All that happens to `river_leader`, written down by the database: bids in vain, too."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def entries(self, *what: str, leader_id: str | None = None) -> list[Entry]:
        """In order; only of these kinds, or of this client, where given."""
        rows: list[Row] = self._place.scalars("SELECT to_jsonb(d) FROM {schema}.leader_diary d ORDER BY id")
        read = [
            Entry(row["what"], row["leader_id"], *(_time(row[name]) for name in ("elected_at", "expires_at", "at")))
            for row in rows
        ]
        return [entry for entry in read if (not what or entry.what in what) and leader_id in (None, entry.leader_id)]

    def until(self, what: str, leader_id: str | None = None, *, count: int = 1, seconds: float = PATIENCE) -> Entry:
        """Wait for so many such entries; the last."""

        def found() -> list[Entry]:
            entries = self.entries(what, leader_id=leader_id)
            return entries if len(entries) >= count else []

        entries: list[Entry] = until(found, f"{leader_id or 'somebody'} to have {what} {count} times", seconds=seconds)
        return entries[-1]

    def until_again(self, what: str, leader_id: str | None = None, *, seconds: float = PATIENCE) -> Entry:
        """Wait for one more such entry than there is now."""
        return self.until(what, leader_id, count=len(self.entries(what, leader_id=leader_id)) + 1, seconds=seconds)

    def shorten_the_lease(self) -> None:
        """Whoever leads does so for one more second, unless it renews its term."""
        self._execute(SHORTEN)

    def check(self) -> None:
        """Terms follow one another, nobody but its leader renews or resigns one, and both count by the same rules."""
        term: Entry | None = None
        for entry in self.entries("elected", "renewed", "ended"):
            if entry.what == "elected":
                assert term is None, f"{entry} within {term}"
                assert (entry.elected_at, entry.expires_at) == (entry.now, entry.now + TTL)
                term = entry
                continue
            assert term is not None
            assert (entry.leader_id, entry.elected_at) == (term.leader_id, term.elected_at)
            if entry.what == "renewed":
                assert entry.now <= term.expires_at, "a term that was over has been renewed"
                assert entry.expires_at == entry.now + TTL
                term = entry
            else:
                term = None

    def start(self) -> None:
        self._execute(DIARY)

    def end(self) -> None:
        self._execute(NO_DIARY)

    def _execute(self, script: str) -> None:
        with self._place.engine.begin() as connection:
            for statement in _statements(script.replace("{schema}", self._place.schema)):
                connection.execute(sa.text(statement.replace(":", "\\:")))


def _statements(script: str) -> list[str]:
    """Split at the ends of statements; a function's body is within dollars, and its lines are indented."""
    found, lines = [], []
    is_body = False
    for line in script.splitlines():
        lines.append(line)
        is_body ^= line.count("$$") % 2 == 1
        if line.endswith(";") and not is_body:
            found.append("\n".join(lines))
            lines = []
    return found


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.fixture
def diary(fleet: Place) -> Iterator[Diary]:
    """What happens to the leader's row; checked at the end."""
    diary = Diary(fleet)
    diary.start()
    yield diary
    try:
        diary.check()
    finally:
        diary.end()


def _heard(fleet: Place, count: int = 0) -> list[Row]:
    """What was heard of leadership, in words."""

    def of_leadership() -> list[Row]:
        heard = fleet.go("heard", name="ear", count=0)
        return [json.loads(each["payload"]) for each in heard if each["topic"] == "river_leadership"]

    until(lambda: len(of_leadership()) >= count, f"{count} notifications of leadership")
    return of_leadership()


# -- a leader that stops, dies, or stands still


@pytest.mark.scenario(
    "leadership", "one leads and renews its term; when it stops, the other hears it and leads at once"
)
def test_the_leader_stops(fleet: Place, diary: Diary, giver: Side, taker: Side) -> None:
    assert any(_is_followed_at_once(fleet, diary, giver, taker) for _ in range(3))


def _is_followed_at_once(fleet: Place, diary: Diary, giver: Side, taker: Side) -> bool:
    """One leads after the other. False where the first ended so late after a bid of the second that the next was near
    anyway: then it says nothing of what the second hears."""
    before = len(diary.entries("elected", "ended"))
    first = giver.start(KIND)
    diary.until("elected", first.id)
    second = taker.start(KIND)
    diary.until("bid", second.id)
    fleet.go("listen", name="ear")
    diary.until("renewed", first.id)
    assert leader_of(fleet) == first.id
    assert fleet.scalars("SELECT name FROM {schema}.river_leader") == ["default"]
    bid = diary.until_again("bid", second.id)
    first.stop()
    elected = diary.until("elected", second.id)
    [ended] = diary.entries("ended", leader_id=first.id)
    is_telling = ended.now - bid.now < BETWEEN_BIDS / 2
    assert not is_telling or elected.now - bid.now < BETWEEN_BIDS
    second.stop()
    assert fleet.scalars("SELECT leader_id FROM {schema}.river_leader") == []
    # Both tell it in the same bytes.
    payloads = [each["payload"] for each in fleet.go("heard", name="ear", count=2)]
    fleet.go("unlisten", name="ear")
    assert payloads == [
        f'{{"leader_id" : "{first.id}", "action" : "resigned"}}',
        f'{{"leader_id" : "{second.id}", "action" : "resigned"}}',
    ]
    assert [(entry.what, entry.leader_id) for entry in diary.entries("elected", "ended")[before:]] == [
        ("elected", first.id),
        ("ended", first.id),
        ("elected", second.id),
        ("ended", second.id),
    ]
    return is_telling


@pytest.mark.scenario(
    "leadership",
    "a leader that stands still is followed when its lease is over, and awakes as a follower; one that dies is too",
)
def test_the_leader_stands_still_or_dies(
    fleet: Place, diary: Diary, giver: Side, taker: Side, process_of: ProcessMaker
) -> None:
    sleepy, mortal = process_of(giver.name), process_of(taker.name)
    sleeper = sleepy.start(KIND)
    diary.until("elected", sleeper.id)
    successor = mortal.start(KIND)
    diary.until("bid", successor.id)

    sleepy.process.suspend()
    diary.until("elected", successor.id, seconds=TTL.total_seconds() + PATIENCE)
    [ended] = diary.entries("ended", leader_id=sleeper.id)
    assert ended.now > ended.expires_at

    # It learns that its term is over, and leaves the row of the other alone.
    sleepy.process.resume()
    diary.until_again("bid", sleeper.id)
    diary.until_again("renewed", successor.id)
    assert leader_of(fleet) == successor.id
    assert diary.entries("ended", leader_id=successor.id) == []

    mortal.process.kill()
    diary.shorten_the_lease()
    diary.until_again("elected", sleeper.id)
    [ended] = diary.entries("ended", leader_id=successor.id)
    assert ended.now > ended.expires_at


@pytest.mark.scenario("leadership", "of two clients that share an id one leads, and the other cannot end its term")
def test_two_clients_share_an_id(fleet: Place, diary: Diary, giver: Side, taker: Side) -> None:
    with giver.working(KIND, client_id="twin"):
        diary.until("elected", "twin")
        with taker.working(KIND, client_id="twin"):
            diary.until("bid", "twin", count=2)
        assert diary.entries("ended") == []
        assert len(diary.entries("elected")) == 1
    assert [entry.what for entry in diary.entries("elected", "ended")] == ["elected", "ended"]


# -- on request


@pytest.mark.scenario("leadership", "either side asks whoever leads to resign, with one payload")
def test_either_asks_to_resign(fleet: Place, river: Side, riverq_side: Side) -> None:
    fleet.go("listen", name="ear")
    for side in (river, riverq_side):
        side.request_resign()
        with side.transaction() as tx:
            side.request_resign(tx=tx)
    goes, goes_in_tx, ours, ours_in_tx = (each["payload"] for each in fleet.go("heard", name="ear", count=4))
    assert goes == goes_in_tx == ours == ours_in_tx


@pytest.mark.scenario("leadership", "a leader whom the other side asks to resign ends its term, once that is committed")
def test_a_leader_is_asked_to_resign(fleet: Place, diary: Diary, giver: Side, taker: Side) -> None:
    with giver.working(KIND) as asked:
        diary.until("elected", asked.id)
        with taker.working(KIND) as other:
            diary.until("bid", other.id)
            _ask_until_heard(diary, taker, asked.id)
            # Go bids again at once and may win against who only hears of it; riverq lets the others go first.
            second = diary.until("elected", count=2)
            if giver.name == "riverq":
                assert second.leader_id == other.id
            leader = second.leader_id
            asker = giver if leader == other.id else taker
            fleet.go("listen", name="ear")
            with asker.transaction() as tx:
                asker.request_resign(tx=tx)
                tx.rollback()
            with asker.transaction() as tx:
                asker.request_resign(tx=tx)
                assert _heard(fleet) == []
                assert diary.entries("ended")[1:] == []
            diary.until("elected", count=3)
            assert _heard(fleet, 2)[:2] == [
                {"action": "request_resign", "leader_id": ""},
                {"action": "resigned", "leader_id": leader},
            ]
    starts = [entry.elected_at for entry in diary.entries("elected")]
    assert starts == sorted(set(starts))


def _ask_until_heard(diary: Diary, asker: Side, leader_id: str) -> None:
    """Go's Start returns before it listens, so the first requests may be heard by nobody.

    Each is given long, because one that is heard late would meet the next term.
    """

    def resigned() -> bool:
        asker.request_resign()
        try:
            until(lambda: diary.entries("ended", leader_id=leader_id), "the resignation", seconds=5)
        except pytest.fail.Exception:
            return False
        return True

    until(resigned, f"{leader_id} to resign")


# -- clients that do not lead, or do not listen


@pytest.mark.scenario("leadership", "a client that may not lead works under a leader of the other side, and never bids")
def test_a_client_that_may_not_lead(fleet: Place, diary: Diary, giver: Side, taker: Side) -> None:
    with giver.working(KIND, no_leader=True) as worker:
        with taker.working("nobodys_kind", queue="of_the_leader") as leader:
            job_id = taker.insert(KIND, scheduled_at=LONG_AGO)
            worker.events(1, job_id=job_id)
            assert leader_of(fleet) == leader.id
        # Nobody leads now: what is inserted is worked, what is scheduled waits.
        waiting = taker.insert(KIND, scheduled_at=LONG_AGO)
        job_id = taker.insert(KIND)
        worker.events(1, job_id=job_id)
        assert giver.get(waiting)["state"] == "scheduled"
        assert leader_of(fleet) is None
        with taker.working("nobodys_kind", queue="of_the_leader") as next_leader:
            worker.events(1, job_id=waiting)
    assert {entry.leader_id for entry in diary.entries("bid")} == {leader.id, next_leader.id}


@pytest.mark.scenario("leadership", "a client that only polls follows, leads, and says when it resigns")
def test_a_client_that_only_polls(fleet: Place, diary: Diary, giver: Side, taker: Side) -> None:
    leading = taker.start(KIND, queue="other")
    diary.until("elected", leading.id)
    polling = giver.start(KIND, poll_only=True)
    diary.until("bid", polling.id)
    leading.stop()
    diary.until("elected", polling.id)
    job_id = taker.insert(KIND, scheduled_at=LONG_AGO)
    until_state(fleet, job_id, "completed")
    fleet.go("listen", name="ear")
    with taker.working(KIND, queue="other") as following:
        diary.until("bid", following.id)
        polling.stop()
        until_leader(fleet, following.id)
    assert {"action": "resigned", "leader_id": polling.id} in _heard(fleet, 1)
