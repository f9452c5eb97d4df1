"""The Kubernetes objects of a fleet: everything that one RoutingProxy stands for in its namespace. `watch` calls this after a
pass and has `cluster` apply what it says, with server-side apply, and prune what it no longer says.

Pure: equal inputs give equal objects, byte for byte. Only what we decide is stated; what is left out is the API server's
default or another manager's. A route or a budget changes ConfigMaps and nothing else: no pod ever restarts for a policy.
"""

from collections.abc import Mapping
from typing import Any

from stepdown.model.base import API_VERSION
from stepdown.model.fleet import ProxySpec
from stepdown.plan.fleets import FleetPlan
from stepdown.render.config import FleetConfig
from stepdown.render.files import config_maps, left_out
from stepdown.render.network import network_policy, service
from stepdown.render.parts import Names, Object, Observed, Settings, selector
from stepdown.render.workload import autoscaler, deployment, disruption_budget, service_account

__all__ = ["Object", "Observed", "Settings", "fleet_objects", "left_out", "observe", "pod_selector"]


def fleet_objects(plan: FleetPlan, config: FleetConfig, uid: str, settings: Settings, observed: Observed) -> tuple[Object, ...]:
    """Every child of one RoutingProxy that is in force, in the order in which to apply them: what pods mount comes before them.

    `uid`: the RoutingProxy's. Nobody may change what this returns: texts and objects are shared from call to call.
    """
    spec = config.market.spec
    names = Names(plan.source.namespace, plan.source.name)
    objects = [
        service_account(names),
        *config_maps(names, config, settings.ca_bundle),
        network_policy(names, config.fleet.base_url, settings),
        deployment(names, spec, settings, _replicas(spec, observed)),
        service(names),
        disruption_budget(names),
    ]
    if spec.autoscaling is not None:
        objects.append(autoscaler(names, spec.autoscaling))
    owner = {
        "apiVersion": API_VERSION,
        "kind": "RoutingProxy",
        "name": names.name,
        "uid": uid,
        "controller": True,
        # A user's own RoutingProxy must go when it is deleted, however long its pods drain.
        "blockOwnerDeletion": False,
    }
    for each in objects:
        each["metadata"]["ownerReferences"] = [owner]
    return tuple(objects)


def pod_selector(namespace: str, name: str) -> str:
    """A fleet's pods, as `kubectl get pods -l` takes it."""
    return ",".join(f"{key}={value}" for key, value in selector(Names(namespace, name)).items())


def observe(deployment: Mapping[str, Any] | None, *, autoscaler: bool) -> Observed:
    """From the Deployment as the API server has it, and whether the fleet's HorizontalPodAutoscaler is there.

    An autoscaler scales by the `scale` subresource. So does `kubectl scale`, but a number that a person set by hand is an edit
    like any other and comes back: the RoutingProxy is the place for it.
    """
    if deployment is None:
        return Observed(autoscaler=autoscaler)
    elsewhere = any(
        entry.get("subresource") == "scale"
        and not entry.get("manager", "").startswith("kubectl")
        and "f:replicas" in entry.get("fieldsV1", {}).get("f:spec", {})
        for entry in deployment["metadata"].get("managedFields") or ()
    )
    return Observed(deployment["spec"].get("replicas", 1), elsewhere, autoscaler)


def _replicas(spec: ProxySpec, observed: Observed) -> int | None:
    """What is said of the number of pods. None: nothing, it is an autoscaler's.

    A number that we have stated and state no longer is no longer anybody's, and the API server puts 1 in its place: a fleet of
    ten would become one pod. So until an autoscaler has written the number itself we go on stating what is there.
    """
    bounds = spec.autoscaling
    if bounds is None:
        # One that is not ours (KEDA, a user's own) keeps the number. What ours left behind is taken back as it goes.
        return None if observed.replicas_elsewhere and not observed.autoscaler else spec.replicas
    if observed.replicas_elsewhere:
        return None
    there = spec.replicas if observed.replicas is None else observed.replicas
    return min(max(there, bounds.min_replicas), bounds.max_replicas)
