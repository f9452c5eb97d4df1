"""Months: a budget whose periods overlapped would charge a request twice, one with gaps would let it go uncharged."""

from zoneinfo import available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepdown.budget.months import Period, instant, month_at, month_start_s, period_after, period_at, rfc3339

ZONES = sorted(zone for zone in available_timezones() if "/" in zone and not zone.startswith(("posix/", "right/")))
zones = st.sampled_from(ZONES)
months = st.tuples(st.integers(1990, 2050), st.integers(1, 12))
moments = st.integers(631_152_000, 2_524_608_000)


@given(months, zones)
def test_months_tile_time(month: tuple[int, int], zone: str) -> None:
    """Every second is in exactly one month, in every zone: no cost is lost or counted twice at an edge."""
    start_s = month_start_s(*month, zone)
    this = month_at(start_s, zone)
    assert this.start_s == start_s and this.month == f"{month[0]:04d}-{month[1]:02d}"
    assert month_at(this.end_s - 1, zone) == this
    assert month_at(this.end_s, zone).start_s == this.end_s
    assert month_at(start_s - 1, zone).end_s == start_s


@given(moments, zones)
def test_the_month_holds_its_moment(now_s: int, zone: str) -> None:
    """A request is billed in the period that it was admitted in."""
    month = month_at(now_s, zone)
    assert month.holds(now_s)
    assert 27 * 86_400 <= month.end_s - month.start_s <= 32 * 86_400


@given(moments, zones, zones)
def test_a_changed_zone_applies_from_the_next_period(now_s: int, old: str, new: str) -> None:
    """Changing `timeZone` neither resets the month's spend nor leaves hours that no account covers."""
    current = month_at(now_s, old)
    known = [(current.start_s, current.end_s)]
    kept = period_at(now_s, new, known)
    assert (kept.start_s, kept.end_s) == (current.start_s, current.end_s)
    following = period_after(kept, new)
    assert following.start_s == current.end_s
    assert following.end_s == month_at(following.end_s, new).start_s, "the next period ends at a month's edge of the new zone"
    assert 26 * 86_400 <= following.end_s - following.start_s <= 33 * 86_400
    known.append((following.start_s, following.end_s))
    assert period_at(following.start_s, new, known) == following
    assert period_after(following, new) == month_at(following.end_s, new)


@given(moments, zones, zones)
def test_a_period_never_covers_what_an_ended_account_covered(now_s: int, old: str, new: str) -> None:
    """After a long absence the new account does not take over hours that the old one has already billed."""
    ended = month_at(now_s, old)
    period = period_at(ended.end_s, new, [(ended.start_s, ended.end_s)])
    assert period.start_s >= ended.end_s - 1 and period.holds(ended.end_s)


@pytest.mark.parametrize(
    ("zone", "year", "month", "starts"),
    [
        ("UTC", 2026, 11, "2026-11-01T00:00:00Z"),
        ("Europe/Berlin", 2026, 11, "2026-10-31T23:00:00Z"),
        ("Europe/Berlin", 2026, 4, "2026-03-31T22:00:00Z"),
        ("America/New_York", 2026, 11, "2026-11-01T04:00:00Z"),
        ("UTC", 2028, 3, "2028-03-01T00:00:00Z"),
        # Paraguay's clocks went from 24:00 to 01:00: 1 October 2017 began at 01:00.
        ("America/Asuncion", 2017, 10, "2017-10-01T04:00:00Z"),
        # Cuba's did the same on 1 April 2001.
        ("America/Havana", 2001, 4, "2001-04-01T05:00:00Z"),
        # Cuba's clocks went back at 01:00 to midnight of the same day: the first midnight counts.
        ("America/Havana", 2026, 11, "2026-11-01T04:00:00Z"),
        ("Pacific/Kiritimati", 1995, 1, "1994-12-31T10:00:00Z"),
    ],
)
def test_known_edges(zone: str, year: int, month: int, starts: str) -> None:
    """Edges that people know from their calendars, daylight saving and leap days among them."""
    assert rfc3339(month_start_s(year, month, zone)) == starts


def test_a_second_before_the_edge_in_berlin() -> None:
    """The last second of October in Berlin is October's, though it is 22:59:59 in UTC."""
    edge_s = month_start_s(2026, 11, "Europe/Berlin")
    assert month_at(edge_s - 0.001, "Europe/Berlin").month == "2026-10"
    assert month_at(edge_s, "Europe/Berlin").month == "2026-11"
    assert period_after(month_at(edge_s - 1, "Europe/Berlin"), "Europe/Berlin") == month_at(edge_s, "Europe/Berlin")


def test_the_zone_moves_ahead_and_back() -> None:
    """Berlin to UTC in November: December begins when Berlin's November ends, and ends with UTC's December."""
    berlin = month_at(month_start_s(2026, 11, "Europe/Berlin"), "Europe/Berlin")
    following = period_after(berlin, "UTC")
    assert following == Period("2026-12", month_start_s(2026, 12, "Europe/Berlin"), month_start_s(2027, 1, "UTC"))


def test_instants_drop_fractions_also_before_the_epoch() -> None:
    """A time in status is a whole second and never in the future."""
    assert rfc3339(1.999) == "1970-01-01T00:00:01Z"
    assert instant(-0.5).second == 59
