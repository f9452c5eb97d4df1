"""The last config on disk. If this fails, a proxy that starts in an outage serves nobody, or by what has been taken back."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from stepdown.model.config import Fleet, Route, Shard, digest
from stepdown.model.mounted import encode, pack, shard_file
from stepdown.model.sync import SyncAnswer, SyncRequest
from stepdown.proxy.stored import StoredConfig
from stepdown.proxy.table import Table
from tests.unit.proxy_money import fleet, route, shards

FLEET = "shop/proxy"
POD = "pod-1"
HOUR_NS = 3_600 * 10**9


def names(table: Table | None) -> list[str]:
    return [] if table is None else [each.name for each in table.routes]


def mount(path: Path, routes: Sequence[Route], config: Fleet | None = None) -> Path:
    """As the kubelet mounts the fleet's ConfigMaps: a new directory, and a symlink to it."""
    path.mkdir(exist_ok=True)
    fresh = path / f"..{len(list(path.iterdir()))}"
    fresh.mkdir()
    (fresh / "fleet.json").write_bytes(msgspec.json.encode(config or fleet(), order="sorted"))
    for index, shard in shards(routes).items():
        (fresh / f"shard-{index:02}.json").write_bytes(msgspec.json.encode(shard, order="sorted"))
    for each in path.glob("*.json"):
        each.unlink()
    for each in fresh.iterdir():
        (path / each.name).symlink_to(each)
    return path


def answer(routes: Sequence[Route] = (), *, whole: bool = True) -> SyncAnswer:
    return SyncAnswer(seq=1, now_s=1.0, fleet=fleet() if whole else None, shards=tuple(shards(routes).values()))


def synced(stored: StoredConfig, *answers: SyncAnswer) -> None:
    """What a proxy's life leaves behind in which these answers came."""

    async def main() -> None:
        waiting = list(answers)

        async def sync(_: SyncRequest) -> SyncAnswer:
            return waiting.pop(0)

        kept: Callable[[SyncRequest], Awaitable[SyncAnswer]] = stored.keeping(sync)
        for _ in answers:
            await kept(SyncRequest(instance="a", fleet=FLEET, seq=1))
        await stored.finish()

    asyncio.run(main())


def shift(path: Path, by_ns: int) -> None:
    """As if it had been written at another time."""
    found = path.stat().st_mtime_ns + by_ns
    os.utime(path, ns=(found, found))


def test_the_last_config_of_sync_is_there_after_a_restart(tmp_path: Path) -> None:
    """Every restart of a container in an outage of the operator would be an outage of its routes."""
    assert StoredConfig(tmp_path / "config", FLEET).load() is None
    stored = StoredConfig(tmp_path / "config", FLEET)
    synced(stored, answer([route("shop/a")]), answer([route("shop/b")], whole=False))
    assert set(names(StoredConfig(tmp_path / "config", FLEET).load())) == {"shop/a", "shop/b"}
    assert StoredConfig(tmp_path / "config", "shop/other").load() is None, "another fleet's"


def test_a_new_pod_starts_from_the_mount_with_the_digests_of_sync(tmp_path: Path) -> None:
    """It would know nothing until the operator is back; and then load everything again."""
    mounted = mount(tmp_path / "mount", [route("shop/a"), route("shop/b")])
    table = StoredConfig(tmp_path / "config", FLEET, mount=mounted).load()
    assert table is not None and set(names(table)) == {"shop/a", "shop/b"}
    wanted = shards([route("shop/a"), route("shop/b")])
    assert {index: each.digest for index, each in table.shards.items()} == {i: digest(each) for i, each in wanted.items()}
    assert table.fleet_digest == digest(fleet())


def test_a_shard_that_lies_compressed_in_its_config_map_is_read(tmp_path: Path) -> None:
    """A fleet with thousands of routes in a shard would start with the others only."""
    mounted = mount(tmp_path / "mount", [])
    for index, shard in shards([route("shop/a")]).items():
        packed = pack(shard_file(index), encode(shard), max_bytes=600)
        assert packed is not None and packed[0].endswith(".gz")
        (mounted / packed[0]).write_bytes(packed[1])
    table = StoredConfig(tmp_path / "config", FLEET, mount=mounted).load()
    assert table is not None and names(table) == ["shop/a"]
    for path in mounted.glob("*.gz"):
        path.write_bytes(path.read_bytes()[:-9])
    assert names(StoredConfig(tmp_path / "other", FLEET, mount=mounted).load()) == []


@pytest.mark.parametrize("by_ns", [-HOUR_NS, HOUR_NS])
def test_what_was_in_force_last_is_used(tmp_path: Path, by_ns: int) -> None:
    """A caller whose key was taken away would be let in again, by the older of the two."""
    synced(StoredConfig(tmp_path / "config", FLEET), answer([route("shop/by-sync")]))
    mounted = mount(tmp_path / "mount", [route("shop/by-mount")])
    shift(mounted / "fleet.json", by_ns)
    found = StoredConfig(tmp_path / "config", FLEET, mount=mounted).load()
    assert names(found) == (["shop/by-mount"] if by_ns > 0 else ["shop/by-sync"])


