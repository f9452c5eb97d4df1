"""A request finds its route, its class, its prices and its accounts in the compiled config."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepdown.model.config import Ladder, PriceFrom, Shard, digest, shard_of
from stepdown.proxy.table import BadConfig, RungEntry, Table, UnknownClass, UnknownRoute
from tests.unit.proxy_money import EDGE_S, END_S, MODELS, START_S, budget, fleet, model, route, shards, table

OTHER = route("web/chat", ["small"], budgets=())


def test_a_route_is_found_by_its_short_name_only_in_the_fleets_namespace() -> None:
    """A tenant could take another's name, and with it the other's budget."""
    found = table([route(), OTHER])
    assert found.find("chat", None)[0].name == "shop/chat"
    assert found.find("shop/chat", None)[0].name == "shop/chat"
    assert found.find("web/chat", None)[0].name == "web/chat"
    alone = table([OTHER])
    with pytest.raises(UnknownRoute, match=r"'chat'.*namespace shop.*GET /v1/models"):
        alone.find("chat", None)


@pytest.mark.parametrize(
    ("field", "header", "wanted"),
    [
        ("chat", None, "default"),
        ("chat:critical", None, "critical"),
        ("chat", "background", "background"),
        ("shop/chat:background", "critical", "background"),
        ("chat:default", "critical", "default"),
    ],
)
def test_a_class_is_named_in_the_model_or_in_the_header(field: str, header: str | None, wanted: str) -> None:
    """Without it a critical request would get the default model."""
    assert table().find(field, header)[1] == wanted


@pytest.mark.parametrize(
    ("field", "header"), [("chat:urgent", None), ("chat", "urgent"), ("chat:", None), ("nope:urgent", None)]
)
def test_an_unknown_class_is_refused_by_name(field: str, header: str | None) -> None:
    """A typing error must not silently be served as the default class."""
    with pytest.raises(UnknownClass, match="default, critical, background"):
        table().find(field, header)


def test_every_class_has_a_ladder() -> None:
    """A route without a premium model would crash on a critical request."""
    entry = table([route(more={"critical": Ladder(rungs=("big", "small"))})]).find("chat", None)[0]
    assert [rung.name for rung in entry.ladders["critical"].rungs] == ["big", "small"]
    assert entry.ladders["background"] is entry.ladders["default"]


def test_hidden_rungs_are_kept_apart_from_visible_ones() -> None:
    """A step down would be ignored, or the fit would not know what it hides."""
    ladder = table([route(in_force=1)]).find("chat", None)[0].ladders["default"]
    assert [rung.name for rung in ladder.hidden] == ["big"]
    assert [rung.name for rung in ladder.visible] == ["mid", "small"]


def test_a_budget_that_the_shard_lacks_is_hard_and_empty() -> None:
    """A rendering error would make a route unbudgeted, and its spend unbounded."""
    entry = table([route(budgets=("shop/gone",))]).find("chat", None)[0]
    assert entry.hard
    assert entry.budgets[0].account_at(float(START_S)) is None


def test_accounts_change_exactly_at_the_edge() -> None:
    """A request at midnight would be charged to the wrong month."""
    entry = table().find("chat", None)[0].budgets[0]
    at = [entry.account_at(moment) for moment in (START_S - 0.001, START_S, EDGE_S - 0.001, EDGE_S, END_S)]
    assert [each and each.start_s for each in at] == [None, START_S, START_S, EDGE_S, None]


def test_a_change_costs_one_shard_and_retires_the_old_one() -> None:
    """10,000 routes would be compiled again for each edit; and waiting requests would go on by a config that is gone."""
    assert shard_of("shop/chat") != shard_of("web/chat")
    before = table([route(), OTHER])
    old = before.find("chat", None)[0]
    after = before.replace(None, shards([route(in_force=1)]))
    fresh = after.find("chat", None)[0]
    assert fresh.ladders["default"].in_force == 1
    assert old.home.retired
    assert not fresh.home.retired
    assert after.find("web/chat", None)[0] is before.find("web/chat", None)[0]
    assert fresh.digest == digest(shards([route(in_force=1)])[shard_of("shop/chat")])


def test_a_route_that_is_gone_from_its_shard_is_gone() -> None:
    """A deleted route would be served for ever."""
    before = table([route(), OTHER])
    after = before.replace(None, {shard_of("shop/chat"): Shard(index=shard_of("shop/chat"))})
    assert [entry.name for entry in after.routes] == ["web/chat"]
    with pytest.raises(UnknownRoute):
        after.find("chat", None)


def test_a_shard_that_names_what_it_lacks_changes_nothing() -> None:
    """One bad render would take the fleet down."""
    before = table()
    broken = shards([route(rungs=("big", "missing"))])
    with pytest.raises(BadConfig, match=r"shop/chat.*'missing'"):
        before.replace(None, broken)
    assert not before.find("chat", None)[0].home.retired
    with pytest.raises(BadConfig):
        Table(fleet(), broken)


def test_key_hashes_distinguish_anyone_from_nobody() -> None:
    """A route with an empty list of callers would be open to all."""
    found = table([route(), route("shop/closed", api_key_sha256=()), route("shop/keyed", api_key_sha256=("ab" * 32,))])
    assert found.find("chat", None)[0].key_hashes is None
    assert found.find("closed", None)[0].key_hashes == frozenset()
    assert found.find("keyed", None)[0].key_hashes == frozenset({bytes.fromhex("ab" * 32)})


MOMENTS = st.integers(0, 100)


@given(
    st.lists(st.tuples(MOMENTS, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)), max_size=5),
    MOMENTS,
    st.integers(0, 50),
)
def test_prices_are_the_dearest_in_force_at_any_moment(
    entries: list[tuple[int, int, int, int]], now_s: int, lasts_s: int
) -> None:
    """A price that rises while a request runs would make it dearer than its reservation."""
    by_start = sorted({entry[0]: entry for entry in entries}.values())
    prices = tuple(PriceFrom(*entry) for entry in by_start)
    rung = RungEntry(model("m", prices=prices))
    seen: list[tuple[int, int, int] | None] = []
    for moment in range(now_s, now_s + lasts_s + 1):
        in_force = [entry[1:] for entry in by_start if entry[0] <= moment]
        seen.append(in_force[-1] if in_force else None)
    got = rung.prices_at(now_s, now_s + lasts_s)
    if None in seen:
        assert got is None
    else:
        assert got == tuple(max(each[part] for each in seen if each) for part in range(3))


def test_one_price_for_ever_needs_no_search() -> None:
    """The hot path would search a list for each request."""
    rung = RungEntry(MODELS[0])
    assert rung.flat == (1_000, 1_000, 10_000)
    assert RungEntry(model("later", prices=(PriceFrom(10, 1, 1, 1),))).flat is None
    assert RungEntry(model("unpriced", prices=())).prices_at(0, 1) is None


def test_a_soft_budget_does_not_make_a_route_hard() -> None:
    """Soft budgets must never refuse."""
    soft = table([route()], budgets=[budget(hard=False)]).find("chat", None)[0]
    assert not soft.hard
