"""A mistake is told in words that mend it. If these fail, a user reads a stack of pydantic or a regular expression instead."""

from typing import Any

import pytest

from stepdown.model.errors import InvalidObject, parse
from tests.unit.model_refused import budget, catalog, proxy, route


def told(document: dict[str, Any]) -> list[str]:
    with pytest.raises(InvalidObject) as refused:
        parse(document)
    return [str(problem) for problem in refused.value.problems]


@pytest.mark.parametrize(
    ("document", "line"),
    [
        (
            route(models={"default": "qwen3-8b", "fallback": []}),
            "ModelRoute shop/chat: spec.models.fallback is not a field of spec.models; did you mean 'fallbacks'?",
        ),
        (
            route(xyz=1),
            "ModelRoute shop/chat: spec.xyz is not a field of spec; it has callers, models, parameters, premium, proxyRef, "
            "requirements, stepDown, task: remove it",
        ),
        (
            route(step_down={}),
            "ModelRoute shop/chat: spec.step_down is not a field of spec; did you mean 'stepDown'?",
        ),
        (route(models={"default": 7}), 'ModelRoute shop/chat: spec.models.default is 7, a number; put it in quotes: "7"'),
        (
            route(models={"default": "a", "fallbacks": ["a", " b"]}),
            "ModelRoute shop/chat: spec.models.fallbacks[1] is ' b'; write a model's name or id as the catalog has it, without "
            "spaces around it",
        ),
        (
            route(stepDown={"floor": "Midrange"}),
            "ModelRoute shop/chat: spec.stepDown.floor is 'Midrange' (did you mean 'MidRange'?); "
            "write UltraBudget, Budget, MidRange, Premium or Flagship",
        ),
        (route(stepDown=[]), "ModelRoute shop/chat: spec.stepDown is a list, not a single value; write a map of fields"),
        (
            route(parameters={"maxTokens": "20"}),
            "ModelRoute shop/chat: spec.parameters.maxTokens is '20', a string; write a whole number without quotes",
        ),
        (route(parameters={"maxTokens": 0}), "ModelRoute shop/chat: spec.parameters.maxTokens is 0; write 1 or more"),
        (
            route(parameters={"maxTokens": True}),
            "ModelRoute shop/chat: spec.parameters.maxTokens is true, a truth value; write a whole number without quotes",
        ),
        (
            route(parameters={"maxTokens": 2**70}),
            f"ModelRoute shop/chat: spec.parameters.maxTokens is {2**70}; write 10000000 or less",
        ),
        (
            route(parameters={"temperature": float("nan")}),
            "ModelRoute shop/chat: spec.parameters.temperature is nan; write a finite number",
        ),
        (
            route(parameters={"timeout": "5 s"}),
            "ModelRoute shop/chat: spec.parameters.timeout is '5 s'; write a duration such as 60s, 10m or 1h30m",
        ),
        (
            route(callers=[{"apiKeySHA256": "F" * 64}]),
            f"ModelRoute shop/chat: spec.callers[0].apiKeySHA256 is '{'F' * 64}'; write the SHA-256 of the key as 64 "
            "lower-case hex digits; `stepdown key new` prints it",
        ),
        (
            route(models={"default": "a", "fallbacks": ["b"] * 9}),
            "ModelRoute shop/chat: spec.models.fallbacks has 9 entries; at most 8 are allowed: remove some",
        ),
        (
            budget(monthlyLimitUSD=None),
            'SpendBudget shop/chat: spec.monthlyLimitUSD is missing; write the month\'s ceiling, for example "500.00"',
        ),
        (
            budget(monthlyLimitUSD="-5"),
            "SpendBudget shop/chat: spec.monthlyLimitUSD is '-5'; write a sum in USD as a quoted decimal such as \"500.00\", "
            "at most 9 digits before the point and 9 after it",
        ),
        (
            budget(monthlyLimitUSD="0.0000000001"),
            "SpendBudget shop/chat: spec.monthlyLimitUSD is '0.0000000001'; write a sum in USD as a quoted decimal such as "
            '"500.00", at most 9 digits before the point and 9 after it',
        ),
        (
            budget(timeZone="Europe/Berln"),
            "SpendBudget shop/chat: spec.timeZone is 'Europe/Berln'; no such time zone (did you mean 'Europe/Berlin'?); "
            "write an IANA time zone such as UTC or Europe/Berlin",
        ),
        (
            budget(override={"addUSD": "1"}),
            "SpendBudget shop/chat: spec.override.until is missing; write when the override ends, "
            "for example 2026-12-01T00:00:00Z",
        ),
        (
            budget(override={"addUSD": "1", "until": "2026-02-30T00:00:00Z"}),
            "SpendBudget shop/chat: spec.override.until is '2026-02-30T00:00:00Z'; no calendar has it; "
            "write a moment in UTC such as 2026-12-01T00:00:00Z",
        ),
        (
            budget(protectCritical="yes"),
            "SpendBudget shop/chat: spec.protectCritical is 'yes', a string; write true or false without quotes",
        ),
        (
            proxy(upstream={"channels": []}),
            "RoutingProxy shop/default: spec.upstream.channels has 0 entries; write at least 1",
        ),
        (
            catalog({"name": "m", "ids": ["i"]}, {"name": "i"}),
            "ModelCatalog prices: spec.models names 'i' twice, as a name or id; every name and id belongs to one model: "
            "remove one",
        ),
        (
            {"apiVersion": "stepdown.dev/v1", "kind": "ModelRoute", "metadata": {"name": "a"}},
            "ModelRoute default/a: apiVersion is 'stepdown.dev/v1'; write stepdown.dev/v1alpha1",
        ),
        (
            {"apiVersion": "stepdown.dev/v1alpha1", "kind": "Modelroute", "metadata": {"name": "a"}},
            "Modelroute default/a: kind is 'Modelroute' (did you mean 'ModelRoute'?); "
            "stepdown.dev has ModelRoute, SpendBudget, RoutingProxy, ModelCatalog",
        ),
        (
            {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}},
            "Deployment default/a: apiVersion is 'apps/v1'; only objects of stepdown.dev/v1alpha1 are read here",
        ),
        (
            {"apiVersion": "stepdown.dev/v1alpha1", "kind": "ModelRoute", "spec": {"task": "Judgment"}},
            "ModelRoute default/?: metadata is missing; add it with the object's name",
        ),
        (
            {**route(), "metadata": {"name": "Chat", "namespace": "shop"}},
            "ModelRoute shop/Chat: metadata.name is 'Chat'; use lower-case letters, digits, '-' and '.', beginning and ending "
            "with a letter or digit",
        ),
    ],
    ids=lambda each: "" if isinstance(each, dict) else each[:60],
)
def test_a_mistake_is_told_with_its_object_field_value_and_remedy(document: dict[str, Any], line: str) -> None:
    """Whoever reads the line must be able to mend the object without reading our code."""
    assert told(document) == [line]


