"""The marks outside the ledger. If these fail, an old backup of the ledger refills a budget that was spent."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from stepdown.cluster.client import Cluster
from stepdown.cluster.errors import ClusterError, Conflict, Forbidden, Unavailable
from stepdown.cluster.marknames import decode, encode, entry, read
from stepdown.cluster.witness import ConfigMapWitness, WitnessDamaged
from tests.unit.cluster_server import Answer, Api, config_map, hang, obj, run, status

KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")
NONE = status(404, "NotFound", 'configmaps "stepdown-witness" not found', name="stepdown-witness")
SHOP, TEAM = "shop/chat@1793491200", "shop/team@1793491200"


@given(st.text(min_size=1, max_size=400), st.integers(min_value=0, max_value=10**40))
def test_every_name_has_one_key_and_comes_back(name: str, mark: int) -> None:
    """Two accounts in one key would share a mark: one of them could be refilled."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return
    key, value = entry(name, mark)
    assert KEY.fullmatch(key) and not key.startswith(".")
    assert read(key, value) == (name, mark)


def test_keys_can_be_read_by_a_person() -> None:
    assert encode(SHOP) == "shop_2Fchat_401793491200"
    assert decode("shop_2Fchat_401793491200") == SHOP
    long = "n" * 63 + "/" + "b" * 253 + "@1793491200"
    key, value = entry(long, 7)
    assert key.startswith("__") and value == f"7 {long}"
    assert read(key, f"7 {long}x") is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shop_2Fchat", "abc"),
        ("shop_2Fchat", "-5"),
        ("shop_2Fchat", "1.5"),
        ("shop_2Fchat", "007"),
        ("shop_2Fchat", ""),
        ("shop_2Fchat", "5 shop/chat"),
        ("shop_2fchat", "5"),
        ("shop_FFchat", "5"),
        ("a_2Db", "5"),
        ("__" + "0" * 64, "5 shop/chat"),
        ("__" + "0" * 64, "5"),
    ],
)
def test_what_we_did_not_write_is_not_guessed_at(key: str, value: str) -> None:
    assert read(key, value) is None


class Store:
    """A ConfigMap that keeps to its version, as the API server does."""

    def __init__(self) -> None:
        self.data: dict[str, str] | None = None
        self.version = 10
        self.writes: list[dict[str, str | None]] = []
        self.before: list[Answer | None] = []
        """Answers instead of the next ones; None: answer as usual."""

    def object(self) -> dict[str, Any]:
        return config_map("stepdown-witness", str(self.version), **(self.data or {}))

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.before and (answer := self.before.pop(0)) is not None:
            return await answer(request)
        raw = await request.read()
        return await self._answer(request, json.loads(raw) if raw else None)(request)

    def _answer(self, request: web.BaseRequest, body: Any) -> Answer:
        if request.method == "POST":
            if self.data is not None:
                return status(409, "AlreadyExists", "taken")
            self.data = {}
        elif self.data is None:
            return NONE
        if request.method == "GET":
            return obj(self.object())
        if request.method == "PATCH" and body["metadata"]["resourceVersion"] != str(self.version):
            return status(409, "Conflict", "the object has been modified")
        self.writes.append(body["data"])
        merged = {**self.data, **body["data"]}
        self.data = {key: value for key, value in merged.items() if value is not None}
        self.version += 1
        return obj(self.object())


class Scene:
    def __init__(self, folder: Path) -> None:
        self.api = Api(folder)
        self.store = Store()
        self.api.otherwise = self.store

    async def __aenter__(self) -> "Scene":
        await self.api.__aenter__()
        self._context = self.api.cluster()
        self.cluster: Cluster = await self._context.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._context.__aexit__(None, None, None)
        await self.api.__aexit__(*error)

    def witness(self) -> ConfigMapWitness:
        return ConfigMapWitness(self.cluster, "shop")


