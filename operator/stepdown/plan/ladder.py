"""The ladders of a route: what each class may be served by, best first, and why the rest may not. `plan.routes` calls this.

One rule decides for every model that a route could ever reach (`_obstacle`): it meets the requirements, is not below the
floor, and has a price where a Hard budget binds the route. The default ladder is the wanted model, then the route's own
`stepDown.models`, then the catalog's best of each tier below the lowest of those, and last the cheapest that may answer at all.
There is no quality score to go by, so "best" is: of the models that are dearer than the wanted one in neither input nor output,
the one with the dearest output, then the cheapest input, then the catalog's order; where a tier has none of these, the
cheapest, and each request's fit still protects.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from stepdown.model import conditions
from stepdown.model.catalog import Catalog, CatalogModel
from stepdown.model.config import TIERS, Tier
from stepdown.plan.rungs import NO_NEEDS, Needs, Rung, find


class Wanted(NamedTuple):
    """All that a route's ladders depend on beside the catalog. A tuple, whose hash is cheap: thousands of routes share one."""

    default: str
    """As written in `models.default`; empty with `task`."""
    task: str = ""
    fallbacks: tuple[str, ...] = ()
    premium: str = ""
    step_down: tuple[str, ...] = ()
    floor: Tier = "UltraBudget"
    needs: Needs = NO_NEEDS
    hard: bool = False
    """A Hard budget binds the route: what has no price cannot be reached."""

    def named(self) -> Iterator[tuple[str, str]]:
        """Every model that the route names beside the default, with the field that does."""
        yield from ((f"spec.models.fallbacks[{index}]", name) for index, name in enumerate(self.fallbacks))
        if self.premium:
            yield "spec.models.premium", self.premium
        yield from ((f"spec.stepDown.models[{index}]", name) for index, name in enumerate(self.step_down))


@dataclass(frozen=True, slots=True)
class Rejected:
    """A model that the route names or the catalog has, and why it is no rung."""

    model: str
    field: str
    """Where the route names it; empty: it is the catalog's."""
    reason: str


