"""Cron expressions: five fields or an alias, read in a time zone, asked for the next instant.

    minute        0-59        hour   0-23
    day-of-month  1-31        month  1-12 or JAN-DEC
    day-of-week   0-7 or SUN-SAT; 0 and 7 are Sunday

A field is `*`, a value, a range `a-b`, any of them with a step (`*/5`, `10-40/10`, `7/10` from 7 to
the end), or a list of those with commas. Aliases: @hourly, @daily or @midnight, @weekly, @monthly,
@yearly or @annually. `@reboot` is refused: a cluster has no boot.

**All five fields must match**, day-of-month AND day-of-week, as in Norns. Classic cron takes either
when both are restricted, so that `0 9 13 * FRI` would mean every Friday and every 13th; with AND it
is Friday the 13th, every field only ever narrows, and what OR says is two triggers.

When clocks change:

- An expression that runs in every hour follows elapsed time. It comes in both passes of an hour
  that is repeated, and has nothing to miss in one that is left out.
- Any other follows the clock on the wall: each local time it names comes once a day. In a repeated
  hour it is the first pass; in a gap it is the first minute after it, once for all that fell in.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from perdure.core.errors import InvalidInput
from perdure.core.limits import clip

EXPRESSION_CHARS_MAX: Final = 500
ZONE_CHARS_MAX: Final = 64
MINUTE_MS: Final = 60_000

ALIASES: Final[Mapping[str, str]] = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}

_MONTHS: Final = (
    "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC",
)  # fmt: skip
_DAYS: Final = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_LONGEST: Final = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_PART: Final = re.compile(r"(?:(\*)|([0-9]{1,2}|[A-Z]{3})(?:-([0-9]{1,2}|[A-Z]{3}))?)(?:/(.*))?")
_MINUTE: Final = timedelta(minutes=1)
_SET_BACK_MAX: Final = timedelta(hours=3)


class InvalidCron(InvalidInput):
    """An expression that cannot be; `field` names the part: "hour", "time zone", "expression"."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class _Field(msgspec.Struct, frozen=True):
    """One of the five fields: its range, and the names that stand for its numbers from `low` on."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()


_FIELDS: Final = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day-of-month", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("day-of-week", 0, 7, _DAYS),
)


class Cron:
    """An expression in a time zone. Knows no clock: the instant to start from is an argument."""

    def __init__(self, expression: str, zone: str = "UTC") -> None:
        """Read an expression; raises `InvalidCron`, which names the field that is wrong."""
        self._zone = _zone(zone)
        fields = _split(expression)
        read = [_read(field, text) for field, text in zip(_FIELDS, fields, strict=True)]
        self._minutes, self._hours, self._days, self._months, weekdays = read
        # datetime counts Monday as 1 and Sunday as 7; 0 is the other name of Sunday.
        self._weekdays = {day or 7 for day in weekdays}
        self._walls = [time(hour, minute) for hour in self._hours for minute in self._minutes]
        if not any(self._days[0] <= _LONGEST[month - 1] for month in self._months):
            said = f"day {self._days[0]} is in none of the months of {fields[3]!r}"
            raise InvalidCron("day-of-month", said)

    def next_after(self, at_ms: int) -> int:
        """Return the first instant after `at_ms` that matches; both in milliseconds since 1970."""
        at = datetime.fromtimestamp(at_ms // 1000, UTC)
        found = self._next_elapsed(at) if len(self._hours) == 24 else self._next_wall(at)
        return int(found.timestamp()) * 1000

    def _next_wall(self, at: datetime) -> datetime:
        """Take local times in order: their instants come in order too, gaps and repeats included.

        None that is not later on the wall than `at` can have an instant after it.
        """
        local = at.astimezone(self._zone).replace(tzinfo=None)
        for day in self._dates(local.date()):
            for wall in self._walls:
                moment = datetime.combine(day, wall)
                if moment > local and (instant := _instant(moment, self._zone)) > at:
                    return instant
        raise AssertionError("the calendar has no end")

    def _next_elapsed(self, at: datetime) -> datetime:
        """Walk minute by minute through real time, and leap over days that do not match."""
        now = at.replace(second=0) + _MINUTE
        while True:
            local = now.astimezone(self._zone)
            # Old zones have offsets with seconds; their minutes begin between two of ours.
            now -= timedelta(seconds=local.second)
            if now > at and self._has_day(local.date()) and local.minute in self._minutes:
                return now
            now += _MINUTE
            # No leap shortly after a day that matches: a clock that is set back over midnight
            # brings it back.
            if not any(self._has_day(day.date()) for day in (local, local - _SET_BACK_MAX)):
                midnight = datetime.combine(next(self._dates(local.date())), time())
                now = max(now, _instant(midnight, self._zone))

    def _has_day(self, day: date) -> bool:
        return (
            day.month in self._months
            and day.day in self._days
            and day.isoweekday() in self._weekdays
        )

    def _dates(self, first: date) -> Iterator[date]:
        """Yield the days that match, from `first` on."""
        year, month = first.year, first.month
        while True:
            if month in self._months:
                length = calendar.monthrange(year, month)[1]
                days = (date(year, month, day) for day in self._days if day <= length)
                yield from (day for day in days if day >= first and self._has_day(day))
            year, month = (year, month + 1) if month < 12 else (year + 1, 1)


def _instant(moment: datetime, zone: tzinfo) -> datetime:
    """Return when a local time comes: for the first time, or, if it never does, the gap's end."""
    local = moment.replace(tzinfo=zone)
    instant = local.astimezone(UTC)
    if instant.astimezone(zone).replace(tzinfo=None) == moment:
        return instant
    # In a gap fold 0 reckons with the offset before it and fold 1 with the one after it, so the
    # one lies as far behind the gap's end as `moment` lies in the gap.
    before, late, early = local.utcoffset(), instant, local.replace(fold=1).astimezone(UTC)
    while late - early > timedelta(seconds=1):
        middle = early + (late - early) // 2
        if middle.astimezone(zone).utcoffset() == before:
            early = middle
        else:
            late = middle
    return late.replace(microsecond=0)


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC  # also where no time zone database is installed
    try:
        return ZoneInfo(name)
    # What is no name may be a folder, an absolute path, or not even a possible file name.
    except (ZoneInfoNotFoundError, ValueError, OSError):
        said = f"{clip(name, ZONE_CHARS_MAX)!r} is not in this system's time zone database"
        raise InvalidCron("time zone", f"{said}; expected a name such as Europe/Berlin") from None


