"""Cumulative traffic by route, model, class and UTC day: what reports and the ledger's totals are made of. The books keep them.

They only grow over the life of an instance, so a report that is lost, repeated or reordered does no harm. On the hot path a
request touches one `Count` and marks it; sync sends what is marked and unmarks what the keeper has acknowledged unchanged.
"""

from collections.abc import Iterable, Iterator, Sequence

from stepdown.model.config import RequestClass
from stepdown.model.sync import Counter

Key = tuple[str, str, RequestClass, int]


class Count:
    """One counter; the fields are `model.sync.Counter`'s."""

    __slots__ = (
        "acked",
        "cached_input_tokens",
        "cost_nusd",
        "day",
        "estimated_nusd",
        "input_tokens",
        "model",
        "output_tokens",
        "overrun_nusd",
        "request_class",
        "requests",
        "route",
        "successes",
        "unpriced",
    )

    def __init__(self, key: Key) -> None:
        self.route, self.model, self.request_class, self.day = key
        self.requests = 0
        self.successes = 0
        self.input_tokens = 0
        self.cached_input_tokens = 0
        self.output_tokens = 0
        self.cost_nusd = 0
        self.estimated_nusd = 0
        self.unpriced = 0
        self.overrun_nusd = 0
        """Not a sum but the largest."""
        self.acked: Counter | None = None
        """What the keeper has acknowledged last."""

    def report(self, *, overruns: bool = True) -> Counter:
        """Without `overruns` as protocol 1 knows it."""
        return Counter(
            route=self.route,
            model=self.model,
            request_class=self.request_class,
            day=self.day,
            requests=self.requests,
            successes=self.successes,
            input_tokens=self.input_tokens,
            cached_input_tokens=self.cached_input_tokens,
            output_tokens=self.output_tokens,
            cost_nusd=self.cost_nusd,
            estimated_nusd=self.estimated_nusd,
            unpriced=self.unpriced,
            overrun_nusd=self.overrun_nusd if overruns else 0,
        )

    def add(self, more: Counter) -> None:
        self.requests += more.requests
        self.successes += more.successes
        self.input_tokens += more.input_tokens
        self.cached_input_tokens += more.cached_input_tokens
        self.output_tokens += more.output_tokens
        self.cost_nusd += more.cost_nusd
        self.estimated_nusd += more.estimated_nusd
        self.unpriced += more.unpriced
        self.overrun_nusd = max(self.overrun_nusd, more.overrun_nusd)


class Counters:
    """All counters of one instance."""

    __slots__ = ("_by_key", "_forgotten", "changed")

    def __init__(self, counters: Iterable[Counter] = ()) -> None:
        self._by_key: dict[Key, Count] = {}
        self._forgotten: dict[Key, Count] = {}
        """What `forget_before` has dropped, all days in one: for `totals`, whose sums must not go down."""
        self.changed: set[Count] = set()
        """Those that the keeper has not acknowledged as they are; the till marks them."""
        for each in counters:
            self.add(each)

    def __iter__(self) -> Iterator[Count]:
        return iter(self._by_key.values())

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, key: Key) -> Count:
        count = self._by_key.get(key)
        if count is None:
            count = self._by_key[key] = Count(key)
        return count

    def add(self, more: Counter) -> None:
        count = self.get((more.route, more.model, more.request_class, more.day))
        count.add(more)
        self.changed.add(count)

    def reports(self, *, everything: bool = False, overruns: bool = True) -> tuple[Counter, ...]:
        """What has changed since the last acknowledged message, or all that has counted anything: a rung that was looked at and
        not taken has a counter too, and the ledger needs no row of it."""
        counts = (count for count in self if count.requests or count.cost_nusd) if everything else self.changed
        return tuple(count.report(overruns=overruns) for count in counts)

    def acknowledge(self, sent: Sequence[Counter]) -> None:
        """The keeper has these numbers; a counter that has grown meanwhile stays marked."""
        for reported in sent:
            count = self._by_key.get((reported.route, reported.model, reported.request_class, reported.day))
            if count is not None:
                count.acked = reported
                if count.report() == reported:
                    self.changed.discard(count)

    def forget_before(self, day: int) -> None:
        """Drops what is older than `day` and acknowledged: nothing in flight can touch it any more, and the keeper has it."""
        old = [key for key, count in self._by_key.items() if count.day < day and count not in self.changed]
        for key in old:
            gone = self._by_key.pop(key)
            _into(self._forgotten, gone)

    def totals(self) -> list[Count]:
        """By route, model and class, over all days of this process: what metrics show."""
        sums: dict[Key, Count] = {}
        for count in (*self._forgotten.values(), *self._by_key.values()):
            _into(sums, count)
        return [sums[key] for key in sorted(sums)]

    def unacknowledged(self) -> tuple[Counter, ...]:
        """The growth that the keeper has not acknowledged: what a new instance begins with when the old one is fenced."""
        return tuple(_less(count.report(), count.acked) for count in self.changed)


def _into(sums: dict[Key, Count], count: Count) -> None:
    key = (count.route, count.model, count.request_class, 0)
    if key not in sums:
        sums[key] = Count(key)
    sums[key].add(count.report())


def _less(now: Counter, before: Counter | None) -> Counter:
    if before is None:
        return now
    return Counter(
        route=now.route,
        model=now.model,
        request_class=now.request_class,
        day=now.day,
        requests=now.requests - before.requests,
        successes=now.successes - before.successes,
        input_tokens=now.input_tokens - before.input_tokens,
        cached_input_tokens=now.cached_input_tokens - before.cached_input_tokens,
        output_tokens=now.output_tokens - before.output_tokens,
        cost_nusd=now.cost_nusd - before.cost_nusd,
        estimated_nusd=now.estimated_nusd - before.estimated_nusd,
        unpriced=now.unpriced - before.unpriced,
        overrun_nusd=now.overrun_nusd,
    )
