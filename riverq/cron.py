"""Cron expressions for periodic jobs: what Go's robfig/cron v3 `ParseStandard` reads, at the times it computes.

A fleet has one leader, in either language, and the leader alone computes when a periodic job is due. An expression that
only one side could read, or that gave the sides different times, would lose or double runs whenever leadership moves
from Go to Python. So this follows robfig/cron also where one would not choose to:

- A list may have empty places (`1,,5`), and a field of commas alone is a schedule that never runs.
- What follows `*-` is not read.
- In `TZ=`, `Local` means no zone of its own, and no name at all means UTC.

Times are found by walking the zone's clock: to the month, the day, the hour, the minute. The walk decides what happens
when clocks change. A local time that is skipped does not run that day, one that comes twice runs twice. Where midnight
itself is skipped, a walk from day to day passes over that day east of UTC (Cairo in April), and a walk from hour to
hour runs on into the next day (São Paulo until 2018); where clocks change by half an hour (Lord Howe), a walk across
the change may miss a run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final, NoReturn
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from riverq.validation import fail, nearest

_SECOND: Final = timedelta(seconds=1)
_MINUTE: Final = timedelta(minutes=1)
_HOUR: Final = timedelta(hours=1)
_DAY: Final = timedelta(days=1)
_YEARS: Final = 5  # a schedule without a date up to the end of the fifth year ahead never runs

_INT64_MAX: Final = 2**63 - 1
_INTEGER: Final = re.compile(r"([+-]?)0*([0-9]{1,19})")
# White space in Go, for a regular expression; Python counts four control characters more.
_SPACES: Final = "\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_WORD: Final = re.compile(f"[^{_SPACES}]+")
_EDGES: Final = re.compile(f"\\A[{_SPACES}]+|[{_SPACES}]+\\Z")
_ZONE_PREFIX: Final = re.compile(r"(?:CRON_)?TZ=")

_DESCRIPTORS: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_EVERY: Final = "@every "

_DURATION_PART: Final = re.compile(r"([0-9]*)(?:\.([0-9]*))?([^.0-9]+)")
_NANOSECONDS: Final = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,  # the micro sign
    "μs": 10**3,  # the Greek letter
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}


@dataclass(frozen=True, slots=True)
class CronSchedule:
    """When a periodic job runs, as a cron expression says. Two schedules of the same text are equal.

    `spec` is one of

    - five fields, `minute hour day-of-month month weekday`: `*`, `?` or a list of numbers, ranges (`1-5`) and steps
      (`*/15`, `10-40/5`, `5/15` for 5 to the end by 15). Months may be JAN to DEC, weekdays SUN to SAT; Sunday is 0. If
      neither day field has a `*` or `?`, a date needs to match only one of them; a `*/2` is no `*` here;
    - `@yearly` or `@annually`, `@monthly`, `@weekly`, `@daily` or `@midnight`, `@hourly`;
    - `@every 1h30m`, a Go duration in whole seconds, at least one, counted from the time that `next` is given.

    In front of it may stand `CRON_TZ=Europe/Berlin ` or `TZ=Europe/Berlin `. Without one the fields are read on the
    clock of the time that `next` is given; the leader gives UTC.

    Raises ConfigError for any other text.
    """

    spec: str
    _plan: _Interval | _Calendar = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.spec, str):
            raise fail("cron", "to be a text of five fields", self.spec, "'0 9 * * MON-FRI'")
        object.__setattr__(self, "_plan", _parse(self.spec))

    def next(self, after: datetime) -> datetime | None:
        """The first run after `after`, which must be aware; in its zone.

        None where no date within five years matches, such as 30 February, or where the run would be after year 9999.
        """
        if not isinstance(after, datetime) or after.utcoffset() is None:
            raise fail("after", "to be a datetime aware of its zone", after, "datetime.now(UTC), at.astimezone()")
        try:
            at = self._plan.next(after)
            return None if at is None else at.astimezone(after.tzinfo)
        except OverflowError:
            return None


def cron(spec: str) -> CronSchedule:
    """The schedule of a cron expression, as in `cron("0 9 * * MON-FRI")`. Raises ConfigError."""
    return CronSchedule(spec)


# -- finding the next time


@dataclass(frozen=True, slots=True)
class _Interval:
    """`@every`: from each run to the next, on whole seconds."""

    delay: timedelta

    def next(self, after: datetime) -> datetime:
        return after.astimezone(UTC).replace(microsecond=0) + self.delay


@dataclass(frozen=True, slots=True)
class _Calendar:
    """Five fields. `zone` is None for the zone of the time that is asked about."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool
    zone: tzinfo | None

    def next(self, after: datetime) -> datetime | None:
        if not (self.minutes and self.hours and self.months):
            return None
        return _Walk(self, after).result()

    def on(self, date: datetime) -> bool:
        """Whether the day fields admit this date."""
        day, weekday = date.day in self.days, date.isoweekday() % 7 in self.weekdays
        return day or weekday if self.either_day else day and weekday