def _split(expression: str) -> list[str]:
    if len(expression) > EXPRESSION_CHARS_MAX:
        raise InvalidCron("expression", f"longer than {EXPRESSION_CHARS_MAX} characters")
    text = expression.strip()
    if text.startswith("@"):
        if (alias := ALIASES.get(text.lower())) is None:
            known = ", ".join(ALIASES)
            raise InvalidCron("expression", f"{text!r} is no alias; expected one of {known}")
        text = alias
    fields = text.upper().split()
    if len(fields) != len(_FIELDS):
        names = ", ".join(field.name for field in _FIELDS)
        raise InvalidCron("expression", f"{len(fields)} fields; expected five: {names}")
    return fields


def _read(field: _Field, text: str) -> list[int]:
    return sorted({value for part in text.split(",") for value in _values(field, part)})


def _values(field: _Field, part: str) -> range:
    """Return what one entry of a field's list stands for."""
    found = _PART.fullmatch(part)
    if found is None:
        raise InvalidCron(field.name, f"{part!r} is not *, a value or a range, with or without /n")
    star, first, last, step = found.groups()
    if star:
        low, high = field.low, field.high
    else:
        low = _number(field, first)
        high = _number(field, last) if last else field.high if step else low
        if high == 0 < low and field.high == 7:
            high = 7  # FRI-SUN: a week that ends on Sunday
    if high < low:
        raise InvalidCron(field.name, f"{part!r} runs backwards; expected {last}-{first}")
    return range(low, high + 1, 1 if step is None else _step(field, step))


def _number(field: _Field, text: str) -> int:
    if text in field.names:
        return field.low + field.names.index(text)
    if not text.isdigit() or not field.low <= int(text) <= field.high:
        names = f" or {field.names[0]}-{field.names[-1]}" if field.names else ""
        expected = f"expected {field.low}-{field.high}{names}"
        raise InvalidCron(field.name, f"{text!r} is not in range; {expected}")
    return int(text)


def _step(field: _Field, text: str) -> int:
    span = field.high - field.low + 1
    if not re.fullmatch("[0-9]{1,2}", text) or not 1 <= int(text) <= span:
        raise InvalidCron(field.name, f"the step {text!r} is not a number in 1-{span}")
    return int(text)
