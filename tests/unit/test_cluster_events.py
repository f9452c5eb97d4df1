"""Events and status documents as requests. If these fail, an outage is a flood of Events, and an idle hour one of writes."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepdown.cluster.correlate import BURST, COMBINED, Correlator, Occurrence
from stepdown.cluster.errors import Forbidden
from stepdown.cluster.events import MOST_WAITING, ObjectRef, Recorder
from stepdown.cluster.kinds import MODEL_CATALOG, MODEL_ROUTE, SPEND_BUDGET
from stepdown.cluster.statuses import Seen, StatusWriter
from tests.unit.cluster_server import Api, obj, run, status

TEAM = ObjectRef(SPEND_BUDGET, "shop", "team", "u-1")


def happened(message: str, about: str = "team", reason: str = "StepReached") -> Occurrence:
    return Occurrence(about, "Normal", reason, message)


def test_the_same_again_only_counts_up() -> None:
    correlator = Correlator()
    first = correlator.decide(happened("80 %"), 100.0)
    assert first is not None and (first.times, first.name, first.first_s) == (1, "", 100.0)
    correlator.written(first, "team.a")
    second = correlator.decide(happened("80 %"), 160.0)
    assert second is not None and (second.times, second.name, second.first_s) == (2, "team.a", 100.0)
    correlator.lost(second)
    third = correlator.decide(happened("80 %"), 170.0)
    assert third is not None and (third.times, third.name) == (1, "")
    other = correlator.decide(happened("80 %", about="other"), 170.0)
    assert other is not None and other.name == ""


def test_many_messages_of_one_reason_share_an_event() -> None:
    """A hundred routes that fail, each with words of its own, would hide all else that `kubectl get events` has to say."""
    correlator = Correlator()
    made = []
    for index in range(12):
        decision = correlator.decide(happened(f"route {index}"), 100.0 + index)
        assert decision is not None
        correlator.written(decision, decision.name or f"event-{index}")
        made.append(decision)
    assert [each.name for each in made[:10]] == [""] * 10
    assert made[9].message == COMBINED + "route 9"
    assert [(each.name, each.times) for each in made[10:]] == [("event-9", 2), ("event-9", 3)]
    later = correlator.decide(happened("route 99"), 2000.0)
    assert later is not None and later.message == "route 99", "after ten quiet minutes it begins anew"


def test_one_object_cannot_flood_but_others_are_still_heard() -> None:
    correlator = Correlator()
    told = [correlator.decide(happened("same"), 100.0) for _ in range(BURST + 5)]
    assert [each is not None for each in told] == [True] * BURST + [False] * 5
    assert correlator.decide(happened("same", about="other"), 100.0) is not None
    assert correlator.decide(happened("same"), 399.0) is None
    assert correlator.decide(happened("same"), 400.0) is not None, "one more each five minutes"
    assert correlator.decide(happened("same"), 401.0) is None


def test_what_was_not_told_is_counted() -> None:
    correlator = Correlator()
    first = correlator.decide(happened("same"), 0.0)
    assert first is not None
    correlator.written(first, "event")
    for _ in range(BURST + 9):
        made = correlator.decide(happened("same"), 1.0)
        if made is not None:
            correlator.written(made, "event")
    later = correlator.decide(happened("same"), 500.0)
    assert later is not None and later.times == BURST + 11


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20), st.floats(-10, 1000)), max_size=200))
def test_no_history_of_any_object_passes_its_rate(history: list[tuple[int, int, float]]) -> None:
    """Not with a clock that steps back either."""
    correlator, now_s, told = Correlator(), 0.0, dict.fromkeys(range(4), 0)
    latest_s = 0.0
    for about, message, step_s in history:
        now_s += step_s
        latest_s = max(latest_s, now_s)
        told[about] += correlator.decide(happened(str(message), about=str(about)), now_s) is not None
    forward_s = sum(max(0.0, step_s) for _, _, step_s in history)
    assert all(count <= BURST + forward_s / 300.0 for count in told.values())


def test_an_event_is_what_kubectl_shows(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster() as cluster:
            now = [1_790_000_000.0]
            recorder = Recorder(cluster, "stepdown-0", lambda: now[0])
            api.otherwise = obj({"metadata": {"name": "x"}}, 201)
            task = asyncio.create_task(recorder.run())
            recorder.record(TEAM, "Normal", "StepReached", "80 %")
            now[0] += 60
            recorder.record(TEAM, "Normal", "StepReached", "80 %")
            recorder.record(ObjectRef(MODEL_CATALOG, "", "prices", "u-2"), "Warning", "InvalidSpec", "ü" * 2000)
            await recorder.flush()
            first, second, third = api.asked
            assert (first.method, first.path) == ("POST", "/api/v1/namespaces/shop/events")
            name = first.body["metadata"].pop("name")
            assert name.startswith("team.")
            assert first.body == {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"namespace": "shop"},
                "involvedObject": {
                    "apiVersion": "stepdown.dev/v1alpha1",
                    "kind": "SpendBudget",
                    "namespace": "shop",
                    "name": "team",
                    "uid": "u-1",
                },
                "type": "Normal",
                "reason": "StepReached",
                "message": "80 %",
                "count": 1,
                "firstTimestamp": "2026-09-21T14:13:20Z",
                "lastTimestamp": "2026-09-21T14:13:20Z",
                "source": {"component": "stepdown"},
                "reportingComponent": "stepdown",
                "reportingInstance": "stepdown-0",
            }
            assert (second.method, second.path) == ("PATCH", f"/api/v1/namespaces/shop/events/{name}")
            assert second.body == {"count": 2, "lastTimestamp": "2026-09-21T14:14:20Z", "message": "80 %"}
            assert third.path == "/api/v1/namespaces/default/events"
            assert "namespace" not in third.body["involvedObject"]
            assert third.body["message"].endswith("ü…") and len(third.body["message"].encode()) <= 1024 - len(COMBINED)
            task.cancel()

    run(scene())


def test_an_event_that_has_expired_is_written_anew(tmp_path: Path) -> None:
    """Events live for an hour: the next day's would be counted into nothing."""

    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster() as cluster:
            recorder = Recorder(cluster, "stepdown-0", lambda: 1_790_000_000.0)
            created = obj({"metadata": {"name": "x"}}, 201)
            api.answer(created, status(404, "NotFound", "gone", name="team.1"), created, created)
            task = asyncio.create_task(recorder.run())
            for _ in range(3):
                recorder.record(TEAM, "Normal", "StepReached", "80 %")
            await recorder.flush()
            assert [asked.method for asked in api.asked] == ["POST", "PATCH", "POST", "PATCH"]
            assert [asked.body["count"] for asked in api.asked] == [1, 2, 1, 2]
            task.cancel()

    run(scene())


