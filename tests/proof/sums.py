"""What the ledger's tables say, read by statements and arithmetic of the proof's own: a look costs little and shares no code
with what it looks at."""

import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

_ACCOUNTS = """SELECT name, limit_nusd, end_s, opening, closed_consumed, closed_excess, awaited, unaccounted FROM accounts"""
_LEASES = """SELECT a.name, i.name, i.state, l.granted - l.returned, l.consumed, l.reserved, l.excess
FROM leases l JOIN accounts a ON a.id = l.account JOIN instances i ON i.id = l.instance"""


@dataclass
class Lease:
    """Of one account, at one instance."""

    instance: str
    is_open: bool
    held: int
    consumed: int
    reserved: int

    @property
    def committed(self) -> int:
        return max(self.held, self.consumed + self.reserved)


@dataclass
class Sums:
    """One account, in nUSD."""

    limit: int
    end_s: int
    committed: int
    """All that may have been spent of it."""
    granted: int
    """What has been given out of it; without openings, and without what is only feared."""
    excess: int
    """The part that an upstream took beyond what was given out."""
    leases: list[Lease] = field(default_factory=list)


class Reader:
    """Beside a keeper that has the file open."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)

    def read(self) -> dict[str, Sums]:
        """By account."""
        found = {}
        for name, limit, end_s, opening, consumed, excess, awaited, unaccounted in self._connection.execute(_ACCOUNTS):
            found[name] = Sums(limit, end_s, opening + consumed + awaited + unaccounted, consumed, excess)
        for name, instance, state, held, consumed, reserved, excess in self._connection.execute(_LEASES):
            account, lease = found[name], Lease(instance, state == "open", held, consumed, reserved)
            account.leases.append(lease)
            account.committed += lease.committed
            account.granted += lease.committed if lease.is_open else consumed
            account.excess += excess
        return found

    def close(self) -> None:
        self._connection.close()
