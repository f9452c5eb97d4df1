"""SpendBudget: a ceiling for a calendar month, the routes it binds, and the steps on the way. budget/ and plan/ read it."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, StrictBool, StringConstraints

from stepdown.model.base import (
    PATTERNS,
    Api,
    Brief,
    Column,
    Conditions,
    Count,
    LabelSelector,
    ModelName,
    Name,
    Resource,
    Rule,
    TierName,
    Time,
)
from stepdown.model.config import TIERS
from stepdown.model.money import usd_to_nusd
from stepdown.model.quantity import RealMoment, TimeZone, moment_s
from stepdown.model.route import Percent, SignedUsd, Usd

PERCENT_PATTERN = r"^[0-9]{1,9}(\.[0-9]{1,2})?$"
PATTERNS[PERCENT_PATTERN] = "write a percentage such as 80.5"


class TargetRef(Api):
    group: Literal["stepdown.dev"]
    """The target's API group."""
    kind: Literal["ModelRoute"]
    """The target's kind."""
    name: Name
    """The target's name, in the budget's own namespace."""


class Step(Api):
    at_percent: Percent
    """In force from this share of the limit on."""
    action: Literal["Notify", "StepDown"]
    """Notify writes an Event; StepDown also hides every model above maxTier."""
    max_tier: TierName | None = None
    """For StepDown: the dearest tier that may still answer."""

    rules = (
        Rule(
            "a step with action StepDown needs maxTier: the dearest tier that may still answer, for example MidRange",
            "self.action != 'StepDown' || has(self.maxTier)",
            lambda s: s.action != "StepDown" or s.max_tier is not None,
            field="maxTier",
        ),
        Rule(
            "a step with action Notify hides nothing: remove maxTier, or make the action StepDown",
            "self.action != 'Notify' || !has(self.maxTier)",
            lambda s: s.action != "Notify" or s.max_tier is None,
            field="maxTier",
        ),
    )


class Override(Api):
    add_usd: Usd
    """Added to the limit."""
    until: Annotated[Time, RealMoment]
    """When the addition ends."""

    rules = (
        Rule(
            "override.addUSD is 0: write more than 0, or remove the override",
            "self.addUSD.matches('[1-9]')",
            lambda o: usd_to_nusd(o.add_usd) > 0,
            field="addUSD",
        ),
    )

    @property
    def add_nusd(self) -> int:
        return usd_to_nusd(self.add_usd)

    @property
    def until_s(self) -> int:
        return moment_s(self.until)


DEFAULT_STEPS = (
    Step(at_percent=50, action="Notify"),
    Step(at_percent=80, action="StepDown", max_tier="MidRange"),
    Step(at_percent=95, action="StepDown", max_tier="UltraBudget"),
)


_CEL_ORDER = "{" + ", ".join(f"'{tier}': {order}" for order, tier in enumerate(TIERS)) + "}"


def _ascending(steps: tuple[Step, ...]) -> bool:
    percents = [step.at_percent for step in steps]
    return all(low < high for low, high in pairwise(percents))


def _never_rising(steps: tuple[Step, ...]) -> bool:
    tiers = [TIERS.index(step.max_tier) for step in steps if step.max_tier is not None]
    return all(low >= high for low, high in pairwise(tiers))


class BudgetSpec(Api):
    monthly_limit_usd: Usd
    """The ceiling of a calendar month, in USD."""
    time_zone: TimeZone = "UTC"
    """Whose midnight ends a month; an IANA name. A change applies from the next period."""
    target_refs: Annotated[tuple[TargetRef, ...], Field(max_length=64)] = ()
    """The routes that the budget binds, by name. With neither this nor routeSelector: every route of the namespace."""
    route_selector: LabelSelector | None = None
    """The routes that the budget binds, by label."""
    namespace_selector: LabelSelector | None = None
    """The namespaces whose routes the budget binds. Only in the operator's own namespace."""
    steps: Annotated[tuple[Step, ...], Field(max_length=16)] = DEFAULT_STEPS
    """What happens on the way to the ceiling, ascending."""
    enforcement: Literal["Hard", "Soft"] = "Hard"
    """Hard: the bill never passes the ceiling, at 100 % requests are refused. Soft: steps and alerts, never refuses."""
    protect_critical: StrictBool = True
    """Critical requests are stepped down only when they no longer fit."""
    override: Override | None = None
    """More money until a moment."""

    rules = (
        Rule(
            'monthlyLimitUSD must be more than 0: write the month\'s ceiling, for example "500.00";'
            " to forbid spending, delete the routes",
            "self.monthlyLimitUSD.matches('[1-9]')",
            lambda s: usd_to_nusd(s.monthly_limit_usd) > 0,
            field="monthlyLimitUSD",
        ),
        Rule(
            "state at most one of targetRefs and routeSelector; with neither, every route of the namespace is bound",
            "!has(self.targetRefs) || size(self.targetRefs) == 0 || !has(self.routeSelector)",
            lambda s: not s.target_refs or s.route_selector is None,
            field="routeSelector",
        ),
        Rule(
            "targetRefs names routes of the budget's own namespace: with namespaceSelector, use routeSelector instead",
            "!has(self.targetRefs) || size(self.targetRefs) == 0 || !has(self.namespaceSelector)",
            lambda s: not s.target_refs or s.namespace_selector is None,
            field="namespaceSelector",
        ),
        Rule(
            "steps must ascend by atPercent, each percentage once: put them in order, for example 50, 80, 95",
            "!has(self.steps) || (self.steps.map(s, s.atPercent).isSorted()"
            " && self.steps.all(s, self.steps.exists_one(t, t.atPercent == s.atPercent)))",
            lambda s: _ascending(s.steps),
            field="steps",
        ),
        Rule(
            "maxTier must not rise from one step to the next: as money runs out, later steps take the same or a cheaper tier"
            " (Flagship > Premium > MidRange > Budget > UltraBudget)",
            # in pairs, since the cost of a list that `filter` makes has no known bound
            "!has(self.steps) || self.steps.all(s, !has(s.maxTier) || self.steps.all(t, !has(t.maxTier)"
            f" || s.atPercent >= t.atPercent || {_CEL_ORDER}[s.maxTier] >= {_CEL_ORDER}[t.maxTier]))",
            lambda s: _never_rising(s.steps),
            field="steps",
        ),
    )

    @property
    def monthly_limit_nusd(self) -> int:
        return usd_to_nusd(self.monthly_limit_usd)

    def limit_nusd(self, now_s: float) -> int:
        """The limit in force at a moment: with the override until it ends."""
        extra = self.override.add_nusd if self.override is not None and now_s < self.override.until_s else 0
        return self.monthly_limit_nusd + extra