def test_recording_never_fails_nor_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An API server that is away must not stop the operator for want of an Event, nor grow its memory."""

    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster() as cluster:
            recorder = Recorder(cluster, "stepdown-0", lambda: 1_790_000_000.0)
            for index in range(MOST_WAITING + 20):
                recorder.record(TEAM._replace(name=str(index)), "Warning", "Exhausted", "gone")
            refused = status(403, "Forbidden", "no events for you")
            again = status(503, "ServiceUnavailable", "later", {"Retry-After": "0"})
            taken = status(409, "AlreadyExists", "it was written after all")
            api.otherwise = obj({"metadata": {"name": "x"}}, 201)
            api.answer(refused, again, taken)
            task = asyncio.create_task(recorder.run())
            await recorder.flush(20)
            assert len(api.asked) == MOST_WAITING + 1
            task.cancel()

    with caplog.at_level(logging.WARNING, "stepdown.cluster"):
        run(scene())
    said = [record.getMessage() for record in caplog.records]
    assert [line for line in said if "were dropped" in line] == [
        f"{count} Events were dropped: {MOST_WAITING} wait for the API server already" for count in (1, 2, 4, 8, 16)
    ]
    (dropped,) = [line for line in said if "was dropped" in line]
    assert dropped.startswith("an Event was dropped (Exhausted: gone): create Event") and "no events for you" in dropped


def test_a_flush_ends_even_if_nothing_is_written(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster() as cluster:
            recorder = Recorder(cluster, "stepdown-0", lambda: 0.0)
            recorder.record(TEAM, "Normal", "StepReached", "80 %")
            async with asyncio.timeout(5):
                await recorder.flush(0.1)

    run(scene())


# Status documents -------------------------------------------------------------------------------------------------------


def written(version: str) -> Any:
    return obj({"metadata": {"name": "chat", "namespace": "shop", "uid": "u", "resourceVersion": version}})


DOCUMENT = {"observedGeneration": 2, "conditions": [{"type": "Ready", "status": "True"}]}


def test_a_status_is_written_once(tmp_path: Path) -> None:
    """10,000 objects whose status is written at every pass are 10,000 writes a pass."""

    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster() as cluster:
            writer = StatusWriter(cluster)
            api.answer(written("10"), written("11"), written("21"), written("31"))
            assert await writer.write(MODEL_ROUTE, "shop/chat", "u", DOCUMENT)
            assert api.asked[1].path.endswith("/namespaces/shop/modelroutes/chat/status")
            assert api.asked[1].body["status"] == DOCUMENT
            assert not await writer.write(MODEL_ROUTE, "shop/chat", "u", dict(DOCUMENT))
            stale = Seen("10", {"observedGeneration": 1})
            assert not await writer.write(MODEL_ROUTE, "shop/chat", "u", DOCUMENT, stale), "the watch lags behind"
            edited = Seen("20", {"observedGeneration": 1}, "u")
            assert await writer.write(MODEL_ROUTE, "shop/chat", "u", DOCUMENT, edited), "somebody changed it"
            assert await writer.write(MODEL_ROUTE, "shop/chat", "u", {"observedGeneration": 3}, Seen("22", {}, "another"))
            assert [asked.method for asked in api.asked] == ["GET", "PATCH", "PATCH", "PATCH"]
            assert [asked.body["metadata"]["resourceVersion"] for asked in api.asked[1:]] == ["10", "20", "21"]

    run(scene())


def test_a_restart_writes_no_status_that_is_there(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster() as cluster:
            writer = StatusWriter(cluster)
            as_read = Seen("10", {"conditions": [{"status": "True", "type": "Ready"}], "observedGeneration": 2})
            assert not await writer.write(MODEL_ROUTE, "shop/chat", "u", DOCUMENT, as_read)
            assert not await writer.write(MODEL_ROUTE, "shop/chat", "u", DOCUMENT)
            assert api.asked == []
            writer.forget("u")
            api.answer(written("11"))
            assert await writer.write(MODEL_CATALOG, "prices", "u", DOCUMENT, Seen("10", None, "u"))
            assert api.asked[0].path == "/apis/stepdown.dev/v1alpha1/modelcatalogs/prices/status"

    run(scene())


def test_a_status_that_could_not_be_written_is_written_the_next_time(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster() as cluster:
            writer = StatusWriter(cluster)
            api.answer(status(403, "Forbidden", "no"), status(404, "NotFound", "gone", name="chat"), written("11"))
            seen = Seen("10", None, "u")
            with pytest.raises(Forbidden):
                await writer.write(MODEL_ROUTE, "shop/chat", "u", DOCUMENT, seen)
            assert not await writer.write(MODEL_ROUTE, "shop/chat", "u", DOCUMENT, seen), "it is no more"
            assert await writer.write(MODEL_ROUTE, "shop/chat", "u", DOCUMENT, seen)

    run(scene())
