"""Who may sync. If this fails, a stranger takes a fleet's money and config, or an outage of the API server stops every proxy.

The API server is one in memory, at the seam (`sync.auth.Api`); tests/cluster/test_sync_auth.py asks a real one.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from stepdown.budget.serving import Pod
from stepdown.cluster.errors import Unavailable
from stepdown.cluster.kinds import DEPLOYMENT, POD, REPLICA_SET, KindRef
from stepdown.model.sync import SyncRequest, pod_mark
from stepdown.sync import auth
from stepdown.sync.auth import (
    FRESH_S,
    MAX_AT_ONCE,
    REFUSED_S,
    RENEW_S,
    RETRY_S,
    Authenticator,
    Caller,
    Forbidden,
    Unauthenticated,
    Unverifiable,
)
from stepdown.sync.fleets import FAREWELL_S, LiveFleet
from tests.unit.proxy_money import run
from tests.unit.sync_api import TOKEN, FakeApi, Review, owned

HORIZON_S = 600.0


class Scene:
    """An authenticator in virtual time."""

    def __init__(self) -> None:
        self.api = FakeApi()
        self.fleets = {"shop/web": LiveFleet("fleet-1", HORIZON_S)}
        self.loop = asyncio.get_running_loop()
        self.auth = Authenticator(self.api, self.fleets.get, self.loop.time)

    async def ask(self, token: str = "t.o.1") -> Caller:
        return await self.auth.authenticate(f"Bearer {token}")

    def reviews(self) -> int:
        return self.api.asked.count("review")


def scene(work: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        made = Scene()
        try:
            await work(made)
        finally:
            await made.auth.close()

    run(main())


def test_a_pod_of_the_fleet_is_let_in_and_asked_about_once() -> None:
    """At a message a second from every proxy, the API server would do nothing but review tokens."""

    async def work(scene: Scene) -> None:
        assert await scene.ask() == Caller("shop/web", Pod("web-1", "pod-1"))
        for _ in range(40):
            await asyncio.sleep(1)
            await scene.ask()
        assert scene.api.asked == ["review", "Pod", "ReplicaSet", "Deployment"]

    scene(work)


def test_a_token_is_reviewed_again_each_minute_behind_the_answers() -> None:
    """A token that was revoked would be good for ever; or each minute a request for money would wait for the API server."""

    async def work(scene: Scene) -> None:
        await scene.ask()
        scene.api.latency_s = 1.0
        for _ in range(300):
            await asyncio.sleep(1)
            before_s = scene.loop.time()
            await scene.ask()
            assert scene.loop.time() == before_s
        assert scene.reviews() == 1 + 300 // int(RENEW_S + 1)
        scene.api.tokens.clear()
        await asyncio.sleep(FRESH_S)
        with pytest.raises(Unauthenticated, match="invalid bearer token"):
            await scene.ask()

    scene(work)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic dTpw",
        "Bearer abc",
        "Bearer a.b.c.d",
        "Bearer a.b.\u00fc",
        "Bearer " + "a.b." + "c" * 20_000,
    ],
)
def test_what_is_no_token_is_refused_without_a_question(header: str) -> None:
    """Rubbish from anywhere in the cluster would reach the API server."""

    async def work(scene: Scene) -> None:
        with pytest.raises(Unauthenticated):
            await scene.auth.authenticate(header)
        assert scene.api.asked == []

    scene(work)


def test_a_token_that_is_not_good_is_remembered_for_a_moment() -> None:
    """One misconfigured client in a loop would be a load on the API server; a token that becomes good must not wait long."""

    async def work(scene: Scene) -> None:
        for _ in range(50):
            with pytest.raises(Unauthenticated, match="invalid bearer token"):
                await scene.ask("x.y.z")
        assert scene.reviews() == 1
        await asyncio.sleep(REFUSED_S)
        scene.api.tokens["x.y.z"] = Review()
        await scene.ask("x.y.z")

    scene(work)


def test_a_flood_of_rubbish_does_not_become_a_flood_of_reviews() -> None:
    """The API server would go down with us, and a proxy that is known must get through meanwhile."""

    async def work(scene: Scene) -> None:
        await scene.ask()
        scene.api.latency_s = 0.5
        flood = [asyncio.create_task(scene.ask(f"x.y.{n}")) for n in range(5_000)]
        await asyncio.sleep(0)
        before_s = scene.loop.time()
        await scene.ask()
        assert scene.loop.time() == before_s
        outcomes = await asyncio.gather(*flood, return_exceptions=True)
        assert {type(each) for each in outcomes} <= {Unauthenticated, Unverifiable}
        assert scene.api.most_at_once <= MAX_AT_ONCE
        assert scene.reviews() < 300

    scene(work)


@pytest.mark.parametrize(
    ("review", "says"),
    [
        (Review(user="system:serviceaccount:shop:default"), "is not the ServiceAccount of a proxy"),
        (Review(user="system:serviceaccount:shop:stepdown-"), "is not the ServiceAccount of a proxy"),
        (Review(user="system:node:n1"), "is not the ServiceAccount of a proxy"),
        (Review(user="shop:stepdown-web"), "is not the ServiceAccount of a proxy"),
        (Review(user="system:serviceaccount:shop:stepdown-other"), "there is no RoutingProxy shop/other"),
        (Review(user="system:serviceaccount:elsewhere:stepdown-web"), "there is no RoutingProxy elsewhere/web"),
        (Review(pod_name="", pod_uid=""), "is not bound to a pod"),
        (Review(pod_name="web-2", pod_uid="pod-2"), "pod shop/web-2 with UID pod-2 is not there"),
        (Review(pod_uid="pod-before"), "pod shop/web-1 with UID pod-before is not there"),
    ],
)
def test_somebody_else_is_told_so(review: Review, says: str) -> None:
    """Anyone with a ServiceAccount in the cluster could take a fleet's leases."""

    async def work(scene: Scene) -> None:
        scene.api.tokens["t.o.1"] = review
        with pytest.raises(Forbidden, match=says):
            await scene.ask()

    scene(work)


