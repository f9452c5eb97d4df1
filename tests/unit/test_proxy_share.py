"""Premium stays under its share, at every moment and not only on average."""

from hypothesis import given
from hypothesis import strategies as st

from stepdown.proxy.share import BURST, PremiumShare


@given(st.integers(0, 100), st.lists(st.booleans(), max_size=400))
def test_premium_never_passes_its_share(share: int, critical: list[bool]) -> None:
    """A team that allows 5 % of premium would find 6 on the bill."""
    credit, premium = PremiumShare(), 0
    for total, wants_premium in enumerate(critical, start=1):
        if wants_premium and credit.has(share):
            credit.spend(share)
            premium += 1
        else:
            credit.earn(share)
        assert premium * 100 <= share * total


@given(st.integers(0, 99), st.integers(1, 5_000))
def test_a_quiet_day_saves_up_a_bounded_burst(share: int, others: int) -> None:
    """A night of cheap traffic would let a morning run on premium alone."""
    credit = PremiumShare()
    for _ in range(others):
        credit.earn(share)
    burst = 0
    while burst <= BURST and credit.has(share):
        credit.spend(share)
        burst += 1
    assert burst <= BURST
    assert burst == min(BURST, others * share // (100 - share))


def test_five_percent_is_one_in_twenty() -> None:
    """The README's example: 19 others earn one premium request, 18 do not."""
    credit = PremiumShare()
    for _ in range(18):
        credit.earn(5)
    assert not credit.has(5)
    credit.earn(5)
    assert credit.has(5)


def test_what_came_to_nothing_is_given_back() -> None:
    """An unreachable premium model would use up the share without one answer."""
    credit = PremiumShare()
    for _ in range(19):
        credit.earn(5)
    credit.spend(5)
    assert not credit.has(5)
    credit.refund(5)
    assert credit.has(5)


def test_a_lowered_share_does_not_take_credit_away_and_gives_none() -> None:
    """An edit of the route must not turn into a burst of premium."""
    credit = PremiumShare()
    for _ in range(1_000):
        credit.earn(50)
    before = credit.credit
    credit.earn(99)
    assert credit.credit == before
