"""What an instance remembers: its leases, its counters and the requests in flight. The till changes them, the log restores
them.

Both apply an ending by the same code, so the books after a crash are the books before it. The order everywhere is: log, then
books.
"""

from collections.abc import Sequence
from typing import Final

from stepdown.model.config import RequestClass
from stepdown.proxy.counters import Count, Counters
from stepdown.proxy.lease import Lease
from stepdown.proxy.records import LeaseState, OpenState, State

SUCCESS: Final = 1
ESTIMATED: Final = 2
UNPRICED: Final = 4
"""Flags of an ending, as the log writes them."""


class Line:
    """Where requests of one route, class, model and day are charged: one counter, and a lease a budget."""

    __slots__ = ("count", "hard", "key_id", "leases", "segment")

    def __init__(self, count: Count, leases: tuple[Lease, ...]) -> None:
        self.count = count
        self.leases = leases
        self.hard = tuple(lease for lease in leases if lease.hard)
        self.key_id = 0
        self.segment = 0
        """The log segment in which `key_id` stands for this line; another segment needs it defined again."""

    def move(self, books: "Books") -> None:
        """The same line in another instance's books."""
        count = self.count
        self.count = books.counters.get((count.route, count.model, count.request_class, count.day))
        self.leases = tuple(books.lease(lease.account) for lease in self.leases)
        self.hard = tuple(lease for lease in self.leases if lease.hard)
        self.segment = 0


class Reservation:
    """One attempt in flight, as far as money goes."""

    __slots__ = ("amount_nusd", "id", "line")

    def __init__(self, id_: int, line: Line, amount_nusd: int) -> None:
        self.id = id_
        self.line = line
        self.amount_nusd = amount_nusd


class Books:
    """All that one instance must not forget."""

    __slots__ = ("counters", "heard", "leases", "next_hold", "open")

    def __init__(self, *, heard: bool = True) -> None:
        self.heard = heard
        """Whether `acked` says all that the keeper knows; not after a restart, until the first answer."""
        self.leases: dict[str, Lease] = {}
        self.counters = Counters()
        self.open: dict[int, Reservation] = {}
        self.next_hold = 1

    @classmethod
    def restored(cls, state: State) -> "Books":
        books = cls(heard=False)
        books.next_hold = state.next_hold
        for each in state.leases:
            books.leases[each.account] = Lease(each.account, each.granted, each.returned, each.consumed, each.estimated)
        books.counters = Counters(state.counters)
        for was in state.open:
            line = books.line(was.route, was.model, was.request_class, was.day, was.accounts)
            books.reserve(Reservation(was.id, line, was.amount_nusd))
        return books

    def state(self) -> State:
        return State(
            next_hold=self.next_hold,
            leases=tuple(
                LeaseState(lease.account, lease.granted, lease.returned, lease.consumed, lease.estimated)
                for lease in self.leases.values()
            ),
            counters=tuple(count.report() for count in self.counters),
            open=tuple(_open_state(each) for each in self.open.values()),
        )

    def lease(self, account: str) -> Lease:
        lease = self.leases.get(account)
        if lease is None:
            lease = self.leases[account] = Lease(account)
        return lease

    def line(self, route: str, model: str, request_class: RequestClass, day: int, accounts: Sequence[str]) -> Line:
        count = self.counters.get((route, model, request_class, day))
        return Line(count, tuple(self.lease(account) for account in accounts))

    def reserve(self, reservation: Reservation) -> None:
        self.open[reservation.id] = reservation
        self.next_hold = max(self.next_hold, reservation.id + 1)
        for lease in reservation.line.leases:
            lease.hold(reservation.amount_nusd)

    def settle(
        self, reservation: Reservation, cost_nusd: int, uncached_input: int, cached_input: int, output: int, flags: int
    ) -> None:
        """An attempt ended with a cost, by its usage or (`ESTIMATED`) by its reservation."""
        del self.open[reservation.id]
        line = reservation.line
        count = line.count
        count.requests += 1
        if flags & SUCCESS:
            count.successes += 1
        count.input_tokens += uncached_input
        count.cached_input_tokens += cached_input
        count.output_tokens += output
        count.cost_nusd += cost_nusd
        estimated = False
        if flags != SUCCESS:
            if flags & ESTIMATED:
                estimated = True
                count.estimated_nusd += cost_nusd
            if flags & UNPRICED:
                count.unpriced += 1
        self.counters.changed.add(count)
        for lease in line.leases:
            lease.end(reservation.amount_nusd, cost_nusd, estimated=estimated)

    def release(self, reservation: Reservation, *, attempted: bool) -> None:
        """An attempt ended at no cost."""
        del self.open[reservation.id]
        line = reservation.line
        if attempted:
            line.count.requests += 1
            self.counters.changed.add(line.count)
        for lease in line.leases:
            lease.end(reservation.amount_nusd, 0, estimated=False)

    def charge_open(self) -> int:
        """A crash: whatever was in flight may have been answered, so its reservation is charged. Returns how many."""
        lost = list(self.open.values())
        for reservation in lost:
            self.settle(reservation, reservation.amount_nusd, 0, 0, 0, ESTIMATED)
        return len(lost)

    def succeed(self) -> "Books":
        """The books of the instance that follows this one when the keeper has fenced it; the requests in flight come by
        `adopt`.

        It begins without a lease, but with all that the keeper has not acknowledged: somebody must report it, and the fenced id
        is not heard any more. Should the keeper hold the old lease as unreconciled too, the same money is held twice until that
        is settled: an error on the safe side, and one that shows. After a restart nobody knows what the keeper has heard: then
        nothing is carried over, and what the old instance had unreported is in what it is held for.
        """
        fresh = Books()
        fresh.next_hold = self.next_hold
        if not self.heard:
            return fresh
        for lease in self.leases.values():
            acked = lease.acked
            heir = fresh.lease(lease.account)
            heir.consumed = lease.consumed - (acked.consumed if acked else 0)
            heir.estimated = lease.estimated - (acked.estimated if acked else 0)
            heir.free = -heir.consumed
            heir.hard, heir.end_s, heir.limit_nusd = lease.hard, lease.end_s, lease.limit_nusd
            heir.spent_nusd, heir.committed_nusd = lease.spent_nusd, lease.committed_nusd
        for counter in self.counters.unacknowledged():
            fresh.counters.add(counter)
        return fresh

    def adopt(self, old: "Books") -> None:
        """The requests in flight go over to these books, with their reservations."""
        for line in {reservation.line for reservation in old.open.values()}:
            line.move(self)
        for reservation in old.open.values():
            self.reserve(reservation)


def _open_state(reservation: Reservation) -> OpenState:
    count = reservation.line.count
    return OpenState(
        reservation.id,
        reservation.amount_nusd,
        count.route,
        count.model,
        count.request_class,
        count.day,
        tuple(lease.account for lease in reservation.line.leases),
    )
