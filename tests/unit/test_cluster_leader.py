"""Who leads. If these fail, two operators grant from one budget, or none does."""

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from stepdown.cluster.client import Cluster
from stepdown.cluster.leader import ADDRESS, Elector, Leader, unique_identity
from stepdown.cluster.wire import Limits
from tests.unit.cluster_server import Answer, Api, hang, obj, reset, run, status

MISSING = status(404, "NotFound", 'leases "stepdown" not found', name="stepdown")
CONFLICT = status(409, "Conflict", "modified")
LIMITS = Limits(connect_s=1, total_s=5, silence_s=5)


class Clock:
    """Turned by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class LeaseServer:
    """One Lease, kept as the API server keeps it."""

    def __init__(self, api: Api) -> None:
        self.lease: dict[str, Any] | None = None
        self.version = 0
        self.before: list[Answer] = []
        api.otherwise = self

    @property
    def spec(self) -> dict[str, Any]:
        assert self.lease is not None
        found: dict[str, Any] = self.lease["spec"]
        return found

    def held_by(self, holder: str, **spec: Any) -> None:
        self.version += 1
        metadata = {"name": "stepdown", "namespace": "ops", "resourceVersion": str(self.version), "uid": "l"}
        said = {"holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": str(self.version), **spec}
        self.lease = {"metadata": metadata, "spec": said}

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw) if raw else None
        if self.before and request.method != "GET":
            return await self.before.pop(0)(request)
        if request.method == "GET":
            return await (obj(self.lease) if self.lease is not None else MISSING)(request)
        if request.method == "POST" and self.lease is not None:
            return await status(409, "AlreadyExists", "taken")(request)
        if request.method == "PUT":
            if self.lease is None:
                return await MISSING(request)
            if body["metadata"]["resourceVersion"] != str(self.version):
                return await CONFLICT(request)
        self.version += 1
        self.lease = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.version)}}
        return await obj(self.lease)(request)


def elector(cluster: Cluster, identity: str, clock: Callable[[], float] | None = None, **times: float) -> Elector:
    more: dict[str, Any] = dict(times) if clock is None else {**times, "clock": clock}
    return Elector(cluster, "ops", "stepdown", identity, address=f"https://{identity}", wall=lambda: 1_790_000_000.5, **more)


class Runs:
    """An elector at work, and what it said."""

    def __init__(self, elected: Elector) -> None:
        self.elector = elected
        self.said: list[str] = []
        self.changed = asyncio.Event()
        self.task = asyncio.create_task(elected.run(lambda: self._say("started"), lambda: self._say("stopped")))

    def _say(self, word: str) -> None:
        self.said.append(word)
        self.changed.set()

    async def until(self, said: list[str], timeout_s: float = 10.0) -> None:
        async with asyncio.timeout(timeout_s):
            while self.said != said:
                assert not self.task.done(), self.task
                await self.changed.wait()
                self.changed.clear()

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def test_the_first_to_come_leads_and_says_where(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster(LIMITS) as cluster:
            its = LeaseServer(api)
            one = Runs(elector(cluster, "one"))
            await one.until(["started"])
            two = Runs(elector(cluster, "two"))
            assert one.elector.leading and one.elector.leader == Leader("one", "https://one")
            await api.until(4)
            await asyncio.sleep(0.1)
            assert two.elector.leader == Leader("one", "https://one") and not two.elector.leading
            assert its.spec == {
                "holderIdentity": "one",
                "leaseDurationSeconds": 15,
                "renewTime": "2026-09-21T14:13:20.500000Z",
                "acquireTime": "2026-09-21T14:13:20.500000Z",
                "leaseTransitions": 1,
            }
            await one.stop()
            assert one.said == ["started", "stopped"] and not one.elector.leading
            assert its.spec["holderIdentity"] == "", "given up, so that the next need not wait for fifteen seconds"
            await two.until(["started"])
            assert its.spec["holderIdentity"] == "two" and its.spec["leaseTransitions"] == 2
            assert its.lease is not None and its.lease["metadata"]["annotations"] == {ADDRESS: "https://two"}
            await two.stop()

    run(scene())


def test_a_holder_is_believed_for_as_long_as_its_record_was_seen_to_change(tmp_path: Path) -> None:
    """Clocks of two machines differ: by the record's own time a candidate would take what is held, or never what is free."""

    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster(LIMITS) as cluster:
            its, clock = LeaseServer(api), Clock()
            its.held_by("other", renewTime="1970-01-01T00:00:00Z")
            mine = elector(cluster, "mine", clock)
            assert not await mine.attempt() and mine.leader == Leader("other", "")
            clock.now_s += 14
            assert not await mine.attempt()
            its.held_by("other")  # renewed
            clock.now_s += 14
            assert not await mine.attempt()
            clock.now_s += 14
            its.version += 1  # touched, but not renewed: an annotation, say
            assert its.lease is not None
            its.lease["metadata"]["resourceVersion"] = str(its.version)
            assert not await mine.attempt()
            clock.now_s += 1.1
            assert mine.leader is None
            assert await mine.attempt() and mine.leading

    run(scene())


