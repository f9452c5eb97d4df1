"""Which spec of an object is in force: the current one if accepted, else the one last accepted. All of `plan` uses it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import ValidationError

from stepdown.model.base import Api
from stepdown.model.resources import BudgetSpec, CatalogSpec, ProxySpec, RouteSpec
from stepdown.plan.findings import InForce
from stepdown.plan.world import AcceptedSpec, AnyObject, Invalid, Kind, LedgerView, World, uid_of

S = TypeVar("S", bound=Api)

_SPECS: Mapping[Kind, type[Api]] = {
    "ModelRoute": RouteSpec,
    "SpendBudget": BudgetSpec,
    "RoutingProxy": ProxySpec,
    "ModelCatalog": CatalogSpec,
}


@dataclass(frozen=True, slots=True)
class Source(Generic[S]):
    """One object as it was seen, valid or not."""

    kind: Kind
    key: str
    namespace: str
    name: str
    uid: str
    generation: int
    labels: Mapping[str, str]
    spec: S | None
    """None: not valid."""
    thing: AnyObject | Invalid
    """As the World has it."""

    @property
    def invalid(self) -> Invalid | None:
        return self.thing if isinstance(self.thing, Invalid) else None


def source(thing: AnyObject | Invalid) -> Source[Api]:
    """Any object of the World, in one shape."""
    if isinstance(thing, Invalid):
        return Source(
            thing.kind, thing.key, thing.namespace, thing.name, uid_of(thing), thing.generation, thing.labels, None, thing
        )
    meta = thing.metadata
    return Source(
        thing.kind, thing.key, meta.namespace, meta.name, uid_of(thing), meta.generation, meta.labels, thing.spec, thing
    )


def sources(world: World, kind: Kind) -> list[AnyObject | Invalid]:
    """Every object of a kind, those that are not valid included. A name that is there twice comes once, as not valid."""
    valid: dict[Kind, Sequence[AnyObject]] = {
        "ModelRoute": world.routes,
        "SpendBudget": world.budgets,
        "RoutingProxy": world.proxies,
        "ModelCatalog": world.catalogs,
    }
    found: dict[str, AnyObject | Invalid] = {}
    for thing in (*valid[kind], *(each for each in world.invalid if each.kind == kind)):
        first = found.get(thing.key)
        found[thing.key] = thing if first is None else _twice(kind, first)
    return list(found.values())


def _twice(kind: Kind, first: AnyObject | Invalid) -> Invalid:
    if isinstance(first, Invalid):
        return first
    return Invalid(
        kind=kind,
        namespace=first.metadata.namespace,
        name=first.metadata.name,
        message=f"two {kind}s are named {first.key}: remove or rename one of them",
        raw=first.model_dump(mode="json", by_alias=True, exclude_unset=True),
        uid=first.metadata.uid,
        generation=first.metadata.generation,
        labels=first.metadata.labels,
        conflict=True,
    )


def last_accepted(source: Source[S], view: LedgerView) -> S | None:
    """The spec that the ledger keeps of the object; None: there is none, or it is of another version of these resources."""
    return parse_spec(source.kind, view.accepted.get(source.uid))  # type: ignore[return-value]  # the kind's own


def parse_spec(kind: Kind, kept: AcceptedSpec | None) -> Api | None:
    if kept is None:
        return None
    try:
        return _SPECS[kind].model_validate_json(kept.spec_json)
    except ValidationError:
        return None


def spec_json(spec: Api) -> str:
    """A spec as the ledger keeps it: what was stated, and nothing else, since a catalog overrides just what it states."""
    return spec.model_dump_json(by_alias=True, exclude_unset=True)


Refusal = TypeVar("Refusal")


def choose(
    source: Source[S], view: LedgerView, judge: Callable[[S], Refusal | None], invalid: Callable[[Invalid], Refusal]
) -> tuple[S | None, InForce, Refusal | None]:
    """The spec in force, which one it is, and what is wrong with the current one (None: nothing)."""
    if source.spec is not None:
        refusal = judge(source.spec)
        if refusal is None:
            return source.spec, "Current", None
    else:
        assert source.invalid is not None
        refusal = invalid(source.invalid)
    kept = last_accepted(source, view)
    return kept, "LastAccepted" if kept is not None else "Nothing", refusal
