"""Money as integers, so that a sum is exact and a ceiling is a ceiling. Everything that counts money calls this.

Two units, and no float anywhere:

* a price is an integer of pico-USD a token (``…_pusd``): $1 per million tokens is 1,000,000 pUSD a token;
* a sum is an integer of nano-USD (``…_nusd``): $1 is 1,000,000,000 nUSD.

A request is priced once: tokens times prices is exact in pUSD, and is rounded up once to nUSD.
In the API, money is a decimal string, since JSON numbers above 2^53 are not portable (Kubernetes API conventions).
"""

import re
from typing import Final

NUSD_PER_USD: Final = 1_000_000_000
PUSD_PER_NUSD: Final = 1_000
_CENT_NUSD: Final = 10_000_000
PUSD_PER_USD_PER_MTOK: Final = 1_000_000

MAX_USD: Final = 999_999_999
"""The largest sum that a resource may state, in USD: far below 2^63 nUSD, so that sums of sums stay exact in SQL."""

USD_PATTERN = r"^[0-9]{1,9}(\.[0-9]{1,9})?$"
"""What a sum in USD looks like in a resource: at most nine digits on either side of the point (nUSD)."""

PRICE_PATTERN = r"^[0-9]{1,6}(\.[0-9]{1,6})?$"
"""What a price in USD per million tokens looks like: at most six decimals (pUSD a token)."""

_USD: Final = re.compile(USD_PATTERN, re.ASCII)
_PRICE: Final = re.compile(PRICE_PATTERN, re.ASCII)


def usd_to_nusd(usd: str) -> int:
    """`"500.00"` → 500_000_000_000. Raises ValueError on anything but a plain decimal that nUSD can hold."""
    if not _USD.fullmatch(usd):
        raise ValueError(
            f'{usd!r} is not a sum in USD: write a decimal such as "500.00", at most 9 digits before the point and 9 after it'
        )
    return _scaled(usd, 9)


def nusd_to_usd(nusd: int, *, digits: int | None = None) -> str:
    """500_000_000_000 → `"500.00"`. Exact: as many decimals as needed, at least two.

    With `digits`, rounded half up to that many decimals: for people's tables only.
    """
    if nusd < 0:
        return "-" + nusd_to_usd(-nusd, digits=digits)
    if digits is None:
        whole, frac = nusd // NUSD_PER_USD, nusd % NUSD_PER_USD
        if frac % _CENT_NUSD == 0:
            return f"{whole}.{frac // _CENT_NUSD:02d}"
        return f"{whole}.{str(NUSD_PER_USD + frac)[1:]}".rstrip("0")
    step = 10 ** (9 - digits)
    whole, frac = divmod((nusd + step // 2) // step, 10**digits)
    return f"{whole}.{frac:0{digits}d}" if digits else f"{whole}"


def usd_per_mtok_to_pusd(price: str) -> int:
    """`"0.25"` ($ per million tokens) → 250_000 pUSD a token. Raises ValueError on anything else than such a decimal."""
    if not _PRICE.fullmatch(price):
        raise ValueError(
            f'{price!r} is not a price in USD per million tokens: write a decimal such as "0.25", at most 6 decimals'
        )
    return _scaled(price, 6)


def pusd_to_usd_per_mtok(price_pusd: int) -> str:
    """250_000 pUSD a token → `"0.25"` ($ per million tokens), exact, at least two decimals."""
    whole, frac = divmod(price_pusd, PUSD_PER_USD_PER_MTOK)
    return f"{whole}.{f'{frac:06d}'.rstrip('0').ljust(2, '0')}"


def cost_nusd(
    uncached_input_tokens: int,
    cached_input_tokens: int,
    output_tokens: int,
    input_pusd: int,
    cached_input_pusd: int,
    output_pusd: int,
) -> int:
    """What a request costs in nUSD, rounded up once. The three token counts are disjoint; reasoning is part of output."""
    cost_pusd = uncached_input_tokens * input_pusd + cached_input_tokens * cached_input_pusd + output_tokens * output_pusd
    return -(-cost_pusd // PUSD_PER_NUSD)


def _scaled(decimal: str, places: int) -> int:
    whole, _, frac = decimal.partition(".")
    scale: int = 10**places
    return int(whole) * scale + int(frac.ljust(places, "0"))