@dataclass(frozen=True, slots=True)
class Unusable:
    """What is wrong with a route's spec, as a condition's reason and message."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True, eq=False)
class Ladders:
    """What each class may be served by, best first. `critical` and `background` are empty where they are as `default`.

    Made once for all routes that want the same, and compared by identity.
    """

    wanted: Wanted
    default: tuple[Rung, ...]
    critical: tuple[Rung, ...]
    background: tuple[Rung, ...]
    fallbacks: tuple[Rung, ...]
    rejected: tuple[Rejected, ...]
    problem: Unusable | None
    """Why the spec is not accepted. What is left of its ladders still serves where it was accepted before."""
    stepped: dict[Any, Any] = field(default_factory=dict, repr=False)
    """What `plan.routes` made of them under each step so far."""


def build(wanted: Wanted, catalog: Catalog) -> Ladders:
    """The ladders of a route that wants this from that catalog; `default` is empty where nothing can serve."""
    written = (catalog.for_task(wanted.task) or "") if wanted.task else wanted.default  # type: ignore[arg-type]  # a TaskName
    first = find(catalog, written)
    rejected: list[Rejected] = []
    problem = _unknown(wanted, catalog) or _not_allowed(wanted, catalog, written, first)
    default = _default_ladder(wanted, first, catalog, rejected)
    fallbacks = _named(wanted, "spec.models.fallbacks", wanted.fallbacks, catalog, rejected)
    premium = _named(wanted, "spec.models.premium", (wanted.premium,) if wanted.premium else (), catalog, rejected)
    return Ladders(
        wanted=wanted,
        default=default,
        critical=_distinct((*premium, *default)) if premium else (),
        background=_background(fallbacks, default),
        fallbacks=tuple(rung for rung in _distinct(fallbacks) if first is None or rung.model is not first.model),
        rejected=tuple(rejected),
        problem=problem,
    )


def hide(rungs: Sequence[Rung], max_tier: Tier | None) -> tuple[tuple[Rung, ...], int, bool]:
    """The rungs with those above `max_tier` first, how many of them are hidden, and whether the tier could be kept.

    Where no rung is at or below the tier, the cheapest stays: requirements are never broken for money.
    """
    if max_tier is None or not rungs:
        return tuple(rungs), 0, True
    limit = TIERS.index(max_tier)
    visible = [rung for rung in rungs if rung.model.tier_index <= limit]
    kept = bool(visible)
    if not visible:
        visible = [min(rungs, key=lambda rung: (rung.model.tier_index, _price(rung.model)))]
    hidden = [rung for rung in rungs if all(rung is not each for each in visible)]
    return (*hidden, *visible), len(hidden), kept


def _unknown(wanted: Wanted, catalog: Catalog) -> Unusable | None:
    if wanted.task and not catalog.for_task(wanted.task):  # type: ignore[arg-type]  # a TaskName
        have = ", ".join(sorted(catalog.tasks)) or "none"
        return Unusable(
            conditions.TASK_NOT_FOUND,
            f"spec.task is {wanted.task}; the fleet's catalogs choose a model for: {have}. State spec.models.default instead,"
            f" or add the task to a ModelCatalog that the RoutingProxy names in catalogRefs.",
        )
    first = (
        (f"spec.task {wanted.task}, in the catalog,", catalog.for_task(wanted.task) or "")  # type: ignore[arg-type]
        if wanted.task
        else ("spec.models.default", wanted.default)
    )
    wrong = [
        f"{where} is {name!r}; {_have(name, catalog)}" for where, name in (first, *wanted.named()) if not find(catalog, name)
    ]
    if not wrong:
        return None
    message = f"{'. '.join(wrong)}. Fix the name, or add the model to a ModelCatalog of your own."
    return Unusable(conditions.MODEL_NOT_FOUND, message)


def _have(name: str, catalog: Catalog) -> str:
    model = catalog.get(name)
    if model is not None:
        return "the catalog has it as a baseline for savings only, never as a target"
    if nearest := catalog.nearest(name):
        return f"the nearest in the catalog: {', '.join(repr(each) for each in nearest)}"
    return f"the catalog has {len(catalog.targets)} models, none like it"


def _not_allowed(wanted: Wanted, catalog: Catalog, written: str, first: Rung | None) -> Unusable | None:
    """What makes a spec unacceptable whose names all exist."""
    where = f"spec.task {wanted.task} (the catalog's {written!r})" if wanted.task else f"spec.models.default {written!r}"
    if first is None:
        return None
    if unmet := wanted.needs.unmet_by(first.model):
        return _requirements(wanted, catalog, f"{where} does not meet spec.requirements: {unmet}")
    if first.model.tier_index < TIERS.index(wanted.floor):
        return Unusable(
            conditions.FLOOR_ABOVE_DEFAULT,
            f"spec.stepDown.floor is {wanted.floor}, above {where}, which is {first.tier}. Lower the floor to {first.tier} or"
            f" below, or want a model of tier {wanted.floor} or above.",
        )
    if wanted.hard and not first.model.is_priced:
        return Unusable(conditions.UNPRICED, f"{where} is {_unpriced(first.model)}")
    for where, name in wanted.named():
        rung = find(catalog, name)
        if rung is not None and (unmet := wanted.needs.unmet_by(rung.model)):
            return _requirements(wanted, catalog, f"{where} {name!r} does not meet spec.requirements: {unmet}")
    return None


def _requirements(wanted: Wanted, catalog: Catalog, fault: str) -> Unusable:
    able = [model.name for model in catalog.targets if not wanted.needs.unmet_by(model)]
    shown = ", ".join(repr(name) for name in able[:3]) + (f" and {len(able) - 3} more" if len(able) > 3 else "")
    advice = (
        f"Those that do: {shown}. Name one of them, or relax spec.requirements."
        if able
        else "No model of the catalog does: relax spec.requirements, or add a model to a ModelCatalog of your own."
    )
    return Unusable(conditions.NOTHING_MEETS_REQUIREMENTS, f"{fault}. {advice}")


def _unpriced(model: CatalogModel) -> str:
    prices = (("input", model.input_pusd), ("output", model.output_pusd))
    missing = " and ".join(part for part, price in prices if price is None)
    return (
        f"Unpriced: its {missing} price is not known, and a Hard budget cannot hold what it cannot count. State the price of"
        f" {model.name!r} in a ModelCatalog of your own that the RoutingProxy names in catalogRefs, or make the budget Soft."
    )


def _obstacle(wanted: Wanted, model: CatalogModel) -> str:
    """Why a route that wants this may never reach that model; empty: it may."""
    if unmet := wanted.needs.unmet_by(model):
        return unmet
    if model.tier_index < TIERS.index(wanted.floor):
        return f"its tier {model.tier} is below the floor {wanted.floor}"
    if wanted.hard and not model.is_priced:
        return _unpriced(model)
    return ""


def _named(wanted: Wanted, where: str, names: Sequence[str], catalog: Catalog, rejected: list[Rejected]) -> tuple[Rung, ...]:
    """The rungs of a list of the route's own names; those that an obstacle stands before go to `rejected`."""
    rungs = []
    for name in names:
        rung = find(catalog, name)
        reason = _obstacle(wanted, rung.model) if rung is not None else f"not a model of the catalog: {_have(name, catalog)}"
        if rung is None or reason:
            rejected.append(Rejected(name, where, reason))
        else:
            rungs.append(rung)
    return tuple(rungs)


