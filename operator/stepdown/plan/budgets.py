"""Each SpendBudget as judged: its spec in force, its period, the routes it binds, where it stands, what it does to a route.

`plan.plan` calls this. Membership is made anew only for what changed: routes are indexed by namespace, and a budget looks at
its own namespaces only.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from stepdown.budget.account import Balance, Binding
from stepdown.budget.months import Period, period_after, period_at
from stepdown.budget.verdict import Step, Terms, Verdict, judge
from stepdown.model import conditions
from stepdown.model.config import Tier, account_id
from stepdown.model.resources import BudgetSpec, LabelSelector
from stepdown.plan.findings import Finding, InForce, kept
from stepdown.plan.fleets import ACCEPTED, invalid_finding
from stepdown.plan.specs import Source, choose, source, sources
from stepdown.plan.world import LedgerView, World

Labels = Mapping[str, str]
Routes = Mapping[str, tuple[tuple[str, Labels], ...]]
"""By namespace: the name and labels of every route."""


class Index:
    """Every route by namespace, and by namespace and label for those labels that a budget asks for."""

    __slots__ = ("_labelled", "spaces")

    def __init__(self, spaces: Routes) -> None:
        self.spaces = spaces
        self._labelled: dict[tuple[str, str], dict[str, list[tuple[str, Labels]]]] = {}

    def of(self, space: str) -> Sequence[tuple[str, Labels]]:
        return self.spaces.get(space, ())

    def labelled(self, space: str, key: str, value: str) -> Sequence[tuple[str, Labels]]:
        found = self._labelled.get((space, key))
        if found is None:
            found = self._labelled[space, key] = {}
            for name, labels in self.of(space):
                if key in labels:
                    found.setdefault(labels[key], []).append((name, labels))
        return found.get(value, ())


@dataclass(frozen=True, slots=True)
class Force:
    """What one budget does to each of its routes now. Equal from pass to pass until a step is reached."""

    budget: str
    """`namespace/name`."""
    hard: bool
    max_tier: Tier | None = None
    protect_critical: bool = True
    at_percent: int = 0
    """Of the step that gave `max_tier`."""
    refuses: str = ""
    """Not empty: the budget was never valid, so its routes are refused with this sentence."""


@dataclass(frozen=True, slots=True)
class BudgetPlan:
    """One SpendBudget as judged."""

    source: Source[BudgetSpec]
    spec: BudgetSpec | None
    """In force."""
    in_force: InForce
    accepted: Finding
    members: frozenset[str]
    """`namespace/name` of every route that it binds (or, never valid, refuses)."""
    missing: tuple[str, ...]
    """Targets that are not there."""
    force: Force | None
    """None: it binds nothing."""
    terms: Terms | None = None
    period: Period | None = None
    following: Period | None = None
    limit_nusd: int = 0
    """In force now."""
    balance: Balance | None = None
    """None: the ledger has no account of the period yet."""
    verdict: Verdict | None = None
    used: Fraction = Fraction(0)
    invoiced: Balance | None = None
    """The newest account for whose month an invoice was read."""

    @property
    def key(self) -> str:
        return self.source.key

    def bindings(self) -> Iterable[Binding]:
        """What is asked of the ledger: an account for this period and one for the next."""
        if self.terms is None or self.period is None or self.following is None:
            return
        for period, limit_nusd in (
            (self.period, self.limit_nusd),
            (self.following, self.terms.limit_nusd(self.following.start_s)),
        ):
            yield Binding(self.key, period.start_s, period.end_s, limit_nusd, self.terms.hard, self.members)


def plan_budgets(
    world: World, view: LedgerView, now_s: float, routes: Routes, previous: Mapping[str, BudgetPlan], same_routes: bool
) -> dict[str, BudgetPlan]:
    """Every SpendBudget, by `namespace/name`. `same_routes`: names and labels are as they were for `previous`."""
    index = Index(routes)
    accounts: dict[str, list[Balance]] = {}
    for balance in view.balances.values():
        accounts.setdefault(balance.budget, []).append(balance)
    plans = {}
    for thing in sources(world, "SpendBudget"):
        each: Source[BudgetSpec] = source(thing)  # type: ignore[assignment]  # of this kind
        before = previous.get(each.key) if same_routes else None
        plans[each.key] = _plan(each, world, view, now_s, index, accounts.get(each.key, ()), before)
    return plans


def terms_of(spec: BudgetSpec) -> Terms:
    """The spec as values."""
    return Terms(
        monthly_nusd=spec.monthly_limit_nusd,
        zone=spec.time_zone,
        steps=tuple(Step(step.at_percent, step.action, step.max_tier) for step in spec.steps),
        hard=spec.enforcement == "Hard",
        protect_critical=spec.protect_critical,
        override_nusd=spec.override.add_nusd if spec.override is not None else 0,
        override_until_s=spec.override.until_s if spec.override is not None else 0,
    )


def _plan(
    each: Source[BudgetSpec],
    world: World,
    view: LedgerView,
    now_s: float,
    routes: Index,
    accounts: Sequence[Balance],
    before: BudgetPlan | None,
) -> BudgetPlan:
    spec, in_force, refusal = choose(each, view, lambda spec: _scope(spec, each.namespace, world), invalid_finding)
    if spec is not None and in_force == "LastAccepted" and _scope(spec, each.namespace, world) is not None:
        spec, in_force = None, "Nothing"
    accepted = kept(refusal, in_force) if refusal is not None else ACCEPTED
    if spec is None:
        return _never_valid(each, accepted, routes)
    if before is not None and before.spec == spec:
        members, missing = before.members, before.missing
    else:
        members, missing = _members(spec, each.namespace, world, routes)
    if missing and accepted.holds:
        accepted = Finding(True, conditions.TARGET_NOT_FOUND, _missing_message(missing, each.namespace))
    terms = before.terms if before is not None and before.spec is spec and before.terms is not None else terms_of(spec)
    period = period_at(now_s, terms.zone, [(balance.start_s, balance.end_s) for balance in accounts])
    limit_nusd = terms.limit_nusd(now_s)
    account = account_id(each.key, period.start_s)
    balance = next((balance for balance in accounts if balance.account == account), None)
    used = Fraction(balance.spent_nusd + balance.unreconciled_nusd, limit_nusd) if balance is not None else Fraction(0)
    verdict = judge(terms.steps, used)
    return BudgetPlan(
        source=each,
        spec=spec,
        in_force=in_force,
        accepted=accepted,
        members=members,
        missing=missing,
        force=_force(each.key, terms, verdict),
        terms=terms,
        period=period,
        following=period_after(period, terms.zone),
        limit_nusd=limit_nusd,
        balance=balance,
        verdict=verdict,
        used=used,
        invoiced=max((each for each in accounts if each.invoice is not None), key=lambda each: each.start_s, default=None),
    )


def _force(key: str, terms: Terms, verdict: Verdict) -> Force:
    reached = verdict.step.at_percent if verdict.step is not None else 0
    at_percent = min(
        (step.at_percent for step in terms.steps if step.max_tier == verdict.max_tier and step.at_percent <= reached), default=0
    )
    at_percent = at_percent if verdict.max_tier is not None else 0
    return Force(key, terms.hard, verdict.max_tier, terms.protect_critical, at_percent)


def _never_valid(each: Source[BudgetSpec], accepted: Finding, routes: Index) -> BudgetPlan:
    """Refuses its own targets in its own namespace, nothing else: doubt about money fails closed, and no wider than it must.

    A namespaceSelector outside the operator's namespace is no doubt but an overreach: that budget binds nothing at all.
    """
    if each.spec is not None:
        return BudgetPlan(each, None, "Nothing", accepted, frozenset(), (), None)
    assert each.invalid is not None
    members = _raw_members(each.invalid.raw, each.namespace, routes.of(each.namespace))
    sentence = f"SpendBudget {each.key}, which is to bind this route, was never valid: {each.invalid.message}"
    return BudgetPlan(each, None, "Nothing", accepted, members, (), Force(each.key, hard=False, refuses=sentence))


def _scope(spec: BudgetSpec, namespace: str, world: World) -> Finding | None:
    if spec.namespace_selector is None or namespace == world.operator_namespace:
        return None
    return Finding(
        False,
        conditions.NOT_ALLOWED,
        f"spec.namespaceSelector is set, which only budgets in the operator's namespace ({world.operator_namespace}) may do."
        f" Remove it to bind routes of {namespace}, or create the budget in {world.operator_namespace}.",
        stalled=True,
    )


def _members(spec: BudgetSpec, namespace: str, world: World, routes: Index) -> tuple[frozenset[str], tuple[str, ...]]:
    """The routes that a budget binds, and the targets that are not there."""
    if spec.target_refs:
        names = {name for name, _ in routes.of(namespace)}
        wanted = [ref.name for ref in spec.target_refs]
        found = frozenset(f"{namespace}/{name}" for name in wanted if name in names)
        return found, tuple(name for name in wanted if name not in names)
    if spec.namespace_selector is not None:
        selector = spec.namespace_selector
        spaces = [each for each in routes.spaces if selector.matches(world.labels_of(each))]
    else:
        spaces = [namespace]
    rule = spec.route_selector
    return frozenset(f"{space}/{name}" for space in spaces for name in _matching(rule, space, routes)), ()


def _matching(rule: LabelSelector | None, space: str, routes: Index) -> Iterable[str]:
    """The names that a selector selects; only routes with its first label are looked at."""
    if rule is None:
        return (name for name, _ in routes.of(space))
    some = routes.of(space) if not rule.match_labels else routes.labelled(space, *next(iter(rule.match_labels.items())))
    return (name for name, labels in some if rule.matches(dict(labels)))


def _raw_members(raw: Mapping[str, Any], namespace: str, routes: Iterable[tuple[str, Labels]]) -> frozenset[str]:
    """The routes that an object which is not valid means, as far as it can be read; what cannot be read means all of them."""
    spec = raw.get("spec")
    spec = spec if isinstance(spec, Mapping) else {}
    refs, selector = spec.get("targetRefs"), spec.get("routeSelector")
    if (
        isinstance(refs, Sequence)
        and refs
        and all(isinstance(ref, Mapping) and isinstance(ref.get("name"), str) for ref in refs)
    ):
        names = {ref["name"] for ref in refs}
        return frozenset(f"{namespace}/{name}" for name, _ in routes if name in names)
    wanted = selector.get("matchLabels") if isinstance(selector, Mapping) and set(selector) == {"matchLabels"} else None
    if isinstance(wanted, Mapping):
        return frozenset(
            f"{namespace}/{name}" for name, labels in routes if all(labels.get(key) == value for key, value in wanted.items())
        )
    return frozenset(f"{namespace}/{name}" for name, _ in routes)


def _missing_message(missing: Sequence[str], namespace: str) -> str:
    names = ", ".join(repr(name) for name in missing)
    return (
        f"The spec is valid and in force. spec.targetRefs names {names}; there is no such ModelRoute in {namespace}:"
        f" it is bound as soon as it is there."
    )
