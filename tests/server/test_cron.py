"""Cron expressions: what they mean, what is refused, and what happens when clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from perdure.server.cron import ALIASES, Cron, InvalidCron


def ms(text: str) -> int:
    """Milliseconds since 1970 of a time such as `2026-03-01 09:00`, in UTC unless it says else."""
    at = datetime.fromisoformat(text)
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


def comes(expression: str, zone: str, after: str, count: int = 1) -> list[str]:
    """The next times in UTC, as `MM-DD HH:MM`."""
    cron, at, found = Cron(expression, zone), ms(after), []
    for _ in range(count):
        at = cron.next_after(at)
        found.append(datetime.fromtimestamp(at / 1000, UTC).strftime("%m-%d %H:%M"))
    return found


# 1 January 2026 is a Thursday.
NEXT = [
    ("* * * * *", "2026-01-01 00:00", "2026-01-01 00:01"),
    ("* * * * *", "2026-01-01 00:00:59.999", "2026-01-01 00:01"),
    ("* * * * *", "2026-12-31 23:59:30", "2027-01-01 00:00"),
    ("*/15 * * * *", "2026-01-01 00:16", "2026-01-01 00:30"),
    ("7/20 * * * *", "2026-01-01 00:28", "2026-01-01 00:47"),
    ("10-30/10 * * * *", "2026-01-01 00:30", "2026-01-01 01:10"),
    ("5,1,3 4 * * *", "2026-01-01 04:03", "2026-01-01 04:05"),
    ("0 0 * * *", "2026-01-01 00:00", "2026-01-02 00:00"),
    ("59 23 31 12 *", "2026-12-31 23:59", "2027-12-31 23:59"),
    ("0 0 31 * *", "2026-01-31 00:00", "2026-03-31 00:00"),
    ("0 0 29 2 *", "2026-01-01 00:00", "2028-02-29 00:00"),
    ("0 0 29 FEB MON", "2026-01-01 00:00", "2044-02-29 00:00"),
    ("0 9 13 * FRI", "2026-01-01 00:00", "2026-02-13 09:00"),
    ("30 * 29 2 *", "2096-03-01 00:00", "2104-02-29 00:30"),
    ("0 0 * * 0", "2026-01-01 00:00", "2026-01-04 00:00"),
    ("0 0 * * 7", "2026-01-01 00:00", "2026-01-04 00:00"),
    ("0 0 * * sun", "2026-01-01 00:00", "2026-01-04 00:00"),
    ("0 0 * * 5-7", "2026-01-03 00:00", "2026-01-04 00:00"),
    ("0 0 * * fri-sun", "2026-01-03 00:00", "2026-01-04 00:00"),
    ("0 0 * * Mon-Fri", "2026-01-02 00:00", "2026-01-05 00:00"),
    ("0 0 1 jan,JUL *", "2026-01-01 00:00", "2026-07-01 00:00"),
    ("  0\t0  1 1-12/6 * ", "2026-01-01 00:00", "2026-07-01 00:00"),
    ("@hourly", "2026-01-01 00:00", "2026-01-01 01:00"),
    ("@daily", "2026-01-01 00:00", "2026-01-02 00:00"),
    ("@Midnight", "2026-01-01 00:00", "2026-01-02 00:00"),
    ("@weekly", "2026-01-01 00:00", "2026-01-04 00:00"),
    ("@monthly", "2026-01-01 00:00", "2026-02-01 00:00"),
    ("@yearly", "2026-01-01 00:00", "2027-01-01 00:00"),
    (" @annually ", "2026-01-01 00:00", "2027-01-01 00:00"),
    ("0 0 1 1 *", "1969-12-31 23:59:59.999", "1970-01-01 00:00"),
]


@pytest.mark.parametrize("expression, after, expected", NEXT)
def test_the_next_time(expression: str, after: str, expected: str) -> None:
    """Strictly later, and all five fields match."""
    assert Cron(expression).next_after(ms(after)) == ms(expected)


REFUSED = [
    ("", "expression", "0 fields"),
    ("* * * *", "expression", "4 fields; expected five: minute, hour"),
    ("* * * * * *", "expression", "6 fields"),
    ("@reboot", "expression", "'@reboot' is no alias"),
    ("@every 5m", "expression", "is no alias"),
    ("0 " * 300, "expression", "longer than 500"),
    ("60 * * * *", "minute", "'60' is not in range; expected 0-59"),
    ("-1 * * * *", "minute", "'-1' is not"),
    ("1.5 * * * *", "minute", "'1.5' is not"),
    ("٣ * * * *", "minute", "'٣' is not"),
    ("²3 * * * *", "minute", "is not"),
    (", * * * *", "minute", "'' is not"),
    ("1,,2 * * * *", "minute", "'' is not"),
    ("*-5 * * * *", "minute", "'*-5' is not"),
    ("** * * * *", "minute", "'**' is not"),
    ("*/0 * * * *", "minute", "the step '0' is not a number in 1-60"),
    ("*/90 * * * *", "minute", "the step '90' is not a number in 1-60"),
    ("*/ * * * *", "minute", "the step '' is not"),
    ("*/5/2 * * * *", "minute", "the step '5/2' is not"),
    ("*/-5 * * * *", "minute", "the step '-5' is not"),
    ("30-10 * * * *", "minute", "'30-10' runs backwards; expected 10-30"),
    ("JAN * * * *", "minute", "'JAN' is not in range"),
    ("0 24 * * *", "hour", "'24' is not in range; expected 0-23"),
    ("0 22-4 * * *", "hour", "runs backwards"),
    ("0 0 0 * *", "day-of-month", "'0' is not in range; expected 1-31"),
    ("0 0 32 * *", "day-of-month", "'32' is not"),
    ("0 0 L * *", "day-of-month", "'L' is not"),
    ("0 0 15W * *", "day-of-month", "'15W' is not"),
    ("0 0 ? * *", "day-of-month", "'?' is not"),
    ("0 0 30 2 *", "day-of-month", "day 30 is in none of the months of '2'"),
    ("0 0 31 2,APR,6,9,11 *", "day-of-month", "day 31 is in none of the months"),
    ("0 0 * 13 *", "month", "'13' is not in range; expected 1-12 or JAN"),
    ("0 0 * 0 *", "month", "'0' is not"),
    ("0 0 * MON *", "month", "'MON' is not"),
    ("0 0 * * 8", "day-of-week", "'8' is not in range; expected 0-7 or SUN"),
    ("0 0 * * JAN", "day-of-week", "'JAN' is not"),
    ("0 0 * * MON#2", "day-of-week", "'MON#2' is not"),
    ("0 0 * * 5-2", "day-of-week", "runs backwards"),
]


@pytest.mark.parametrize("expression, field, message", REFUSED)
def test_what_cannot_be_is_refused_by_field(expression: str, field: str, message: str) -> None:
    """The person who wrote it learns which of the five to mend."""
    with pytest.raises(InvalidCron) as caught:
        Cron(expression)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "zone",
    [
        "",
        "Mars/Olympus",
        "Europe",
        "/etc/localtime",
        "../etc/passwd",
        "a\0b",
        "\ud800",
        "x" * 5_000,
    ],
)
def test_a_zone_that_does_not_exist_is_refused(zone: str) -> None:
    """Whatever the system's database makes of it."""
    with pytest.raises(InvalidCron, match="time zone: .* such as Europe/Berlin") as caught:
        Cron("@daily", zone)
    assert caught.value.field == "time zone"
    assert len(str(caught.value)) < 600