def test_marks_only_grow_and_only_changes_are_sent(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Scene(tmp_path) as its:
            witness = its.witness()
            assert await witness.read() == {}
            await witness.raise_to({SHOP: 10, "epoch": 1})
            await witness.raise_to({SHOP: 5})
            await witness.raise_to({SHOP: 10, TEAM: 7})
            await witness.raise_to({})
            assert its.store.writes == [
                {"shop_2Fchat_401793491200": "10", "epoch": "1"},
                {"shop_2Fteam_401793491200": "7"},
            ]
            assert await its.witness().read() == {SHOP: 10, TEAM: 7, "epoch": 1}
            with pytest.raises(ValueError, match="negative"):
                await witness.raise_to({SHOP: -1})

    run(scene())


def test_two_that_write_lose_nothing_of_each_other(tmp_path: Path) -> None:
    """A leader that has not noticed yet that it was replaced must not take back what its successor has raised."""

    async def scene() -> None:
        async with Scene(tmp_path) as its:
            old, new = its.witness(), its.witness()
            await old.raise_to({SHOP: 10})
            await new.read()
            await new.raise_to({SHOP: 50, TEAM: 3})
            await old.raise_to({SHOP: 20, TEAM: 9})
            assert await new.read() == {SHOP: 50, TEAM: 9}
            await asyncio.gather(*(witness.raise_to({SHOP: 100 + at}) for at, witness in enumerate([old, new] * 5)))
            assert (await its.witness().read())[SHOP] == 109

    run(scene())


def test_what_was_taken_away_by_hand_is_put_back(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Scene(tmp_path) as its:
            witness = its.witness()
            await witness.raise_to({SHOP: 10, TEAM: 20})
            its.store.data = None
            await witness.raise_to({SHOP: 11})
            assert await its.witness().read() == {SHOP: 11, TEAM: 20}
            its.store.data, its.store.version = {"shop_2Fteam_401793491200": "1"}, 99
            assert await witness.read() == {TEAM: 1}, "what is there, not what was"
            await witness.raise_to({SHOP: 12})
            assert await its.witness().read() == {SHOP: 12, TEAM: 20}

    run(scene())


@pytest.mark.parametrize("fault", [status(500, "InternalError", "etcd"), hang(), status(403, "Forbidden", "no")])
def test_a_raise_that_failed_is_never_taken_for_done(tmp_path: Path, fault: Answer) -> None:
    """Money would be granted above the mark: after a restore it could be granted again."""

    async def scene() -> None:
        async with Scene(tmp_path) as its:
            witness = its.witness()
            await witness.raise_to({SHOP: 10})
            its.store.before = [fault]
            with pytest.raises((Unavailable, Forbidden)):
                await witness.raise_to({SHOP: 20})
            assert its.store.data == {"shop_2Fchat_401793491200": "10"}
            assert await witness.read() == {SHOP: 10}
            await witness.raise_to({SHOP: 20})
            assert its.store.data == {"shop_2Fchat_401793491200": "20"}

    run(scene())


def test_a_raise_that_seemed_to_fail_may_have_happened(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Scene(tmp_path) as its:
            witness = its.witness()
            await witness.raise_to({SHOP: 10})

            async def written_but_not_told(request: web.BaseRequest) -> web.StreamResponse:
                await its.store(request)
                return await status(500, "InternalError", "timed out")(request)

            its.api.answer(written_but_not_told)
            with pytest.raises(Unavailable):
                await witness.raise_to({SHOP: 20})
            await witness.raise_to({SHOP: 21})
            assert its.store.data == {"shop_2Fchat_401793491200": "21"}

    run(scene())


def test_a_mark_that_cannot_be_stops_everything(tmp_path: Path) -> None:
    """Read as zero, a damaged mark would be the refill that it is there to prevent."""

    async def scene() -> None:
        async with Scene(tmp_path) as its:
            its.store.data = {"shop_2Fchat_401793491200": "a lot"}
            with pytest.raises(WitnessDamaged, match=r"ConfigMap shop/stepdown-witness: data\['shop_2Fchat_401793491200'\]"):
                await its.witness().read()
            with pytest.raises(WitnessDamaged):
                await its.witness().raise_to({TEAM: 1})
            assert its.store.writes == []

    run(scene())


def test_only_marks_of_long_ago_are_pruned(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Scene(tmp_path) as its:
            witness, start_s = its.witness(), 1_793_491_200
            old = f"shop/chat@{start_s - 132 * 86_400}"
            kept = f"shop/chat@{start_s - 130 * 86_400}"
            await witness.raise_to({old: 1, kept: 2, SHOP: 3, "epoch": 4})
            assert await witness.prune(start_s) == 1
            assert await witness.read() == {kept: 2, SHOP: 3, "epoch": 4}
            assert await witness.prune(start_s) == 0
            await witness.raise_to({SHOP: 5})
            assert old not in await its.witness().read(), "what was pruned is not put back"

    run(scene())


def test_without_its_namespace_or_under_constant_writes_it_gives_up_with_words(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Scene(tmp_path) as its:
            its.api.answer(NONE, status(404, "NotFound", 'namespaces "shop" not found', name="shop"))
            with pytest.raises(ClusterError, match="the witness has its place in the operator's namespace"):
                await its.witness().raise_to({SHOP: 1})
            await its.witness().raise_to({SHOP: 1})
            conflict = status(409, "Conflict", "modified")
            its.api.answer(*(each for _ in range(10) for each in (obj(its.store.object()), conflict)))
            with pytest.raises(Conflict, match="written by others all the time"):
                await its.witness().raise_to({SHOP: 2})

    run(scene())
