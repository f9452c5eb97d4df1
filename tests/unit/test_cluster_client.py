"""The door to the API server. If these fail, the operator hangs, dies, or takes an outage for an empty cluster."""

import asyncio
import contextlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from stepdown.cluster.client import PAGE, Change, Cluster
from stepdown.cluster.errors import (
    AlreadyExists,
    ClusterError,
    Conflict,
    Forbidden,
    Gone,
    NotFound,
    NotServed,
    Rejected,
    Unauthorized,
    Unavailable,
)
from stepdown.cluster.kinds import CONFIG_MAP, MODEL_CATALOG, MODEL_ROUTE, SERVICE, kind_of, named
from stepdown.cluster.wire import Answered, Limits
from tests.unit.cluster_server import Api, config_map, cut, drip, hang, obj, page, reset, run, status, stream

SHOP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shop", "namespace": "shop"}, "data": {"a": "b"}}


@pytest.mark.parametrize(
    ("answer", "expected", "says"),
    [
        (status(401, "Unauthorized", "Unauthorized"), Unauthorized, "Unauthorized (401)"),
        (status(403, "Forbidden", "no RBAC for you"), Forbidden, "get ConfigMap shop/x: no RBAC for you (403)"),
        (status(409, "AlreadyExists", "taken"), AlreadyExists, "taken (409)"),
        (status(409, "Conflict", "modified"), Conflict, "modified (409)"),
        (status(500, "", "failed to create typed patch object (x): expected string"), Rejected, "expected string (500)"),
        (status(410, "Expired", "too old"), Gone, "too old (410)"),
        (status(422, "Invalid", "spec.x: Invalid value"), Rejected, "spec.x: Invalid value (422)"),
        (status(413, "RequestEntityTooLarge", "too large"), Rejected, "too large (413)"),
        (page("404 page not found\n", 404), NotServed, "404 page not found (404)"),
        (status(500, "InternalError", "etcd is away"), Unavailable, "etcd is away (500)"),
        (page("<html>Bad Gateway</html>", 502), Unavailable, "<html>Bad Gateway</html> (502)"),
        (status(503, "ServiceUnavailable", "starting"), Unavailable, "starting (503)"),
        (status(504, "Timeout", "Too large resource version"), Unavailable, "Too large resource version (504)"),
        (page("<html>It works!</html>"), Unavailable, "the answer is not JSON"),
        (obj([1, 2]), Unavailable, "the answer is not an object"),
        (obj({"kind": "Healthy"}), Unavailable, "answered something else than a ConfigMap"),
        (page("moved", 302), Unavailable, "Is this a Kubernetes API server?"),
        (cut('{"kind": "Config'), Unavailable, "closed the connection before its answer was whole"),
        (hang(), Unavailable, "no whole answer from http://127.0.0.1"),
        (drip("{" + " " * 100, 0.1), Unavailable, "no whole answer from http://127.0.0.1"),
    ],
)
def test_every_answer_is_an_object_or_an_error_that_says_what_was_tried(
    tmp_path: Path, answer: Any, expected: type[ClusterError], says: str
) -> None:
    """An exception of another kind ends the operator; one without words ends the search for its cause."""

    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster() as cluster:
            api.answer(answer)
            with pytest.raises(ClusterError) as caught:
                await cluster.get(CONFIG_MAP, "shop", "x")
            assert type(caught.value) is expected
            assert says in str(caught.value)
            assert str(caught.value).startswith("get ConfigMap shop/x: ")

    run(scene())


