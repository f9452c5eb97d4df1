"""What is true, by the upstream's own bill, and what must hold of it. Pure: time and figures are parameters, nothing is asked.

A request counts for a budget for sure if the budget was in force from before it was asked until after it was sent; perhaps, if
its route is one of the budget's. What must never be too much is judged by the first, what must not be missing by the second.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from stepdown.budget.account import Balance
from tests.proof.truth import Violation


@dataclass
class Ceiling:
    """One budget, and what its bill may come to."""

    name: str
    hard: bool
    routes: frozenset[str]
    limit_nusd: int
    """As last seen in the ledger."""
    wanted_nusd: int = 0
    """As last applied."""
    allowed_nusd: int = 0
    spans: list[tuple[float, float]] = field(default_factory=lambda: [(-inf, inf)])
    """When it was in force for every proxy."""

    def __post_init__(self) -> None:
        self.wanted_nusd = self.allowed_nusd = self.limit_nusd

    def covers(self, route: str, asked_s: float, arrived_s: float) -> bool:
        """For sure: whoever admitted it between the two moments, it was under this budget."""
        return route in self.routes and any(begin <= asked_s and arrived_s <= end for begin, end in self.spans)

    @property
    def bound(self) -> bool:
        return self.spans[-1][1] == inf

    def applying(self, limit_nusd: int) -> None:
        """An edit is on its way. One that raises may be in force from now on."""
        self.wanted_nusd = limit_nusd
        self.allowed_nusd = max(self.allowed_nusd, limit_nusd)

    def seen(self, limit_nusd: int, committed_nusd: int) -> None:
        """In the ledger. What an edit pushes over the limit is what was committed then, and nothing comes on top of it.

        A limit that is not the one that was applied last is an earlier one, or an older copy's.
        """
        if limit_nusd == self.wanted_nusd:
            self.limit_nusd = limit_nusd
            self.allowed_nusd = max(limit_nusd, min(self.allowed_nusd, committed_nusd))

    def deleted(self, now_s: float) -> None:
        self.spans[-1] = (self.spans[-1][0], now_s)

    def enforced(self, now_s: float) -> None:
        self.spans.append((now_s, inf))


@dataclass(eq=False)
class Asked:
    """One request of a client, and what became of it there."""

    number: int
    route: str
    life: str
    """Of which instance of which proxy it was asked."""
    asked_s: float
    most_nusd: int
    """Its worst case with the dearest model."""
    least_nusd: int
    """With the cheapest."""
    ended_s: float = inf
    status: int = 0
    code: str = ""
    budget: str = ""
    """Which one refused."""
    whole: bool = False
    """The client had the answer to its end."""
    told_nusd: int | None = None
    """What the answer said that it cost."""


@dataclass(eq=False)
class Sent:
    """One request that reached the upstream."""

    asked: Asked
    arrived_s: float
    sure: tuple[Ceiling, ...]
    maybe: tuple[Ceiling, ...]
    ended: bool = False
    usual: bool = True
    """Answered whole, and with its usage."""
    cost_nusd: int = 0
    """Once it has ended."""
    dear_nusd: int = 0
    """At the dearest price of its time: what the product is to charge."""


@dataclass(frozen=True)
class Look:
    """The ledger at one moment."""

    began_s: float
    ended_s: float
    balances: Mapping[str, Balance]
    """By budget."""
    dead_nusd: Mapping[str, int]
    """By budget: held beyond what they spent by instances that nobody runs any more and that are not given up as lost yet."""

    def free_nusd(self, budget: str) -> int:
        """Neither spent nor reserved, nor held for those that cannot be heard."""
        balance = self.balances[budget]
        held = balance.spent_nusd + balance.reserved_nusd + balance.unreconciled_nusd + balance.awaited_nusd
        return balance.limit_nusd - held - self.dead_nusd.get(budget, 0)


class Judge:
    """Of one schedule."""

    def __init__(self, ceilings: Iterable[Ceiling]) -> None:
        self.ceilings = {each.name: each for each in ceilings}
        self.sent: list[Sent] = []
        self.sure_nusd: dict[str, int] = dict.fromkeys(self.ceilings, 0)
        """By budget, what has ended."""
        self.uncertain: set[str] = set()
        """Lives of which not all was or will be reported: their log was lost, or somebody else stated what they spent."""
        self.exact = True
        """False: an older copy of the ledger was put back, so who came and went in between is not known."""

    def came(self, asked: Asked, arrived_s: float) -> Sent:
        maybe = tuple(each for each in self.ceilings.values() if asked.route in each.routes)
        sure = tuple(each for each in maybe if each.covers(asked.route, asked.asked_s, arrived_s))
        sent = Sent(asked, arrived_s, sure, maybe)
        self.sent.append(sent)
        return sent

    def ended(self, sent: Sent, cost_nusd: int, dear_nusd: int, *, usual: bool) -> None:
        sent.ended, sent.cost_nusd, sent.dear_nusd, sent.usual = True, cost_nusd, dear_nusd, usual
        for each in sent.sure:
            self.sure_nusd[each.name] += cost_nusd

    def worth(self, pending: Iterable[tuple[Sent, int]]) -> dict[str, int]:
        """By budget: what is billed, and what is in flight at what it will be billed."""
        worth = dict(self.sure_nusd)
        for sent, nusd in pending:
            for each in sent.sure:
                worth[each.name] += nusd
        return worth

    def check_ceilings(self, worth: Mapping[str, int]) -> None:
        for name, each in self.ceilings.items():
            if each.hard and worth[name] > each.allowed_nusd:
                raise Violation(
                    f"over: the bill of {name} is {self.sure_nusd[name]} nUSD and {worth[name] - self.sure_nusd[name]} are in "
                    f"flight, allowed are {each.allowed_nusd} (limit {each.limit_nusd})"
                )

    def check_ledger(self, before: Mapping[str, int], look: Look) -> None:
        """`before`: what all was worth right before the look. Whatever can be on the bill is committed."""
        for name, balance in look.balances.items():
            each = self.ceilings[name]
            each.seen(balance.limit_nusd, balance.committed_nusd)
            if each.hard and each.bound and before[name] > balance.committed_nusd:
                raise Violation(
                    f"lost: {before[name]} nUSD of {name} are billed or in flight, the ledger knows of "
                    f"{balance.committed_nusd}: {balance}"
                )

    # The end

    def check_told(self) -> None:
        """An answer that says what it cost says what it is worth by other arithmetic than the product's."""
        attempts: dict[int, list[Sent]] = {}
        for each in self.sent:
            attempts.setdefault(each.asked.number, []).append(each)
        for tried in attempts.values():
            told = tried[0].asked.told_nusd
            if told is not None and len(tried) == 1 and tried[0].usual and told != tried[0].dear_nusd:
                raise Violation(
                    f"lost: an answer said that it cost {told} nUSD, it is worth {tried[0].dear_nusd}: {tried[0].asked}"
                )

    def check_sums(self, look: Look) -> int:
        """Everything has ended, everybody has said everything. Returns what could not be told apart, in nUSD.

        Settled, less what is named as an estimate, is the bill of what was settled by its usage: at least of those requests
        whose clients had their answers whole, at most of all that were billed.
        """
        unsure = 0
        for name, balance in look.balances.items():
            by_usage_nusd = balance.settled_nusd - balance.estimated_nusd
            ceiling = self.ceilings[name]
            billed = [each for each in self.sent if ceiling in each.maybe]
            most = sum(each.dear_nusd for each in billed)
            least = sum(each.dear_nusd for each in billed if ceiling in each.sure and self._certain(each))
            if ceiling.hard and self.sure_nusd[name] > balance.committed_nusd:
                raise Violation(
                    f"lost: the bill of {name} is {self.sure_nusd[name]} nUSD, the ledger knows of {balance.committed_nusd}: "
                    f"{balance}"
                )
            if by_usage_nusd > most:
                raise Violation(
                    f"lost: {by_usage_nusd} nUSD of {name} were settled by usage, all that was billed is worth {most}: "
                    f"{balance}"
                )
            if self.exact and by_usage_nusd < least:
                raise Violation(
                    f"lost: {by_usage_nusd} nUSD of {name} were settled by usage, whole answers are worth {least}: {balance}"
                )
            unsure = max(unsure, most - least)
        return unsure

    def _certain(self, sent: Sent) -> bool:
        """Its usage is in the ledger: its client had the answer's end, which comes after the settlement."""
        return sent.usual and sent.asked.whole and sent.asked.status == 200 and sent.asked.life not in self.uncertain

    def false_refusal(self, refused: Asked, looks: Sequence[Look], others: Iterable[Asked]) -> str | None:
        """What is wrong with it; empty: nothing. None: it cannot be judged, since nobody looked.

        It is false if the cheapest model's worst case was free in the ledger all the while, besides all that the others
        could have been promised who were asking or being served meanwhile.
        """
        begin = max((each.ended_s for each in looks if each.ended_s <= refused.asked_s), default=None)
        end = min((each.began_s for each in looks if each.began_s >= refused.ended_s), default=None)
        if begin is None or end is None:
            return None
        besides = sum(
            each.most_nusd for each in others if each is not refused and each.asked_s <= end and each.ended_s >= begin - 1.0
        )
        hard = [name for name, each in self.ceilings.items() if each.hard and refused.route in each.routes]
        during = [each for each in looks if begin <= each.ended_s and each.began_s <= end]
        free_nusd = min(look.free_nusd(name) for look in during for name in hard)
        if free_nusd < refused.least_nusd + besides:
            return ""
        return (
            f"false refusal: request {refused.number} of {refused.route} needed {refused.least_nusd} nUSD, {free_nusd} were "
            f"free all the while, and all others together could be promised {besides}"
        )