# In Berlin of 2026 the clock goes from 2:00 to 3:00 on 29 March (01:00 UTC), and from 3:00 back to
# 2:00 on 25 October (01:00 UTC).
CLOCKS_CHANGE = [
    # named hours follow the wall: what falls into the gap comes at its end, once
    ("30 2 * * *", "Europe/Berlin", "2026-03-28 12:00", ["03-29 01:00", "03-30 00:30"]),
    ("0 2,3 * * *", "Europe/Berlin", "2026-03-28 12:00", ["03-29 01:00", "03-30 00:00"]),
    ("*/20 2 * * *", "Europe/Berlin", "2026-03-28 12:00", ["03-29 01:00", "03-30 00:00"]),
    ("30 2 29 3 *", "Europe/Berlin", "2026-01-01 00:00", ["03-29 01:00", "03-29 00:30"]),
    # and what is repeated comes the first time only
    ("30 2 * * *", "Europe/Berlin", "2026-10-24 12:00", ["10-25 00:30", "10-26 01:30"]),
    ("30 2 * * *", "Europe/Berlin", "2026-10-25 01:10", ["10-26 01:30"]),
    ("0,30 2,3 * * *", "Europe/Berlin", "2026-10-25 00:30", ["10-25 02:00", "10-25 02:30"]),
    # every hour follows elapsed time
    ("30 * * * *", "Europe/Berlin", "2026-03-29 00:00", ["03-29 00:30", "03-29 01:30"]),
    ("30 * * * *", "Europe/Berlin", "2026-10-25 00:00", ["10-25 00:30", "10-25 01:30"]),
    ("30 0-23 * * *", "Europe/Berlin", "2026-10-25 00:00", ["10-25 00:30", "10-25 01:30"]),
    ("59 * * * *", "Europe/Berlin", "2026-10-25 00:58", ["10-25 00:59", "10-25 01:59"]),
    ("0 * 30 3 *", "Europe/Berlin", "2026-03-28 00:00", ["03-29 22:00", "03-29 23:00"]),
    # half an hour of gap and of repeat
    ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03 00:00", ["10-03 15:30", "10-04 15:15"]),
    ("45 1 * * *", "Australia/Lord_Howe", "2026-04-04 00:00", ["04-04 14:45", "04-05 15:15"]),
    ("45 * * * *", "Australia/Lord_Howe", "2026-04-04 14:00", ["04-04 14:45", "04-04 15:15"]),
    # a whole day that an island left out
    ("0 12 30 12 *", "Pacific/Apia", "2011-12-29 00:00", ["12-30 10:00", "12-29 22:00"]),
    ("0 12 * * *", "Pacific/Apia", "2011-12-29 12:00", ["12-29 22:00", "12-30 10:00"]),
    # a clock set back over midnight, at 00:01, brings back the last hour of a day that matches
    ("30 * 1 11 *", "America/St_Johns", "2008-11-02 01:59", ["11-02 02:00", "11-02 03:00"]),
    ("30 * 1 11 *", "America/St_Johns", "2008-11-02 02:00", ["11-02 03:00", "11-01 04:00"]),
    ("0 * 1 11 *", "America/St_Johns", "2009-06-01 00:00", ["11-01 02:30", "11-01 03:30"]),
    # midnight that does not exist
    ("@daily", "America/Havana", "2026-03-07 12:00", ["03-08 05:00", "03-09 04:00"]),
    # an offset that is not whole hours, and one with seconds
    ("0 9 * * *", "Asia/Kathmandu", "2026-01-01 00:00", ["01-01 03:15"]),
    ("* * * * *", "Africa/Monrovia", "1970-01-01 00:00:31", ["01-01 00:01"]),
]


