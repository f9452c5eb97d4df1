"""The keeper's arithmetic: what a lease commits, and what an account has left. Pure; `store` loads them, `desk` decides.

For an open or a lost instance ``committed = max(granted - returned, consumed + reserved)``; a closed one has consumed what it
has, and is folded into its account. An `Account` keeps its sums while its leases change, so an ask costs the same with a
thousand instances as with one.
"""

from stepdown.model.sync import LeaseReport


def start_of(account: str) -> int | None:
    """When the period of `namespace/budget@start` begins; None: that is no account."""
    budget, _, start = account.rpartition("@")
    return int(start) if budget and start.isdecimal() and start.isascii() and len(start) <= 12 else None


class Lease:
    """What the ledger knows of one account at one instance, in nUSD. Change it through `Account`, which keeps the sums."""

    __slots__ = (
        "account",
        "consumed",
        "earmarked",
        "estimated",
        "excess",
        "granted",
        "instance",
        "lost",
        "reserved",
        "returned",
        "stored",
        "want",
    )

    def __init__(self, account: int, instance: int, *numbers: int, lost: bool = False) -> None:
        self.account, self.instance, self.lost = account, instance, lost
        self.stored: tuple[int, ...] | None = numbers or None
        """As in the database; None: not there yet."""
        (
            self.granted,
            self.returned,
            self.consumed,
            self.estimated,
            self.reserved,
            self.excess,
            self.want,
        ) = numbers or (0, 0, 0, 0, 0, 0, 0)
        self.earmarked = 0
        """Granted to tickets that this message still repeats: idle, but spoken for."""

    @property
    def numbers(self) -> tuple[int, ...]:
        return (self.granted, self.returned, self.consumed, self.estimated, self.reserved, self.excess, self.want)

    @property
    def held(self) -> int:
        return self.granted - self.returned

    @property
    def used(self) -> int:
        return self.consumed + self.reserved

    @property
    def committed(self) -> int:
        return max(self.held, self.used)

    @property
    def idle(self) -> int:
        return max(0, self.held - self.used)


