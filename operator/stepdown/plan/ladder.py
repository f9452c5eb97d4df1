"""The ladders of a route: what each class may be served by, best first, and why the rest may not. `plan.routes` calls this.

One rule decides for every model that a route could ever reach (`_obstacle`): it meets the requirements, is not below the
floor, and has a price where a Hard budget binds the route. The default ladder is the wanted model, then the route's own
`stepDown.models`, then the catalog's best of each tier below the lowest of those. There is no quality score to go by, so "best"
is: of the models that are dearer than the wanted one in neither input nor output, the one with the dearest output, then the
cheapest input, then the catalog's order; where a tier has none of these, the cheapest, and each request's fit still protects.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from stepdown.model.config import TIERS, Tier
from stepdown.plan.offers import Offer, Offers, Requirements, Rung

NOTHING_REQUIRED = Requirements()


@dataclass(frozen=True, slots=True)
class Wanted:
    """All that a route's ladders depend on beside the offers. Hashable: thousands of routes share one."""

    default: str
    """As written in `models.default`; or, with `task`, the catalog's choice."""
    task: str = ""
    fallbacks: tuple[str, ...] = ()
    premium: str = ""
    step_down: tuple[str, ...] = ()
    floor: Tier = "UltraBudget"
    requirements: Requirements = NOTHING_REQUIRED
    hard: bool = False
    """A Hard budget binds the route: what has no price cannot be reached."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A model that the route names or the catalog has, and why it is no rung."""

    model: str
    field: str
    """Where the route names it; empty: it is the catalog's."""
    reason: str


