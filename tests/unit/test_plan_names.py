"""No two routes can claim one name: whatever namespaces share a fleet, a name that a client sends means one route.

A name of Kubernetes has no "/" and no ":", so `NAMESPACE/NAME` is unique, and a name without "/" is of the fleet's own
namespace. A folder, in which one name can stand twice, is refused (`plan.specs.sources`).
"""

from hypothesis import given
from hypothesis import strategies as st

from stepdown.model.config import CLASSES
from stepdown.plan.world import LedgerView
from stepdown.proxy.table import Table
from stepdown.reconcile import reconcile
from tests.unit.policy import NOW_S, proxy, route, world

LABEL = st.from_regex(r"[a-z]([-a-z0-9]{0,6}[a-z0-9])?", fullmatch=True)
NAME = st.lists(LABEL, min_size=1, max_size=2).map(".".join) | st.sampled_from(["shop", "chat", "shop.chat", "critical"])


@given(st.sets(st.tuples(st.sampled_from(["shop", "other", "chat"]) | LABEL, NAME), min_size=1, max_size=12))
def test_a_name_means_one_route(keys: set[tuple[str, str]]) -> None:
    """A route of another tenant, however it is called, never answers to the name of mine."""
    everyone = proxy(allowedRoutes={"namespaces": {"from": "All"}})
    key = [{"apiKeySHA256": "0" * 64}]
    ref = {"name": "default", "namespace": "shop"}
    routes = [route(name, "qwen3-8b", proxyRef=ref, callers=key, meta={"namespace": space}) for space, name in sorted(keys)]
    made = reconcile(world(everyone, *routes), LedgerView(), NOW_S)
    table = Table(made.fleet, made.shards)
    assert len(list(table.routes)) == len(keys)
    for space, name in keys:
        for suffix in ("", *(f":{each}" for each in CLASSES if each != "default")):
            entry, _ = table.find(f"{space}/{name}{suffix}", None)
            assert entry.config.name == f"{space}/{name}"
            if space == "shop":
                entry, _ = table.find(name + suffix, None)
                assert entry.config.name == f"shop/{name}"