@pytest.mark.parametrize(
    ("kind", "thing", "says"),
    [
        (POD, owned("web-1", "pod-1"), "is not controlled by a ReplicaSet"),
        (POD, owned("web-1", "pod-1", "Job", "stepdown-web-5d", "rs-1"), "is not controlled by a ReplicaSet"),
        (
            POD,
            owned("web-1", "pod-1", "ReplicaSet", "stepdown-web-5d", "rs-0"),
            "ReplicaSet stepdown-web-5d with UID rs-0 is not",
        ),
        (
            REPLICA_SET,
            owned("stepdown-web-5d", "rs-1", "Deployment", "mine", "d"),
            "is of Deployment mine, not of stepdown-web",
        ),
        (
            REPLICA_SET,
            owned("stepdown-web-5d", "rs-1", "Deployment", "stepdown-web", "deploy-0"),
            "Deployment stepdown-web with UID deploy-0 is not there",
        ),
        (DEPLOYMENT, owned("stepdown-web", "deploy-1"), "is not controlled by a RoutingProxy"),
        (
            DEPLOYMENT,
            owned("stepdown-web", "deploy-1", "RoutingProxy", "web", "fleet-0"),
            "is of RoutingProxy web with UID fleet-0, not of fleet-1",
        ),
    ],
)
def test_a_pod_that_only_uses_the_service_account_is_no_proxy(kind: KindRef, thing: dict[str, Any], says: str) -> None:
    """A debug pod that somebody starts with the fleet's ServiceAccount would be a proxy with leases."""

    async def work(scene: Scene) -> None:
        scene.api.put(kind, thing)
        with pytest.raises(Forbidden, match=says):
            await scene.ask()

    scene(work)


def test_a_pod_whose_fleet_was_deleted_or_made_anew_may_still_say_what_it_spent() -> None:
    """Else its lease would be lost to the budget until the month is over. A RoutingProxy of the same name is another one: the
    pods of the old one get nothing of it."""

    async def work(scene: Scene) -> None:
        assert not (await scene.ask()).leaving
        del scene.fleets["shop/web"]
        del scene.api.tokens[TOKEN]  # its ServiceAccount has gone too
        assert (await scene.ask()).leaving
        scene.fleets["shop/web"] = LiveFleet("fleet-2", HORIZON_S)
        await asyncio.sleep(FAREWELL_S - 1)
        assert (await scene.ask()).leaving
        await asyncio.sleep(1)
        with pytest.raises(Unauthenticated):
            await scene.ask()

    scene(work)


