"""The witness: marks kept outside the ledger, so that an older copy of it cannot refill a budget. `service` raises them.

What a mark is worth is said in `stepdown.ledger.terms`.
"""

from collections.abc import Mapping
from typing import Protocol


class Witness(Protocol):
    """A few numbers by name that only grow, durable, and not in the same place as the ledger. Raises ClusterError."""

    async def read(self) -> Mapping[str, int]:
        """All of them; what was never raised is not there."""

    async def raise_to(self, marks: Mapping[str, int]) -> None:
        """When it returns, none is lower than in `marks`. Whether it has happened is not known when it raises."""