class _Walk:
    """One search, an instant moving forward and what the zone's clock shows at it.

    Each step brings one field to its next value and the smaller ones to their start. When a step carries into the
    field above, the search begins again at the month.
    """

    def __init__(self, calendar: _Calendar, after: datetime) -> None:
        self._calendar = calendar
        self._zone = calendar.zone or after.tzinfo
        self._aligned = False
        self._go(after.astimezone(UTC).replace(microsecond=0) + _SECOND)

    def result(self) -> datetime | None:
        """The instant, in UTC."""
        last_year = self._clock.year + _YEARS
        while self._clock.year <= last_year:
            if self._month() and self._day() and self._hour() and self._minute() and self._full_minute():
                return self._at
        return None

    # Each of the five returns False when it carried.

    def _month(self) -> bool:
        while self._clock.month not in self._calendar.months:
            self._align(self._clock.replace(day=1, hour=0, minute=0, second=0))
            begin = self._clock.replace(day=1, tzinfo=UTC)
            following = (begin + 31 * _DAY).replace(day=1)
            self._go(self._instant(following + (self._clock.day - 1) * _DAY))
            if self._clock.month == 1:
                return False
        return True

    def _day(self) -> bool:
        while not self._calendar.on(self._clock):
            self._align(self._clock.replace(hour=0, minute=0, second=0))
            following = self._instant(self._clock.replace(tzinfo=UTC) + _DAY)
            # A zone that crossed the date line has no such day, and the search would stay where it is.
            self._go(following if following > self._at else self._at + _DAY)
            hour = self._clock.hour
            if hour:
                # There is no midnight this day, or the search came from one that there was not.
                self._go(self._at + (24 - hour if hour > 12 else -hour) * _HOUR)
            if self._clock.day == 1:
                return False
        return True

    def _hour(self) -> bool:
        while self._clock.hour not in self._calendar.hours:
            self._align(self._clock.replace(minute=0, second=0))
            self._go(self._at + _HOUR)
            if self._clock.hour == 0:
                return False
        return True

    def _minute(self) -> bool:
        while self._clock.minute not in self._calendar.minutes:
            if not self._aligned:
                self._aligned = True
                self._go(self._at.replace(second=0))
            self._go(self._at + _MINUTE)
            if self._clock.minute == 0:
                return False
        return True

    def _full_minute(self) -> bool:
        if self._clock.second == 0:
            return True
        self._aligned = True
        self._go(self._at + _MINUTE - self._clock.second * _SECOND)
        return False

    def _align(self, start: datetime) -> None:
        """Back to the start of the field that is about to move, once: from then on the smaller fields are at theirs."""
        if not self._aligned:
            self._aligned = True
            self._go(self._instant(start))

    def _go(self, instant: datetime) -> None:
        self._at = instant
        self._clock = instant.astimezone(self._zone)

    def _instant(self, shown: datetime) -> datetime:
        """When the zone's clock shows this, by the rule of Go's `time.Date`.

        For a time that is skipped or comes twice the rule gives the earlier of the two candidates west of UTC and the
        later one east of it, by way of reading the shown time as if it were UTC.
        """
        as_utc = shown.replace(tzinfo=UTC, fold=0)
        return as_utc - self._offset(as_utc - self._offset(as_utc))

    def _offset(self, instant: datetime) -> timedelta:
        return instant.astimezone(self._zone).utcoffset() or timedelta(0)


# -- reading an expression


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()

    @property
    def span(self) -> str:
        """`from 0 to 59`."""
        named = f" or {self.names[0].upper()} to {self.names[-1].upper()}" if self.names else ""
        return f"from {self.low} to {self.high}{named}"


_FIELDS: Final = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")),
    _Field("weekday", 0, 6, ("sun", "mon", "tue", "wed", "thu", "fri", "sat")),
)


def _parse(spec: str) -> _Interval | _Calendar:
    rest, zone = spec, None
    prefix = _ZONE_PREFIX.match(spec)
    if prefix:
        name, space, rest = spec[prefix.end() :].partition(" ")
        if not space:
            raise fail("cron", "to have an expression after its zone", spec, f"'{prefix[0]}Europe/Berlin 0 9 * * *'")
        zone = _zone(name, spec)
        rest = _EDGES.sub("", rest)
    if rest.startswith(_EVERY):
        return _Interval(_delay(rest.removeprefix(_EVERY), spec))
    if rest.startswith("@"):
        if rest not in _DESCRIPTORS:
            known = nearest(rest, [*_DESCRIPTORS, "@every 1h30m"])
            raise fail("cron", "to be a known @word or five fields", spec, known)
        rest = _DESCRIPTORS[rest]
    return _calendar(rest, spec, zone)


