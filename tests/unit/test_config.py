"""The proxy's config contract: shards and digests. If these fail, proxies serve old config and nobody can tell."""

import subprocess
import sys

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from stepdown.model import config, sync

LADDER = config.Ladder(rungs=("a", "b"), in_force=1, hidden_by="shop/team", fallbacks=("c",))
SHARD = config.Shard(
    index=3,
    routes={"shop/chat": config.Route(name="shop/chat", ladders={"default": LADDER}, budgets=("shop/team",))},
    models={
        "a": config.Model(name="a", upstream_id="A", tier="Budget", channel="standard", prices=(config.PriceFrom(0, 1, 1, 2),))
    },
    budgets={
        "shop/team": config.Budget(
            name="shop/team", hard=True, accounts=(config.Account(id="x", start_s=0, end_s=9, limit_nusd=5),)
        )
    },
)


@given(st.text(min_size=1, max_size=80))
def test_a_route_has_one_shard_for_ever(name: str) -> None:
    """A route that moves between shards is served twice or not at all while two versions meet."""
    assert config.shard_of(name) == config.shard_of(name)
    assert 0 <= config.shard_of(name) < config.SHARDS


def test_known_shards_stay_where_they_are() -> None:
    """The hash is part of the contract between versions."""
    assert [config.shard_of(n) for n in ("shop/chat", "default/classify", "a/b")] == [14, 15, 12]


def test_a_shard_survives_the_wire_and_keeps_its_digest() -> None:
    """`Programmed` compares digests: one that changed on the way would never be programmed."""
    back = msgspec.json.decode(msgspec.json.encode(SHARD), type=config.Shard)
    assert back == SHARD
    assert config.digest(back) == config.digest(SHARD)


def test_a_digest_does_not_depend_on_the_order_of_routes() -> None:
    """Two operators that render the same world must not make every proxy swap its config."""
    one = config.Shard(index=0, budgets={"a": SHARD.budgets["shop/team"], "b": SHARD.budgets["shop/team"]})
    two = config.Shard(index=0, budgets={"b": SHARD.budgets["shop/team"], "a": SHARD.budgets["shop/team"]})
    assert config.digest(one) == config.digest(two)


def test_a_newer_keeper_may_say_more() -> None:
    """A rolled-back proxy must read a newer answer: unknown fields are passed over."""
    raw = b'{"seq":1,"now_s":2.5,"verdict":"ok","news":[1]}'
    assert msgspec.json.decode(raw, type=sync.SyncAnswer).now_s == 2.5


def test_the_contract_costs_the_proxy_no_pydantic() -> None:
    """The proxy's memory is a promise: its contracts must not pull in the operator's libraries."""
    code = "import stepdown.model.config, stepdown.model.sync, stepdown.model.money, sys; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