def test_a_server_that_resets_or_is_not_there_is_unavailable(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster() as cluster:
            api.otherwise = reset()
            with pytest.raises(Unavailable, match="closed the connection before its answer was whole"):
                await cluster.apply(SHOP)
            kubeconfig = api.kubeconfig()
        async with Cluster.connect(kubeconfig) as cluster:
            with pytest.raises(Unavailable, match=r"no answer from http://127.0.0.1.*Connect call failed"):
                await cluster.get(CONFIG_MAP, "shop", "x")

    run(scene())


@pytest.mark.parametrize("header", [{"Retry-After": "7"}, {}])
def test_retry_after_is_kept(tmp_path: Path, header: dict[str, str]) -> None:
    """Whoever comes back sooner than an overloaded API server asks for keeps it overloaded."""

    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster() as cluster:
            details = {} if header else {"retryAfterSeconds": 7}
            api.answer(status(429, "TooManyRequests", "later", header, **details))
            with pytest.raises(Unavailable) as caught:
                await cluster.list(CONFIG_MAP)
            assert caught.value.retry_after_s == 7.0

    run(scene())


def test_a_missing_object_is_none_and_a_missing_kind_an_error(tmp_path: Path) -> None:
    """Before the CRDs are installed every LIST is a 404: taken for "no objects", everything would be pruned."""

    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster() as cluster:
            api.answer(status(404, "NotFound", 'configmaps "x" not found', name="x", kind="configmaps"))
            assert await cluster.get(CONFIG_MAP, "shop", "x") is None
            api.answer(status(404, "NotFound", "the server could not find the requested resource"))
            with pytest.raises(NotServed):
                await cluster.get(MODEL_ROUTE, "shop", "x")
            api.answer(page("404 page not found\n", 404))
            with pytest.raises(NotServed):
                await cluster.list(MODEL_ROUTE)
            api.answer(status(404, "NotFound", 'namespaces "shop" not found', name="shop"))
            with pytest.raises(NotFound):
                await cluster.create(SHOP)
            api.answer(status(404, "NotFound", 'configmaps "x" not found', name="x"))
            assert await cluster.delete(CONFIG_MAP, "shop", "x") is False

    run(scene())


def test_an_answer_that_is_no_list_is_not_an_empty_list(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster() as cluster:
            for answer in ({}, {"items": []}, {"metadata": {}}, {"metadata": {"resourceVersion": "5"}}):
                api.answer(obj(answer))
                with pytest.raises(Unavailable, match="list configmaps in shop: the answer is not a list of configmaps"):
                    await cluster.list(CONFIG_MAP, "shop")
            # Go writes an empty list as null where it was never made.
            api.answer(obj({"metadata": {"resourceVersion": "5"}, "items": None}))
            assert await cluster.list(CONFIG_MAP, "shop") == ([], "5")

    run(scene())


def _page(names: list[str], token: str = "") -> dict[str, Any]:
    items = [{"metadata": {"name": name, "resourceVersion": "1"}} for name in names]
    return {"metadata": {"resourceVersion": "5", "continue": token}, "items": items}


def test_a_list_is_read_in_pages(tmp_path: Path) -> None:
    """Ten thousand objects in one answer are a hundred megabytes at once, here and in the API server."""

    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster() as cluster:
            api.answer(obj(_page(["a", "b"], "more")), obj(_page(["c"])))
            listing = await cluster.list(CONFIG_MAP, "shop", labels="a=b,c=d", metadata_only=True)
            assert [item["metadata"]["name"] for item in listing.items] == ["a", "b", "c"]
            assert {(item["apiVersion"], item["kind"]) for item in listing.items} == {("v1", "ConfigMap")}
            first, second = api.asked
            assert first.path == "/api/v1/namespaces/shop/configmaps"
            assert first.query == {"labelSelector": "a=b,c=d", "limit": str(PAGE)}
            assert second.query == {**first.query, "continue": "more"}
            assert "as=PartialObjectMetadataList" in first.headers["Accept"]
            assert first.headers["Authorization"] == "Bearer a-token"

    run(scene())


def test_pages_that_expire_are_begun_anew(tmp_path: Path) -> None:
    """etcd compacts every five minutes: a LIST that was caught by it must neither fail for ever nor lack objects."""

    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster() as cluster:
            expired = status(410, "Expired", "The provided continue parameter is too old")
            api.answer(obj(_page(["a"], "more")), expired, obj(_page(["a"], "more")), expired, obj(_page(["a", "b"])))
            listing = await cluster.list(CONFIG_MAP)
            assert [item["metadata"]["name"] for item in listing.items] == ["a", "b"]
            assert [asked.query.get("limit") for asked in api.asked] == ["500"] * 4 + [None]

    run(scene())


def test_apply_is_forced_and_says_who_applies(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster() as cluster:
            api.answer(obj(config_map("shop", "7")))
            assert (await cluster.apply(SHOP))["metadata"]["resourceVersion"] == "7"
            asked = api.asked[0]
            assert (asked.method, asked.path) == ("PATCH", "/api/v1/namespaces/shop/configmaps/shop")
            assert asked.query == {"fieldManager": "stepdown", "force": "true"}
            assert asked.headers["Content-Type"] == "application/apply-patch+yaml"
            assert asked.headers["User-Agent"].startswith("stepdown/")
            assert asked.body == SHOP

    run(scene())


def test_a_status_never_lands_on_another_object_of_the_name(tmp_path: Path) -> None:
    """An object that was deleted and made again must not begin with the money of the one before."""

    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster() as cluster:
            there = {"metadata": {"name": "chat", "namespace": "shop", "uid": "new", "resourceVersion": "9"}}
            conflict = status(409, "Conflict", "the object has been modified")
            api.answer(conflict, obj(there))
            made = cluster.apply_status(MODEL_ROUTE, "shop", "chat", "old", {"observedGeneration": 1}, resource_version="7")
            assert await made is None
            assert api.asked[0].path == "/apis/stepdown.dev/v1alpha1/namespaces/shop/modelroutes/chat/status"
            assert api.asked[0].body["metadata"] == {"name": "chat", "namespace": "shop", "resourceVersion": "7"}
            # Not the version of an object that was not looked at.
            api.answer(obj(there), conflict, obj(there), obj(there))
            assert await cluster.apply_status(MODEL_ROUTE, "shop", "chat", "new", {}) is not None
            assert [asked.method for asked in api.asked[2:]] == ["GET", "PATCH", "GET", "PATCH"]
            api.otherwise = conflict
            api.answer(*(answer for _ in range(5) for answer in (obj(there), conflict)))
            with pytest.raises(Conflict):
                await cluster.apply_status(MODEL_ROUTE, "shop", "chat", "new", {})
            missing = status(404, "NotFound", "gone", name="chat")
            api.answer(missing, obj(there), missing)
            assert await cluster.apply_status(MODEL_ROUTE, "shop", "chat", "new", {}) is None
            assert await cluster.apply_status(MODEL_ROUTE, "shop", "chat", "new", {}) is None

    run(scene())


def test_a_delete_names_what_it_means(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster() as cluster:
            api.answer(obj({"kind": "Status", "status": "Success"}))
            assert await cluster.delete(CONFIG_MAP, "shop", "x", uid="u", resource_version="4")
            assert api.asked[0].body["preconditions"] == {"uid": "u", "resourceVersion": "4"}

    run(scene())


def _event(kind: str, name: str, version: str) -> str:
    return json.dumps({"type": kind, "object": {"metadata": {"name": name, "resourceVersion": version}}}) + "\n"


async def _watched(cluster: Cluster, **options: Any) -> list[Change]:
    changes: list[Change] = []
    async with contextlib.aclosing(cluster.watch(CONFIG_MAP, "shop", resource_version="5", **options)) as stream:
        async for change in stream:
            changes.append(change)
    return changes


def test_a_watch_gives_every_change_however_it_is_cut_into_packets(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster() as cluster:
            added, big = _event("ADDED", "a", "6"), _event("MODIFIED", "x" * 3_000_000, "7")
            bookmark = _event("BOOKMARK", "", "8")
            api.answer(stream(added[:10], 0.05, added[10:] + big[:100], 0.05, big[100:] + "\n" + bookmark))
            changes = await _watched(cluster, labels="a=b", metadata_only=True, timeout_s=100)
            assert [(each.type, each.resource_version) for each in changes] == [
                ("ADDED", "6"),
                ("MODIFIED", "7"),
                ("BOOKMARK", "8"),
            ]
            assert changes[0].object["kind"] == "ConfigMap"
            assert api.asked[0].query == {
                "watch": "true",
                "allowWatchBookmarks": "true",
                "resourceVersion": "5",
                "timeoutSeconds": "100",
                "labelSelector": "a=b",
            }

    run(scene())


@pytest.mark.parametrize(
    ("parts", "expected", "says"),
    [
        (
            ('{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old resource version"}}\n',),
            Gone,
            "too old",
        ),
        (('{"type":"ERROR","object":{"kind":"Status","code":500,"message":"etcd"}}\n',), Unavailable, "etcd (500)"),
        (('{"type":"ERROR","object":{"kind":"Status"}}\n',), Unavailable, "no reason given (500)"),
        (('{"type":"ADD',), Unavailable, "cut off within an event"),
        (("<html>\n",), Unavailable, "not JSON"),
        (("[]\n",), Unavailable, "has no object"),
        (('{"type":"HELLO","object":{"metadata":{}}}\n',), Unavailable, "of type 'HELLO'"),
        (('{"type":"ADDED","object":{"metadata":{}}}\n',), Unavailable, "no resourceVersion"),
    ],
)
def test_a_watch_that_goes_wrong_says_how(
    tmp_path: Path, parts: tuple[str, ...], expected: type[ClusterError], says: str
) -> None:
    """A watch that ends without a word, or never, is an operator that stands still and looks well."""

    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster() as cluster:
            api.answer(stream(*parts))
            with pytest.raises(ClusterError) as caught:
                await _watched(cluster)
            assert type(caught.value) is expected
            assert says in str(caught.value)

    run(scene())


def test_a_watch_that_falls_silent_ends(tmp_path: Path) -> None:
    """A connection that a firewall has forgotten says nothing for ever. (A quiet kind does so too: it is no fault.)"""

    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster() as cluster:
            api.answer(stream(_event("ADDED", "a", "6"), then="hang"), hang())
            assert [each.resource_version for each in await _watched(cluster)] == ["6"]
            with pytest.raises(Unavailable, match="watch configmaps in shop: "):  # not even a head: there is nobody
                await _watched(cluster)

    run(scene())


def test_a_watch_from_an_old_version_is_gone_by_its_http_status_too(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster() as cluster:
            api.answer(status(410, "Expired", "too old resource version: 5 (900)"))
            with pytest.raises(Gone):
                await _watched(cluster)

    run(scene())


def test_a_busy_watch_outlives_the_limits_of_a_request(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster(Limits(connect_s=0.3, total_s=0.3, silence_s=0.3)) as cluster:
            parts = [part for index in range(5) for part in (_event("ADDED", "a", str(index)), 0.15)]
            api.answer(stream(*parts))
            assert len(await _watched(cluster, timeout_s=10)) == 5

    run(scene())


def test_watches_do_not_use_up_the_connections(tmp_path: Path) -> None:
    """With 20 fleet namespaces there are more watches than a usual pool has connections: the operator would wait for itself."""

    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster(Limits(total_s=5, silence_s=5)) as cluster:
            api.answer(*(stream(_event("ADDED", "a", "1"), then="hang") for _ in range(150)))
            api.otherwise = obj(config_map("x"))
            watches = [cluster.watch(CONFIG_MAP, "shop", resource_version="1") for _ in range(150)]
            for watch in watches:
                await anext(watch)
            assert await cluster.get(CONFIG_MAP, "shop", "x") is not None
            for watch in watches:
                await watch.aclose()  # type: ignore[attr-defined]  # an async generator

    run(scene())


def test_a_token_counts_only_for_its_audience(tmp_path: Path) -> None:
    """A token that was made for another service must not open sync."""

    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster() as cluster:
            extra = {"authentication.kubernetes.io/pod-name": ["p-1"], "authentication.kubernetes.io/pod-uid": ["u-1"]}
            user = {"username": "system:serviceaccount:shop:web", "uid": "s-1", "extra": extra}
            good = {"authenticated": True, "audiences": ["stepdown"], "user": user}
            api.answer(obj({"status": good}, 201))
            review = await cluster.review_token("t", "stepdown")
            assert review == (True, "system:serviceaccount:shop:web", "s-1", "p-1", "u-1", "")
            assert api.asked[0].body["spec"] == {"token": "t", "audiences": ["stepdown"]}
            assert not (await cluster.review_token("", "stepdown")).authenticated and len(api.asked) == 1
            for unaware in ({**good, "audiences": ["other"]}, {**good, "audiences": None}, {"error": "expired"}, {}):
                api.answer(obj({"status": unaware}, 201))
                refused = await cluster.review_token("t", "stepdown")
                assert not refused.authenticated and not refused.user and refused.error
            api.answer(obj({}))
            with pytest.raises(Unavailable):
                await cluster.review_token("t", "stepdown")

    run(scene())


def test_a_hung_request_does_not_hold_up_one_with_a_limit_of_its_own(tmp_path: Path) -> None:
    """Applies that wait for a dead webhook must not cost the Lease."""

    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster(Limits(total_s=3)) as cluster:
            api.answer(*(hang() for _ in range(40)))
            stuck = [asyncio.create_task(cluster.apply(SHOP)) for _ in range(40)]
            await api.until(32)
            api.script.clear()
            api.otherwise = obj(config_map("shop", "8"))
            async with asyncio.timeout(1):
                await cluster.replace(SHOP, timeout_s=1)
            for task in stuck:
                task.cancel()
            await asyncio.gather(*stuck, return_exceptions=True)

    run(scene())


def test_requests_are_counted_with_their_outcome(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster() as cluster:
            seen: list[Answered] = []
            cluster.count(seen.append)
            api.answer(obj(config_map("x")), status(403, "Forbidden", "no"), reset())
            await cluster.get(CONFIG_MAP, "shop", "x")
            for _ in range(2):
                with pytest.raises(ClusterError):
                    await cluster.apply(SHOP)
            assert [(each.method, each.status) for each in seen] == [("GET", 200), ("PATCH", 403), ("PATCH", 0)]

    run(scene())


def test_what_the_api_server_warns_of_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Pod Security says by a warning alone why pods will never start."""

    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster() as cluster:
            text = '299 - "would violate PodSecurity"'
            body = json.dumps(config_map("x"))
            api.otherwise = page(body, headers={"Warning": text}, content_type="application/json")
            for _ in range(3):
                await cluster.get(CONFIG_MAP, "shop", "x")

    with caplog.at_level(logging.WARNING, "stepdown.cluster"):
        run(scene())
    assert [record.getMessage() for record in caplog.records] == ['the API server warns: 299 - "would violate PodSecurity"']


def test_paths_and_names() -> None:
    assert SERVICE.path("shop", "web") == "/api/v1/namespaces/shop/services/web"
    assert MODEL_CATALOG.path("ignored", "prices", "status") == "/apis/stepdown.dev/v1alpha1/modelcatalogs/prices/status"
    assert MODEL_ROUTE.path() == "/apis/stepdown.dev/v1alpha1/modelroutes"
    assert named(MODEL_CATALOG, "shop", "prices") == "ModelCatalog prices"
    assert kind_of(SHOP) is CONFIG_MAP
    with pytest.raises(ValueError, match="known are"):
        kind_of({"apiVersion": "v1", "kind": "Secret"})
