"""What an invoice has billed of the money that nobody could account for: pure arithmetic. `ledger.settlement` calls it.

The ledger's counters say what each model cost; of lost proxies it only knows what they held (a *pool* an account). What the
bill has beyond the counters was spent out of these pools, and nobody knows out of which. So each pool falls into three parts:

* `charged`: its share, by what it held, of what was billed beyond the counters;
* `kept`: what may have been billed out of it all the same, were all of it spent here: it stays unreconciled;
* released: the rest. Whoever spent it, the bill would have to be larger.

Estimates are costs that may be less in truth, and so pay for what is billed elsewhere: a model can come to at most its
estimates less than the ledger has (below that, it was not billed what it was metered, and pays for nothing). An account's own
estimates are in its spend already: with them, what it is charged, and what is kept, it bears every bill that the truth can be.
An amount that may have been rounded counts as its largest where money would be released.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelCost:
    """One model, as billed and as metered."""

    model: str
    billed_nusd: int = 0
    slack_nusd: int = 0
    """By how much the bill may be rounded."""
    metered_nusd: int = 0
    """By the counters, estimates included."""
    estimated_nusd: int = 0
    billed_requests: int | None = None
    requests: int = 0

    @property
    def difference_nusd(self) -> int:
        return self.billed_nusd - self.metered_nusd

    @property
    def short_nusd(self) -> int:
        """What was surely metered, and not billed."""
        return max(0, -self.difference_nusd - self.estimated_nusd - self.slack_nusd)


@dataclass(frozen=True, slots=True)
class Pool:
    """What one account holds for those who cannot be asked."""

    account: str
    held_nusd: int
    estimated_nusd: int = 0
    """In the account's spend at the reservation, for want of usage, in the days of the bill."""
    unmetered_nusd: int = 0
    """In the account's spend, and no counter tells of it."""
    outer: bool = True
    """No other account holds all of its routes: of those within others, the same money is in two pools."""


@dataclass(frozen=True, slots=True)
class Share:
    """What becomes of one pool."""

    account: str
    held_nusd: int
    charged_nusd: int
    kept_nusd: int

    @property
    def released_nusd(self) -> int:
        return self.held_nusd - self.charged_nusd - self.kept_nusd


@dataclass(frozen=True, slots=True)
class Settlement:
    models: tuple[ModelCost, ...]
    shares: tuple[Share, ...]
    excess_nusd: int
    """Billed beyond all that the ledger knows and held: nobody here can say for what."""

    @property
    def billed_nusd(self) -> int:
        return sum(each.billed_nusd for each in self.models)

    @property
    def metered_nusd(self) -> int:
        return sum(each.metered_nusd for each in self.models)

    @property
    def slack_nusd(self) -> int:
        return sum(each.slack_nusd for each in self.models)

    @property
    def short_nusd(self) -> int:
        return sum(each.short_nusd for each in self.models)

    @property
    def kept_nusd(self) -> int:
        return sum(each.kept_nusd for each in self.shares)

    @property
    def agrees(self) -> bool:
        """Bill and ledger are one, but for what was rounded."""
        return self.excess_nusd <= self.slack_nusd and not self.short_nusd


def divide(models: Sequence[ModelCost], pools: Sequence[Pool]) -> Settlement:
    """Divides what was billed beyond the ledger among what it held."""
    estimated = sum(each.estimated_nusd for each in models)
    beyond = sum(max(-each.estimated_nusd, each.difference_nusd) for each in models)
    at_most = sum(max(-each.estimated_nusd, each.difference_nusd + each.slack_nusd) for each in models)
    unmetered = sum(each.unmetered_nusd for each in pools if each.outer)
    owed = max(0, beyond - unmetered)
    whole = sum(each.held_nusd for each in pools if each.outer)
    shares = []
    given = [_part(each.held_nusd, owed, whole) for each in pools]
    _round_up(given, pools, min(owed, whole))
    for pool, charged in zip(pools, given, strict=True):
        own = min(pool.estimated_nusd, estimated) + pool.unmetered_nusd
        worst = min(pool.held_nusd, max(0, at_most + estimated - own))
        shares.append(Share(pool.account, pool.held_nusd, charged, max(0, worst - charged)))
    return Settlement(tuple(models), tuple(shares), max(0, owed - whole))


def _part(held_nusd: int, owed_nusd: int, whole_nusd: int) -> int:
    """Rounded down."""
    if owed_nusd >= whole_nusd:
        return held_nusd
    return min(held_nusd, held_nusd * owed_nusd // whole_nusd)


def _round_up(given: list[int], pools: Sequence[Pool], owed_nusd: int) -> None:
    """The nano-dollars that rounding left go to the largest pools, one each, so that all of it is charged."""
    outer = sorted((index for index, each in enumerate(pools) if each.outer), key=lambda index: -pools[index].held_nusd)
    left = owed_nusd - sum(given[index] for index in outer)
    for index in outer:
        if left > 0 and given[index] < pools[index].held_nusd:
            given[index] += 1
            left -= 1