def test_a_config_that_sync_has_only_confirmed_is_as_new_as_the_confirmation(tmp_path: Path) -> None:
    """Sync sends a shard once: a week later it would seem older than a mount that was written yesterday, and that lacks it
    because its ConfigMap could not be applied."""
    stored = StoredConfig(tmp_path / "config", FLEET)
    synced(stored, answer([route("shop/by-sync")]))
    for path in (tmp_path / "config").iterdir():
        shift(path, -7 * 24 * HOUR_NS)
    mounted = mount(tmp_path / "mount", [route("shop/by-mount")])
    shift(mounted / "fleet.json", -24 * HOUR_NS)
    synced(StoredConfig(tmp_path / "config", FLEET, mount=mounted), SyncAnswer(seq=2, now_s=2.0))
    assert names(StoredConfig(tmp_path / "config", FLEET, mount=mounted).load()) == ["shop/by-sync"]


def test_what_the_mount_has_no_more_does_not_come_back(tmp_path: Path) -> None:
    """What sync brings later is the difference to what the proxy has: a route that was deleted would stay on the disk."""
    synced(StoredConfig(tmp_path / "config", FLEET), answer([route("shop/a"), route("shop/gone")]))
    mounted = mount(tmp_path / "mount", [route("shop/a")])
    shift(mounted / "fleet.json", HOUR_NS)
    first = StoredConfig(tmp_path / "config", FLEET, mount=mounted)
    assert names(first.load()) == ["shop/a"]
    synced(first, answer([route("shop/b")], whole=False))
    assert set(names(StoredConfig(tmp_path / "config", FLEET).load())) == {"shop/a", "shop/b"}


def test_a_mount_that_is_newer_stays_newer_until_sync_answers(tmp_path: Path) -> None:
    """A second restart in the same outage would fall back to the config before."""
    synced(StoredConfig(tmp_path / "config", FLEET), answer([route("shop/by-sync")]))
    mounted = mount(tmp_path / "mount", [route("shop/by-mount")])
    shift(mounted / "fleet.json", HOUR_NS)
    for _ in range(3):
        assert names(StoredConfig(tmp_path / "config", FLEET, mount=mounted).load()) == ["shop/by-mount"]
    mounted = mount(tmp_path / "mount", [route("shop/newer")])
    shift(mounted / "fleet.json", 2 * HOUR_NS)
    assert names(StoredConfig(tmp_path / "config", FLEET, mount=mounted).load()) == ["shop/newer"]


@pytest.mark.parametrize("damage", ["cut", "empty", "another fleet", "names what it lacks"])
def test_where_one_cannot_be_used_the_other_is(tmp_path: Path, damage: str) -> None:
    """A torn file would take the whole config with it."""
    synced(StoredConfig(tmp_path / "config", FLEET), answer([route("shop/by-sync")]))
    config = msgspec.structs.replace(fleet(), name="shop/other") if damage == "another fleet" else None
    mounted = mount(tmp_path / "mount", [route("shop/by-mount")], config)
    shift(mounted / "fleet.json", HOUR_NS)
    if damage == "cut":
        (mounted / "fleet.json").write_bytes((mounted / "fleet.json").read_bytes()[:-9])
    elif damage == "empty":
        (mounted / "fleet.json").write_bytes(b"")
    elif damage == "names what it lacks":
        (mounted / "shard-00.json").write_bytes(
            msgspec.json.encode(Shard(index=0, routes={"shop/by-mount": route("shop/by-mount")}))
        )
    shift(mounted / "fleet.json", HOUR_NS)
    stored = StoredConfig(tmp_path / "config", FLEET, mount=mounted)
    assert names(stored.load()) == ["shop/by-sync"]
    (tmp_path / "config" / "fleet.json").unlink()
    assert StoredConfig(tmp_path / "config", FLEET, mount=mounted).load() is None


def test_a_config_that_could_not_be_stored_does_not_count_as_current(tmp_path: Path) -> None:
    """With a full disk the old config would pass for the newest, and the mount, which is right, would not be used."""
    stored = StoredConfig(tmp_path / "config", FLEET)
    synced(stored, answer([route("shop/old")]))
    shift(tmp_path / "config" / "current", -HOUR_NS)
    (tmp_path / "config" / ".fleet.json" / "full").mkdir(parents=True)
    synced(stored, answer([route("shop/new")]), SyncAnswer(seq=2, now_s=2.0))
    mounted = mount(tmp_path / "mount", [route("shop/new")])
    shift(mounted / "fleet.json", -HOUR_NS // 2)
    assert names(StoredConfig(tmp_path / "config", FLEET, mount=mounted).load()) == ["shop/new"]


def test_a_pod_that_has_synced_is_known_and_no_other(tmp_path: Path) -> None:
    """A container that restarts in an outage must be ready again; a pod that is new in an outage must not be."""
    path = tmp_path / "config"
    stored = StoredConfig(path, FLEET, pod_uid=POD)
    assert not stored.was_synced
    synced(stored, SyncAnswer(seq=1, now_s=1.0, verdict="fenced"), SyncAnswer(seq=1, now_s=1.0, verdict="stale"))
    assert not stored.was_synced
    synced(stored, SyncAnswer(seq=1, now_s=1.0))
    assert stored.was_synced and StoredConfig(path, FLEET, pod_uid=POD).was_synced
    assert not StoredConfig(path, FLEET, pod_uid="pod-2").was_synced
    assert not StoredConfig(path, FLEET).was_synced, "outside of a pod it is the process that counts"
