"""The cron expressions that robfig/cron refuses, and what riverq says of each."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest

from riverq.cron import CronSchedule, cron
from riverq.errors import ConfigError

FRIDAY = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "to have five fields, not 0"),
        ("   ", "to have five fields, not 0"),
        ("* * * *", "to have five fields, not 4"),
        ("0 * * * * *", "not 6, got: '0 \\* \\* \\* \\* \\*' .*no field of seconds"),
        ("* * * * 7", "the weekday of cron .* to be from 0 to 6 or SUN to SAT, got: '7' .Sunday is 0 or SUN"),
        ("* * * * 0-7", "Sunday is 0 or SUN"),
        ("* * * * fri-sun", "to be a range that rises, got: 'fri-sun' .to go past the end write fri-6,0-sun"),
        ("* * * * funday", "the weekday of .* got: 'funday'"),
        ("* * * * monday", "the weekday of .* got: 'monday'"),
        ("60 * * * *", "the minute of cron '60 \\* \\* \\* \\*' to be from 0 to 59, got: '60'"),
        ("0-60 * * * *", "the minute of .* got: '60'"),
        ("-1 * * * *", "the minute of .* got: ''"),
        ("1- * * * *", "the minute of .* got: ''"),
        ("- * * * *", "the minute of .* got: ''"),
        ("1_0 * * * *", "got: '1_0'"),
        ("٣ * * * *", "got: '٣'"),
        ("1.5 * * * *", "got: '1.5'"),
        ("jan * * * *", "got: 'jan'"),
        ("99999999999999999999 * * * *", "the minute of"),
        ("* 24 * * *", "the hour of .* to be from 0 to 23, got: '24'"),
        ("* * 0 * *", "the day of month of .* to be from 1 to 31, got: '0'"),
        ("* * 32 * *", "the day of month of .* to be from 1 to 31, got: '32'"),
        ("* * L * *", "got: 'L'"),
        ("* * 15W * *", "got: '15W'"),
        ("* * * 0 *", "the month of .* to be from 1 to 12 or JAN to DEC, got: '0'"),
        ("* * * 13 *", "the month of .* got: '13'"),
        ("* * * mon *", "the month of .* got: 'mon'"),
        ("* * * * 5#2", "got: '5#2'"),
        ("10-5 * * * *", "to be a range that rises, got: '10-5' .to go past the end write 10-59,0-5"),
        ("1-2-3 * * * *", "to be numbers, ranges and steps, got: '1-2-3'"),
        ("1/2/3 * * * *", "to be numbers, ranges and steps, got: '1/2/3'"),
        ("*/2/3 * * * *", "to be numbers, ranges and steps"),
        ("*/0 * * * *", "to have a step of at least 1, got: '\\*/0'"),
        ("*/-0 * * * *", "to have a step of at least 1"),
        ("*/-5 * * * *", "to have a step of at least 1"),
        ("*/x * * * *", "to have a step of at least 1"),
        ("*/ * * * *", "to have a step of at least 1"),
        ("*/9223372036854775808 * * * *", "to have a step of at least 1"),
        ("70/5 * * * *", "got: '70'"),
        ("/5 * * * *", "got: ''"),
        ("** * * * *", "got: '\\*\\*'"),
        ("5-* * * * *", "got: '\\*'"),
        ("1,60 * * * *", "got: '60'"),
        ("0\x1c9 * * *", "to have five fields, not 4"),
        ("@reboot", "to be a known @word or five fields, got: '@reboot'"),
        ("@Daily", "did you mean '@daily'"),
        ("@daily ", "to be a known @word"),
        (" @daily", "to have five fields, not 1"),
        ("@", "to be a known @word"),
        ("@every", "to be a known @word .*did you mean '@every 1h30m'"),
        ("@every ", "the interval of cron '@every ' to be a Go duration, got: '' .such as 1h30m"),
        ("@every  1h", "to be a Go duration, got: ' 1h'"),
        ("@every 1h ", "to be a Go duration"),
        ("@every 5", "to be a Go duration"),
        ("@every 5x", "to be a Go duration, got: '5x'"),
        ("@every 1d", "to be a Go duration"),
        ("@every h", "to be a Go duration"),
        ("@every .s", "to be a Go duration"),
        ("@every 1.5.5s", "to be a Go duration"),
        ("@every 1h-5m", "to be a Go duration"),
        ("@every 1H", "to be a Go duration"),
        ("@every --1h", "to be a Go duration"),
        ("@every 2562048h", "to be a Go duration"),
        ("@every 00000000000000000000000000000000", "to be a Go duration"),
        ("TZ=Mars/Olympus 0 9 * * *", "the zone of cron .* to be a time zone, got: 'Mars/Olympus' .*Europe/Berlin"),
        ("CRON_TZ=../etc/passwd 0 9 * * *", "to be a time zone"),
        ("CRON_TZ=/etc/localtime 0 9 * * *", "to be a time zone"),
        ("CRON_TZ=Europe 0 9 * * *", "to be a time zone"),
        ("CRON_TZ=UTC", "to have an expression after its zone, got: 'CRON_TZ=UTC'"),
        ("TZ=UTC ", "to have five fields, not 0"),
        ("TZ=UTC\t0 9 * * *", "to be a time zone"),
        (" TZ=UTC 0 9 * * *", "to have five fields, not 6"),
        ("tz=UTC 0 9 * * *", "to have five fields, not 6"),
        ("TZ=UTC @reboot", "to be a known @word"),
    ],
)
def test_refuses(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        cron(spec)
    assert str(caught.value).startswith("expected ")


@pytest.mark.parametrize("spec", [None, 5, b"* * * * *", ["*"] * 5])
def test_refuses_what_is_no_text(spec: object) -> None:
    with pytest.raises(ConfigError, match="expected cron to be a text of five fields, got"):
        CronSchedule(spec)  # type: ignore[arg-type]


@pytest.mark.parametrize("after", [FRIDAY.replace(tzinfo=None), date(2026, 1, 2), None, "2026-01-02T00:00:00Z"])
@pytest.mark.parametrize("spec", ["@daily", "@every 1h"])
def test_refuses_a_time_without_a_zone(spec: str, after: object) -> None:
    with pytest.raises(ConfigError, match="expected after to be a datetime aware of its zone, got"):
        cron(spec).next(after)  # type: ignore[arg-type]
