"""Up to where the witness lets the ledger grant, and what it must be raised to next. Pure; `Ledger` keeps one a term.

The witness is a few numbers outside the ledger that only grow (`sync.witness`). For an account it is a high-water mark of all
that is committed, raised in blocks of a hundredth of the limit *before* anything is granted into them: so whatever becomes of
the ledger, no more was granted than the mark says. What is settled is taken in whatever the mark says, and the mark follows.
"""

from collections.abc import Iterable, Mapping

from stepdown.ledger.lease import Account, start_of

EPOCH = "epoch"
"""The newest epoch in which something may have been granted."""
BORN = "born"
"""How many instances may have been granted anything, ever."""
BLOCKS = 100

LONGEST_PERIOD_S = 32 * 86_400
"""A mark tells when its account's period began, not when it ends: after so long it has ended."""


def may_run(account: str, now_s: float) -> bool:
    """Whether it is an account, and its period may not be over."""
    start_s = start_of(account)
    return start_s is not None and start_s + LONGEST_PERIOD_S > now_s


def block(limit_nusd: int) -> int:
    """How far a mark is raised ahead of what is committed."""
    return max(1, limit_nusd // BLOCKS)


class Marks:
    """What the witness is known to hold, what it should hold, and who waits for that."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.known: dict[str, int] = {}
        self.wanted: dict[str, int] = {}
        """Higher than known; the keeper sees to it."""
        self.short: dict[str, int] = {}
        """By account: what asks need that wait until the witness is raised. Later asks wait behind them: nobody overtakes, and
        one raise is enough for all."""
        self.closed = "the witness has not been read yet"
        """Why nothing at all may be granted; empty when something may."""

    @property
    def raised(self) -> dict[str, int]:
        """All that the witness should hold, if it does not yet. All, so that a witness that somebody deleted is whole again.

        But for periods that are over: their marks are cleared away after a while.
        """
        if not self.wanted:
            return {}
        return {name: value for name, value in {**self.known, **self.wanted}.items() if self._counts(name)}

    def _counts(self, name: str) -> bool:
        return "@" not in name or may_run(name, self.now_s)

    def room(self, account: Account) -> int:
        """What may be granted before the mark must be raised."""
        return self.known.get(account.name, 0) - account.committed

    def want(self, account: Account, more_nusd: int = 0) -> None:
        """A mark under which so much more can be granted, and then a block.

        No block while something is awaited: there will be room in a moment, and a keeper that is killed again and again must
        not drive the mark away from what is spent.
        """
        needed = account.committed + more_nusd + (0 if account.awaited else block(account.limit))
        self.want_value(account.name, max(account.committed, min(account.limit, needed)))

    def wait(self, account: Account, more_nusd: int) -> None:
        """An ask waits until so much more can be granted, after those that wait already."""
        all_nusd = self.short[account.name] = self.short.get(account.name, 0) + more_nusd
        if all_nusd > self.room(account):
            self.want(account, all_nusd)

    def want_value(self, name: str, value: int) -> None:
        if value > max(self.known.get(name, 0), self.wanted.get(name, 0)) and self._counts(name):
            self.wanted[name] = value

    def look_ahead(self, accounts: Iterable[Account]) -> None:
        """Raises in time, so that no ask ever waits while the witness can be written."""
        for account in accounts:
            if account.hard and account.committed > 0 and not account.awaited and self.room(account) * 2 < block(account.limit):
                self.want(account)

    def reached(self, marks: Mapping[str, int]) -> None:
        """The witness holds at least these now."""
        for name, value in marks.items():
            self.known[name] = max(value, self.known.get(name, 0))
        self.wanted = {
            name: value for name, value in self.wanted.items() if value > self.known.get(name, 0) and self._counts(name)
        }
        self.short.clear()