@pytest.mark.parametrize("expression, zone, after, expected", CLOCKS_CHANGE)
def test_when_clocks_change(expression: str, zone: str, after: str, expected: list[str]) -> None:
    """Nothing that was named is lost, and nothing comes twice that was named once."""
    assert comes(expression, zone, after, len(expected)) == expected


def test_minutes_of_a_zone_with_seconds_are_its_own() -> None:
    """Liberia was 44 minutes and 30 seconds behind until 1972."""
    assert Cron("0 1 * * *", "Africa/Monrovia").next_after(0) == ms("1970-01-01 01:44:30")
    assert Cron("0 * * * *", "Africa/Monrovia").next_after(0) == ms("1970-01-01 00:44:30")


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["* * * * *", "*/7 * * * *", "30 2 * * *", "*/20 1-3 * * SUN", "5 */6 1 * *"]),
    st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe"]),
    st.integers(ms("2026-01-01 00:00"), ms("2027-01-01 00:00")),
)
@example("30 2 * * *", "Europe/Berlin", ms("2026-10-25 00:30"))
def test_no_start_changes_what_comes(expression: str, zone: str, start: int) -> None:
    """Asked from any moment before it, the answer is the same: nodes with other pasts agree."""
    cron = Cron(expression, zone)
    found = cron.next_after(start)
    assert found > start
    assert {cron.next_after(at) for at in (found - 1, (start + found) // 2)} == {found}
    assert datetime.fromtimestamp(found / 1000, UTC) - datetime.fromtimestamp(
        start / 1000, UTC
    ) < timedelta(days=62)


def test_every_alias_is_an_expression() -> None:
    """And gives what it stands for."""
    for alias, expression in ALIASES.items():
        assert Cron(alias).next_after(0) == Cron(expression).next_after(0)