class Period(Api):
    month: Annotated[str, StringConstraints(max_length=7, pattern=r"^[0-9]{4}-[0-9]{2}$")]
    """The calendar month in the budget's time zone."""
    start: Time
    """The month's first moment."""
    end: Time
    """When the budget resets."""


class RouteCount(Api):
    matched: Count = 0
    """Routes that the budget binds."""
    stepped_down: Count = 0
    """Those of them that a step of this budget holds down."""


class StepInForce(Api):
    at_percent: Percent
    """The step's share of the limit."""
    action: Literal["Notify", "StepDown"]
    """What the step does."""
    max_tier: TierName | None = None
    """The dearest tier that may still answer."""
    since: Time | None = None
    """Since when the step is in force."""


class Forecast(Api):
    month_end_usd: SignedUsd
    """What the month will have cost at its end, if spending goes on as it did."""
    exhausted_at: Time | None = None
    """When the money would be gone; absent: not in this period."""


class BudgetSummary(Api):
    spent: Brief | None = None
    """USD in this period, what is held for lost proxies included."""
    limit: Brief | None = None
    """USD, the override included."""
    percent: Brief | None = None
    """Spent over the limit."""
    reset: Brief | None = None
    """The day when the next period starts, in the budget's time zone."""


class BudgetStatus(Api):
    observed_generation: Count | None = None
    """The generation that this status is about."""
    conditions: Conditions = ()
    """Accepted, Enforced, WithinBudget and Ready; Reconciled once an invoice was read; Stalled where the budget itself must be
    changed."""
    period: Period | None = None
    """The month that the sums are about."""
    limit_usd: SignedUsd | None = None
    """The limit in force, the override included."""
    spent_usd: SignedUsd | None = None
    """Cost of the requests that ended."""
    reserved_usd: SignedUsd | None = None
    """Worst cases of the requests in flight."""
    unreconciled_usd: SignedUsd | None = None
    """Held for lost proxies until a statement or an administrator settles it."""
    excess_usd: SignedUsd | None = None
    """The part of spentUSD beyond all that was reserved, since an upstream exceeded max_tokens: by so much the bill may have
    passed the limit. Absent: nothing."""
    exceeded_by: Annotated[tuple[ModelName, ...], Field(max_length=64)] = ()
    """Models that exceeded max_tokens in this period. More is reserved for each of their requests since."""
    remaining_usd: SignedUsd | None = None
    """Limit less spent and unreconciled."""
    used_percent: Annotated[str, StringConstraints(max_length=12, pattern=PERCENT_PATTERN)] | None = None
    """Spent and unreconciled over the limit."""
    step: StepInForce | None = None
    """The step in force; absent: none."""
    routes: RouteCount | None = None
    """How many routes the budget binds."""
    forecast: Forecast | None = None
    """Where the month is going."""
    summary: BudgetSummary | None = None
    """What kubectl get prints."""


class SpendBudget(Resource):
    """A ceiling in USD for a calendar month over the routes that it binds, with steps on the way to it."""

    kind_name = "SpendBudget"
    plural = "spendbudgets"
    short_name = "spend"
    columns = (
        Column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
        Column("Tier", ".status.step.maxTier", description="The dearest tier that may still answer; empty: any"),
        Column("Spent", ".status.summary.spent", description="USD in this period; the exact sum is status.spentUSD"),
        Column("Limit", ".status.summary.limit", description="USD, the override included"),
        Column("%", ".status.summary.percent", description="Spent over the limit"),
        Column("Reset", ".status.summary.reset", description="When the next period starts"),
        Column("Enforced", '.status.conditions[?(@.type=="Enforced")].status', wide=True),
        Column("Within", '.status.conditions[?(@.type=="WithinBudget")].status', wide=True),
        Column("Forecast", ".status.forecast.monthEndUSD", wide=True, description="USD at the month's end"),
        Column("Routes", ".status.routes.matched", "integer", wide=True),
        Column("Stepped-Down", ".status.routes.steppedDown", "integer", wide=True),
        Column("Age", ".metadata.creationTimestamp", "date", wide=True),
    )

    kind: Literal["SpendBudget"] = "SpendBudget"
    spec: BudgetSpec
    """What the platform team allows."""
    status: BudgetStatus | None = None
    """Where the money is. Written by Stepdown alone."""