def test_all_mistakes_are_told_at_once() -> None:
    """One mistake a run would take a user as many runs as mistakes."""
    lines = told(
        budget(monthlyLimitUSD="0", timezone="UTC", enforcement="hard", steps=[{"atPercent": 101, "action": "Notify"}])
    )
    assert len(lines) == 3
    assert [line.split()[2] for line in lines] == ["spec.steps[0].atPercent", "spec.enforcement", "spec.timezone"]


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"kind": 5},
        {"kind": ["ModelRoute"]},
        {"kind": "ModelRoute", "apiVersion": {}},
        {**route(), "metadata": []},
        {**route(), "spec": None},
        {**route(), "metadata": {"name": {"a": 1}, "namespace": 3}},
    ],
)
def test_rubbish_is_refused_not_crashed_on(document: dict[str, Any]) -> None:
    """One file of rubbish would take the operator down, and every route with it."""
    assert told(document)


def test_a_long_value_is_cut() -> None:
    """A megabyte pasted into a field would come back as a megabyte of message."""
    (line,) = told(route(task="x" * 10_000, models=None))
    assert len(line) < 400


def test_the_path_of_a_problem_finds_its_line() -> None:
    """Editors and `stepdown validate` jump to the line by it."""
    with pytest.raises(InvalidObject) as refused:
        parse(route(callers=[{}]))
    assert refused.value.problems[0].path == ("spec", "callers", 0)


def test_a_namespace_is_added_only_where_there_is_none() -> None:
    """An object in the wrong namespace is under the wrong budget."""
    document = route()
    assert parse(document, namespace="other").key == "shop/chat"
    del document["metadata"]["namespace"]
    assert parse(document, namespace="other").key == "other/chat"
    assert parse(catalog(), namespace="other").key == "prices"