def test_a_pod_that_was_not_known_before_its_fleet_went_is_not_heard() -> None:
    async def work(scene: Scene) -> None:
        await scene.ask()
        scene.api.tokens["t.o.2"] = Review(pod_name="web-2", pod_uid="pod-2")
        scene.api.put(POD, owned("web-2", "pod-2", "ReplicaSet", "stepdown-web-5d", "rs-1"))
        del scene.fleets["shop/web"]
        with pytest.raises(Forbidden, match="there is no RoutingProxy shop/web"):
            await scene.ask("t.o.2")
        scene.fleets["shop/web"] = LiveFleet("fleet-2", HORIZON_S)
        with pytest.raises(Forbidden, match="UID fleet-1, not of fleet-2"):
            await scene.ask("t.o.2")

    scene(work)


@pytest.mark.parametrize("away", ["refuses", "hangs"])
def test_while_the_api_server_is_away_a_known_token_is_good_for_as_long_as_leases_live(away: str) -> None:
    """An outage of the API server would end every lease in a minute, though nothing that spends money needs it."""

    async def work(scene: Scene) -> None:
        await scene.ask()
        began_s = scene.loop.time()
        scene.api.error = Unavailable("connection refused")
        scene.api.latency_s = 0.001 if away == "refuses" else 30.0
        slow = 0
        while scene.loop.time() - began_s < HORIZON_S - 1:
            await asyncio.sleep(1)
            before_s = scene.loop.time()
            await scene.ask()
            slow += scene.loop.time() > before_s
        assert slow <= 1, "at most one message waits for an API server that does not answer"
        assert scene.reviews() <= HORIZON_S / RETRY_S
        await asyncio.sleep(2)
        with pytest.raises(Unverifiable):
            await scene.ask()
        scene.api.error, scene.api.latency_s = None, 0.001
        await asyncio.sleep(40)
        await scene.ask()

    scene(work)


@pytest.mark.parametrize("away", ["refuses", "hangs"])
def test_while_the_api_server_is_away_a_new_token_is_told_to_come_back(away: str) -> None:
    """A 401 would say that the token is wrong, and a message that hangs is a proxy that waits."""

    async def work(scene: Scene) -> None:
        scene.api.error = Unavailable("connection refused")
        scene.api.latency_s = 0.001 if away == "refuses" else 30.0
        before_s = scene.loop.time()
        with pytest.raises(Unverifiable, match="connection refused" if away == "refuses" else "has not answered"):
            await scene.ask()
        assert scene.loop.time() - before_s <= auth.WAIT_S
        scene.api.error, scene.api.latency_s = None, 0.001
        await asyncio.sleep(31)
        await scene.ask()

    scene(work)


def test_an_instance_belongs_to_the_pod_that_first_used_it() -> None:
    """One proxy that was broken into would close the others' leases, or spend in their name."""

    async def work(scene: Scene) -> None:
        message = SyncRequest(instance="a", fleet="shop/web", seq=1)
        mine, other = Caller("shop/web", Pod("web-1", "pod-1")), Caller("shop/web", Pod("web-2", "pod-2"))
        scene.auth.authorize(mine, message)
        scene.auth.authorize(mine, message)
        with pytest.raises(Forbidden, match="instance a belongs to another pod"):
            scene.auth.authorize(other, message)
        scene.auth.authorize(other, msgspec.structs.replace(message, instance="b"))

    scene(work)


def test_an_instance_named_for_its_pod_is_nobody_elses_even_after_a_restart() -> None:
    """An operator that has just started remembers nobody: the first to come would have another's instance."""

    async def work(scene: Scene) -> None:
        message = SyncRequest(instance=f"{pod_mark('pod-1')}.0123", fleet="shop/web", seq=1)
        with pytest.raises(Forbidden, match="named for another pod"):
            scene.auth.authorize(Caller("shop/web", Pod("web-2", "pod-2")), message)
        scene.auth.authorize(Caller("shop/web", Pod("web-1", "pod-1")), message)

    scene(work)


def test_a_message_speaks_for_its_own_fleet_only() -> None:
    """Answers hold a fleet's routes, budgets and hashes of keys."""

    async def work(scene: Scene) -> None:
        message = SyncRequest(instance="a", fleet="shop/other", seq=1)
        with pytest.raises(Forbidden, match="of fleet 'shop/other', its token of a proxy of 'shop/web'"):
            scene.auth.authorize(Caller("shop/web", Pod("web-1", "pod-1")), message)

    scene(work)
