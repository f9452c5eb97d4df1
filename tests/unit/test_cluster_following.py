"""LIST and WATCH for ever. If these fail, the operator stands still behind a stream that has died, or lists in a circle."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from stepdown.cluster.children import Children
from stepdown.cluster.following import Following
from stepdown.cluster.kinds import CONFIG_MAP
from stepdown.cluster.wire import Limits
from tests.unit.cluster_server import Answer, Api, Asked, config_map, hang, obj, run, status, stream

LIMITS = Limits(connect_s=1, total_s=1, silence_s=0.4)
WATCHING = stream(then="hang")


def listed(version: str, *names: str) -> Answer:
    items = [{"metadata": {"name": name, "namespace": "shop", "uid": name, "resourceVersion": version}} for name in names]
    return obj({"metadata": {"resourceVersion": version}, "items": items})


def event(kind: str, name: str, version: int) -> str:
    meta = {"name": name, "namespace": "shop", "uid": name, "resourceVersion": str(version)}
    return json.dumps({"type": kind, "object": {"metadata": meta}}) + "\n"


EXPIRED = stream('{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}\n')


class Heard:
    """What a Following told."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.said: list[str] = []

    def kinds(self) -> list[str]:
        """What was asked: a LIST, or a watch from a version."""
        return [f"watch {each.query['resourceVersion']}" if "watch" in each.query else "list" for each in self.api.asked]


@contextlib.asynccontextmanager
async def following(folder: Path, *script: Answer, limits: Limits = LIMITS) -> AsyncIterator[tuple[Following, Heard]]:
    async with Api(folder) as api, api.cluster(limits) as cluster:
        api.answer(*script)
        api.otherwise = WATCHING
        heard = Heard(api)
        its = Following(
            cluster,
            CONFIG_MAP,
            "shop",
            labels="a=b",
            listed=lambda listing: heard.said.append("list " + ",".join(each["metadata"]["name"] for each in listing.items)),
            changed=lambda change: heard.said.append(f"{change.type} {change.object['metadata']['name']}"),
        )
        task = asyncio.create_task(its.run())
        try:
            yield its, heard
            assert not task.done(), task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def test_a_watch_goes_on_from_the_list_and_then_from_itself(tmp_path: Path) -> None:
    async def scene() -> None:
        first = stream(event("ADDED", "b", 6), event("BOOKMARK", "", 9))
        async with following(tmp_path, listed("5", "a"), first, stream(event("DELETED", "a", 12))) as (its, heard):
            await heard.api.until(4)
            assert heard.kinds() == ["list", "watch 5", "watch 9", "watch 12"], "a bookmark saves the next watch its history"
            assert heard.said == ["list a", "ADDED b", "DELETED a"]
            assert its.listed and not its.trouble
            assert heard.api.asked[1].query["labelSelector"] == "a=b"

    run(scene())


@pytest.mark.parametrize("gone", [EXPIRED, status(410, "Expired", "too old resource version")])
def test_a_history_that_is_gone_is_listed_anew(tmp_path: Path, gone: Answer) -> None:
    """Deletions of that time are told by nothing else."""

    async def scene() -> None:
        async with following(tmp_path, listed("5", "a", "b"), gone, listed("90", "b")) as (_, heard):
            await heard.api.until(4)
            assert heard.kinds() == ["list", "watch 5", "list", "watch 90"]
            assert heard.said == ["list a,b", "list b"]

    run(scene())


def test_a_stream_that_breaks_goes_on_where_it_was(tmp_path: Path) -> None:
    async def scene() -> None:
        half = stream(event("ADDED", "b", 6), '{"type":"ADD')
        async with following(tmp_path, listed("5"), half, stream(event("ADDED", "c", 7))) as (_, heard):
            await heard.api.until(4)
            assert heard.kinds() == ["list", "watch 5", "watch 6", "watch 7"]
            assert heard.said == ["list ", "ADDED b", "ADDED c"]

    run(scene())


def test_a_silent_stream_is_given_up(tmp_path: Path) -> None:
    """A connection that a firewall has forgotten says nothing for ever, and no error either."""

    async def scene() -> None:
        async with following(tmp_path, listed("5"), WATCHING, stream(event("ADDED", "c", 7))) as (its, heard):
            await heard.api.until(4)
            assert heard.kinds() == ["list", "watch 5", "watch 5", "watch 7"]
            assert its.listed and not its.trouble, "a kind of which nothing changes is silent too"

    run(scene())


@pytest.mark.parametrize("fault", [status(500, "InternalError", "etcd"), stream("<html>\n")])
def test_watches_that_keep_failing_are_begun_anew(tmp_path: Path, fault: Answer) -> None:
    async def scene() -> None:
        async with following(tmp_path, listed("5"), fault, fault, fault, listed("50")) as (its, heard):
            await heard.api.until(6)
            assert heard.kinds() == ["list", "watch 5", "watch 5", "watch 5", "list", "watch 50"]
            assert its.listed

    run(scene())


