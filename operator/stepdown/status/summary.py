"""What `kubectl get` prints: numbers cut to five characters, so that a line fits a terminal. The documents carry it.

The exact numbers are beside it in the status. What is cut is dropped, not rounded: 99.97 % of $500 is not shown as 500.
"""

from fractions import Fraction

from stepdown.model.money import NUSD_PER_USD

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def money(nusd: int) -> str:
    """USD: `0`, `0.042`, `0.05`, `7.31`, `82.35`, `412`, `12345`."""
    if nusd < 0:
        return f"-{money(-nusd)}"
    if nusd == 0:
        return "0"
    digits = 3 if nusd < NUSD_PER_USD else 2 if nusd < 100 * NUSD_PER_USD else 0
    whole, part = divmod(nusd // 10 ** (9 - digits), 10**digits)
    shown = f"{whole}.{part:0{digits}d}" if digits else f"{whole}"
    return shown.removesuffix("0") if digits == 3 else shown


def percent(used: Fraction) -> str:
    """Whole percents: `82`."""
    return str(int(used * 100))


def reset(month: str) -> str:
    """The day that a month begins: `2026-12` → `1-Dec`."""
    return f"1-{_MONTHS[int(month[5:7]) - 1]}"
