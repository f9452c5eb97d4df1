"""What the ledger has seen of an upstream that `plan`, `status` and the command line are to know too."""

from typing import NamedTuple


class Overrun(NamedTuple):
    """An upstream did not keep to a bound: a request has cost more than its worst case."""

    model: str
    nusd: int
    """By how much, at most."""
    day: int
    """The last UTC day on which it was seen, as days since 1970."""
