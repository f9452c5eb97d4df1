"""Ladders: the rungs that money may push a route down to. A wrong one breaks a requirement or makes a step dearer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepdown.model import conditions
from stepdown.model.catalog import Catalog, CatalogModel, Price, built_in
from stepdown.model.config import TIERS, Tier
from stepdown.plan.budgets import Force
from stepdown.plan.ladder import Wanted, build, hide
from stepdown.plan.routes import steps_of
from stepdown.plan.rungs import NO_NEEDS, Needs, Rung
from tests.unit.policy import NOW_S

CATALOG = Catalog.of([built_in()], NOW_S)

prices = st.one_of(st.none(), st.integers(0, 3_500_000))
tiers = st.sampled_from(TIERS)


@st.composite
def models(draw: st.DrawFn, index: int) -> CatalogModel:
    price = Price(0, draw(prices), draw(prices), 0)
    return CatalogModel(
        name=f"m{index}",
        order=index,
        tier=draw(tiers),
        prices=(price,),
        price=price,
        provider=draw(st.sampled_from(["a", "b", None])),
        upstream_routed=draw(st.booleans()),
        context_tokens=draw(st.sampled_from([None, 32768, 131072])),
        capabilities=draw(st.sampled_from([frozenset(), frozenset({"vision"})])),
        compliance=draw(st.sampled_from([frozenset(), frozenset({"DPA"})])),
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[Wanted, Catalog]:
    count = draw(st.integers(1, 10))
    catalog = Catalog([draw(models(index)) for index in range(count)], {}, 0)
    names = st.sampled_from([f"m{index}" for index in range(count)])
    needs = Needs(
        context_tokens=draw(st.sampled_from([None, 32768, 131072])),
        capabilities=draw(st.sampled_from([(), ("vision",)])),
        allow=draw(st.sampled_from([(), ("a",)])),
        deny=draw(st.sampled_from([(), ("b",)])),
        compliance=draw(st.sampled_from([(), ("DPA",)])),
        max_output_pusd=draw(st.sampled_from([None, 800_000])),
    )
    wanted = Wanted(
        default=draw(names),
        fallbacks=tuple(draw(st.lists(names, max_size=3))),
        premium=draw(st.one_of(st.just(""), names)),
        step_down=tuple(draw(st.lists(names, max_size=3))),
        floor=draw(tiers),
        needs=draw(st.sampled_from([NO_NEEDS, needs])),
        hard=draw(st.booleans()),
    )
    return wanted, catalog


forces = st.lists(
    st.builds(
        Force,
        budget=st.sampled_from(["shop/a", "shop/b", "shop/c"]),
        hard=st.just(True),
        max_tier=st.one_of(st.none(), tiers),
        protect_critical=st.booleans(),
    ),
    max_size=3,
)


def _reachable(case: tuple[Wanted, Catalog]) -> list[Rung]:
    ladders = build(*case)
    return [*ladders.default, *ladders.critical, *ladders.background, *ladders.fallbacks]


@given(cases())
def test_no_rung_is_outside_the_rules(case: tuple[Wanted, Catalog]) -> None:
    """Whatever happens to money or upstream, no request reaches a model that the route forbids, or one without a price."""
    wanted, _ = case
    for rung in _reachable(case):
        assert not wanted.needs.unmet_by(rung.model)
        assert rung.model.tier_index >= TIERS.index(wanted.floor)
        assert rung.model.is_priced or not wanted.hard


@given(cases())
def test_the_default_ladder_goes_down(case: tuple[Wanted, Catalog]) -> None:
    """A step down never goes to a dearer tier than the wanted one, and no model is on a ladder twice."""
    wanted, catalog = case
    ladders = build(wanted, catalog)
    first = catalog.get(wanted.default)
    assert first is not None
    assert all(rung.model.tier_index <= first.tier_index for rung in ladders.default)
    for rungs in (ladders.default, ladders.critical, ladders.background):
        assert len({rung.model.name for rung in rungs}) == len(rungs)


@given(cases())
def test_a_catalog_rung_is_not_dearer_where_the_tier_has_one_that_is_not(case: tuple[Wanted, Catalog]) -> None:
    """Of a tier in which some model is dearer than the wanted one in nothing, such a one is taken: the documented rule."""
    wanted, catalog = case
    ladders = build(wanted, catalog)
    first = catalog.get(wanted.default)
    assert first is not None
    rejected = {each.model for each in ladders.rejected if each.reason.startswith("one rung a tier")}

    def cheap(model: CatalogModel) -> bool:
        return all(
            bound is None or (price is not None and price <= bound)
            for price, bound in ((model.input_pusd, first.input_pusd), (model.output_pusd, first.output_pusd))
        )

    own = {wanted.default, *wanted.step_down}
    for rung in ladders.default:
        others = [model for model in catalog.targets if model.name in rejected and model.tier == rung.tier]
        if rung.model.name not in own and any(cheap(model) for model in others):
            assert cheap(rung.model)


@given(cases(), tiers, tiers)
def test_a_stricter_step_never_raises_the_tier(case: tuple[Wanted, Catalog], one: Tier, other: Tier) -> None:
    """When a later step is reached the route does not go back up."""
    ladders = build(*case)
    if not ladders.default:
        return
    low, high = sorted((one, other), key=TIERS.index)
    served = []
    for tier in (low, high):
        rungs, hidden, kept = hide(ladders.default, tier)
        assert sorted(rung.model.name for rung in rungs) == sorted(rung.model.name for rung in ladders.default)
        assert not kept or all(rung.model.tier_index <= TIERS.index(tier) for rung in rungs[hidden:])
        assert all(rung.model.tier_index > TIERS.index(tier) for rung in rungs[:hidden])
        served.append(max(rung.model.tier_index for rung in rungs[hidden:]))
    assert served[0] <= served[1]


@given(cases(), forces, forces)
def test_another_budget_never_relaxes(case: tuple[Wanted, Catalog], some: list[Force], more: list[Force]) -> None:
    """A route under one budget more is served by the same tier or a cheaper one, in every class."""
    ladders = build(*case)
    if not ladders.default:
        return
    before, after = steps_of(ladders, some), steps_of(ladders, some + more)
    for name, plan in after.items():
        was = before.get(name, before["default"])
        assert max(r.model.tier_index for r in plan.rungs[plan.in_force :]) <= max(
            r.model.tier_index for r in was.rungs[was.in_force :]
        )
        assert {rung.model.name for rung in plan.fallbacks} <= {
            rung.model.name for rung in (*was.fallbacks, *was.rungs, *ladders.default, *ladders.fallbacks)
        }


@given(cases(), st.sampled_from([None, *TIERS]))
def test_fallbacks_obey_the_step(case: tuple[Wanted, Catalog], tier: Tier | None) -> None:
    """An outage is no way around a step: a fallback is of no dearer tier than the step leaves, or than what answers."""
    ladders = build(*case)
    if not ladders.default or tier is None:
        return
    plan = steps_of(ladders, [Force("shop/a", True, tier, protect_critical=False)])["default"]
    top = max(plan.served_by.model.tier_index, TIERS.index(tier))
    assert all(rung.model.tier_index <= top for rung in plan.fallbacks)


def _names(rungs: tuple[Rung, ...]) -> list[str]:
    return [rung.upstream_id for rung in rungs]


def test_the_hybrid_router() -> None:
    """The router that people write by hand comes out of one ModelRoute, with the ids that they use."""
    wanted = Wanted("deepseek-ai/DeepSeek-V4-Flash", fallbacks=("Qwen/Qwen3-32B",), premium="Pro/deepseek-ai/DeepSeek-R1")
    ladders = build(wanted, CATALOG)
    assert _names(ladders.default) == ["deepseek-ai/DeepSeek-V4-Flash", "Qwen2.5-14B", "qwen3-8b"]
    assert _names(ladders.critical)[0] == "Pro/deepseek-ai/DeepSeek-R1"
    assert _names(ladders.background)[0] == "Qwen/Qwen3-32B"


def test_hunyuan_lite_is_passed_over() -> None:
    """$0.39 of input is no step down from $0.18, though its output is the dearest of UltraBudget."""
    ladders = build(Wanted("deepseek-v4-flash"), CATALOG)
    assert "Hunyuan-Lite" not in _names(ladders.default)


def test_explicit_rungs_come_first_and_cover_their_tiers() -> None:
    """What the team wrote is tried in its order, and the catalog goes on below it."""
    ladders = build(Wanted("DeepSeek-V3.2", step_down=("Qwen3-14B", "qwen3-8b")), CATALOG)
    assert [rung.model.name for rung in ladders.default] == ["DeepSeek-V3.2", "Qwen3-14B", "Qwen3-8B"]
    ladders = build(Wanted("DeepSeek-V3.2", step_down=("Qwen3-14B",)), CATALOG)
    assert [rung.tier for rung in ladders.default] == ["MidRange", "Budget", "UltraBudget", "UltraBudget"]


def test_the_last_rung_is_the_cheapest_that_may_answer() -> None:
    """Near the ceiling a route goes on answering ten times as long: a tier's best is far from its cheapest."""
    best, cheapest = build(Wanted("deepseek-v4-flash"), CATALOG).default[-2:]
    assert best.tier == cheapest.tier == "UltraBudget"
    assert (best.model.output_pusd, cheapest.model.output_pusd) == (100_000, 10_000)


