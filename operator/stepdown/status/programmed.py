"""How far a fleet's proxies have their config: the condition Programmed. `status.statuses` calls this for routes and fleets.

What counts is what proxies report: a ready pod that has not said that it serves by a config does not serve by it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stepdown.model import conditions
from stepdown.model.conditions import Condition
from stepdown.plan.fleets import FleetPlan
from stepdown.plan.world import FleetSeen, ProxiesSeen
from stepdown.render.config import FleetConfig
from stepdown.render.objects import left_out
from stepdown.status.documents import condition, find

NAMED_FAILURES = 3
"""Objects that could not be applied which a message names; there may be twenty, all for one reason."""


@dataclass(frozen=True, slots=True)
class Programmed:
    """How far a fleet has one config: the answer for every route of a shard."""

    holds: bool | None
    reason: str
    message: str
    ready: int = 0
    programmed: int = 0
    settled: bool = True
    """False: proxies may not have reported yet, so an earlier answer about the same generation counts."""

    def condition(self) -> Condition:
        return condition(conditions.PROGRAMMED, self.holds, self.reason, self.message)

    def given(self, previous: Mapping[str, Any] | None, generation: int) -> "Programmed":
        """The answer that an object's status shows: the previous one, while there is no ground for another."""
        before = find(previous, conditions.PROGRAMMED) if not self.settled and not self.holds else None
        if previous is None or before is None or before.get("observedGeneration") != generation:
            return self
        counts = previous.get("proxies", {})
        holds = None if before["status"] == "Unknown" else before["status"] == "True"
        return Programmed(holds, before["reason"], before["message"], counts.get("ready", 0), counts.get("programmed", 0))


NOT_SERVED = Programmed(None, conditions.PENDING, "No RoutingProxy serves the route.")


def by_shard(config: FleetConfig, seen: ProxiesSeen | None, there: FleetSeen | None, *, settled: bool) -> list[Programmed]:
    """The answer for each shard of a fleet, from its proxies' reports and from its Deployment."""
    if seen is None and there is None:
        pending = Programmed(None, conditions.PENDING, "No proxy of the fleet has reported yet.", settled=settled)
        return [pending] * len(config.shards)
    seen = seen or ProxiesSeen(0)
    # One that the kubelet has not found ready is no endpoint of the Service: nobody reaches it.
    endpoints = there.ready_replicas if there is not None else seen.ready
    # A pod that the kubelet finds ready and that has not reported may serve by anything.
    ready = max(seen.ready, endpoints)
    if not endpoints:
        nobody = Programmed(False, conditions.NO_PROXIES, "No proxy of the fleet is ready.", settled=settled)
        return [nobody] * len(config.shards)
    return [
        _answer(seen.serving.get(index, {}).get(config.digests[index], 0), seen.ready, ready, settled)
        for index in sorted(config.shards)
    ]


def of_fleet(plan: FleetPlan, config: FleetConfig | None, shards: list[Programmed], there: FleetSeen | None) -> Programmed:
    """The answer for the RoutingProxy: its objects are applied, its pods are by its newest template, each has every shard."""
    if config is None:
        return Programmed(None, conditions.PENDING, f"Nothing of the RoutingProxy is in force. {plan.accepted.message}")
    worst = min(shards, key=lambda each: (each.holds is True, each.programmed))
    if there is None:
        return worst
    if there.failures:
        return Programmed(False, conditions.APPLY_FAILED, _failed(there.failures))
    if _wants_none(plan) and not there.replicas:
        return Programmed(True, conditions.NO_REPLICAS, "spec.replicas is 0: there are no pods, and nothing is served.")
    if there.updated_replicas < there.replicas:
        message = (
            f"{there.updated_replicas} of {there.replicas} pods run by the newest template; the others are being replaced."
        )
        return Programmed(False, conditions.ROLLING_OUT, message)
    absent = left_out(config)
    if worst.holds and absent:
        return Programmed(True, worst.reason, f"{worst.message} {_too_large(absent)}", worst.ready, worst.programmed)
    return worst


def _answer(have: int, heard: int, ready: int, settled: bool) -> Programmed:
    if have >= ready:
        return Programmed(True, conditions.PROGRAMMED_REASON, "Every ready proxy serves by this generation.", ready, have)
    message = f"{have} of {ready} ready proxies serve by this generation"
    if heard < ready:
        message += f", and {ready - heard} of them have not reported to the operator: see the logs of the fleet's pods."
    else:
        message += "; the others get it with their next sync."
    return Programmed(False, conditions.PROPAGATING, message, ready, have, settled)


def _wants_none(plan: FleetPlan) -> bool:
    return plan.spec is not None and plan.spec.autoscaling is None and plan.spec.replicas == 0


def _failed(failures: Mapping[str, str]) -> str:
    named = [f"{name} could not be applied: {why.rstrip('.')}." for name, why in sorted(failures.items())[:NAMED_FAILURES]]
    more = len(failures) - len(named)
    return " ".join([*named, *([f"{more} more objects could not either."] if more else []), "It is tried again."])


def _too_large(absent: tuple[int, ...]) -> str:
    names = ", ".join(str(index) for index in absent)
    return (
        f"Too large for a ConfigMap even when compressed: shard {names}. Proxies get it by sync alone, and one that starts"
        f" while the operator is away lacks its routes; spread them over several RoutingProxies."
    )
