"""What one fleet can buy: its catalogs merged into offers, with the price in force and the channel. `plan.fleets` builds them.

Later catalogs override earlier ones by model name. A name is resolved by the catalog's name or any of a model's ids; what a
route wrote is what the upstream is asked for. Unknown names come back with the nearest ones that exist.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from stepdown.model.config import MaxTokensField, Model, OutputBound, PriceFrom, Tier
from stepdown.model.names import nearest


@dataclass(frozen=True, slots=True)
class Offer:
    """One model of the merged catalog. Prices in pUSD a token, as in force at the pass's moment; None: not known."""

    name: str
    ids: tuple[str, ...]
    provider: str
    tier: Tier
    input_pusd: int | None
    output_pusd: int | None
    prices: tuple[PriceFrom, ...]
    """Empty: Unpriced. Else every price by its date, for the proxy."""
    context_tokens: int | None
    capabilities: frozenset[str]
    compliance: frozenset[str]
    routes_itself: bool
    """The upstream picks the model (`Ga-…`): nobody can say whose it is, so it meets no provider rule."""
    catalog: str
    """Which ModelCatalog states it."""
    max_output_tokens: int | None = None
    max_tokens_field: MaxTokensField = "max_tokens"
    output_bound: OutputBound = "MaxTokens"
    reasoning_tokens: int = 0

    @property
    def priced(self) -> bool:
        return self.input_pusd is not None and self.output_pusd is not None

    @property
    def upstream_id(self) -> str:
        """What the upstream is asked for where no route says otherwise."""
        return self.ids[0] if self.ids else self.name


@dataclass(frozen=True, slots=True)
class Rung:
    """An offer as a route names it: the id that the route wrote is what the upstream is asked for."""

    offer: Offer
    upstream_id: str

    @property
    def tier(self) -> Tier:
        return self.offer.tier


class Offers:
    """All offers of a fleet. Compared by value: an unchanged catalog gives an equal one, and ladders are reused."""

    __slots__ = ("_by_id", "_hash", "by_name", "tasks")

    def __init__(self, offers: Iterable[Offer], tasks: Mapping[str, str]) -> None:
        self.by_name: dict[str, Offer] = {offer.name: offer for offer in offers}
        self.tasks = dict(tasks)
        self._by_id: dict[str, Offer] = {}
        for offer in self.by_name.values():
            for each in offer.ids:
                self._by_id.setdefault(each, offer)
        self._by_id.update(self.by_name)
        self._hash = hash((tuple(self.by_name.values()), tuple(sorted(self.tasks.items()))))

    def __iter__(self) -> Iterator[Offer]:
        return iter(self.by_name.values())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Offers):
            return NotImplemented
        return self is other or (
            self._hash == other._hash
            and tuple(self.by_name.values()) == tuple(other.by_name.values())
            and self.tasks == other.tasks
        )

    def __hash__(self) -> int:
        return self._hash

    def find(self, written: str) -> Rung | None:
        """The rung that a route means by what it wrote: a name of the catalog, or one of a model's ids."""
        offer = self._by_id.get(written)
        if offer is None:
            return None
        return Rung(offer, written if written in offer.ids else offer.upstream_id)

    def nearest(self, written: str) -> tuple[str, ...]:
        """Names and ids that look like the one written, the best first; empty where nothing does."""
        return nearest(written, self._by_id)


@dataclass(frozen=True, slots=True)
class Requirements:
    """What must hold for every model that a route can ever reach."""

    context_tokens: int | None = None
    capabilities: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    compliance: tuple[str, ...] = ()
    max_output_pusd: int | None = None
    max_output_usd: str = field(default="", compare=False)
    """As written, for messages."""

    def unmet_by(self, offer: Offer) -> str:
        """Why the offer does not meet them, in a sentence; empty: it does."""
        if self.context_tokens is not None:
            if offer.context_tokens is None:
                return f"its context is not known; the route needs contextTokens {self.context_tokens}"
            if offer.context_tokens < self.context_tokens:
                return f"its context is {offer.context_tokens} tokens; the route needs {self.context_tokens}"
        if missing := [each for each in self.capabilities if each not in offer.capabilities]:
            return f"it lacks the capabilities {', '.join(missing)}"
        if reason := self._provider(offer):
            return reason
        if missing := [each for each in self.compliance if each not in offer.compliance]:
            return f"the catalog states no compliance with {', '.join(missing)} for it"
        if self.max_output_pusd is not None:
            if offer.output_pusd is None:
                return f"its output price is not known; the route allows at most ${self.max_output_usd}/M"
            if offer.output_pusd > self.max_output_pusd:
                from_usd = offer.output_pusd / 1_000_000
                return f"its output costs ${from_usd:g}/M; the route allows at most ${self.max_output_usd}/M"
        return ""

    def _provider(self, offer: Offer) -> str:
        if not self.allow and not self.deny:
            return ""
        if offer.routes_itself:
            return "the upstream picks its model, so no provider rule holds for it"
        if offer.provider in self.deny:
            return f"its provider {offer.provider} is denied"
        if self.allow and offer.provider not in self.allow:
            return f"its provider {offer.provider} is not among the allowed: {', '.join(self.allow)}"
        return ""


def config_model(rung: Rung, channel: str) -> Model:
    """The rung as the proxy's config has it."""
    offer = rung.offer
    return Model(
        name=offer.name,
        upstream_id=rung.upstream_id,
        tier=offer.tier,
        channel=channel,
        prices=offer.prices,
        context_tokens=offer.context_tokens,
        max_output_tokens=offer.max_output_tokens,
        max_tokens_field=offer.max_tokens_field,
        output_bound=offer.output_bound,
        reasoning_tokens=offer.reasoning_tokens,
    )