@pytest.mark.parametrize("said", [None, 0, -3, "15", 2])
def test_a_record_of_another_kind_is_waited_for_too(tmp_path: Path, said: Any) -> None:
    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster(LIMITS) as cluster:
            its, clock = LeaseServer(api), Clock()
            its.held_by("other", leaseDurationSeconds=said)
            mine = elector(cluster, "mine", clock)
            assert not await mine.attempt()
            clock.now_s += 2.5
            assert await mine.attempt() is (said == 2)
            clock.now_s += 13
            assert await mine.attempt()

    run(scene())


def test_leadership_ends_by_the_clock_even_while_nothing_answers(tmp_path: Path) -> None:
    """A leader that is cut off must have stopped before another may begin, whatever its requests do."""

    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster(LIMITS) as cluster:
            its = LeaseServer(api)
            one = Runs(elector(cluster, "one", lease_s=6.0, renew_s=1.0, retry_s=0.2))
            await one.until(["started"])
            api.otherwise = hang()
            began_s = asyncio.get_running_loop().time()
            await one.until(["started", "stopped"])
            assert asyncio.get_running_loop().time() - began_s < 6.0, "sooner than the lease ends for others"
            assert not one.elector.leading
            api.otherwise = its
            await one.until(["started", "stopped", "started"])
            await one.stop()

    run(scene())


def test_a_process_that_was_stopped_knows_on_waking_that_it_leads_no_more(tmp_path: Path) -> None:
    """A suspended laptop, a paused virtual machine: before any timer fires, the next grant asks whether we lead."""

    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster(LIMITS) as cluster:
            LeaseServer(api)
            clock = Clock()
            mine = elector(cluster, "mine", clock)
            assert await mine.attempt() and mine.leading
            clock.now_s += 9.9
            assert mine.leading
            clock.now_s += 0.2
            assert not mine.leading and mine.leader is None

    run(scene())


def test_a_lease_counts_from_when_it_was_asked_for(tmp_path: Path) -> None:
    """Others count from when the API server wrote it: an answer that took eight seconds leaves two."""

    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster(LIMITS) as cluster:
            its, clock = LeaseServer(api), Clock()

            async def slow(request: web.BaseRequest) -> web.StreamResponse:
                clock.now_s += 8
                return await its(request)

            mine = elector(cluster, "mine", clock)
            api.answer(MISSING, slow)
            assert await mine.attempt()
            clock.now_s += 1.9
            assert mine.leading
            clock.now_s += 0.2
            assert not mine.leading

    run(scene())


@pytest.mark.parametrize(
    "fault", [status(500, "InternalError", "etcd"), reset(), status(429, "TooManyRequests", "later"), hang()]
)
def test_a_renewal_that_fails_is_tried_again_in_time(tmp_path: Path, fault: Answer) -> None:
    """One dropped connection must not cost the leadership, and with it a second of everybody's answers."""

    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster(LIMITS) as cluster:
            its = LeaseServer(api)
            one = Runs(elector(cluster, "one", lease_s=3.0, renew_s=2.0, retry_s=0.2))
            await one.until(["started"])
            its.before = [fault]
            await api.until(len(api.asked) + 4)
            assert not its.before
            assert one.said == ["started"] and one.elector.leading
            await one.stop()

    run(scene())


