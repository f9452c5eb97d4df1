"""The price list is the facts, nothing else. If these fail, a bill is made of wrong prices, or a wrong model answers."""

import csv
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepdown.model.catalog import Catalog, CatalogModel, built_in, built_in_text, channel_of, tier_of
from stepdown.model.config import Channel, PriceFrom
from stepdown.model.errors import parse
from stepdown.model.money import pusd_to_usd_per_mtok
from stepdown.model.quantity import moment_s
from stepdown.model.resources import CatalogSpec, ModelCatalog

FACTS = list(csv.DictReader((Path(__file__).parent / "data" / "models.csv").read_text().splitlines()))
"""The facts as they were given, a row a model."""
NOW_S = moment_s("2026-11-23T00:00:00Z")
DECEMBER = "2026-12-01T00:00:00Z"
CONTEXTS = {"32K": 32_768, "128K": 131_072, "Auto": None, "": None}
CHANNELS = (
    Channel(name="standard"),
    Channel(name="pro", model_prefix="Pro/"),
    Channel(name="r1", model_prefix="Pro/deepseek-ai/"),
)


def prices(*models: dict[str, Any], **tasks: str) -> ModelCatalog:
    """A catalog of an administrator's own."""
    document = {
        "apiVersion": "stepdown.dev/v1alpha1",
        "kind": "ModelCatalog",
        "metadata": {"name": "own"},
        "spec": {"models": list(models), "tasks": tasks},
    }
    resource = parse(document)
    assert isinstance(resource, ModelCatalog)
    return resource


def of(*catalogs: ModelCatalog, at_s: float = NOW_S) -> Catalog:
    return Catalog.of([built_in(), *catalogs], at_s)


def model(catalog: Catalog, name: str) -> CatalogModel:
    found = catalog.get(name)
    assert found is not None, name
    return found


def shown(pusd: int | None) -> str:
    return "" if pusd is None else pusd_to_usd_per_mtok(pusd)


@pytest.mark.parametrize("row", FACTS, ids=lambda row: row["model"])
def test_every_row_of_the_facts_is_in_the_catalog(row: dict[str, str]) -> None:
    """A price that differs from the facts makes every bill differ; an empty cell that became a price is a made-up one."""
    found = model(of(), row["model"])
    assert found.provider == row["provider"]
    assert (shown(found.output_pusd), shown(found.input_pusd)) == (row["output_usd_per_mtok"], row["input_usd_per_mtok"])
    assert found.is_priced is bool(row["input_usd_per_mtok"] and row["output_usd_per_mtok"])
    assert found.context_tokens == CONTEXTS[row["context"]]
    if row["tier"]:
        assert found.tier == row["tier"]
    assert ("vision" in found.capabilities) is ("vision" in row["note"])
    assert ("audio" in found.capabilities) is ("audio" in row["note"])


def test_the_catalog_has_nothing_beyond_the_facts() -> None:
    """A model that nobody offers would be a rung that never answers."""
    assert [each.name for each in of().models] == [row["model"] for row in FACTS]


@pytest.mark.parametrize(
    ("request_id", "name"),
    [
        ("qwen3-8b", "Qwen3-8B"),
        ("deepseek-v4-flash", "DeepSeek V4 Flash"),
        ("deepseek-ai/DeepSeek-V4-Flash", "DeepSeek V4 Flash"),
        ("Qwen/Qwen3-32B", "Qwen3-32B"),
        ("Pro/deepseek-ai/DeepSeek-V3.2", "DeepSeek-V3.2 (Pro)"),
        ("Pro/deepseek-ai/DeepSeek-R1", "DeepSeek-R1"),
    ],
)
def test_request_ids_find_their_model_and_reach_the_upstream_as_written(request_id: str, name: str) -> None:
    """People's routes must come out unchanged: the upstream gets the id that the route names."""
    found = model(of(), request_id)
    assert found.name == name
    assert found.to_config(CHANNELS, request_id).upstream_id == request_id
    assert found.to_config(CHANNELS).upstream_id == found.ids[0]


def test_a_model_without_a_known_id_is_asked_for_by_its_name() -> None:
    """An id made up for it would be a 404 from the upstream."""
    assert model(of(), "Qwen3-14B").to_config(CHANNELS, "Qwen3-14B").upstream_id == "Qwen3-14B"


def test_a_zero_price_is_a_price_and_an_absent_one_is_not() -> None:
    """Free input must serve under a Hard budget; unknown input must not."""
    ernie, r1 = model(of(), "ERNIE-Speed-128K"), model(of(), "DeepSeek-R1")
    assert ernie.to_config(CHANNELS).prices == (PriceFrom(0, 0, 0, 200_000),)
    assert (ernie.is_priced, r1.is_priced) == (True, False)
    assert r1.to_config(CHANNELS).prices == ()