def test_a_list_that_fails_is_not_an_empty_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Everything would be pruned because of one bad gateway."""

    async def scene() -> None:
        no = status(403, "Forbidden", "no RBAC for you")
        async with following(tmp_path, no, no, hang(), listed("5", "a")) as (its, heard):
            await heard.api.until(2)
            assert not its.listed and "no RBAC for you" in its.trouble and heard.said == []
            await heard.api.until(5)
            await asyncio.sleep(0.05)
            assert its.listed and not its.trouble and heard.said == ["list a"]

    with caplog.at_level(logging.INFO, "stepdown.cluster"):
        run(scene())
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "list configmaps in shop: no RBAC for you (403); it is tried again"
    assert "no whole answer" in said[1] and said[2] == "configmaps in shop are in sight again"


def test_watches_that_end_at_once_do_not_become_a_storm(tmp_path: Path) -> None:
    """A proxy in between that closes every stream must not be asked a thousand times a second."""

    async def scene() -> None:
        async with following(tmp_path, listed("5")) as (_, heard):
            heard.api.otherwise = stream()
            await asyncio.sleep(1.2)
            assert len(heard.api.asked) <= 8

    run(scene())


# Children, where a real API server makes no such faults ---------------------------------------------------------------------


def child(name: str) -> dict[str, Any]:
    labels = {"app.kubernetes.io/managed-by": "stepdown", "app.kubernetes.io/name": "stepdown-proxy", "stepdown.dev/proxy": "p"}
    reference = {"apiVersion": "stepdown.dev/v1alpha1", "kind": "RoutingProxy", "name": "p", "uid": "u-p", "controller": True}
    metadata = {"name": name, "namespace": "shop", "labels": labels, "ownerReferences": [reference]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {}}


def paths(asked: list[Asked]) -> list[str]:
    return [f"{each.method} {each.path.rpartition('/')[2]}" for each in asked]


def test_an_api_server_that_answers_nothing_is_asked_once_and_not_for_every_child(tmp_path: Path) -> None:
    """Seven kinds that wait for thirty seconds each are minutes in which nothing else is done."""

    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster() as cluster:
            api.otherwise = hang()
            children = Children(cluster, namespaces=("shop",), on_change=lambda owner: None)
            account = {**child("p"), "kind": "ServiceAccount"}
            outcome = await children.sync("shop/p", "u-p", [account, child("a"), child("b")])
            assert len(api.asked) == 1
            assert sorted(outcome.failed) == ["ConfigMap shop/a", "ConfigMap shop/b", "ServiceAccount shop/p"]
            assert all("no whole answer from" in message for message in outcome.failed.values())
            assert outcome.retry_s is not None and outcome.retry_s <= 1.0

    run(scene())


def test_a_webhook_that_fails_for_one_child_stops_no_other(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster() as cluster:
            children = Children(cluster, namespaces=("shop",), on_change=lambda owner: None)
            missing = status(404, "NotFound", "missing", name="x")
            api.answer(missing, status(500, "InternalError", 'failed calling webhook "x"'), missing, obj(config_map("a")))
            outcome = await children.sync("shop/p", "u-p", [{**child("p"), "kind": "ServiceAccount"}, child("a")])
            assert paths(api.asked) == ["GET p", "PATCH p", "GET a", "PATCH a"]
            assert outcome.applied == ("ConfigMap shop/a",)
            assert "failed calling webhook" in outcome.failed["ServiceAccount shop/p"]

    run(scene())


def test_what_is_changed_while_it_is_written_is_told(tmp_path: Path) -> None:
    """Between our write and its answer is the only moment at which the watch's word alone would be lost."""

    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster(Limits(total_s=5, silence_s=5)) as cluster:
            changed, told = asyncio.Event(), asyncio.Event()

            def metadata(version: str, fields: str) -> dict[str, Any]:
                ours = {"manager": "stepdown", "operation": "Apply", "fieldsV1": {fields: {}}}
                return {**child("a")["metadata"], "uid": "u", "resourceVersion": version, "managedFields": [ours]}

            async def server(request: web.BaseRequest) -> web.StreamResponse:
                if request.query.get("watch") and request.path.endswith("configmaps"):
                    response = web.StreamResponse()
                    await response.prepare(request)
                    await changed.wait()
                    line = json.dumps({"type": "MODIFIED", "object": {"metadata": metadata("12", "f:less")}})
                    await response.write(line.encode() + b"\n")
                    told.set()
                    await asyncio.sleep(60)
                if request.query.get("watch"):
                    return await WATCHING(request)
                if request.method == "PATCH":
                    changed.set()
                    await told.wait()
                    await asyncio.sleep(0.1)
                    return await obj({"metadata": metadata("11", "f:data")})(request)
                if request.path.endswith("/a"):
                    return await status(404, "NotFound", "missing", name="a")(request)
                return await listed("5")(request)

            api.otherwise = server
            owners: list[str] = []
            children = Children(cluster, namespaces=("shop",), on_change=owners.append)
            watching = asyncio.create_task(children.run())
            await api.until(14)
            await children.sync("shop/p", "u-p", [child("a")])
            assert owners == ["shop/p"]
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    run(scene())


def test_an_overloaded_api_server_is_left_alone_for_as_long_as_it_asks(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster() as cluster:
            children = Children(cluster, namespaces=("shop",), on_change=lambda owner: None)
            api.answer(status(429, "TooManyRequests", "later", {"Retry-After": "20"}))
            desired = [{**child("p"), "kind": "ServiceAccount"}, child("a"), child("b")]
            outcome = await children.sync("shop/p", "u-p", desired)
            assert outcome.retry_s == 20.0 and len(outcome.failed) == 3 and len(api.asked) == 1
            again = await children.sync("shop/p", "u-p", desired[:1])
            assert len(api.asked) == 1 and list(again.failed) == ["ServiceAccount shop/p"]

    run(scene())