@dataclass(frozen=True, slots=True)
class Ladders:
    """What each class may be served by, best first. `critical` and `background` are empty where they are as `default`."""

    default: tuple[Rung, ...]
    critical: tuple[Rung, ...]
    background: tuple[Rung, ...]
    fallbacks: tuple[Rung, ...]
    rejected: tuple[Rejected, ...]


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why a route has no ladder at all."""

    reason: str
    """`ModelNotFound`, `TaskNotFound`, `Unpriced`, `RequirementsNotMet` or `FloorAboveDefault`."""
    message: str


def build(wanted: Wanted, offers: Offers) -> Ladders | Unusable:
    """The ladders of a route that wants this from these offers."""
    if problem := _unknown(wanted, offers):
        return problem
    written = offers.tasks[wanted.task] if wanted.task else wanted.default
    first = offers.find(written)
    assert first is not None
    where = f"spec.task {wanted.task} (the catalog's choice {written!r})" if wanted.task else f"spec.models.default {written!r}"
    if problem := _first_problem(wanted, first, offers, where):
        return problem
    rejected: list[Rejected] = []
    default = _default_ladder(wanted, first, offers, rejected)
    fallbacks = _named(wanted, wanted.fallbacks, "spec.models.fallbacks", offers, rejected)
    premium = _named(wanted, (wanted.premium,) if wanted.premium else (), "spec.models.premium", offers, rejected)
    return Ladders(
        default=default,
        critical=_distinct((*premium, *default)) if premium else (),
        background=_background(fallbacks, default),
        fallbacks=tuple(rung for rung in fallbacks if rung.offer != first.offer),
        rejected=tuple(rejected),
    )


def hide(rungs: Sequence[Rung], max_tier: Tier | None) -> tuple[tuple[Rung, ...], int, bool]:
    """The rungs with those above `max_tier` first, how many of them are hidden, and whether the tier could be kept.

    Where no rung is at or below the tier, the cheapest stays: requirements are never broken for money.
    """
    if max_tier is None:
        return tuple(rungs), 0, True
    limit = TIERS.index(max_tier)
    visible = [rung for rung in rungs if TIERS.index(rung.tier) <= limit]
    kept = bool(visible)
    if not visible:
        visible = [min(rungs, key=lambda rung: (TIERS.index(rung.tier), _price(rung.offer)))]
    hidden = [rung for rung in rungs if rung not in visible]
    return (*hidden, *visible), len(hidden), kept


def _unknown(wanted: Wanted, offers: Offers) -> Unusable | None:
    if wanted.task and wanted.task not in offers.tasks:
        have = ", ".join(sorted(offers.tasks)) or "none"
        return Unusable(
            "TaskNotFound",
            f"spec.task is {wanted.task}; the fleet's catalogs choose a model for: {have}. State spec.models.default instead,"
            f" or add the task to a ModelCatalog that the RoutingProxy names in catalogRefs.",
        )
    named = (
        [("spec.task " + wanted.task, offers.tasks[wanted.task])] if wanted.task else [("spec.models.default", wanted.default)]
    )
    named += [(f"spec.models.fallbacks[{index}]", each) for index, each in enumerate(wanted.fallbacks)]
    named += [("spec.models.premium", wanted.premium)] if wanted.premium else []
    named += [(f"spec.stepDown.models[{index}]", each) for index, each in enumerate(wanted.step_down)]
    wrong = [f"{where} is {name!r}; {_have(name, offers)}" for where, name in named if offers.find(name) is None]
    if not wrong:
        return None
    return Unusable("ModelNotFound", f"{'. '.join(wrong)}. Fix the name, or add the model to a ModelCatalog of your own.")


def _have(name: str, offers: Offers) -> str:
    if nearest := offers.nearest(name):
        return f"the nearest in the catalog: {', '.join(repr(each) for each in nearest)}"
    return f"the catalog has {len(offers.by_name)} models, none like it"


def _first_problem(wanted: Wanted, first: Rung, offers: Offers, where: str) -> Unusable | None:
    """What makes the wanted model itself unusable: then the spec as a whole is."""
    offer = first.offer
    if unmet := wanted.requirements.unmet_by(offer):
        able = sum(1 for each in offers if not wanted.requirements.unmet_by(each))
        advice = (
            f"{able} models of the catalog meet spec.requirements: name one of them (`stepdown explain` lists them)"
            if able
            else "no model of the catalog meets them: relax them, or add one that does to a ModelCatalog of your own"
        )
        return Unusable("RequirementsNotMet", f"{where} does not meet spec.requirements: {unmet}. {advice}.")
    if TIERS.index(offer.tier) < TIERS.index(wanted.floor):
        return Unusable(
            "FloorAboveDefault",
            f"spec.stepDown.floor is {wanted.floor}, above {where}, which is {offer.tier}. Lower the floor to {offer.tier}"
            f" or below, or want a model of tier {wanted.floor} or above.",
        )
    if wanted.hard and not offer.priced:
        return Unusable("Unpriced", f"{where}: {_unpriced(offer)}")
    return None


def _unpriced(offer: Offer) -> str:
    missing = " and ".join(
        part for part, price in (("input", offer.input_pusd), ("output", offer.output_pusd)) if price is None
    )
    return (
        f"Unpriced: no {missing} price of {offer.name!r} is known, and a Hard budget cannot hold what it cannot count. State"
        f" the price in a ModelCatalog of your own and name that in the RoutingProxy's catalogRefs, or make the budget Soft."
    )


def _obstacle(wanted: Wanted, offer: Offer) -> str:
    """Why a route that wants this may never reach that offer; empty: it may."""
    if unmet := wanted.requirements.unmet_by(offer):
        return unmet
    if TIERS.index(offer.tier) < TIERS.index(wanted.floor):
        return f"its tier {offer.tier} is below the floor {wanted.floor}"
    if wanted.hard and not offer.priced:
        return _unpriced(offer)
    return ""


def _default_ladder(wanted: Wanted, first: Rung, offers: Offers, rejected: list[Rejected]) -> tuple[Rung, ...]:
    explicit = []
    top = TIERS.index(first.tier)
    for rung in _named(wanted, wanted.step_down, "spec.stepDown.models", offers, rejected):
        if TIERS.index(rung.tier) > top:
            reason = f"its tier {rung.tier} is above {first.tier}, the default's: a step down never goes up"
            rejected.append(Rejected(rung.upstream_id, "spec.stepDown.models", reason))
        else:
            explicit.append(rung)
    rungs = list(_distinct((first, *explicit)))
    lowest = min(TIERS.index(rung.tier) for rung in rungs)
    taken = {rung.offer.name for rung in rungs}
    able: dict[Tier, list[Offer]] = {}
    for offer in offers:
        if offer.name in taken:
            continue
        if reason := _catalog_obstacle(wanted, offer, lowest, first):
            rejected.append(Rejected(offer.name, "", reason))
        else:
            able.setdefault(offer.tier, []).append(offer)
    for tier in reversed(TIERS[:lowest]):
        if tier in able:
            best = _best(able[tier], first.offer)
            rungs.append(Rung(best, best.upstream_id))
            rejected += [
                Rejected(each.name, "", f"a rung a tier: {best.name} is the best of {tier} that is not dearer")
                for each in able[tier]
                if each is not best
            ]
    return tuple(rungs)


def _catalog_obstacle(wanted: Wanted, offer: Offer, lowest: int, first: Rung) -> str:
    if reason := _obstacle(wanted, offer):
        return reason
    if not offer.priced:
        return "Unpriced: the catalog's own rungs are those with a price"
    if TIERS.index(offer.tier) >= lowest:
        return f"its tier {offer.tier} is not below {TIERS[lowest]}, which the route's own models cover already"
    return ""


def _best(able: Sequence[Offer], first: Offer) -> Offer:
    """The best of one tier that is dearer than the wanted model in nothing; else the cheapest."""
    cheap = [
        offer
        for offer in able
        if _not_above(offer.input_pusd, first.input_pusd) and _not_above(offer.output_pusd, first.output_pusd)
    ]
    if cheap:
        return min(cheap, key=lambda offer: (-(offer.output_pusd or 0), offer.input_pusd or 0))
    return min(able, key=_price)


def _not_above(price_pusd: int | None, wanted_pusd: int | None) -> bool:
    return wanted_pusd is None or (price_pusd is not None and price_pusd <= wanted_pusd)


def _price(offer: Offer) -> tuple[bool, int, int]:
    """For sorting, cheapest first: output before input; what has no price comes last."""
    return (not offer.priced, offer.output_pusd or 0, offer.input_pusd or 0)


def _named(wanted: Wanted, names: Sequence[str], where: str, offers: Offers, rejected: list[Rejected]) -> tuple[Rung, ...]:
    """The rungs of a list of the route's own names; those that an obstacle stands before go to `rejected`."""
    rungs = []
    for name in names:
        rung = offers.find(name)
        assert rung is not None
        if reason := _obstacle(wanted, rung.offer):
            rejected.append(Rejected(name, where, reason))
        else:
            rungs.append(rung)
    return tuple(rungs)


def _background(fallbacks: tuple[Rung, ...], default: tuple[Rung, ...]) -> tuple[Rung, ...]:
    """The first fallback, then what of the default ladder is not of a dearer tier than that."""
    if not fallbacks:
        return ()
    head = fallbacks[0]
    top = TIERS.index(head.tier)
    return _distinct((head, *(rung for rung in default if TIERS.index(rung.tier) <= top)))


def _distinct(rungs: Sequence[Rung]) -> tuple[Rung, ...]:
    """Each offer once, at its first place."""
    seen: dict[str, Rung] = {}
    for rung in rungs:
        seen.setdefault(rung.offer.name, rung)
    return tuple(seen.values())
