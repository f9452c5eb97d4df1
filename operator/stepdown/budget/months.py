"""Calendar months in any IANA zone as instants: when a budget's period starts and ends. `plan.accounts` calls this.

A period is half open, in Unix seconds, and periods tile time: one ends at the very second the next begins. A month starts at
the first instant whose local time is at or after midnight of the first, also where daylight saving skips or repeats it.
A budget whose `timeZone` changed keeps the period it is in; the next begins where that one ends and ends by the new zone.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_FORTNIGHT_S = 14 * 86_400
"""Lands in the middle of a month from either of its edges, whatever two zones differ by (26 hours at most)."""


@dataclass(frozen=True, slots=True)
class Period:
    """One month of one budget."""

    month: str
    """`2026-11`: the calendar month that it stands for."""
    start_s: int
    end_s: int
    """Exclusive."""

    def holds(self, now_s: float) -> bool:
        return self.start_s <= now_s < self.end_s


def month_at(now_s: float, zone: str) -> Period:
    """The calendar month of that zone which holds the instant."""
    local = instant(now_s).astimezone(ZoneInfo(zone))
    year, month = local.year, local.month
    # Where clocks went back across midnight, the local date can lag behind the month that has begun already.
    if now_s >= month_start_s(*_next(year, month), zone):
        year, month = _next(year, month)
    return Period(f"{year:04d}-{month:02d}", month_start_s(year, month, zone), month_start_s(*_next(year, month), zone))


def period_at(now_s: float, zone: str, known: Iterable[tuple[int, int]] = ()) -> Period:
    """The period in force, where `known` are the (start, end) of the budget's accounts that exist already.

    An account that holds `now` is the period, whatever its zone was; one that has ended takes nothing from the month after it
    that it had covered: no second belongs to two periods.
    """
    month = month_at(now_s, zone)
    start_s = month.start_s
    for known_start_s, known_end_s in known:
        if known_start_s <= now_s < known_end_s:
            return Period(month_of(known_start_s, known_end_s, zone), known_start_s, known_end_s)
        if known_end_s <= now_s:
            start_s = max(start_s, known_end_s)
    return Period(month.month, start_s, month.end_s)


def period_after(period: Period, zone: str) -> Period:
    """The period that begins where this one ends: a month of that zone, its start moved to this one's end."""
    month = month_at(period.end_s + _FORTNIGHT_S, zone)
    return Period(month.month, period.end_s, month.end_s)


@lru_cache(maxsize=4096)
def month_start_s(year: int, month: int, zone: str) -> int:
    """The first instant whose local time is at or after midnight of the first of that month."""
    midnight = datetime(year, month, 1, tzinfo=ZoneInfo(zone))
    late_s = _unix_s(midnight)
    early_s = _unix_s(midnight.replace(fold=1))
    if early_s >= late_s:
        return late_s
    # The midnight does not exist: the clocks jumped over it somewhere between these two instants, at the second we look for.
    wall = midnight.replace(tzinfo=None)
    while early_s < late_s:
        middle_s = (early_s + late_s) // 2
        if instant(middle_s).astimezone(midnight.tzinfo).replace(tzinfo=None) >= wall:
            late_s = middle_s
        else:
            early_s = middle_s + 1
    return late_s


def instant(at_s: float) -> datetime:
    """Unix seconds as an aware datetime in UTC, its fraction of a second dropped."""
    return _EPOCH + timedelta(seconds=int(at_s // 1))


@lru_cache(maxsize=1024)
def rfc3339(at_s: float) -> str:
    """Unix seconds as Kubernetes writes a time: `2026-11-23T19:25:00Z`."""
    return instant(at_s).strftime("%Y-%m-%dT%H:%M:%SZ")


def day_text(day: int) -> str:
    """20770 → `2026-11-13`."""
    return instant(day * 86_400).strftime("%Y-%m-%d")


def month_span(month: str) -> tuple[int, int]:
    """The first and the last day of `2026-11` in UTC, as days since 1970. Raises ValueError."""
    found = re.fullmatch(r"(\d{4})-(\d{2})", month, re.ASCII)
    if found is None or not 1 <= int(found[2]) <= 12 or not 1970 <= int(found[1]) < 9999:
        raise ValueError(f"{month!r} is not a month; write one such as 2026-11")
    year, number = int(found[1]), int(found[2])
    return month_start_s(year, number, "UTC") // 86_400, month_start_s(*_next(year, number), "UTC") // 86_400 - 1


def day_of(at_s: float) -> int:
    """Days since 1970-01-01 UTC: the ledger's counters are kept by these."""
    return int(at_s // 86_400)


def month_of(start_s: int, end_s: int, zone: str) -> str:
    """The calendar month that a period stands for."""
    return month_at((start_s + end_s) // 2, zone).month


def _next(year: int, month: int) -> tuple[int, int]:
    return (year + 1, 1) if month == 12 else (year, month + 1)


def _unix_s(moment: datetime) -> int:
    return (moment - _EPOCH) // _SECOND