def test_the_last_rung_keeps_the_floor_and_the_requirements() -> None:
    """A route that must see pictures, or stay in its tier, is not answered by something cheaper that may not."""
    above = build(Wanted("DeepSeek-V3.2", floor="Budget"), CATALOG).default
    assert {rung.tier for rung in above} == {"MidRange", "Budget"}
    seeing = build(Wanted("GLM-4.6V", needs=Needs(capabilities=("vision",))), CATALOG).default
    assert [rung.model.name for rung in seeing] == ["GLM-4.6V", "Qwen3-VL-32B"]
    assert [rung.model.name for rung in build(Wanted("qwen3-8b"), CATALOG).default] == ["Qwen3-8B"]


def test_a_step_up_is_rejected_with_its_reason() -> None:
    """A model of a dearer tier among stepDown.models is not tried when money runs out, and explain says why."""
    ladders = build(Wanted("qwen3-8b", step_down=("DeepSeek-V3.2",)), CATALOG)
    (rejected,) = [each for each in ladders.rejected if each.field]
    assert "a step down never goes up" in rejected.reason


@pytest.mark.parametrize(
    ("wanted", "reason", "says"),
    [
        (Wanted("Qwen/Qwen3-23B"), conditions.MODEL_NOT_FOUND, "Qwen/Qwen3-32B"),
        (Wanted("GPT-4o"), conditions.MODEL_NOT_FOUND, "baseline"),
        (Wanted("qwen3-8b", fallbacks=("nonsense-xyz",)), conditions.MODEL_NOT_FOUND, "spec.models.fallbacks[0]"),
        (Wanted("qwen3-8b", floor="Budget"), conditions.FLOOR_ABOVE_DEFAULT, "Lower the floor to UltraBudget"),
        (Wanted("qwen3-8b", needs=Needs(capabilities=("vision",))), conditions.NOTHING_MEETS_REQUIREMENTS, "Qwen3-VL-32B"),
        (Wanted("qwen3-8b", needs=Needs(capabilities=("telepathy",))), conditions.NOTHING_MEETS_REQUIREMENTS, "No model"),
        (Wanted("Pro/deepseek-ai/DeepSeek-R1", hard=True), conditions.UNPRICED, "ModelCatalog of your own"),
        (
            Wanted("Ga-Economy", needs=Needs(deny=("Baidu",))),
            conditions.NOTHING_MEETS_REQUIREMENTS,
            "the upstream picks its provider",
        ),
        (
            Wanted("qwen3-8b", fallbacks=("deepseek-v4-flash",), needs=Needs(max_output_pusd=20_000)),
            conditions.NOTHING_MEETS_REQUIREMENTS,
            "spec.models.fallbacks[0]",
        ),
    ],
)
def test_what_is_not_accepted_says_what_to_write(wanted: Wanted, reason: str, says: str) -> None:
    """A spec that cannot hold is refused with the field, the value, and what would be valid."""
    problem = build(wanted, CATALOG).problem
    assert problem is not None
    assert problem.reason == reason and says in problem.message


def test_a_task_takes_the_catalogs_choice() -> None:
    """`task: Judgment` is a route without a model's name, and gets one."""
    assert build(Wanted("", task="Judgment"), CATALOG).default[0].model.name == "DeepSeek V4 Flash"
    problem = build(Wanted("", task="Judgment"), Catalog([], {}, 0)).problem
    assert problem is not None and problem.reason == conditions.TASK_NOT_FOUND
