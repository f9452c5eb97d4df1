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
            without = (*_COUNTED, *_PODS) if name == "RoutingProxy" else _COUNTED
            found.append({"kind": name, "name": key, "status": _without(thing.get("status", {}), without)})
    return "\n".join(sorted(_placeless(json.dumps(each, sort_keys=True), here) for each in found))


def _placeless(text: str, here: World) -> str:
    """Each run has a namespace and ports of its own, and by its namespace a route has its shard."""
    port = here.upstream.rpartition(":")[2].partition("/")[0]
    for part, word in ((here.namespace, "NS"), (str(here.sync_port), "SYNC"), (port, "PORT"), (other(here), "OTHER")):
        text = text.replace(part, word)
    return re.sub(r'shard-\d\d|\\"index\\":\d+,|\\"generation\\":\d+,', "", text)


def _child(raw: Object) -> Object:
    meta = raw["metadata"]
    kept = {name: raw[name] for name in ("spec", "data", "binaryData") if name in raw}
    kept.get("data", {}).pop("ca.crt", None)  # of each operator's own
    for field in ("clusterIP", "clusterIPs"):
        kept.get("spec", {}).pop(field, None)
    owners = [{**each, "uid": ""} for each in meta["ownerReferences"]]
    return {"kind": meta["name"], "name": meta["name"], "labels": meta["labels"], "owners": owners, **kept}


_COUNTED = ("lastTransitionTime", "since", "forecast", "observedGeneration")
"""What goes by the clock, or by how often an object was changed before."""
_PODS = ("replicas", "readyReplicas", "updatedReplicas", "selector", "summary", "message")
"""What of a RoutingProxy's status tells of its pods, which others make, and is written ten seconds after the rest."""


def _without(value: Any, names: tuple[str, ...]) -> Any:
    """With its lists in order: that of conditions is the API server's."""
    if isinstance(value, dict):
        return {name: _without(each, names) for name, each in value.items() if name not in names}
    if isinstance(value, list):
        return sorted((_without(each, names) for each in value), key=str)
    return value


def other(here: World) -> str:
    """A route in another shard than `chat`: by its namespace, that is another name in each run."""
    chat = shard_of(f"{here.namespace}/chat")
    return next(name for name in (f"search-{n}" for n in range(99)) if shard_of(f"{here.namespace}/{name}") != chat)


def one(here: World) -> None:
    here.apply(here.proxy(), here.budget(), here.route(), here.route(other(here), "Qwen3-8B"))


def another(here: World) -> None:
    """Something to change, something to take back, and a shard to prune."""
    here.apply(here.proxy(replicas=3), here.budget(limit="7.00"), here.route(model="Qwen3-8B"))
    here.delete("ModelRoute", other(here))


def settled(here: World) -> bool:
    """Whether every object says that it has been seen as it is now, and the fleet is what they say."""
    things = [here.get("RoutingProxy", "default"), here.get("SpendBudget", "team")]
    routes = [thing for name in ("chat", other(here)) if (thing := here.get("ModelRoute", name)) is not None]
    for thing in (*things, *routes):
        if thing is None or thing.get("status", {}).get("observedGeneration") != thing["metadata"]["generation"]:
            return False
    proxy, names = things[0], {f"{here.namespace}/{each['metadata']['name']}" for each in routes}
    assert proxy is not None
    return (
        {route for text in here.shards() for route in json.loads(text)["routes"]} == names
        and all(here.condition("ModelRoute", each["metadata"]["name"], "Programmed")[1] == "NoProxies" for each in routes)
        and proxy["status"].get("routes") == len(names)
    )


PARTS = 3
"""Every third write in one test: they run beside each other."""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(PARTS))
def test_a_fleet_is_made_whole_whichever_write_was_the_last(plane: ControlPlane, tmp_path: Path, part: int) -> None:
    """Half a fleet would stay half a fleet: ConfigMaps without a Deployment, a route that is served and says that it is not."""
    with gate(plane) as between:
        wanted, writes = _from_nothing(plane, tmp_path / "0", between, 0)
        assert len(writes) > 10, writes
        for write in range(1 + part, len(writes) + 1, PARTS):
            found, done = _from_nothing(plane, tmp_path / str(write), between, write)
            assert found == wanted, f"killed after write {write}: {done[-1:]}"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(PARTS))
def test_a_change_is_made_whole_whichever_write_was_the_last(plane: ControlPlane, tmp_path: Path, part: int) -> None:
    """A fleet that goes from one state to another and back, and its operator is killed after another write each time."""
    with gate(plane) as between, world(plane, tmp_path) as here:
        one(here)
        _run(here, between, 0)
        wanted: dict[Callable[[World], None], str] = {}
        writes: list[str] = []
        for change in (another, one):
            change(here)
            wanted[change], done = _run(here, between, 0)
            writes = max(writes, done, key=len)
        assert len(writes) > 5, writes
        for number, write in enumerate(range(1 + part, len(writes) + 1, PARTS)):
            change = one if number % 2 else another
            change(here)
            found, done = _run(here, between, write)
            assert found == wanted[change], f"{change.__name__}, killed after write {write}: {done[-1:]}"


def _from_nothing(plane: ControlPlane, path: Path, between: Gate, cut: int) -> tuple[str, list[str]]:
    path.mkdir()
    with world(plane, path) as here:
        one(here)
        return _run(here, between, cut)


def _run(here: World, between: Gate, cut: int) -> tuple[str, list[str]]:
    """The state that an operator leaves, and its writes; it is killed after the one of number `cut` and started again."""
    operator = here.operator(between.kubeconfig(here.path / "kubeconfig"))
    between.after(cut, lambda: operator.process.kill())
    operator.launch()
    try:
        until(lambda: between.is_cut.is_set() or (between.rests(2.0) and settled(here)), "it is cut, or done")
    except AssertionError:
        raise AssertionError(f"{state(here)}\n{between.writes[-20:]}\n{here.said()}") from None
    if between.is_cut.is_set():  # else it needed fewer writes this time
        operator.end()
        here.cluster.request("DELETE", LEASE.path(here.namespace, "stepdown"))  # as if its time had passed
        operator = here.operator().launch()
    found = _rest(here)
    operator.stop()
    return found, list(between.writes)


def _rest(here: World) -> str:
    """The state once the objects say that it is whole, and it then stays as it is for a second."""
    until(lambda: settled(here), f"everything is as planned\n{here.said()}", 40)
    before, since_s = "", 0.0

    def rests() -> str:
        nonlocal before, since_s
        now = state(here)
        if now != before:
            before, since_s = now, time.monotonic()
        return now if time.monotonic() - since_s > 1.0 else ""

    return str(until(rests, "nothing changes any more", 20))