def test_a_renewal_that_seemed_to_fail_is_no_loss(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster(LIMITS) as cluster:
            its = LeaseServer(api)
            mine = elector(cluster, "mine")

            async def written_but_not_told(request: web.BaseRequest) -> web.StreamResponse:
                await its(request)
                return await status(504, "Timeout", "too slow")(request)

            assert await mine.attempt()
            api.answer(written_but_not_told)
            with pytest.raises(Exception, match="too slow"):
                await mine.attempt()
            assert await mine.attempt(), "the version has moved, and the holder is still us"

    run(scene())


def test_a_lease_that_another_has_taken_is_lost_at_once(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster(LIMITS) as cluster:
            its = LeaseServer(api)
            one = Runs(elector(cluster, "one", lease_s=6, renew_s=5, retry_s=0.2))
            await one.until(["started"])
            its.held_by("thief")
            await one.until(["started", "stopped"], 2)
            assert one.elector.leader == Leader("thief", "")
            await one.stop()
            assert its.spec["holderIdentity"] == "thief", "what is not ours is not released"

    run(scene())


def test_a_lease_that_was_deleted_is_made_anew_by_its_holder(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster(LIMITS) as cluster:
            its = LeaseServer(api)
            mine = elector(cluster, "mine")
            assert await mine.attempt()
            its.lease = None
            assert await mine.attempt() and its.spec["holderIdentity"] == "mine"

    run(scene())


def test_of_two_that_take_a_free_lease_one_gets_it(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster(LIMITS) as cluster:
            its = LeaseServer(api)
            for prepare in (lambda: setattr(its, "lease", None), lambda: its.held_by("")):
                prepare()
                candidates = [elector(cluster, f"c{index}") for index in range(8)]
                won = await asyncio.gather(*(each.attempt() for each in candidates))
                assert sum(won) == 1
                assert [each.leading for each in candidates] == list(won)

    run(scene())


def test_a_renewal_that_is_under_way_does_not_keep_the_lease_from_being_released(tmp_path: Path) -> None:
    """A rollout that comes at the wrong moment would leave everybody without a leader for fifteen seconds."""

    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster(LIMITS) as cluster:
            its = LeaseServer(api)
            one = Runs(elector(cluster, "one", lease_s=3, renew_s=2, retry_s=0.1))
            await one.until(["started"])
            written = asyncio.Event()

            async def written_but_slow(request: web.BaseRequest) -> web.StreamResponse:
                await its(request)
                written.set()
                return await hang()(request)

            api.answer(written_but_slow)
            await written.wait()
            await one.stop()
            assert its.spec["holderIdentity"] == "" and one.said == ["started", "stopped"]

    run(scene())


def test_trouble_is_said_once_and_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster(LIMITS) as cluster:
            its = LeaseServer(api)
            api.answer(*[status(403, "Forbidden", "no leases for you")] * 3)
            one = Runs(elector(cluster, "one", lease_s=3, renew_s=2, retry_s=0.05))
            await one.until(["started"])
            await one.stop()
            assert its.spec["holderIdentity"] == ""

    with caplog.at_level(logging.WARNING, "stepdown.cluster"):
        run(scene())
    assert [record.getMessage() for record in caplog.records] == [
        "get Lease ops/stepdown: no leases for you (403); it is tried again"
    ]


def test_times_that_cannot_work_are_refused(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Api(tmp_path) as api, api.cluster() as cluster:
            for times in ({"lease_s": 10.0}, {"renew_s": 2.0}, {"retry_s": 9.0}):
                with pytest.raises(ValueError, match="each must be shorter"):
                    elector(cluster, "x", **times)

    run(scene())


def test_two_processes_of_one_pod_have_two_names() -> None:
    names = {unique_identity("stepdown-0") for _ in range(100)}
    assert len(names) == 100 and all(name.startswith("stepdown-0_") for name in names)