def _default_ladder(wanted: Wanted, first: Rung | None, catalog: Catalog, rejected: list[Rejected]) -> tuple[Rung, ...]:
    if first is None:
        return ()
    rungs: list[Rung] = []
    if reason := _obstacle(wanted, first.model):
        rejected.append(Rejected(first.upstream_id, "spec.task" if wanted.task else "spec.models.default", reason))
    else:
        rungs.append(first)
    for rung in _named(wanted, "spec.stepDown.models", wanted.step_down, catalog, rejected):
        if rung.model.tier_index > first.model.tier_index:
            reason = f"its tier {rung.tier} is above {first.tier}, the default's: a step down never goes up"
            rejected.append(Rejected(rung.upstream_id, "spec.stepDown.models", reason))
        else:
            rungs.append(rung)
    rungs = list(_distinct(rungs))
    return (*rungs, *_catalog_rungs(wanted, first, rungs, catalog, rejected))


def _catalog_rungs(
    wanted: Wanted, first: Rung, rungs: Sequence[Rung], catalog: Catalog, rejected: list[Rejected]
) -> Iterator[Rung]:
    """The catalog's best of each tier below the lowest that the route's own models cover, and last the cheapest of all."""
    lowest = min((rung.model.tier_index for rung in rungs), default=first.model.tier_index)
    taken = {first.model.name, *(rung.model.name for rung in rungs)}
    free = [model for model in catalog.targets if model.name not in taken]
    able = [model for model in free if not _catalog_obstacle(wanted, model, lowest)]
    by_tier = [[model for model in able if model.tier == tier] for tier in reversed(TIERS[:lowest])]
    chosen = {best.tier: best for models in by_tier if models for best in (_best(models, first.model),)}
    last = _last(wanted, free, list(chosen.values()) or [rung.model for rung in rungs] or [first.model], lowest)
    for model in (*chosen.values(), *last):
        yield Rung(model.request_id(), model)
    for model in free:
        best = chosen.get(model.tier)
        if model is not best and model not in last:
            reason = _catalog_obstacle(wanted, model, lowest)
            better = best.name if best is not None else ""
            rejected.append(
                Rejected(model.name, "", reason or f"one rung a tier: {better} is the better or cheaper one of {model.tier}")
            )


def _last(wanted: Wanted, free: Sequence[CatalogModel], above: Sequence[CatalogModel], lowest: int) -> tuple[CatalogModel, ...]:
    """The cheapest that may answer at all, where that is cheaper than the rung above it: with it a route goes on answering when
    nothing better fits any more. Best of its tier and cheapest of its tier are often far apart (a tier spans a tenfold)."""
    reachable = [model for model in free if model.is_priced and model.tier_index <= lowest and not _obstacle(wanted, model)]
    if not reachable:
        return ()
    cheapest, before = min(reachable, key=_price), above[-1]
    cheaper = _not_above(cheapest.input_pusd, before.input_pusd) and _not_above(cheapest.output_pusd, before.output_pusd)
    return (cheapest,) if cheaper and cheapest is not before and _price(cheapest) < _price(before) else ()


def _catalog_obstacle(wanted: Wanted, model: CatalogModel, lowest: int) -> str:
    if reason := _obstacle(wanted, model):
        return reason
    if not model.is_priced:
        return "Unpriced: the catalog's own rungs are those with a price"
    if model.tier_index >= lowest:
        return f"its tier {model.tier} is not below {TIERS[lowest]}, the lowest that the route's own models cover"
    return ""


def _best(able: Sequence[CatalogModel], first: CatalogModel) -> CatalogModel:
    """The best of one tier that is dearer than the wanted model in nothing; else the cheapest."""
    cheap = [
        model
        for model in able
        if _not_above(model.input_pusd, first.input_pusd) and _not_above(model.output_pusd, first.output_pusd)
    ]
    if cheap:
        return min(cheap, key=lambda model: (-(model.output_pusd or 0), model.input_pusd or 0, model.order))
    return min(able, key=_price)


def _not_above(price_pusd: int | None, wanted_pusd: int | None) -> bool:
    """A wanted model of unknown price sets no bound."""
    return wanted_pusd is None or (price_pusd is not None and price_pusd <= wanted_pusd)


def _price(model: CatalogModel) -> tuple[bool, int, int, int]:
    """For sorting, cheapest first: output before input; what has no price comes last."""
    return (not model.is_priced, model.output_pusd or 0, model.input_pusd or 0, model.order)


def _background(fallbacks: tuple[Rung, ...], default: tuple[Rung, ...]) -> tuple[Rung, ...]:
    """The first fallback, then what of the default ladder is not of a dearer tier than that."""
    if not fallbacks:
        return ()
    head = fallbacks[0]
    return _distinct((head, *(rung for rung in default if rung.model.tier_index <= head.model.tier_index)))


def _distinct(rungs: Iterable[Rung]) -> tuple[Rung, ...]:
    """Each model once, at its first place."""
    seen: dict[str, Rung] = {}
    for rung in rungs:
        seen.setdefault(rung.model.name, rung)
    return tuple(seen.values())
