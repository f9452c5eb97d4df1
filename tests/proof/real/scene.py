"""All that takes part in a schedule, and what can be done to it: operators and proxies as processes, their disks and networks.

There is no kubelet at this size. A pod here is the object that the controllers made for the fleet's Deployment, and its proxy
is started with what the kubelet would have given it; what ends by itself is started again, as the kubelet would.
"""

import asyncio
import contextlib
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from devcluster import Cluster

from stepdown.cluster.kinds import CONFIG_MAP, LEASE, OURS, POD
from stepdown.ledger import Ledger
from stepdown.ledger.errors import LedgerError
from stepdown.ledger.views import InstanceView
from stepdown.proxy import wal
from tests.cluster import operator_world
from tests.cluster.operator_world import free_port
from tests.proof.real.judge import Look
from tests.proof.real.processes import START_S, Ended, Process, on_another_boot, until
from tests.proof.real.relay import Relay
from tests.proof.real.space import Disk, Network
from tests.upstream import Simulator

FLEET = "default"
HORIZON_S = 10.0
"""The shortest that a RoutingProxy may have."""
_LEDGER_MIB, _STATE_MIB = 24, 10
_AGAIN_S = 0.5
_LEASE = "stepdown"
_WITNESS = "stepdown-witness"


class Keeper(Process):
    """One `stepdown operator`."""

    def __init__(self, scene: "Scene", name: str) -> None:
        super().__init__(name, scene.folder / f"{name}.log")
        self._scene = scene
        self.port, self._http = free_port(), free_port()

    def start(self) -> None:
        scene = self._scene
        own, every = ("127.0.0.1",) * 2 if scene.network is None else (scene.network.operator, "0.0.0.0")
        command = [sys.executable, "-m", "stepdown", "operator", "--kubeconfig", str(scene.cluster.kubeconfig)]
        command += ["--namespace", scene.namespace, "--fleet-namespaces", scene.namespace, "--identity", self.name]
        command += ["--image", "registry.example/stepdown:test", "--ledger", str(scene.ledger_file)]
        command += ["--state-dir", str(scene.folder / "operator"), "--listen", f"{every}:{self.port}"]
        command += ["--sync-url", f"https://127.0.0.1:{scene.relay.port}", "--address", f"https://{own}:{self.port}"]
        command += ["--http", f"127.0.0.1:{self._http}", "--allowed-upstreams", scene.upstream, "--log-format", "json"]
        self.launch(command, scene.cluster.environment())
        if self.port not in scene.relay.targets:
            scene.relay.targets.append(self.port)

    def leave(self) -> None:
        """The Service has it no more."""
        with contextlib.suppress(ValueError):
            self._scene.relay.targets.remove(self.port)

    @property
    def ready(self) -> bool:
        """Proxies are answered."""
        return self.alive and bool(self.said('"event": "ready"'))


