"""Cron expressions against times worked out by hand from the rules of robfig/cron, and against a slow search."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime, timedelta, timezone
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverq.cron import CronSchedule, cron
from riverq.errors import ConfigError

FRIDAY = datetime(2026, 1, 2, 3, 4, 5, 678_900, tzinfo=UTC)
NEVER = ""


def runs(spec: str, after: datetime, number: int) -> list[str]:
    """The next runs as texts; NEVER ends them. Times are compared in UTC: within one zone Python compares clocks."""
    schedule = cron(spec)
    found: list[str] = []
    for _ in range(number):
        following = schedule.next(after)
        if following is None:
            return [*found, NEVER]
        assert following.astimezone(UTC) > after.astimezone(UTC)
        assert following.tzinfo is after.tzinfo
        found.append(following.isoformat(timespec="seconds"))
        after = following
    return found


def shown(expected: str) -> str:
    """`2026-…T…` in full, from `01-05T09:00`, `01-05` or `03:05`."""
    if expected == NEVER:
        return NEVER
    day, _, time = expected.partition("T") if "-" in expected else ("01-02", "T", expected)
    day = f"2026-{day}" if len(day) == 5 else day
    time = time or "00:00"
    return f"{day}T{time if len(time) == 8 else f'{time}:00'}+00:00"


# -- from a Friday, 03:04:05.6789 UTC

FIELDS = [
    # what River's own fixtures say
    ("* * * * *", "03:05"),
    ("0 9 * * 1", "01-05T09:00"),
    ("0 9 * * mon", "01-05T09:00"),
    ("0 0 * * 0", "01-04"),
    ("0 0 * * SUN", "01-04"),
    ("*/15 9-17 * * mon-fri", "09:00"),
    ("0 0 1 jan,JUL *", "07-01"),
    ("0 0 29 2 *", "2028-02-29"),
    ("0 0 30 2 *", NEVER),
    ("0 12 1,15 * 5", "12:00 01-09T12:00 01-15T12:00 01-16T12:00"),
    ("0 12 */2 * 5", "12:00 01-03T12:00 01-05T12:00 01-07T12:00 01-09T12:00"),
    ("0 12 */1 * 5", "12:00 01-09T12:00 01-16T12:00"),
    ("5/15 * * * *", "03:05 03:20"),
    ("0-10/5 * * * *", "03:05 03:10 04:00"),
    # minutes and hours
    ("? ? ? ? ?", "03:05 03:06"),
    ("*/1 * * * *", "03:05 03:06"),
    ("4 3 * * *", "01-03T03:04"),
    ("5 3 * * *", "03:05 01-03T03:05"),
    ("05 003 * * *", "03:05 01-03T03:05"),
    ("+5 3 * * *", "03:05 01-03T03:05"),
    ("5,10,15-17 3 * * *", "03:05 03:10 03:15 03:16 03:17 01-03T03:05"),
    ("20-20 3 * * *", "03:20 01-03T03:20"),
    ("0/20 * * * *", "03:20 03:40 04:00"),
    ("50/20 * * * *", "03:50 04:50"),
    ("7-59/26 * * * *", "03:07 03:33 03:59 04:07"),
    ("*/100 * * * *", "04:00 05:00"),
    ("*/9223372036854775807 * * * *", "04:00 05:00"),
    ("*/+30 * * * *", "03:30 04:00"),
    ("0 */6 * * *", "06:00 12:00 18:00 01-03 01-03T06:00"),
    ("0 2-20/9 * * *", "11:00 20:00 01-03T02:00"),
    ("59 23 31 12 *", "12-31T23:59 2027-12-31T23:59"),
    # lists with empty places, and what stands behind *-
    ("1,,5 * * * *", "03:05 04:01 04:05"),
    (",7, * * * *", "03:07 04:07"),
    (", * * * *", NEVER),
    ("* ,, * * *", NEVER),
    ("0 0 * , *", NEVER),
    ("0 0 , * *", NEVER),
    ("0 0 , * 5", "01-09 01-16"),
    ("*-5 * * * *", "03:05 03:06"),
    ("*-x-y/30 * * * *", "03:30 04:00"),
    # days
    ("0 0 31 * *", "01-31 03-31 05-31 07-31 08-31 10-31 12-31 2027-01-31"),
    ("0 0 31 4,6,9,11 *", NEVER),
    ("0 0 31 2/2 ?", "08-31 10-31 12-31 2027-08-31"),
    ("0 0 30 2 1", "02-02 02-09 02-16 02-23 2027-02-01"),
    ("0 0 29 2 *", "2028-02-29 2032-02-29"),
    ("0 12 1-31 * 5", "12:00 01-03T12:00"),
    ("0 12 1/1 * 5", "12:00 01-03T12:00"),
    ("0 12 ?/1 * 5", "12:00 01-09T12:00"),
    ("0 12 ?/2 * 5", "12:00 01-03T12:00"),
    ("0 12 1 * *,5", "02-01T12:00 03-01T12:00"),
    ("0 12 1 * 0-6", "12:00 01-03T12:00"),
    ("0 12 13 * */2", "01-03T12:00 01-04T12:00 01-06T12:00 01-08T12:00 01-10T12:00"),
    ("0 12 */2 * *", "01-03T12:00 01-05T12:00"),
    ("0 12 */2 * 0/1", "12:00 01-03T12:00 01-04T12:00"),
    ("0 12 * * 5/1", "12:00 01-03T12:00 01-09T12:00"),
    ("0 12 * * Fri/1", "12:00 01-03T12:00 01-09T12:00"),
    ("0 22,23 * * Sat,sun", "01-03T22:00 01-03T23:00 01-04T22:00 01-04T23:00 01-10T22:00"),
    # months
    ("0 0 1 */5 *", "06-01 11-01 2027-01-01"),
    ("0 0 1 nov/1 *", "11-01 12-01 2027-11-01"),
    ("0 0 1 Feb-apr *", "02-01 03-01 04-01 2027-02-01"),
    ("0 0 1 2-APR/2 *", "02-01 04-01 2027-02-01"),
    ("0 0 * DEC 3", "12-02 12-09 12-16 12-23 12-30 2027-12-01"),
    # white space
    ("  0\t9  * * *\n", "09:00"),
    ("0\u00a09\u3000*\u2003* *", "09:00"),
    # words
    ("@yearly", "2027-01-01 2028-01-01"),
    ("@annually", "2027-01-01"),
    ("@monthly", "02-01 03-01"),
    ("@weekly", "01-04 01-11"),
    ("@daily", "01-03 01-04"),
    ("@midnight", "01-03 01-04"),
    ("@hourly", "04:00 05:00"),
    # intervals
    ("@every 1h30m", "04:34:05 06:04:05"),
    ("@every 500ms", "03:04:06 03:04:07"),
    ("@every 1500ms", "03:04:06 03:04:07"),
    ("@every 0", "03:04:06"),
    ("@every -0", "03:04:06"),
    ("@every -5m", "03:04:06"),
    ("@every 1ns", "03:04:06"),
    ("@every +1m", "03:05:05"),
    ("@every 1.5h", "04:34:05"),
    ("@every .5m", "03:04:35"),
    ("@every 2.s", "03:04:07"),
    ("@every 30s1h30s", "04:05:05"),
    ("@every 1m999999us999µs", "03:05:06"),
    ("@every 1m999999us999μs", "03:05:06"),
    ("@every 1m999999us", "03:05:05"),
    ("@every 90m30.999s", "04:34:35"),
    ("@every 72h", "01-05T03:04:05 01-08T03:04:05"),
    # zones in front
    ("CRON_TZ=Asia/Kolkata 30 9 * * *", "04:00 01-03T04:00"),
    ("TZ=Asia/Kolkata 0 0 * * *", "18:30 01-03T18:30"),
    ("TZ=Asia/Kolkata   @daily ", "18:30 01-03T18:30"),
    ("TZ=Asia/Kolkata @hourly", "03:30 04:30"),
    ("TZ=Asia/Kolkata @every 1h", "04:04:05"),
    ("CRON_TZ=America/New_York 0 9 * * sat", "01-03T14:00 01-10T14:00"),
    ("CRON_TZ=Asia/Tokyo 0 8 3 * *", "23:00 02-02T23:00"),
    ("CRON_TZ= 0 9 * * *", "09:00"),
    ("CRON_TZ=UTC 0 9 * * *", "09:00"),
    ("TZ=Local 0 9 * * *", "09:00"),
]


@pytest.mark.parametrize(("spec", "expected"), FIELDS)
def test_next_runs(spec: str, expected: str) -> None:
    texts = expected.split() or [NEVER]
    assert runs(spec, FRIDAY, len(texts)) == [shown(text) for text in texts]


@pytest.mark.parametrize(
    ("spec", "after", "expected"),
    [
        ("0 9 * * *", "2026-01-02T09:00:00", "2026-01-03T09:00"),
        ("0 9 * * *", "2026-01-02T09:00:00.000001", "2026-01-03T09:00"),
        ("0 9 * * *", "2026-01-02T08:59:59.999999", "2026-01-02T09:00"),
        ("* * * * *", "2026-12-31T23:59:59.500", "2027-01-01"),
        ("30 23 31 12 *", "2026-12-31T23:30:00", "2027-12-31T23:30"),
        ("0 0 1 * *", "2026-01-31T12:00:00", "2026-02-01 2026-03-01"),
        ("0 0 * * *", "2028-02-28T12:00:00", "2028-02-29 2028-03-01"),
        ("0 0 * * *", "2026-02-28T12:00:00", "2026-03-01"),
        ("0 0 29 2 *", "2028-02-29T00:00:00", "2032-02-29"),
        ("0 0 29 2 *", "2098-12-31T23:59:58", NEVER),  # 2104 is the sixth year
        ("0 0 29 2 *", "2098-12-31T23:59:59", "2104-02-29"),  # the search begins a second later, in 2099
        ("0 0 29 2 *", "2000-02-28T00:00:00", "2000-02-29 2004-02-29"),
        ("0 0 1 1 *", "9999-06-01T00:00:00", NEVER),
        ("@every 1h", "9999-12-31T23:30:00", NEVER),
    ],
)
def test_edges_of_the_calendar(spec: str, after: str, expected: str) -> None:
    texts = expected.split() or [NEVER]
    assert runs(spec, datetime.fromisoformat(after + "+00:00"), len(texts)) == [shown(text) for text in texts]


# -- clock changes: the fields are read in the zone of `after`, whose offset is written out

CHANGES = [
    # New York springs forward on 8 March 2026, 02:00 to 03:00 …
    ("America/New_York", "30 2 * * *", "03-07T02:29-05", "03-07T02:30-05 03-09T02:30-04"),
    ("America/New_York", "0 2 8 3 *", "03-01T00:00-05", "2027-03-08T02:00-05"),
    ("America/New_York", "0 * * * *", "03-08T01:00-05", "03-08T03:00-04 03-08T04:00-04"),
    ("America/New_York", "30 3 8 3 *", "03-07T00:00-05", "03-08T03:30-04"),
    ("America/New_York", "0 9 * * *", "03-07T09:00-05", "03-08T09:00-04"),
    ("America/New_York", "0 0 * * mon", "03-02T00:00-05", "03-09T00:00-04"),
    ("America/New_York", "@every 24h", "03-07T09:00-05", "03-08T10:00-04"),
    # … and back on 1 November, 02:00 to 01:00
    ("America/New_York", "30 1 * * *", "10-31T12:00-04", "11-01T01:30-04 11-01T01:30-05 11-02T01:30-05"),
    ("America/New_York", "30 1 1 11 *", "10-01T12:00-04", "11-01T01:30-04 11-01T01:30-05 2027-11-01T01:30-04"),
    ("America/New_York", "*/30 * * * *", "11-01T01:00-04", "11-01T01:30-04 11-01T01:00-05 11-01T01:30-05"),
    ("America/New_York", "0 2 * * *", "11-01T01:45-05", "11-01T02:00-05 11-02T02:00-05"),
    ("America/New_York", "30 1 * * *", "11-01T01:45-04", "11-01T01:30-05 11-02T01:30-05"),
    # Berlin on 29 March and 25 October 2026
    ("Europe/Berlin", "30 2 * * *", "03-28T03:00+01", "03-30T02:30+02"),
    ("Europe/Berlin", "0 3 * * *", "03-28T03:00+01", "03-29T03:00+02"),
    ("Europe/Berlin", "30 2 * * *", "10-24T12:00+02", "10-25T02:30+02 10-25T02:30+01 10-26T02:30+01"),
    ("Europe/Berlin", "0 3 * * *", "10-25T02:30+02", "10-25T03:00+01"),
    ("Europe/Berlin", "0 9 * * *", "10-24T09:00+02", "10-25T09:00+01"),
    # São Paulo skips midnight of 4 November 2018 and has 23:00 of 17 February 2018 twice
    ("America/Sao_Paulo", "0 0 * * *", "2018-11-03T00:00-03", "2018-11-05T00:00-02"),
    ("America/Sao_Paulo", "0 9 4 11 *", "2018-10-17T05:00-03", "2018-11-04T09:00-02"),
    ("America/Sao_Paulo", "30 1 4 11 *", "2018-10-17T05:00-03", "2018-11-04T01:30-02"),
    ("America/Sao_Paulo", "0 9 10 11 *", "2018-10-17T05:00-03", "2018-11-10T09:00-02"),
    ("America/Sao_Paulo", "0 9 22 2 *", "2018-02-14T05:00-02", "2018-02-22T09:00-03"),
    (
        "America/Sao_Paulo",
        "30 23 * * *",
        "2018-02-17T12:00-02",
        "2018-02-17T23:30-02 2018-02-17T23:30-03 2018-02-18T23:30-03",
    ),
    # the walk by hours does not see that the day has ended
    ("America/Sao_Paulo", "0 5 3 11 *", "2018-11-03T06:00-03", "2018-11-04T05:00-02"),
    # a month that begins without midnight is reached by its end, as in Asunción in October 2017
    ("America/Asuncion", "0 9 * 10 *", "2017-05-01T00:00-04", "2017-10-31T09:00-03"),
    # Cairo skips midnight of Friday 28 April 2023: a walk by days passes over it, a walk by hours does not
    ("Africa/Cairo", "0 9 * * fri", "2023-04-22T00:00+02", "2023-05-05T09:00+03"),
    ("Africa/Cairo", "0 9 28 4 *", "2023-04-27T10:00+02", "2024-04-28T09:00+03"),
    ("Africa/Cairo", "0 9 * * *", "2023-04-27T09:00+02", "2023-04-28T09:00+03 2023-04-29T09:00+03"),
    # midnight twice, west and east of UTC
    ("America/Havana", "0 0 5 11 *", "2023-11-01T00:00-04", "2023-11-05T00:00-04 2023-11-05T00:00-05"),
    ("Asia/Amman", "0 0 29 10 *", "2021-10-01T12:00+03", "2021-10-29T00:00+02 2022-10-29T00:00+03"),
    ("Asia/Amman", "0 0 * * *", "2021-10-28T00:00+03", "2021-10-29T00:00+03 2021-10-29T00:00+02 2021-10-30T00:00+02"),
    # half an hour on Lord Howe Island, 5 April and 4 October 2026
    ("Australia/Lord_Howe", "0 5 * * *", "04-04T12:00+11", "04-06T05:00+10:30"),
    ("Australia/Lord_Howe", "15 3 * * *", "10-03T12:00+10:30", "10-05T03:15+11"),
    ("Australia/Lord_Howe", "45 3 * * *", "10-03T12:00+10:30", "10-04T03:45+11"),
    # Samoa had no 30 December 2011
    ("Pacific/Apia", "0 0 30 12 *", "2011-12-20T00:00-10", "2012-12-30T00:00+14"),
    ("Pacific/Apia", "0 0 31 12 *", "2011-12-20T00:00-10", "2011-12-31T00:00+14"),
    # none
    ("Asia/Kolkata", "30 9 * * *", "01-02T09:30+05:30", "01-03T09:30+05:30"),
    ("Asia/Kolkata", "@hourly", "01-02T09:30+05:30", "01-02T10:00+05:30"),
]


def written_out(text: str) -> datetime:
    """`2026-03-07T02:29:00-05:00` from `03-07T02:29-05`."""
    text = text if text.startswith("20") else f"2026-{text}"
    return datetime.fromisoformat(text if text[-3] == ":" else f"{text}:00")


@pytest.mark.parametrize(("zone", "spec", "after", "expected"), CHANGES)
def test_clock_changes(zone: str, spec: str, after: str, expected: str) -> None:
    start = written_out(after).astimezone(ZoneInfo(zone))
    assert start.isoformat() == written_out(after).isoformat(), "the zone data of this machine disagree with the test"
    wanted = [written_out(text).isoformat() for text in expected.split()]
    assert runs(spec, start, len(wanted)) == wanted
    if not spec.startswith("@"):
        found = runs(f"CRON_TZ={zone} {spec}", start.astimezone(UTC), len(wanted))
        assert [datetime.fromisoformat(text) for text in found] == [datetime.fromisoformat(text) for text in wanted]


def test_a_zone_in_front_beats_that_of_the_time_and_the_result_keeps_the_time_s() -> None:
    eastern = timezone(timedelta(hours=-5))
    following = cron("CRON_TZ=UTC 0 9 * * *").next(datetime(2026, 3, 7, 8, tzinfo=eastern))
    assert following is not None
    assert following.isoformat() == "2026-03-08T04:00:00-05:00"


def test_fixed_offsets_are_zones_too() -> None:
    india = timezone(timedelta(hours=5, minutes=30))
    assert runs("0 9 * * *", datetime(2026, 1, 2, 8, tzinfo=india), 1) == ["2026-01-02T09:00:00+05:30"]


def test_the_longest_interval_is_gos_longest_duration() -> None:
    following = cron("@every 9223372036s854ms775us807ns").next(FRIDAY)
    assert following == FRIDAY.replace(microsecond=0) + timedelta(seconds=9_223_372_036)
    with pytest.raises(ConfigError, match="to be a Go duration"):
        cron("@every 9223372036s854ms775us808ns")
    assert cron("@every -9223372036s854ms775us808ns").next(FRIDAY) == FRIDAY.replace(microsecond=0, second=6)


def test_is_a_value() -> None:
    one = cron("CRON_TZ=Europe/Berlin 0 9 * * *")
    assert one == CronSchedule("CRON_TZ=Europe/Berlin 0 9 * * *")
    assert one != cron("CRON_TZ=Europe/Berlin 0 10 * * *")
    assert len({one, cron(one.spec)}) == 1
    assert repr(one) == "CronSchedule(spec='CRON_TZ=Europe/Berlin 0 9 * * *')"
    copy = pickle.loads(pickle.dumps(one))
    assert copy == one
    assert copy.next(FRIDAY) == one.next(FRIDAY)
    with pytest.raises(FrozenInstanceError):
        one.spec = "@daily"  # type: ignore[misc]


# -- against a search minute by minute


class Written(NamedTuple):
    """A field as text, the values it stands for, and whether it is open."""

    text: str
    values: frozenset[int]
    is_open: bool


@st.composite
def parts(draw: st.DrawFn, low: int, high: int) -> Written:
    first, last = sorted((draw(st.integers(low, high)), draw(st.integers(low, high))))
    step = draw(st.integers(1, 7))
    every = [value for value in range(low, high + 1) if (value - low) % step == 0]
    upwards = [value for value in range(first, high + 1) if (value - first) % step == 0]
    return draw(
        st.sampled_from(
            [
                Written("*", frozenset(range(low, high + 1)), is_open=True),
                Written(f"*/{step}", frozenset(every), is_open=step == 1),
                Written(f"{first}", frozenset([first]), is_open=False),
                Written(f"{first}-{last}", frozenset(range(first, last + 1)), is_open=False),
                Written(f"{first}/{step}", frozenset(upwards), is_open=False),
                Written(f"{first}-{last}/{step}", frozenset(v for v in upwards if v <= last), is_open=False),
            ]
        )
    )


def fields(low: int, high: int) -> st.SearchStrategy[Written]:
    def joined(written: list[Written]) -> Written:
        values = frozenset(value for part in written for value in part.values)
        return Written(",".join(part.text for part in written), values, any(part.is_open for part in written))

    return st.lists(parts(low, high), min_size=1, max_size=2).map(joined)


EXPRESSIONS = st.tuples(fields(0, 59), fields(0, 23), fields(1, 31), fields(1, 12), fields(0, 6))


def admits(expression: tuple[Written, ...], at: datetime) -> bool:
    minute, hour, day, month, weekday = expression
    if at.minute not in minute.values or at.hour not in hour.values or at.month not in month.values:
        return False
    by_day, by_weekday = at.day in day.values, (at.weekday() + 1) % 7 in weekday.values
    return (by_day and by_weekday) if day.is_open or weekday.is_open else (by_day or by_weekday)


def check(expression: tuple[Written, ...], after: datetime, days: int, local: Callable[[datetime], datetime]) -> None:
    """`next` is the first whole minute after `after` whose local time is admitted, or it lies beyond `days`."""
    whole = after.replace(second=0, microsecond=0)
    ahead = (whole + timedelta(minutes=number) for number in range(1, days * 1440))
    wanted = next((at for at in ahead if admits(expression, local(at))), None)
    following = cron(" ".join(field.text for field in expression)).next(local(after))
    found = following and following.astimezone(UTC)
    if wanted is None:
        assert found is None or found >= whole + timedelta(days=days)
    else:
        assert found == wanted


@settings(derandomize=True, max_examples=25, deadline=None)
@given(EXPRESSIONS, st.integers(0, 4 * 366 * 86_400))
def test_agrees_with_a_search_by_minutes(expression: tuple[Written, ...], seconds: int) -> None:
    check(expression, datetime(2024, 2, 20, tzinfo=UTC) + timedelta(seconds=seconds), 6, lambda at: at)


@settings(derandomize=True, max_examples=25, deadline=None)
@given(
    EXPRESSIONS,
    st.sampled_from(
        [
            ("America/New_York", datetime(2026, 3, 8, 7, tzinfo=UTC)),
            ("America/New_York", datetime(2026, 11, 1, 6, tzinfo=UTC)),
            ("Europe/Berlin", datetime(2026, 3, 29, 1, tzinfo=UTC)),
            ("Europe/Berlin", datetime(2026, 10, 25, 1, tzinfo=UTC)),
        ]
    ),
    st.integers(-36 * 3600, 3 * 3600),
)
def test_agrees_with_it_where_clocks_change_by_whole_hours_at_night(
    expression: tuple[Written, ...], change: tuple[str, datetime], seconds: int
) -> None:
    zone, at = change
    check(expression, at + timedelta(seconds=seconds), 3, lambda moment: moment.astimezone(ZoneInfo(zone)))
