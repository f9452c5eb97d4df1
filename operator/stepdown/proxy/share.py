"""How many critical requests of a route may have its premium model: pure integers. The till asks before it picks a ladder.

With `premium.maxSharePercent: 5` each other request earns 5 of credit and a premium one costs 95, so at no moment have more
than 5 % of the route's requests been premium. A quiet hour saves up no more than `BURST` of them. Credit is a proxy's own and
begins at nothing.
"""

from typing import Final

BURST: Final = 10
"""Premium requests that can be saved up at most."""


class PremiumShare:
    """One route's credit in one proxy. The share in force comes with every call, since an edit may change it."""

    __slots__ = ("credit",)

    def __init__(self) -> None:
        self.credit = 0

    def has(self, share_percent: int) -> bool:
        """Whether the next critical request may have premium."""
        return self.credit >= 100 - share_percent

    def spend(self, share_percent: int) -> None:
        """A request was admitted to premium."""
        self.credit -= 100 - share_percent

    def refund(self, share_percent: int) -> None:
        """A premium request came to nothing (outcome: cost 0)."""
        self._raise(share_percent, 100 - share_percent)

    def earn(self, share_percent: int) -> None:
        """Another request has ended."""
        self._raise(share_percent, share_percent)

    def _raise(self, share_percent: int, by: int) -> None:
        cap = max(BURST * (100 - share_percent), self.credit)
        self.credit = min(self.credit + by, cap)
