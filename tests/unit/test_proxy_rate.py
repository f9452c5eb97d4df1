"""A channel's requests a minute. If these fail, the upstream refuses the platform, or models stand idle that could answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepdown.model.config import Channel
from stepdown.proxy.rate import Rates


def rates(limit: int | None) -> Rates:
    made = Rates()
    made.bound_by((Channel(name="standard", requests_per_minute=limit), Channel(name="pro")))
    return made


@given(
    limit=st.integers(1, 12),
    gaps_s=st.lists(st.sampled_from((0.0, 0.1, 0.9, 1.0, 3.7, 20.0, 59.9, 60.0, 61.0, 500.0)), max_size=120),
    start_s=st.floats(0, 1e6),
)
def test_no_minute_has_more_than_the_limit(limit: int, gaps_s: list[float], start_s: float) -> None:
    """Wherever it begins: an upstream may count by the clock or by a window that slides."""
    window, now_s, sent_s = rates(limit), start_s, list[float]()
    for gap_s in gaps_s:
        now_s += gap_s
        if window.take("standard", 1, now_s) == 0:
            sent_s.append(now_s)
    for begin_s in sent_s:
        assert sum(begin_s <= each_s < begin_s + 60 for each_s in sent_s) <= limit


@given(limit=st.integers(1, 5), gaps_s=st.lists(st.sampled_from((0.0, 0.4, 2.0, 30.0)), min_size=5, max_size=40))
def test_whoever_comes_when_told_to_is_served(limit: int, gaps_s: list[float]) -> None:
    """Retry-After is a promise; and a second earlier it would have been a broken one."""
    window, now_s = rates(limit), 1000.0
    for gap_s in gaps_s:
        now_s += gap_s
        wait_s = window.take("standard", 1, now_s)
        if wait_s > 0:
            assert wait_s <= 61
            assert window.wait_s("standard", 1, now_s + wait_s - 0.01) > 0
            now_s += wait_s
            assert window.take("standard", 1, now_s) == 0


@pytest.mark.parametrize(("limit", "sharers", "share"), [(10, 1, 10), (10, 3, 3), (10, 10, 1), (2, 5, 1)])
def test_proxies_share_a_limit_and_each_has_at_least_one(limit: int, sharers: int, share: int) -> None:
    window = rates(limit)
    assert sum(window.take("standard", sharers, 5.0) == 0 for _ in range(20)) == share
    said = window.said("standard", sharers)
    assert f"its {share} requests of this minute" in said
    assert ("proxies share" in said) == (sharers > 1)


def test_a_channel_without_a_limit_has_none() -> None:
    window = rates(1)
    assert all(window.take(name, 1, 5.0) == 0 for name in ("pro", "unknown") for _ in range(1000))
    assert not rates(None).limited


def test_an_edit_keeps_what_was_sent() -> None:
    """A limit that is raised and lowered again must not give a fresh minute each time."""
    window = rates(5)
    assert sum(window.take("standard", 1, 5.0) == 0 for _ in range(9)) == 5
    window.bound_by((Channel(name="standard", requests_per_minute=8),))
    assert sum(window.take("standard", 1, 6.0) == 0 for _ in range(9)) == 3
    window.bound_by((Channel(name="standard", requests_per_minute=5),))
    assert window.wait_s("standard", 1, 65.0) > 0, "8 of them count, three too many"
    assert window.take("standard", 1, 66.5) == 0