def test_the_baseline_is_no_target() -> None:
    """GPT-4o is what savings are compared with; a route that stepped onto it would cost forty times as much."""
    assert model(of(), "GPT-4o").baseline_only
    assert "GPT-4o" not in [each.name for each in of().targets]
    assert "GPT-4o" not in of().nearest("GPT-4")


def test_upstream_routed_models_meet_no_provider_rule() -> None:
    """Data that may go to named providers only would go to whom the upstream likes."""
    smart, qwen = model(of(), "Ga-Economy"), model(of(), "Qwen3-8B")
    assert smart.upstream_routed
    assert smart.meets_providers([], [])
    assert not smart.meets_providers([], ["Baidu"])
    assert not smart.meets_providers(["GA Routing"], [])
    assert qwen.meets_providers(["Qwen"], ["Baidu"])
    assert not qwen.meets_providers([], ["Qwen"])
    assert not qwen.meets_providers(["GLM"], [])


def test_a_model_of_unknown_provider_meets_no_provider_rule() -> None:
    """Who is not known may be the one denied."""
    assert not model(of(prices({"name": "own"})), "own").meets_providers([], ["Baidu"])


@pytest.mark.parametrize(
    ("output_pusd", "tier"),
    [
        (0, "UltraBudget"), (100_000, "UltraBudget"), (100_001, "Budget"), (300_000, "Budget"), (300_001, "MidRange"),
        (800_000, "MidRange"), (800_001, "Premium"), (2_000_000, "Premium"), (2_000_001, "Flagship"), (3_500_000, "Flagship"),
        (9_000_000, "Flagship"), (None, "Flagship"),
    ],
)  # fmt: skip
def test_bands_include_their_upper_bound_and_the_unknown_is_the_dearest(output_pusd: int | None, tier: str) -> None:
    """A model in a tier too low would pass a step that should hide it."""
    assert tier_of(output_pusd) == tier


def test_a_stated_tier_wins_over_the_band() -> None:
    """DeepSeek V4 Pro is sold as Premium at a mid-range price; Ga-Standard as mid-range without a stated tier."""
    assert tier_of(model(of(), "DeepSeek V4 Pro").output_pusd) == "MidRange"
    assert model(of(), "DeepSeek V4 Pro").tier == "Premium"
    assert model(of(), "Ga-Standard").tier == "Budget"


def test_tasks_take_the_models_of_the_facts() -> None:
    """A task without a model is a route that cannot be resolved."""
    catalog = of()
    assert {task: model(catalog, name).name for task, name in catalog.tasks.items()} == {
        "Bandwidth": "Qwen3-8B",
        "Judgment": "DeepSeek V4 Flash",
        "Flagship": "DeepSeek-R1",
    }
    assert of(prices({"name": "own"}, Judgment="own")).for_task("Judgment") == "own"


@pytest.mark.parametrize("named", ["DeepSeek-R1", "Pro/deepseek-ai/DeepSeek-R1"])
def test_an_administrators_catalog_adds_the_price_that_was_not_known(named: str) -> None:
    """This is how an Unpriced model gets to serve; what the entry leaves out must stay as it was."""
    r1 = model(of(prices({"name": named, "inputUSDPerMTok": "0.55"})), "DeepSeek-R1")
    assert (r1.input_pusd, r1.output_pusd, r1.cached_input_pusd) == (550_000, 2_500_000, 550_000)
    assert (r1.is_priced, r1.tier, r1.ids) == (True, "Flagship", ("Pro/deepseek-ai/DeepSeek-R1",))
    assert len(of(prices({"name": named})).models) == len(FACTS)


def test_the_last_of_several_catalogs_wins_field_by_field() -> None:
    """Two teams' catalogs must not depend on who looks."""
    first = prices({"name": "Qwen3-8B", "outputUSDPerMTok": "0.02", "contextTokens": 1000})
    second = prices({"name": "Qwen3-8B", "outputUSDPerMTok": "0.03"})
    found = model(of(first, second), "qwen3-8b")
    assert (found.output_pusd, found.input_pusd, found.context_tokens) == (30_000, 10_000, 1000)
    assert model(of(second, first), "qwen3-8b").output_pusd == 20_000


def test_a_catalog_that_was_kept_and_read_back_overrides_no_more_than_before() -> None:
    """The last accepted spec is kept in the ledger; read back with empty fields it must not wipe what lies below it."""
    own = prices({"name": "DeepSeek-R1", "inputUSDPerMTok": "0.55"})
    kept = own.model_copy(update={"spec": CatalogSpec.model_validate_json(own.spec.model_dump_json())})
    assert model(of(kept), "DeepSeek-R1") == model(of(own), "DeepSeek-R1")
    assert model(of(kept), "DeepSeek-R1").ids == ("Pro/deepseek-ai/DeepSeek-R1",)


