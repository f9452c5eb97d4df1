"""Who leads, with real processes and a real API server. If these fail, two operators grant from one budget, or none does."""

import asyncio
import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from devcluster import Cluster as DevCluster
from devcluster import ControlPlane

from stepdown.cluster.client import Cluster
from stepdown.cluster.kinds import LEASE
from stepdown.cluster.leader import ADDRESS, Elector
from stepdown.sync.clock import now_s
from tests.cluster.candidate import LEASE_S, RENEW_S, RETRY_S
from tests.cluster.fleet import eventually, run

Kubectl = Callable[..., str]


class Candidate:
    """One process of `tests.cluster.candidate`."""

    def __init__(self, kubeconfig: Path, namespace: str, identity: str) -> None:
        self.identity = identity
        self._arguments = (str(kubeconfig), namespace, identity)
        self.said: list[tuple[float, bool]] = []
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Candidate":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.kill()

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.cluster.candidate", *self._arguments, stdout=asyncio.subprocess.PIPE
        )
        self._reading = asyncio.create_task(self._read(self._process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            at, leading = line.split()
            self.said.append((float(at), leading == b"1"))

    def send(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    async def kill(self) -> None:
        """As a node that burns."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """As a rollout."""
        await self._end(signal.SIGTERM)

    async def _end(self, number: int) -> None:
        if self._process is not None and self._process.returncode is None:
            self.send(number)
            await self._process.wait()
        if self._reading is not None:
            await self._reading

    @property
    def leads(self) -> bool:
        return bool(self.said) and self.said[-1][1] and self.said[-1][0] > time.monotonic() - 0.5

    @property
    def spans(self) -> list[tuple[float, float]]:
        """From when until when it believed that it leads."""
        found: list[tuple[float, float]] = []
        going_on = False
        for at_s, leading in self.said:
            if leading and going_on:
                found[-1] = (found[-1][0], at_s)
            elif leading:
                found.append((at_s, at_s))
            going_on = leading
        return found


def never_two(candidates: list[Candidate]) -> None:
    spans = sorted((*span, each.identity) for each in candidates for span in each.spans)
    for (_, end_s, one), (begin_s, _, other) in itertools.pairwise(spans):
        assert one == other or end_s < begin_s, f"{one} led until {end_s}, {other} from {begin_s}"


async def leader(candidates: list[Candidate], *, but: Candidate | None = None, timeout_s: float = 60.0) -> Candidate:
    await eventually(lambda: any(each.leads for each in candidates if each is not but), "somebody leads", timeout_s)
    return next(each for each in candidates if each is not but and each.leads)


def test_two_never_lead_whatever_becomes_of_them(cluster: DevCluster, namespace: str) -> None:
    """Stopped, killed, paused and woken up: at every moment at most one believes that it leads, and soon one does."""

    async def scene() -> None:
        names = ("one", "two", "three")
        async with (
            Candidate(cluster.kubeconfig, namespace, names[0]) as one,
            Candidate(cluster.kubeconfig, namespace, names[1]) as two,
            Candidate(cluster.kubeconfig, namespace, names[2]) as three,
        ):
            all_ = [one, two, three]
            first = await leader(all_)
            first.send(signal.SIGSTOP)  # a paused machine: it wakes up and believes what it believed
            second = await leader(all_, but=first)
            first.send(signal.SIGCONT)
            await asyncio.sleep(2 * RETRY_S)
            assert second.leads and not first.leads
            await second.kill()
            third = await leader(all_, but=second)
            await second.start()
            await third.stop()  # it gives the Lease up: nobody waits for it to run out
            await leader(all_, but=third)
            await third.start()
            for _ in range(3):
                victim = random.choice(all_)
                victim.send(signal.SIGSTOP)
                await asyncio.sleep(random.uniform(0, LEASE_S * 1.2))
                victim.send(signal.SIGCONT)
            await leader(all_)
            never_two(all_)
            assert sum(len(each.spans) for each in all_) >= 4

    run(scene())


def test_a_leader_that_is_cut_off_stops_before_others_may_begin(own_cluster: ControlPlane) -> None:
    """The API server hangs, and comes back: whoever led has stopped by its own clock, and somebody leads again."""

    async def scene() -> None:
        own_cluster.kubectl("create", "namespace", "ops")
        async with (
            Candidate(own_cluster.kubeconfig, "ops", "one") as one,
            Candidate(own_cluster.kubeconfig, "ops", "two") as two,
        ):
            both = [one, two]
            first = await leader(both)
            own_cluster.pause("kube-apiserver")
            paused_s = time.monotonic()
            await eventually(lambda: not first.leads, "it has stopped")
            ended_s = first.spans[-1][1]
            assert ended_s < paused_s + RENEW_S + 0.1, "whatever its requests did, it stopped when its time was over"
            own_cluster.resume("kube-apiserver")
            await leader(both)
            own_cluster.stop_component("kube-apiserver")
            await eventually(lambda: not one.leads and not two.leads, "nobody leads")
            own_cluster.start_component("kube-apiserver")
            await leader(both)
            never_two(both)

    run(scene())


def test_the_lease_is_what_other_tools_expect(cluster: DevCluster, namespace: str, kubectl: Kubectl) -> None:
    """`kubectl get lease` shows who leads; a Lease of client-go's is taken over as it is."""

    async def scene() -> None:
        async with Cluster.connect(cluster.kubeconfig) as client:
            spec = {"holderIdentity": "client-go", "leaseDurationSeconds": 1, "leaseTransitions": 4}
            times = {"renewTime": "2026-01-01T00:00:00.000000Z", "acquireTime": "2026-01-01T00:00:00.000000Z"}
            metadata = {"name": "stepdown", "namespace": namespace, "annotations": {"team": "platform"}}
            await client.create({"apiVersion": LEASE.api_version, "kind": "Lease", "metadata": metadata, "spec": spec | times})
            said: list[str] = []
            mine = Elector(
                client, namespace, "stepdown", "stepdown-0_abcd", address="https://10.0.0.7:8443", wall=now_s, retry_s=0.2
            )
            running = asyncio.create_task(mine.run(lambda: said.append("started"), lambda: said.append("stopped")))
            await eventually(lambda: said == ["started"], "an expired Lease is taken")
            assert "stepdown-0_abcd" in kubectl("get", "lease", "stepdown", "-n", namespace)
            lease = json.loads(kubectl("get", "lease", "stepdown", "-n", namespace, "-o", "json"))
            assert lease["metadata"]["annotations"] == {"team": "platform", ADDRESS: "https://10.0.0.7:8443"}
            assert (lease["spec"]["leaseDurationSeconds"], lease["spec"]["leaseTransitions"]) == (15, 5)
            other = Elector(client, namespace, "stepdown", "other", wall=now_s)
            assert not await other.attempt()
            assert other.leader == ("stepdown-0_abcd", "https://10.0.0.7:8443")
            running.cancel()
            await asyncio.wait([running])
            assert said == ["started", "stopped"]
            lease = json.loads(kubectl("get", "lease", "stepdown", "-n", namespace, "-o", "json"))
            assert not lease["spec"].get("holderIdentity")
            assert await other.attempt() and other.leading

    run(scene())