class Pod(Process):
    """One pod's proxy, its files, and those that are started in its place."""

    def __init__(self, scene: "Scene", name: str, network: Network | None) -> None:
        super().__init__(name, scene.folder / f"{name}.log")
        self._scene, self.network = scene, network
        self.disk = Disk(scene.folder / name, _STATE_MIB, apart=scene.privileged)
        self.state = self.disk.path / "state"
        self.object: dict[str, Any] = {}
        self.address = ("", 0)
        self.ready = False
        """The Service has it: it has said that it is ready, and has not ended since."""
        self.boot: Path | None = None
        self.instance = ""
        """Which instance it is, as its log says."""

    def move_in(self, pod: dict[str, Any]) -> None:
        """Writes what the kubelet mounts. Blocks."""
        self.object = pod
        for name, data in self._scene.mounted(FLEET).items():
            _write(self.disk.path / "config" / name, data)
        _write(self.disk.path / "keys" / "standard", "sk-upstream")
        _write(self.disk.path / "token", self._scene.token(pod))

    def start(self) -> None:
        scene, at = self._scene, self.disk.path
        if self.network is None:
            listen, sync = "127.0.0.1", f"https://127.0.0.1:{scene.relay.port}"
            command = []
        else:
            listen, sync = self.network.there, f"https://{self.network.operator}:{scene.keepers[0].port}"
            command = self.network.enter
        if self.boot is not None:
            command = [*command, *on_another_boot(self.boot)]
        command = [*command, sys.executable, "-m", "stepdown.proxy", "--listen", f"{listen}:0"]
        command += ["--fleet", f"{scene.namespace}/{FLEET}", "--sync-url", sync, "--sync-ca", str(at / "config" / "ca.crt")]
        command += ["--sync-token", str(at / "token"), "--config-dir", str(at / "config"), "--key-dir", str(at / "keys")]
        command += ["--state-dir", str(self.state), "--pod-uid", self.object["metadata"]["uid"], "--close-s", "60"]
        command += ["--drain-s", "75"]
        self.launch(command, {**os.environ, "PYTHONUNBUFFERED": "1"})

    async def serve(self) -> None:
        """Until it is ready. Raises Ended, TimeoutError."""
        line = await self.hear("listening on ")
        host, _, port = line.rpartition(" ")[2].rpartition(":")
        self.address = (host, int(port))
        await until(self._is_ready, f"{self.name} is ready")
        self.know()
        self.ready = True

    async def _is_ready(self) -> bool:
        return await self.get("/readyz") is not None or bool(self.ended("ready"))

    def know(self) -> None:
        """Reads who it is; it may have had to take another name."""
        self.instance = wal.instance_of(self.state / "log") or self.instance

    @property
    def life(self) -> str:
        return self.instance or self.name

    def die(self) -> None:
        """kill -9."""
        self.know()
        self.ready = False
        self.kill()

    async def get(self, path: str) -> str | None:
        """The body of a 200; else None."""
        try:
            async with asyncio.timeout(5.0):
                reader, writer = await asyncio.open_connection(*self.address)
                try:
                    writer.write(f"GET {path} HTTP/1.1\r\nhost: p\r\nconnection: close\r\n\r\n".encode())
                    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
                finally:
                    writer.transport.abort()
        except (OSError, TimeoutError):
            return None
        return body if head.startswith("HTTP/1.1 200") else None

    async def metric(self, name: str) -> float | None:
        body = await self.get("/metrics") or ""
        values = [line.rpartition(" ")[2] for line in body.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(map(float, values)) if values else None


class Scene(operator_world.World):
    """`async with scene.running(…)` has an operator and its proxies."""

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        folder: Path,
        upstream: Simulator,
        relay: Relay,
        *,
        network: Network | None,
        privileged: bool,
    ) -> None:
        super().__init__(cluster, namespace, folder, upstream)  # type: ignore[arg-type]
        self.folder, self.relay, self.network, self.privileged = folder, relay, network, privileged
        here = network.here if network is not None else "127.0.0.1"
        self.upstream = f"http://{here}:{upstream.port}/v1"
        self.disk = Disk(folder / "ledger", _LEDGER_MIB, apart=privileged)
        self.ledger_file = self.disk.path / "ledger.db"
        self.keepers: list[Keeper] = []
        self.pods_: list[Pod] = []
        self.trusted = True
        """False while the ledger's file is an older one and its keeper has not begun."""
        self._made = 0

    # The operators

    def keeper(self) -> Keeper:
        made = Keeper(self, f"operator-{len(self.keepers)}")
        self.keepers.append(made)
        return made

    @property
    def leader(self) -> Keeper | None:
        return next((each for each in self.keepers if each.ready), None)

    async def lead(self) -> Keeper:
        """Waits until one of them answers proxies; one that ended is started again."""
        leader: Keeper = await until(self._lead, "an operator leads")
        self.trusted = True
        return leader

    async def _lead(self) -> Keeper | None:
        for each in self.keepers:
            if each.wanted and not each.alive:
                self.note(f"{each.name} ended by itself with {each.code}")
                await asyncio.sleep(_AGAIN_S)
                each.start()
        return self.leader

    def forget_lease(self) -> None:
        """An administrator who knows that its holder is dead does not wait for it to end. Blocks."""
        self.cluster.request("DELETE", LEASE.path(self.namespace, _LEASE))

    def forget_witness(self) -> None:
        self.cluster.request("DELETE", CONFIG_MAP.path(self.namespace, _WITNESS))

    # The ledger's file

    def back_up(self, copy: Path) -> None:
        """As an administrator would, while it is in use. Blocks."""
        from_ = sqlite3.connect(f"{self.ledger_file.as_uri()}?mode=ro", uri=True, timeout=10.0)
        with contextlib.closing(from_) as source, contextlib.closing(sqlite3.connect(copy)) as target:
            source.backup(target)

    def put_back(self, copy: Path) -> None:
        """While nobody keeps it."""
        assert not any(each.alive for each in self.keepers)
        self.trusted = False
        for suffix in ("-wal", "-shm"):
            self.ledger_file.with_name(self.ledger_file.name + suffix).unlink(missing_ok=True)
        beside = self.ledger_file.with_name("put-back")  # whoever still reads the other one goes on reading that
        shutil.copy(copy, beside)
        beside.replace(self.ledger_file)

    def look(self) -> Look | None:
        """The ledger as it is on disk; None while that cannot be relied on. Blocks."""
        began_s = time.monotonic()
        opened = self._open()
        if opened is None:
            return None
        try:
            now_s = _now_s()
            running = [each for each in opened.balances(now_s).values() if each.start_s <= now_s]
            balances = {each.budget.rpartition("/")[2]: each for each in running}
            views = opened.instances()
        except LedgerError:
            return None
        finally:
            opened.close()
        return Look(began_s, time.monotonic(), balances, self._dead(views))

    def _open(self) -> Ledger | None:
        if not self.trusted:
            return None
        try:
            return Ledger.open(self.ledger_file, create=False, read_only=True)
        except LedgerError:
            return None

    def _dead(self, views: list[InstanceView]) -> dict[str, int]:
        live = {each.instance for each in self.pods_ if each.wanted}
        held: dict[str, int] = {}
        for view in views:
            if view.state == "open" and view.name not in live:
                for lease in view.leases:
                    name = lease.account.partition("@")[0].rpartition("/")[2]
                    committed = max(lease.granted_nusd - lease.returned_nusd, lease.consumed_nusd + lease.reserved_nusd)
                    held[name] = held.get(name, 0) + committed - lease.consumed_nusd - lease.reserved_nusd
        return held

    def settle(self, stated: Callable[[InstanceView], dict[str, int] | None]) -> list[str]:
        """An administrator's word on those that are lost, while nobody keeps the ledger; who they were. Blocks.

        Raises LedgerError.
        """
        opened = Ledger.open(self.ledger_file, create=False)
        try:
            opened.take_epoch("an administrator")
            settled = []
            for view in opened.instances():
                quiet = view.state == "lost" or (view.state == "open" and _now_s() - view.last_s > HORIZON_S + 1.0)
                if quiet and (says := stated(view)) is not None:
                    opened.settle_instance(view.name, says, _now_s())
                    settled.append(view.name)
            return settled
        finally:
            opened.close()

    # The proxies

    def pod(self, network: Network | None = None) -> Pod:
        made = Pod(self, f"pod-{self._made}", network)
        self._made += 1
        return made

    def pod_objects(self, count: int) -> list[dict[str, Any]]:
        """Those that no proxy runs in, as soon as there are so many. Blocks."""
        taken = {each.object["metadata"]["uid"] for each in self.pods_ if each.object}
        until_s = time.monotonic() + START_S
        while True:
            found = [each for each in self.all(POD, f"stepdown.dev/proxy={FLEET}") if not _leaves(each, taken)]
            if len(found) >= count:
                return found[:count]
            if time.monotonic() > until_s:
                raise TimeoutError(f"there are {len(found)} pods of {count}")
            time.sleep(0.1)

    def delete_pod(self, pod: Pod) -> None:
        """Blocks."""
        name = pod.object["metadata"]["name"]
        self.cluster.request("DELETE", POD.path(self.namespace, name) + "?gracePeriodSeconds=0")

    async def revive(self, pod: Pod) -> None:
        """As the kubelet does: again and again, until it is ready."""
        until_s = time.monotonic() + START_S
        while time.monotonic() < until_s:
            try:
                pod.start()
                await pod.serve()
            except Ended as error:
                self.note(str(error))
                await asyncio.sleep(_AGAIN_S)
            else:
                return
        raise TimeoutError(f"{pod.name} was not ready after {START_S:.0f} s")

    # The end

    def note(self, what: str) -> None:
        with (self.folder / "schedule.log").open("a") as log:
            log.write(f"{time.strftime('%H:%M:%S', time.gmtime())} {time.monotonic():.2f} {what}\n")

    def end(self) -> None:
        """Whatever still runs is killed, and the disks go. What was on the ledger's is kept. Blocks."""
        for each in (*self.pods_, *self.keepers):
            each.kill()
        with contextlib.suppress(OSError):
            shutil.copytree(self.disk.path, self.folder / "ledger-kept", ignore=shutil.ignore_patterns("filler"))
        for pod in self.pods_:
            pod.disk.remove()
        self.disk.remove()
        if self.network is not None:
            self.network.remove()
        for kind in OURS:
            if kind.namespaced:
                self.cluster.request("DELETE", kind.path(self.namespace))
        self.cluster.request("DELETE", operator_world.KIND["ModelCatalog"].path("", self.namespace))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _leaves(pod: dict[str, Any], taken: set[str]) -> bool:
    meta = pod["metadata"]
    return meta["uid"] in taken or "deletionTimestamp" in meta


def _now_s() -> float:
    return time.time()  # noqa: TID251 (the operator goes by the machine's clock)
