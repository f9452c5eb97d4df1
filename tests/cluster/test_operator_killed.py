"""An operator that is killed between any two of its writes: its next start ends where an undisturbed one would have.

Each write of a reconcile in turn is the last that the operator makes: it is done in the API server, and its answer never comes.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from devcluster import ControlPlane

from stepdown.cluster.children import KINDS
from stepdown.cluster.kinds import LEASE
from stepdown.model.config import shard_of
from tests.cluster.gate import Gate, gate
from tests.cluster.operator_world import World, install, until, world

Object = dict[str, Any]


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane() as own:
        install(own)
        yield own


def state(here: World) -> str:
    """Everything that the operator has to do with, without what differs from run to run."""
    found: list[Object] = []
    for kind in KINDS:
        found += [_child(each) for each in here.all(kind, "app.kubernetes.io/name=stepdown-proxy")]
    for name, key in (
        ("RoutingProxy", "default"),
        ("SpendBudget", "team"),
        ("ModelRoute", "chat"),
        ("ModelRoute", other(here)),
    ):
        thing = here.get(name, key)
        if thing is not None:
            found.append({"kind": name, "name": key, "status": _timeless(thing.get("status", {}))})
    return "\n".join(sorted(_placeless(json.dumps(each, sort_keys=True), here) for each in found))


def _placeless(text: str, here: World) -> str:
    """Each run has a namespace and ports of its own, and by its namespace a route has its shard."""
    port = here.upstream.rpartition(":")[2].partition("/")[0]
    for part, word in ((here.namespace, "NS"), (str(here.sync_port), "SYNC"), (port, "PORT"), (other(here), "OTHER")):
        text = text.replace(part, word)
    return re.sub(r'shard-\d\d|\\"index\\":\d+,', "", text)


def _child(raw: Object) -> Object:
    meta = raw["metadata"]
    kept = {name: raw[name] for name in ("spec", "data", "binaryData") if name in raw}
    kept.get("data", {}).pop("ca.crt", None)  # of each operator's own
    for field in ("clusterIP", "clusterIPs"):
        kept.get("spec", {}).pop(field, None)
    owners = [{**each, "uid": ""} for each in meta["ownerReferences"]]
    return {"kind": meta["name"], "name": meta["name"], "labels": meta["labels"], "owners": owners, **kept}


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: _timeless(each) for name, each in value.items() if name not in ("lastTransitionTime", "since", "forecast")
        }
    if isinstance(value, list):
        return sorted((_timeless(each) for each in value), key=str)
    return value


def other(here: World) -> str:
    """A route in another shard than `chat`: by its namespace, that is another name in each run."""
    chat = shard_of(f"{here.namespace}/chat")
    return next(name for name in (f"search-{n}" for n in range(99)) if shard_of(f"{here.namespace}/{name}") != chat)


def first(here: World) -> None:
    """From nothing."""
    here.apply(here.proxy(), here.budget(), here.route(), here.route(other(here), "Qwen3-8B"))


def second(here: World) -> None:
    """From a fleet that is there: something to change, something to prune, something to take back."""
    first(here)
    operator = here.operator().start()
    until(lambda: settled(here, 2), "the fleet is there")
    operator.stop()
    here.apply(here.proxy(replicas=3), here.budget(limit="7.00"), here.route(model="Qwen3-8B"))
    here.delete("ModelRoute", other(here))


def settled(here: World, routes: int) -> bool:
    names = ["chat", other(here)][:routes]
    budget = here.get("SpendBudget", "team") or {}
    proxy = here.get("RoutingProxy", "default") or {}
    seen = {route for text in here.shards() for route in json.loads(text)["routes"]}
    return (
        seen == {f"{here.namespace}/{name}" for name in names}
        and all(here.condition("ModelRoute", name, "Programmed") == ("False", "NoProxies") for name in names)
        and all((here.get("ModelRoute", name) or {})["status"]["observedGeneration"] >= 1 for name in names)
        and bool(budget.get("status", {}).get("observedGeneration") == budget["metadata"]["generation"])
        and bool(proxy.get("status", {}).get("observedGeneration") == proxy["metadata"]["generation"])
        and proxy["status"].get("routes") == routes
        and proxy["status"].get("replicas") == proxy["spec"]["replicas"]
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("scene", "routes"), [(first, 2), (second, 1)])
def test_killed_after_each_write_in_turn(
    plane: ControlPlane, tmp_path: Path, scene: Callable[[World], None], routes: int
) -> None:
    """Half a fleet would stay half a fleet: ConfigMaps without a Deployment, a route that is served and says that it is not."""
    with gate(plane) as between:
        wanted, writes = _run(plane, tmp_path / "0", between, scene, routes, 0)
        assert len(writes) >= 5, writes
        for write in range(1, len(writes) + 1):
            found, done = _run(plane, tmp_path / str(write), between, scene, routes, write)
            assert found == wanted, f"killed after write {write}: {done[-1:]}"


def _run(
    plane: ControlPlane, path: Path, between: Gate, scene: Callable[[World], None], routes: int, cut: int
) -> tuple[str, list[str]]:
    path.mkdir()
    with world(plane, path) as here:
        scene(here)
        operator = here.operator(between.kubeconfig(path / "kubeconfig"))
        between.after(cut, lambda: operator.process.kill())
        operator.launch()
        if cut:
            if not between.is_cut.wait(20):
                return _settle(here, routes), list(between.writes)  # this time it needed fewer
            operator.end()
            here.cluster.request("DELETE", LEASE.path(here.namespace, "stepdown"))  # as if its time had passed
            operator = here.operator().launch()
        return _settle(here, routes), list(between.writes)


def _settle(here: World, routes: int) -> str:
    """The state once it says of itself that it is whole, and then stays as it is for a second."""
    until(lambda: settled(here, routes), f"everything is as planned\n{here.said()}", 40)
    before, since_s = "", 0.0

    def rests() -> str:
        nonlocal before, since_s
        now = state(here)
        if now != before:
            before, since_s = now, time.monotonic()
        return now if time.monotonic() - since_s > 1.0 else ""

    return str(until(rests, "nothing changes any more", 20))
