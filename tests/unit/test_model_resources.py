"""What a resource means is what its author wrote. If these fail, a valid policy is refused or a wrong one is obeyed."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stepdown.model import conditions, quantity
from stepdown.model.base import Api, LabelSelector, Rule, camel
from stepdown.model.errors import InvalidObject, parse
from stepdown.model.resources import KINDS, ModelRoute, RoutingProxy, SpendBudget
from tests.unit.model_refused import REFUSED, Document, budget, proxy, route


def _rules(of: type[Api] = Api) -> list[Rule]:
    return [rule for model in of.__subclasses__() for rule in [*vars(model).get("rules", ()), *_rules(model)]]


@pytest.mark.parametrize(("document", "field", "message"), REFUSED, ids=lambda each: each if isinstance(each, str) else "")
def test_every_rule_of_the_api_server_holds_without_one_too(document: Document, field: str, message: str) -> None:
    """`stepdown validate` would pass what `kubectl apply` then refuses."""
    with pytest.raises(InvalidObject) as refused:
        parse(document)
    (problem,) = refused.value.problems
    assert problem.field == field
    assert message in problem.message


def test_no_rule_is_without_an_object_that_it_refuses() -> None:
    """A rule that refuses nothing guards nothing, and nobody would notice."""
    unproven = [rule.message for rule in _rules() if not any(message in rule.message for _, _, message in REFUSED)]
    assert len(_rules()) >= 18
    assert unproven == []


def test_defaults_are_those_of_the_design() -> None:
    """A default that moves changes what every user's objects mean."""
    chat = parse(route())
    assert isinstance(chat, ModelRoute)
    assert (chat.key, chat.proxy_key) == ("shop/chat", "shop/default")
    assert chat.spec.step_down.floor == "UltraBudget"
    assert chat.spec.parameters.timeout_s == 600.0
    assert chat.spec.callers is None
    team = parse(budget())
    assert isinstance(team, SpendBudget)
    assert [(step.at_percent, step.action, step.max_tier) for step in team.spec.steps] == [
        (50, "Notify", None),
        (80, "StepDown", "MidRange"),
        (95, "StepDown", "UltraBudget"),
    ]
    assert (team.spec.enforcement, team.spec.time_zone, team.spec.protect_critical) == ("Hard", "UTC", True)
    fleet = parse(proxy())
    assert isinstance(fleet, RoutingProxy)
    assert fleet.spec.upstream.base_url == "https://global-apis.com/v1"
    assert (fleet.spec.lease_horizon_s, fleet.spec.unbudgeted_routes) == (600.0, "Allow")
    assert fleet.spec.allowed_routes.namespaces.from_ == "Same"
    assert fleet.spec.upstream.channels[0].api_key_secret_ref.key_or_default == "apiKey"


def test_units_are_in_the_names_and_exact() -> None:
    """A limit, a price or a time read in the wrong unit is off by powers of ten."""
    team = parse(budget(monthlyLimitUSD="0.05", override={"addUSD": "0.000000001", "until": "2026-11-30T00:00:00Z"}))
    assert isinstance(team, SpendBudget)
    assert team.spec.monthly_limit_nusd == 50_000_000
    assert team.spec.override is not None
    until_s = team.spec.override.until_s
    assert until_s == 1_795_996_800
    assert team.spec.limit_nusd(until_s - 1) == 50_000_001
    assert team.spec.limit_nusd(until_s) == 50_000_000, "the override ends at `until`, not after it"
    chat = parse(route(requirements={"maxOutputUSDPerMTok": "0.30"}, parameters={"timeout": "1m30s"}))
    assert isinstance(chat, ModelRoute)
    assert chat.spec.requirements.max_output_pusd == 300_000
    assert chat.spec.parameters.timeout_s == 90.0


@pytest.mark.parametrize(
    ("text", "milliseconds"), [("60s", 60_000), ("10m", 600_000), ("1h30m", 5_400_000), ("250ms", 250), ("1m1ms", 60_001)]
)
def test_durations_are_read_as_kubernetes_reads_them(text: str, milliseconds: int) -> None:
    """`10m` is minutes and `10ms` is not: a timeout a thousand times too long holds a lease as long."""
    assert quantity.duration_ms(text) == milliseconds


@pytest.mark.parametrize(("text", "value"), [("100m", "0.1"), ("128Mi", "134217728"), ("2", "2"), ("1.5G", "1500000000")])
def test_quantities_are_read_as_kubernetes_reads_them(text: str, value: str) -> None:
    """A pod's memory that is read wrongly is a pod that is killed."""
    assert str(quantity.quantity(text).normalize().__format__("f")) == value


@given(st.integers(0, 4_102_444_800))
def test_a_moment_survives_the_api_and_back(at_s: int) -> None:
    """A period's edge that moves bills requests to the wrong month."""
    assert quantity.moment_s(quantity.moment_text(at_s)) == at_s


@pytest.mark.parametrize(
    ("labels", "expressions", "matches"),
    [
        ({}, [], True),
        ({"team": "a"}, [], True),
        ({"team": "b"}, [], False),
        ({}, [{"key": "team", "operator": "In", "values": ["b", "a"]}], True),
        ({}, [{"key": "team", "operator": "NotIn", "values": ["a"]}], False),
        ({}, [{"key": "other", "operator": "NotIn", "values": ["a"]}], True),
        ({}, [{"key": "team", "operator": "Exists"}], True),
        ({}, [{"key": "team", "operator": "DoesNotExist"}], False),
        ({}, [{"key": "other", "operator": "Exists"}], False),
        ({"team": "a"}, [{"key": "other", "operator": "DoesNotExist"}], True),
    ],
)
def test_a_selector_selects_as_kubernetes_does(labels: dict[str, str], expressions: list[Any], matches: bool) -> None:
    """A budget that selects one route less leaves that route's spend without a ceiling."""
    selector = LabelSelector.model_validate({"matchLabels": labels, "matchExpressions": expressions})
    assert selector.matches({"team": "a"}) is matches


def test_values_cannot_be_changed_once_read() -> None:
    """The plan keeps and compares objects between passes; one that changes under it would be missed."""
    chat = parse(route())
    with pytest.raises(ValidationError, match="frozen"):
        chat.spec = None  # type: ignore[assignment, misc]


@pytest.mark.parametrize(
    ("name", "api"),
    [
        ("monthly_limit_usd", "monthlyLimitUSD"),
        ("input_usd_per_mtok", "inputUSDPerMTok"),
        ("base_url", "baseURL"),
        ("api_key_sha256", "apiKeySHA256"),
        ("usd_per_success", "usdPerSuccess"),
    ],
)
def test_attributes_have_the_names_of_the_design(name: str, api: str) -> None:
    """A field under another name is an unknown field to every user's YAML."""
    assert camel(name) == api


def test_a_status_in_a_file_is_not_read() -> None:
    """An object saved by `kubectl get -o yaml` must be usable as a file."""
    assert parse({**route(), "status": {"anything": 1}}).status is None


def test_conditions_of_every_kind_are_named_once() -> None:
    """A kind without its conditions is one that nobody can wait for."""
    assert set(conditions.TYPES) == set(KINDS)
    for types in conditions.TYPES.values():
        assert {conditions.ACCEPTED, conditions.READY} <= set(types)
        assert len(set(types)) == len(types)
    assert set(conditions.EVENT_TYPES) == {
        value for name, value in vars(conditions).items() if name.startswith("EVENT_") and name != "EVENT_TYPES"
    }