class Account:
    """One account with its leases and their sums, in nUSD."""

    __slots__ = (
        "awaited",
        "budget",
        "closed_consumed",
        "closed_estimated",
        "closed_excess",
        "closed_unmetered",
        "committed",
        "consumed",
        "end_s",
        "hard",
        "id",
        "idle",
        "leases",
        "limit",
        "name",
        "opening",
        "start_s",
        "stored",
        "unaccounted",
        "unreconciled",
    )

    def __init__(
        self,
        id_: int,
        name: str,
        budget: str,
        start_s: int,
        end_s: int,
        limit: int,
        hard: bool,
        opening: int,
        closed_consumed: int,
        closed_estimated: int,
        closed_excess: int,
        closed_unmetered: int,
        awaited: int = 0,
        unaccounted: int = 0,
    ) -> None:
        self.id, self.name, self.budget, self.start_s, self.end_s = id_, name, budget, start_s, end_s
        self.limit, self.hard, self.opening = limit, hard, opening
        self.closed_consumed, self.closed_estimated = closed_consumed, closed_estimated
        self.closed_excess, self.closed_unmetered = closed_excess, closed_unmetered
        self.awaited, self.unaccounted = awaited, unaccounted
        self.stored = self.totals
        self.leases: dict[int, Lease] = {}
        self.committed = opening + closed_consumed + awaited + unaccounted
        self.consumed = closed_consumed
        self.idle = 0
        """At open instances, earmarks included."""
        self.unreconciled = unaccounted

    @property
    def totals(self) -> tuple[int, ...]:
        """What a sync may change in the account's own row."""
        return (
            self.opening,
            self.closed_consumed,
            self.closed_estimated,
            self.closed_excess,
            self.closed_unmetered,
            self.awaited,
            self.unaccounted,
        )

    @property
    def spent(self) -> int:
        return self.opening + self.consumed

    @property
    def headroom(self) -> int:
        return self.limit - self.committed

    @property
    def remaining(self) -> int:
        """Neither spent nor held for the lost: what could come back, were all in flight to cost nothing."""
        return self.limit - self.spent - self.unreconciled

    def add(self, lease: Lease) -> Lease:
        self.leases[lease.instance] = lease
        self._count(lease, 1)
        return lease

    def lease(self, instance: int) -> Lease:
        """The lease of an open instance, a new one if need be."""
        return self.leases.get(instance) or self.add(Lease(self.id, instance))

    def charge_opening(self, nusd: int) -> None:
        self.opening += nusd
        self.committed += nusd

    def wait_for(self, nusd: int) -> None:
        """So much more may have been granted than is known here (`terms`)."""
        if nusd > 0:
            self.awaited += nusd
            self.committed += nusd

    def account_for(self, nusd: int, *, long_silent: bool = False) -> None:
        """What somebody says beyond what was known of it was awaited; what it holds less than was known, others may hold.

        All that is committed stays the same, unless nothing is awaited any more.
        """
        if nusd < 0 and not long_silent:
            self.wait_for(-nusd)
            return
        paid = min(max(0, nusd), self.awaited)
        self.awaited -= paid
        rest = min(nusd - paid, self.unaccounted)
        self.unaccounted -= rest
        self.unreconciled -= rest
        self.committed -= paid + rest

    def grant(self, lease: Lease, held_nusd: int) -> None:
        """Raises what the instance holds to this much. The caller has checked the limit."""
        self._count(lease, -1)
        lease.granted = lease.returned + held_nusd
        self._count(lease, 1)

    def report(self, lease: Lease, said: LeaseReport) -> None:
        """Merges what the instance says. Cumulative numbers only grow; `reserved` and `want` are as of the newest message.

        An instance never uses more than it holds, unless an upstream charged more than the worst case. Then the ledger grants
        the difference after the fact, so that the proxy's sums are whole again, and remembers it as excess. It may push the
        account over its limit: it is a true cost, and shows.
        """
        self._count(lease, -1)
        lease.granted = max(lease.granted, said.granted)
        lease.returned = max(lease.returned, said.returned)
        lease.consumed = max(lease.consumed, said.consumed)
        lease.estimated = max(lease.estimated, said.estimated)
        lease.reserved = said.reserved
        lease.want = said.want if self.hard else 0
        over = lease.used - lease.held
        if over > 0:
            lease.granted += over
            if self.hard:
                lease.excess += over
        self._count(lease, 1)

    def close(self, lease: Lease, consumed: int) -> None:
        """The instance is gone for good, having consumed this much. What it did not report is an estimate."""
        self._count(lease, -1)
        del self.leases[lease.instance]
        self.closed_consumed += consumed
        self.closed_unmetered += consumed - lease.consumed
        self.closed_estimated += lease.estimated + consumed - lease.consumed
        self.closed_excess += lease.excess + max(0, consumed - lease.committed) * self.hard
        self.consumed += consumed
        self.committed += consumed

    def forgive(self, nusd: int) -> None:
        """So much of `unaccounted` is somebody's now."""
        self.unaccounted -= nusd
        self.unreconciled -= nusd
        self.committed -= nusd

    def state(self, instance: int, held: int, released: int, charged: int) -> bool:
        """What an invoice says of all that came to its instance (`settlement`). True: it is news."""
        lease = self.leases.get(instance) or self.add(Lease(self.id, instance, lost=True))
        if (lease.granted, lease.returned, lease.consumed) == (held, released, charged):
            return False
        self._count(lease, -1)
        lease.granted, lease.returned, lease.consumed = held, released, charged
        self._count(lease, 1)
        return True

    def mark(self, lease: Lease, *, lost: bool) -> None:
        self._count(lease, -1)
        lease.lost = lost
        self._count(lease, 1)

    def _count(self, lease: Lease, sign: int) -> None:
        self.committed += sign * lease.committed
        self.consumed += sign * lease.consumed
        if lease.lost:
            self.unreconciled += sign * (lease.committed - lease.consumed)
        else:
            self.idle += sign * lease.idle