def _zone(name: str, spec: str) -> tzinfo | None:
    if name in ("", "UTC"):
        return UTC
    if name == "Local":
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        way_out = "an IANA name such as Europe/Berlin; if no name is known, install tzdata"
        raise fail(f"the zone of cron {spec!r}", "to be a time zone", name, way_out) from error


def _calendar(text: str, spec: str, zone: tzinfo | None) -> _Calendar:
    words = _WORD.findall(text)
    if len(words) != len(_FIELDS):
        way_out = "minute, hour, day of month, month, weekday; there is no field of seconds"
        raise fail("cron", f"to have five fields, not {len(words)}", spec, way_out)
    fields = [_FieldText(*pair, spec).values() for pair in zip(_FIELDS, words, strict=True)]
    minutes, hours, days, months, weekdays = (values for values, _ in fields)
    either_day = not fields[2][1] and not fields[4][1]
    return _Calendar(minutes, hours, days, months, weekdays, either_day, zone)


@dataclass(frozen=True, slots=True)
class _FieldText:
    """One of the five, as written in `spec`."""

    place: _Field
    text: str
    spec: str

    def values(self) -> tuple[frozenset[int], bool]:
        """The values that match, and whether a `*` or `?` leaves the field open."""
        parts = [self._part(part) for part in self.text.split(",") if part]
        return frozenset().union(*(values for values, _ in parts)), any(is_open for _, is_open in parts)

    def _part(self, part: str) -> tuple[range, bool]:
        span, *steps = part.split("/")
        low, *highs = span.split("-")
        is_open = low in ("*", "?")
        if len(steps) > 1 or (len(highs) > 1 and not is_open):
            self._refuse("to be numbers, ranges and steps", part, "1,2 or 1-5 or */15 or 10-40/5, and no more in one")
        step = self._step(steps[0], part) if steps else 1
        if is_open:
            return range(self.place.low, self.place.high + 1, step), step == 1
        first = self._number(low)
        last = self._number(highs[0]) if highs else self.place.high if steps else first
        if first > last:
            ends = f"{low}-{self.place.high},{self.place.low}-{highs[0]}"
            self._refuse("to be a range that rises", part, f"to go past the end write {ends}")
        return range(first, last + 1, step), False

    def _number(self, text: str) -> int:
        name = text.lower()
        number = self.place.names.index(name) + self.place.low if name in self.place.names else _integer(text)
        if number is None or not self.place.low <= number <= self.place.high:
            way_out = "Sunday is 0 or SUN" if number == 7 and self.place.high == 6 else "*, lists, ranges and steps too"
            self._refuse(f"to be {self.place.span}", text, way_out)
        return number

    def _step(self, text: str, part: str) -> int:
        step = _integer(text)
        if step is None or step < 1:
            self._refuse("to have a step of at least 1", part, "*/15 is every 15th")
        return step

    def _refuse(self, expected: str, got: str, way_out: str) -> NoReturn:
        raise fail(f"the {self.place.name} of cron {self.spec!r}", expected, got, way_out)


def _integer(text: str) -> int | None:
    """What Go's `strconv.Atoi` reads: ASCII digits with a sign, in 64 bits."""
    match = _INTEGER.fullmatch(text)
    number = int(match[1] + match[2]) if match else None
    return number if number is not None and -_INT64_MAX - 1 <= number <= _INT64_MAX else None


def _delay(text: str, spec: str) -> timedelta:
    """A Go duration, cut to whole seconds; one second where it is less, or negative."""
    nanoseconds = _duration(text)
    if nanoseconds is None:
        raise fail(f"the interval of cron {spec!r}", "to be a Go duration", text, "such as 1h30m, 90s or 500ms")
    return max(nanoseconds // 10**9, 1) * _SECOND


def _duration(text: str) -> int | None:
    """What Go's `time.ParseDuration` reads, in nanoseconds; None for any other text, and beyond 292 years."""
    unsigned = text[1:] if text[:1] in ("+", "-") else text
    if unsigned == "0":
        return 0
    total, at = 0, 0
    while at < len(unsigned) or not at:
        part = _DURATION_PART.match(unsigned, at)
        if not part or part[3] not in _NANOSECONDS or not (part[1] or part[2]):
            return None
        whole = part[1].lstrip("0")
        if len(whole) > 19:
            return None
        total += int(whole or "0") * _NANOSECONDS[part[3]] + _fraction(part[2] or "", _NANOSECONDS[part[3]])
        at = part.end()
    limit = _INT64_MAX + (text[:1] == "-")
    return None if total > limit else -total if text[:1] == "-" else total


def _fraction(digits: str, unit: int) -> int:
    """Go reads as many digits as 63 bits hold and multiplies floats, which can round up where they are many."""
    number, scale = 0, 1.0
    for digit in digits:
        if number > _INT64_MAX // 10 or number * 10 + int(digit) > _INT64_MAX + 1:
            break
        number, scale = number * 10 + int(digit), scale * 10
    return int(number * (unit / scale))
