"""The operator on a real API server, from `kubectl apply` to an answer, a bill and a status: what a platform team sees."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from devcluster import ControlPlane

from stepdown.cluster.kinds import CONFIG_MAP, DEPLOYMENT, NETWORK_POLICY, POD_DISRUPTION_BUDGET, SERVICE, SERVICE_ACCOUNT
from tests.cluster.operator_world import World, install, until, world


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """An operator sees every namespace, so these tests have an API server of their own."""
    with ControlPlane() as own:
        install(own)
        yield own


@pytest.fixture
def here(plane: ControlPlane, tmp_path: Path) -> Iterator[World]:
    with world(plane, tmp_path) as made:
        yield made


def test_from_apply_to_an_answer(here: World) -> None:
    here.operator().start()
    here.apply(here.proxy(), here.budget(), here.route())
    for kind, name in (
        (DEPLOYMENT, "stepdown-default"),
        (SERVICE, "default"),
        (SERVICE_ACCOUNT, "stepdown-default"),
        (POD_DISRUPTION_BUDGET, "stepdown-default"),
        (NETWORK_POLICY, "stepdown-default"),
        (CONFIG_MAP, "stepdown-default-fleet"),
    ):
        child = until(lambda kind=kind, name=name: here.get(kind, name), f"{kind.kind} {name}\n{here.said()}")
        (owner,) = child["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["controller"]) == ("RoutingProxy", "default", True)
    here.until_condition("ModelRoute", "chat", "Accepted", "True")
    here.until_condition("ModelRoute", "chat", "Programmed", "False", "NoProxies")
    first, second = here.proxies(2)
    here.until_condition("ModelRoute", "chat", "Programmed", "True")
    here.until_condition("ModelRoute", "chat", "Ready", "True")
    here.until_condition("RoutingProxy", "default", "Ready", "True")
    here.until_condition("SpendBudget", "team", "Enforced", "True")
    for proxy in (first, second):
        status, headers, answer = proxy.chat()
        assert status == 200, answer
        assert (headers["x-stepdown-route"], headers["x-stepdown-reason"]) == (f"{here.namespace}/chat", "Wanted")
