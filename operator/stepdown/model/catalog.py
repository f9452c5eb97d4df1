"""The catalog as of one moment: what a name means, what a token costs, which tier a model is in. The plan is built on it.

Several ModelCatalogs are laid over one another, the built-in `global-apis` first. A later entry meets an earlier one by its
name, or by any id of the earlier one, and overrides the fields that it states; an empty one states nothing. Prices go together:
an entry that states a plain price and no dated `prices` drops the earlier dated ones, since it says anew what holds.
Prices are never made up: what no catalog states is None, and such a model is Unpriced.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources

import yaml

from stepdown.model.config import TIERS, Channel, MaxTokensField, Model, OutputBound, PriceFrom, Tier
from stepdown.model.errors import parse
from stepdown.model.money import usd_per_mtok_to_pusd
from stepdown.model.names import nearest
from stepdown.model.pricelist import ModelCatalog, ModelEntry
from stepdown.model.route import TaskName

BUILT_IN = "global-apis"
"""The catalog under all others."""

TIER_CEILINGS_PUSD: tuple[tuple[Tier, int], ...] = (
    ("UltraBudget", 100_000),
    ("Budget", 300_000),
    ("MidRange", 800_000),
    ("Premium", 2_000_000),
)
"""By output price, upper bound inclusive, in pUSD a token. Dearer, and what has no known price and no stated tier: Flagship,
so that a step never lets through what might be dear."""


@dataclass(frozen=True, slots=True)
class Price:
    """What a token costs from a moment on, in pUSD a token. None: not known."""

    from_s: int
    input_pusd: int | None
    output_pusd: int | None
    cached_input_pusd: int | None
    """Where no catalog states it, the input price."""

    @property
    def known(self) -> bool:
        return self.input_pusd is not None and self.output_pusd is not None


@dataclass(frozen=True)
class CatalogModel:
    """One model, all catalogs laid over one another, as of one moment."""

    name: str
    order: int
    """Its place in the catalog: the last tie-break between models."""
    tier: Tier
    prices: tuple[Price, ...]
    """Ascending, the first from 0 on; where nothing is known, one of Nones."""
    price: Price
    """The one in force at the catalog's moment."""
    ids: tuple[str, ...] = ()
    provider: str | None = None
    upstream_routed: bool = False
    """The upstream picks model and provider for each request: no provider rule is ever met."""
    context_tokens: int | None = None
    max_output_tokens: int | None = None
    max_tokens_field: MaxTokensField = "max_tokens"
    output_bound: OutputBound = "MaxTokens"
    reasoning_tokens: int = 0
    capabilities: frozenset[str] = frozenset()
    compliance: frozenset[str] = frozenset()
    baseline_only: bool = False
    """Only a price to compare with: never a target."""

    @property
    def input_pusd(self) -> int | None:
        return self.price.input_pusd

    @property
    def output_pusd(self) -> int | None:
        return self.price.output_pusd

    @property
    def cached_input_pusd(self) -> int | None:
        return self.price.cached_input_pusd

    @property
    def is_priced(self) -> bool:
        """Input and output price are known now; else the model is Unpriced and never serves under a Hard budget."""
        return self.price.known

    @property
    def tier_index(self) -> int:
        """0 is UltraBudget, the cheapest."""
        return TIERS.index(self.tier)

    def meets_providers(self, allow: Sequence[str], deny: Sequence[str]) -> bool:
        """Whether a route's provider rule holds. Who is not known is not allowed, and may be the one denied."""
        if not allow and not deny:
            return True
        if self.upstream_routed or self.provider is None:
            return False
        return (not allow or self.provider in allow) and self.provider not in deny

    def request_id(self, named: str | None = None) -> str:
        """What the upstream is asked for: the id by which a route named the model, else the first id, else the name."""
        return named if named is not None and named in self.ids else self.ids[0] if self.ids else self.name

    def to_config(self, channels: Sequence[Channel], named: str | None = None, overrun_nusd: int = 0) -> Model:
        """The model as the proxy needs it. A price that is only partly known is none. `named`: see `request_id`."""
        upstream_id = self.request_id(named)
        return Model(
            name=self.name,
            upstream_id=upstream_id,
            tier=self.tier,
            channel=channel_of(upstream_id, channels).name,
            prices=_config_prices(self.prices),
            context_tokens=self.context_tokens,
            max_output_tokens=self.max_output_tokens,
            max_tokens_field=self.max_tokens_field,
            output_bound=self.output_bound,
            reasoning_tokens=self.reasoning_tokens,
            overrun_nusd=overrun_nusd,
        )


