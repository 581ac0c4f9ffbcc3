"""What must be true when the dust has settled, each asked of the record and of the workers' own ledgers."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from itertools import pairwise

from tests.faults.fleet import Fleet, Member
from tests.faults.record import Change, Record, Term, read_ledgers

TICK = timedelta(seconds=3)
"""What a loaded machine of two cores may add to a promise."""


def every_job_ran_and_was_completed_once(record: Record, fleet: Fleet, jobs: int) -> None:
    assert record.states() == {"completed": jobs}
    ids = {int(row[0]) for row in record.ask("SELECT id FROM {}.river_job")}
    completed = Counter(change.job_id for change in record.changes() if change.new == "completed")
    assert set(completed) == ids
    assert [job_id for job_id, times in completed.items() if times > 1] == []
    ledger = read_ledgers(fleet.ledgers)
    assert ids - set(ledger["began"]) == set(), "completed without having run"
    assert ids - set(ledger["ended"]) == set(), "completed without having ended"


def no_two_terms_overlapped_in_effect(record: Record) -> None:
    """By the table no term began before the one before it was over, and nobody did a leader's work outside its own."""
    terms = record.terms()
    overlapping = [(a, b) for a, b in pairwise(terms) if b.began < a.ended - _ASIDE]
    assert overlapping == []
    strangers = [change for change in record.changes() if change.is_leaders and change.writer != change.leader]
    assert strangers == []


def only_the_dead_were_rescued(record: Record, fleet: Fleet) -> None:
    dead = {member.client_id: member.died_at for member in fleet.members if member.died_at is not None}
    for change in _rescues(record):
        died_at = dead.get(change.run_of or "")
        assert died_at is not None, f"a run of {change.run_of}, which lives, was rescued: {change}"
        assert died_at <= change.at, f"a run of {change.run_of} was rescued before its client died: {change}"


def the_dead_ones_jobs_were_back_in_time(record: Record, fleet: Fleet, grace: timedelta) -> list[timedelta]:
    """Within 1.5 graces of the death, or of the moment from which somebody led who could be sure. Returns the waits."""
    waits: list[timedelta] = []
    terms = record.terms()
    for change in _rescues(record):
        member = fleet.member(change.run_of or "")
        assert member.died_at is not None
        counted_from = _could_be_judged_from(member.died_at, change.at, terms, fleet, grace)
        assert change.at - counted_from <= 1.5 * grace + TICK, (
            f"{member.client_id} died at {member.died_at}, its job {change.job_id} was rescued at {change.at}, "
            f"counted from {counted_from}"
        )
        waits.append(change.at - member.died_at)
    return waits


_ASIDE = timedelta(milliseconds=1)
"""The trigger's clock is read a little after the statement's."""


def _rescues(record: Record) -> list[Change]:
    return [change for change in record.changes() if change.rescued]


def _could_be_judged_from(
    died_at: datetime, rescued_at: datetime, terms: list[Term], fleet: Fleet, grace: timedelta
) -> datetime:
    """The first moment since the death from which, up to the rescue, one leader led and had passed its hold-off."""
    for term in terms:
        if term.began <= rescued_at <= term.ended + grace:
            leader = fleet.member(term.leader_id)
            if _lived_at(leader, rescued_at):
                return max(died_at, term.began, _sure_from(leader, grace, rescued_at))
    return died_at


def _sure_from(leader: Member, grace: timedelta, at: datetime) -> datetime:
    """The end of the hold-off: two graces of heartbeats without a gap, and a pause of the process is one."""
    resumed = [ended for _, ended in leader.paused if ended is not None and ended <= at]
    return max([leader.started_at, *resumed]) + 2 * grace


def _lived_at(member: Member, at: datetime) -> bool:
    return member.died_at is None or member.died_at > at
