"""The proxy's side of one lease: how much of an account's money it may still reserve. Books keep them, the till spends from
them.

Every number is an integer of nano-USD. `granted`, `returned` and `consumed` are cumulative over the life of an instance and
only grow, which is what makes a lost, repeated or reordered message harmless. ``free = granted - returned - consumed -
reserved`` is kept as a number of its own, since the hot path asks for nothing else; `reserved` follows from it.
"""

from typing import Final

from stepdown.model.config import Account
from stepdown.model.sync import LeaseGrant, LeaseReport

WANT_S: Final = 2.0
"""How many seconds of its recent rate of reservation a proxy would like to hold idle: enough to span two syncs."""

_HALF_S: Final = 2.0
"""The rate of reservation is smoothed: what is this old counts half."""


class Lease:
    """One account's lease. A Soft budget has one too: nothing is granted to it, and nobody asks what is free."""

    __slots__ = (
        "account",
        "acked",
        "asking",
        "budget",
        "committed_nusd",
        "consumed",
        "end_s",
        "estimated",
        "expected_nusd_s",
        "free",
        "granted",
        "hard",
        "limit_nusd",
        "rate_nusd_s",
        "recalled_s",
        "returned",
        "seen_taken",
        "sole",
        "spent_nusd",
        "taken",
    )

    def __init__(self, account: str, granted: int = 0, returned: int = 0, consumed: int = 0, estimated: int = 0) -> None:
        self.account = account
        self.granted = granted
        self.returned = returned
        self.consumed = consumed
        self.estimated = estimated
        self.free = granted - returned - consumed
        self.taken = 0
        """All that was ever reserved; only its growth matters, for the rate."""
        self.asking = 0
        """Requests that have asked the keeper for money here and not been answered: newcomers queue behind them."""
        self.acked: LeaseReport | None = None
        """What the keeper has acknowledged last."""
        self.budget = account.rpartition("@")[0]
        self.hard = True
        self.end_s = 0
        self.limit_nusd = 0
        self.spent_nusd = 0
        self.committed_nusd = 0
        self.sole = False
        """Nobody else held any of the account's money that is not spent yet, as of the keeper's last answer."""
        self.recalled_s = float("-inf")
        """When the keeper last wanted some of it back, in seconds since boot: somebody waits for it elsewhere."""
        self.rate_nusd_s = 0.0
        self.expected_nusd_s = 0.0
        """Before its period begins: the rate of the period before."""
        self.seen_taken = 0

    @property
    def reserved(self) -> int:
        """Worst cases of the requests in flight."""
        return self.granted - self.returned - self.consumed - self.free

    @property
    def headroom_nusd(self) -> int:
        """What the keeper could still grant, as of its last answer."""
        return max(0, self.limit_nusd - self.committed_nusd)

    @property
    def reachable_nusd(self) -> int:
        """The most that could ever be free here: if all in flight cost nothing and the keeper granted all that it has."""
        return self.granted - self.returned - self.consumed + self.headroom_nusd

    def describe(self, account: Account, hard: bool) -> None:
        """What the config says of this account; the keeper's word on the limit, once heard, is the newer."""
        self.hard = hard
        self.end_s = account.end_s
        if not self.limit_nusd:
            self.limit_nusd = account.limit_nusd

    def hold(self, amount_nusd: int) -> None:
        """A request reserves its worst case. The log has it already."""
        self.free -= amount_nusd
        self.taken += amount_nusd

    def end(self, amount_nusd: int, cost_nusd: int, *, estimated: bool) -> None:
        """A request ends: its reservation is free again, its true cost consumed, be it more than the reservation."""
        self.free += amount_nusd - cost_nusd
        self.consumed += cost_nusd
        if estimated:
            self.estimated += cost_nusd

    def grant(self, granted_nusd: int) -> None:
        """The keeper's cumulative grant; an older answer changes nothing."""
        more = granted_nusd - self.granted
        if more > 0:
            self.granted = granted_nusd
            self.free += more

    def give_back(self, returned_nusd: int) -> None:
        """A new cumulative return. The log has it already."""
        more = returned_nusd - self.returned
        if more > 0:
            self.returned = returned_nusd
            self.free -= more

    def heard(self, grant: LeaseGrant) -> None:
        """The keeper's view of the whole account, for messages and for judging whether a wait is worth it."""
        self.limit_nusd = grant.limit
        self.spent_nusd = grant.spent
        self.committed_nusd = grant.committed
        if self.acked is not None:
            mine_nusd = grant.granted - self.acked.returned - self.acked.consumed
            self.sole = grant.committed - grant.spent <= mine_nusd

    def pace(self, elapsed_s: float) -> None:
        """Brings the rate of reservation up to date, once a sync."""
        if elapsed_s <= 0:
            return
        if self.taken:
            self.expected_nusd_s = 0.0
        weight = 0.5 ** (elapsed_s / _HALF_S)
        self.rate_nusd_s = self.rate_nusd_s * weight + (self.taken - self.seen_taken) / elapsed_s * (1 - weight)
        self.seen_taken = self.taken

    def report(self) -> LeaseReport:
        want = int(max(self.rate_nusd_s, self.expected_nusd_s) * WANT_S) if self.hard else 0
        return LeaseReport(
            account=self.account,
            granted=self.granted,
            returned=self.returned,
            consumed=self.consumed,
            estimated=self.estimated,
            reserved=self.reserved,
            want=want,
        )