class Catalog:
    """Every model by name and id, as of one moment. Frozen in use; build a new one when a catalog or a price changes."""

    def __init__(self, models: Iterable[CatalogModel], tasks: dict[TaskName, str], at_s: float) -> None:
        self.models: tuple[CatalogModel, ...] = tuple(models)
        """In catalog order, baselines included."""
        self.tasks = tasks
        """What each task takes: names or ids, as stated."""
        self.at_s = at_s
        self._by_name: dict[str, CatalogModel] = {}
        for model in self.models:
            for known in (model.name, *model.ids):
                self._by_name[known] = model

    @classmethod
    def of(cls, catalogs: Sequence[ModelCatalog], at_s: float) -> "Catalog":
        """Lays catalogs over one another, later ones over earlier ones. `built_in()` is not added: name it first."""
        entries: dict[str, ModelEntry] = {}
        owner: dict[str, str] = {}
        tasks: dict[TaskName, str] = {}
        for catalog in catalogs:
            for entry in catalog.spec.models:
                name = owner.get(entry.name, entry.name)
                entries[name] = _overlaid(entries[name], entry) if name in entries else entry
                owner.update(dict.fromkeys((name, *entry.ids), name))
            stated = catalog.spec.tasks
            for task, model in (("Bandwidth", stated.bandwidth), ("Judgment", stated.judgment), ("Flagship", stated.flagship)):
                if model is not None:
                    tasks[task] = model  # type: ignore[index]  # the three literals above
        return cls((_model(entry, order, owner, at_s) for order, entry in enumerate(entries.values())), tasks, at_s)

    def get(self, name: str) -> CatalogModel | None:
        """By name or any id, exactly as written."""
        return self._by_name.get(name)

    def nearest(self, name: str, limit: int = 3) -> tuple[str, ...]:
        """The names and ids most like one that is not there; baselines left out."""
        return nearest(name, (known for known, model in self._by_name.items() if not model.baseline_only), limit)

    def for_task(self, task: TaskName) -> str | None:
        """The name or id that a task takes, as the catalog states it; `get` finds its model."""
        return self.tasks.get(task)

    @property
    def targets(self) -> tuple[CatalogModel, ...]:
        """The models that a route can reach."""
        return tuple(model for model in self.models if not model.baseline_only)

    @cached_property
    def changes_at_s(self) -> int | None:
        """The next moment at which a price changes: the catalog must be built anew then. None: none is stated."""
        return min((price.from_s for model in self.models for price in model.prices if price.from_s > self.at_s), default=None)


@lru_cache(maxsize=1)
def built_in() -> ModelCatalog:
    """The packaged `global-apis`."""
    resource = parse(yaml.safe_load(built_in_text()))
    assert isinstance(resource, ModelCatalog)
    return resource


def built_in_text() -> str:
    """The file as it is shipped, comments included."""
    return resources.files("stepdown.model").joinpath("data/global-apis.yaml").read_text(encoding="utf-8")


def tier_of(output_pusd: int | None) -> Tier:
    """The tier of an output price by its band, upper bound inclusive."""
    if output_pusd is None:
        return "Flagship"
    return next((tier for tier, ceiling in TIER_CEILINGS_PUSD if output_pusd <= ceiling), "Flagship")


def channel_of(upstream_id: str, channels: Sequence[Channel]) -> Channel:
    """The channel with the longest prefix that the id begins with. A RoutingProxy always has one without a prefix."""
    return max((c for c in channels if upstream_id.startswith(c.model_prefix)), key=lambda c: len(c.model_prefix))


_PLAIN_PRICES = frozenset({"input_usd_per_mtok", "output_usd_per_mtok", "cached_input_usd_per_mtok"})


def _overlaid(under: ModelEntry, over: ModelEntry) -> ModelEntry:
    """The fields that `over` states, else those of `under`; the name stays. What is empty is not stated: a spec that was kept
    and read back has every field.
    """
    stated = {field: value for field, value in over if field != "name" and value not in (None, ())}
    if stated.keys() & _PLAIN_PRICES and "prices" not in stated:
        stated["prices"] = ()
    return under.model_copy(update=stated)


def _model(entry: ModelEntry, order: int, owner: dict[str, str], at_s: float) -> CatalogModel:
    prices = _prices(entry)
    price = next(price for price in reversed(prices) if price.from_s <= at_s)
    return CatalogModel(
        name=entry.name,
        order=order,
        tier=entry.tier or tier_of(price.output_pusd),
        prices=prices,
        price=price,
        ids=tuple(known for known in entry.ids if owner[known] == entry.name),
        provider=entry.provider,
        upstream_routed=entry.routing == "Upstream",
        context_tokens=entry.context_tokens,
        max_output_tokens=entry.max_output_tokens,
        max_tokens_field=entry.max_tokens_field or "max_tokens",
        output_bound=entry.output_bound or "MaxTokens",
        reasoning_tokens=entry.reasoning_tokens or 0,
        capabilities=frozenset(entry.capabilities),
        compliance=frozenset(entry.compliance),
        baseline_only=bool(entry.baseline_only),
    )


def _prices(entry: ModelEntry) -> tuple[Price, ...]:
    plain = _price(0, entry.input_usd_per_mtok, entry.output_usd_per_mtok, entry.cached_input_usd_per_mtok)
    dated = (_price(p.from_s, p.input_usd_per_mtok, p.output_usd_per_mtok, p.cached_input_usd_per_mtok) for p in entry.prices)
    return (plain, *dated)


def _price(from_s: int, input_usd: str | None, output_usd: str | None, cached_usd: str | None) -> Price:
    input_pusd, output_pusd, cached_pusd = (
        None if usd is None else usd_per_mtok_to_pusd(usd) for usd in (input_usd, output_usd, cached_usd)
    )
    return Price(from_s, input_pusd, output_pusd, input_pusd if cached_pusd is None else cached_pusd)


def _config_prices(prices: tuple[Price, ...]) -> tuple[PriceFrom, ...]:
    """Without what is not known; only the plain price can be, and it comes first."""
    return tuple(
        PriceFrom(p.from_s, p.input_pusd, p.cached_input_pusd, p.output_pusd)
        for p in prices
        if p.input_pusd is not None and p.cached_input_pusd is not None and p.output_pusd is not None
    )
