"""Money is exact. If these fail, a user's bill and our ledger part ways, a nano-dollar at a time."""

from decimal import ROUND_CEILING, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepdown.model import money

TOKENS = st.integers(0, 10**9)
PRICES = st.integers(0, 10**9)


@pytest.mark.parametrize(
    ("usd", "nusd"),
    [
        ("500.00", 500_000_000_000),
        ("0.05", 50_000_000),
        ("0.000000001", 1),
        ("999999999.999999999", 999_999_999_999_999_999),
    ],
)
def test_sums_are_read_to_the_nano_dollar(usd: str, nusd: int) -> None:
    """A ceiling that is read wrongly is a wrong ceiling."""
    assert money.usd_to_nusd(usd) == nusd


@pytest.mark.parametrize(
    "usd", ["", "-1", "+1", "1e3", " 1", "1.", ".5", "1,000", "0.0000000001", "1000000000", "١", "NaN", "1\n"]
)
def test_what_is_not_a_plain_sum_is_refused_with_what_to_write(usd: str) -> None:
    """Rounding or guessing here would silently move a user's ceiling."""
    with pytest.raises(ValueError, match=r'write a decimal such as "500.00"'):
        money.usd_to_nusd(usd)


@given(st.integers(0, money.MAX_USD * money.NUSD_PER_USD))
def test_a_sum_survives_the_api_and_back(nusd: int) -> None:
    """Status shows what the ledger holds, to the last digit."""
    assert money.usd_to_nusd(money.nusd_to_usd(nusd)) == nusd


@given(st.integers(0, 999_999_999_999))
def test_a_price_survives_the_api_and_back(price_pusd: int) -> None:
    """A price that changes on its way from the catalog to the proxy bends every bill."""
    assert money.usd_per_mtok_to_pusd(money.pusd_to_usd_per_mtok(price_pusd)) == price_pusd


@pytest.mark.parametrize("price", ["-0.1", "0.0000001", "1e-3", "free", "1000000"])
def test_what_is_not_a_price_is_refused(price: str) -> None:
    """A price finer than a pico-dollar a token cannot be held, and must not be rounded in silence."""
    with pytest.raises(ValueError, match="not a price"):
        money.usd_per_mtok_to_pusd(price)


@given(TOKENS, TOKENS, TOKENS, PRICES, PRICES, PRICES)
def test_a_request_is_rounded_up_once(uncached: int, cached: int, output: int, p_in: int, p_cached: int, p_out: int) -> None:
    """Rounded down, the ceiling leaks; rounded up per part, honest users pay twice. Decimal is the judge."""
    exact_usd = (Decimal(uncached) * p_in + Decimal(cached) * p_cached + Decimal(output) * p_out) / Decimal(10**12)
    expected = int((exact_usd * money.NUSD_PER_USD).to_integral_value(rounding=ROUND_CEILING))
    assert money.cost_nusd(uncached, cached, output, p_in, p_cached, p_out) == expected


def test_the_published_figures() -> None:
    """$0.25 per million output tokens is the figure that people check first."""
    assert money.cost_nusd(0, 0, 5_000_000, 0, 0, money.usd_per_mtok_to_pusd("0.25")) == money.usd_to_nusd("1.25")


def test_a_price_of_zero_is_a_price() -> None:
    """Free input is free, not unknown."""
    assert money.usd_per_mtok_to_pusd("0.00") == 0
    assert money.cost_nusd(1_000_000, 0, 0, 0, 0, 200_000) == 0


def test_people_see_rounded_sums_and_machines_exact_ones() -> None:
    """A table in cents must not look cheaper than it is by cutting digits off."""
    assert money.nusd_to_usd(1_239_999_999, digits=2) == "1.24"
    assert money.nusd_to_usd(1_239_999_999) == "1.239999999"
    assert money.nusd_to_usd(-5_000_000) == "-0.005"
