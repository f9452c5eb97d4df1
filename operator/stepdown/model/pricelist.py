"""ModelCatalog: the price list as a resource. `model.catalog` makes of one or several what the plan looks models up in."""

from collections import Counter
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StrictBool, StrictInt

from stepdown.model.base import Api, Column, Conditions, Count, ModelName, Provider, Resource, Rule, TierName, Time, Word
from stepdown.model.quantity import RealMoment, moment_s
from stepdown.model.route import UsdPerMTok

Tokens = Annotated[StrictInt, Field(ge=1, le=100_000_000)]


class DatedPrice(Api):
    from_: Annotated[Time, RealMoment, Field(alias="from")]
    """In force from this moment on, until the next entry's."""
    input_usd_per_mtok: UsdPerMTok
    """USD per million tokens of input."""
    output_usd_per_mtok: UsdPerMTok
    """USD per million tokens of output, reasoning included."""
    cached_input_usd_per_mtok: UsdPerMTok | None = None
    """USD per million tokens of cached input; absent: as input."""

    @property
    def from_s(self) -> int:
        return moment_s(self.from_)


def _ascending(prices: tuple[DatedPrice, ...]) -> bool:
    return all(low.from_ < high.from_ for low, high in pairwise(prices))


class ModelEntry(Api):
    name: ModelName
    """What people call the model. Without ids it is also what the upstream is asked for."""
    ids: Annotated[tuple[ModelName, ...], Field(max_length=8)] = ()
    """What the upstream calls the model; a route may use any of them, the first is asked for where it uses the name."""
    provider: Provider | None = None
    """Who runs the model."""
    routing: Literal["Named", "Upstream"] | None = None
    """Upstream: the upstream picks model and provider for each request, so that no provider rule is ever met. Absent: Named."""
    input_usd_per_mtok: UsdPerMTok | None = None
    """USD per million tokens of input, as a quoted decimal. Absent: not known. "0" is a price."""
    output_usd_per_mtok: UsdPerMTok | None = None
    """USD per million tokens of output, reasoning included. Absent: not known."""
    cached_input_usd_per_mtok: UsdPerMTok | None = None
    """USD per million tokens of cached input; absent: as input."""
    prices: Annotated[tuple[DatedPrice, ...], Field(max_length=16)] = ()
    """Prices from a moment on, ascending; before the first entry the plain fields hold."""
    context_tokens: Tokens | None = None
    """The model's whole context. Absent: not known; then input that is not text is refused under a Hard budget."""
    max_output_tokens: Tokens | None = None
    """The most that the model can answer. Absent: not known."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] | None = None
    """The one field that bounds the answer. Absent: max_tokens."""
    output_bound: Literal["MaxTokens", "MaxTokensPlusReasoning", "Context"] | None = None
    """What an answer can cost at most. MaxTokens (where absent): the upstream honours it. MaxTokensPlusReasoning: reasoning may
    come on top, at most reasoningTokens. Context: nothing bounds it but the context.
    """
    reasoning_tokens: Tokens | None = None
    """With MaxTokensPlusReasoning: the most that reasoning adds."""
    tier: TierName | None = None
    """Absent: by the band of the output price."""
    capabilities: Annotated[tuple[Word, ...], Field(max_length=16)] = ()
    """What the model can do beyond text, for example vision."""
    compliance: Annotated[tuple[Word, ...], Field(max_length=16)] = ()
    """What holds for the model: DPA, SOC2, ISO27001."""
    baseline_only: StrictBool | None = None
    """True: a price to compare with in savings reports, never a target. Absent: false."""

    rules = (
        Rule(
            "prices must ascend by from, each moment once: put them in order",
            "!has(self.prices) || (self.prices.map(p, p.from).isSorted()"
            " && self.prices.all(p, self.prices.exists_one(q, q.from == p.from)))",
            lambda m: _ascending(m.prices),
            field="prices",
        ),
        Rule(
            "outputBound MaxTokensPlusReasoning needs reasoningTokens, and only it takes them: add them, or remove them",
            "(has(self.outputBound) && self.outputBound == 'MaxTokensPlusReasoning') == has(self.reasoningTokens)",
            lambda m: (m.output_bound == "MaxTokensPlusReasoning") == (m.reasoning_tokens is not None),
            field="reasoningTokens",
        ),
    )


class Tasks(Api):
    model_config = ConfigDict(alias_generator=str.capitalize)

    bandwidth: ModelName | None = None
    """High volume, low complexity: classification, extraction."""
    judgment: ModelName | None = None
    """Real reasoning without the newest model: review, summaries."""
    flagship: ModelName | None = None
    """Multi-step reasoning and high stakes."""


def _twice(spec: "CatalogSpec") -> list[str]:
    counts = Counter(name for model in spec.models for name in {model.name, *model.ids})
    return sorted(name for name, count in counts.items() if count > 1)


class CatalogSpec(Api):
    models: Annotated[
        tuple[ModelEntry, ...],
        Field(max_length=1000, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}),
    ] = ()
    """The models. What a later catalog states of a model overrides the same fields of an earlier one."""
    tasks: Tasks = Tasks()
    """Which model each kind of work gets."""


class CatalogStatus(Api):
    observed_generation: Count | None = None
    """The generation that this status is about."""
    conditions: Conditions = ()
    """Accepted and Ready; Stalled where the catalog itself must be changed."""
    models: Count | None = None
    """Models in this catalog."""
    unpriced: Count | None = None
    """Those of them without a complete price."""


class ModelCatalog(Resource):
    """A price list: what each model costs, can do and is called. Prices are never made up: one that is not known is absent."""

    kind_name = "ModelCatalog"
    plural = "modelcatalogs"
    short_name = "mcatalog"
    namespaced = False
    columns = (
        Column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
        Column("Models", ".status.models", "integer"),
        Column("Unpriced", ".status.unpriced", "integer", description="Models without a complete price"),
        Column("Age", ".metadata.creationTimestamp", "date"),
    )

    kind: Literal["ModelCatalog"] = "ModelCatalog"
    spec: CatalogSpec
    """The list."""
    status: CatalogStatus | None = None
    """Written by Stepdown alone."""

    def names_stated_twice(self) -> list[str]:
        """Names and ids that two of the catalog's models claim; `parse` refuses such a catalog."""
        return _twice(self.spec)