def test_an_id_belongs_to_the_model_that_claimed_it_last() -> None:
    """An id that finds one model and is sent for another would be billed at the wrong price."""
    catalog = of(prices({"name": "mine", "ids": ["qwen3-8b"], "inputUSDPerMTok": "1", "outputUSDPerMTok": "1"}))
    assert model(catalog, "qwen3-8b").name == "mine"
    assert model(catalog, "Qwen3-8B").to_config(CHANNELS).upstream_id == "Qwen3-8B"


def test_prices_change_at_their_moment_and_the_tier_with_them() -> None:
    """A price rise that comes late is a bill over the ceiling; one that comes early hides a model that still fits."""
    own = prices(
        {
            "name": "m",
            "inputUSDPerMTok": "0.10",
            "outputUSDPerMTok": "0.30",
            "prices": [
                {"from": DECEMBER, "inputUSDPerMTok": "0.20", "outputUSDPerMTok": "0.31", "cachedInputUSDPerMTok": "0.05"}
            ],
        }
    )
    at_s = moment_s(DECEMBER)
    before, after = of(own, at_s=at_s - 1), of(own, at_s=at_s)
    assert (model(before, "m").output_pusd, model(before, "m").tier) == (300_000, "Budget")
    assert (model(after, "m").output_pusd, model(after, "m").tier) == (310_000, "MidRange")
    assert (before.changes_at_s, after.changes_at_s) == (at_s, None)
    expected = (PriceFrom(0, 100_000, 100_000, 300_000), PriceFrom(at_s, 200_000, 50_000, 310_000))
    assert model(before, "m").to_config(CHANNELS).prices == model(after, "m").to_config(CHANNELS).prices == expected


def test_a_price_that_begins_later_leaves_the_model_unpriced_until_then() -> None:
    """Before it begins nothing is known, so nothing may be charged by it."""
    dated = [{"from": DECEMBER, "inputUSDPerMTok": "1", "outputUSDPerMTok": "2"}]
    own = prices({"name": "GLM-5", "prices": dated})
    assert not model(of(own), "GLM-5").is_priced
    assert model(of(own, at_s=moment_s(DECEMBER)), "GLM-5").is_priced
    assert model(of(own), "GLM-5").to_config(CHANNELS).prices == (
        PriceFrom(moment_s(DECEMBER), 1_000_000, 1_000_000, 2_000_000),
    )


def test_a_plain_price_stated_later_ends_an_earlier_catalogs_dated_ones() -> None:
    """An administrator who states a price must not be overruled by a list below theirs."""
    dated = [{"from": "2026-01-01T00:00:00Z", "inputUSDPerMTok": "1", "outputUSDPerMTok": "2"}]
    lower = prices({"name": "GLM-5", "prices": dated})
    upper = prices({"name": "GLM-5", "inputUSDPerMTok": "3", "outputUSDPerMTok": "4"})
    assert model(of(lower, upper), "GLM-5").input_pusd == 3_000_000


@given(st.sampled_from(["qwen3-8b", "Pro/x", "Pro/deepseek-ai/DeepSeek-R1", "pro/x", "Pro"]))
def test_a_model_goes_through_the_channel_with_the_longest_prefix(upstream_id: str) -> None:
    """The wrong channel has the wrong key, and the wrong contract."""
    expected = {"Pro/x": "pro", "Pro/deepseek-ai/DeepSeek-R1": "r1"}.get(upstream_id, "standard")
    assert channel_of(upstream_id, CHANNELS).name == expected
    assert channel_of(upstream_id, CHANNELS[::-1]).name == expected


def test_a_bound_beyond_max_tokens_reaches_the_proxy() -> None:
    """A model that thinks beyond max_tokens would otherwise be reserved too little, and pass the ceiling."""
    entry = {
        "name": "thinker",
        "outputBound": "MaxTokensPlusReasoning",
        "reasoningTokens": 9000,
        "maxTokensField": "max_completion_tokens",
        "maxOutputTokens": 5000,
        "contextTokens": 64000,
    }
    config = model(of(prices(entry)), "thinker").to_config(CHANNELS)
    assert (config.output_bound, config.reasoning_tokens) == ("MaxTokensPlusReasoning", 9000)
    assert (config.max_tokens_field, config.max_output_tokens, config.context_tokens) == ("max_completion_tokens", 5000, 64000)


def test_names_are_exact_and_the_nearest_are_told() -> None:
    """A guess would route a user's data to a model that they did not name."""
    assert of().get("QWEN3-8B") is None
    assert of().get("qwen3-32") is None
    assert "Qwen/Qwen3-32B" in of().nearest("qwen3-32")
    assert of().nearest("zzzzzzzz") == ()


def test_the_copy_for_kubectl_is_the_built_in_list() -> None:
    """A cluster and `stepdown run` must price alike. `make generate` writes the copy."""
    copy = Path(__file__).parents[2] / "manifests" / "catalog" / "global-apis.yaml"
    assert copy.read_text() == built_in_text()
