"""One object for each rule that only this rule refuses. `test_model_resources` shows them to pydantic, and checks that no rule
is without one; whoever has an API server can `kubectl apply` them (`python -m tests.unit.model_refused` prints them as a List).
"""

import json
from typing import Any

Document = dict[str, Any]


def route(**spec: Any) -> Document:
    return _object("ModelRoute", {"models": {"default": "qwen3-8b"}, **spec})


def budget(**spec: Any) -> Document:
    return _object("SpendBudget", {"monthlyLimitUSD": "5.00", **spec})


def proxy(name: str = "default", **spec: Any) -> Document:
    channels = [{"name": "standard", "apiKeySecretRef": {"name": "upstream"}}]
    return _object("RoutingProxy", {"upstream": {"channels": channels}, **spec}, name)


def catalog(*models: Document) -> Document:
    document = _object("ModelCatalog", {"models": list(models)}, "prices")
    del document["metadata"]["namespace"]
    return document


def channel(name: str, prefix: str | None = None) -> Document:
    return {"name": name, "apiKeySecretRef": {"name": name}, **({"modelPrefix": prefix} if prefix else {})}


def _object(kind: str, spec: Document, name: str = "chat") -> Document:
    return {
        "apiVersion": "stepdown.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {key: value for key, value in spec.items() if value is not None},
    }


def _dated(*moments: str) -> list[Document]:
    return [{"from": moment, "inputUSDPerMTok": "1", "outputUSDPerMTok": "2"} for moment in moments]


_TARGET = {"group": "stepdown.dev", "kind": "ModelRoute", "name": "chat"}

REFUSED: list[tuple[Document, str, str]] = [
    (route(task="Judgment"), "spec", "exactly one of task and models"),
    (route(models=None), "spec", "exactly one of task and models"),
    (route(premium={"maxSharePercent": 5}), "spec.premium", "premium caps the use of models.premium"),
    (route(callers=[{}]), "spec.callers[0]", "exactly one of serviceAccount and apiKeySHA256"),
    (
        route(callers=[{"apiKeySHA256": "0" * 64, "serviceAccount": {"namespace": "a", "name": "b"}}]),
        "spec.callers[0]",
        "exactly one of serviceAccount and apiKeySHA256",
    ),
    (route(parameters={"timeout": "2h"}), "spec.parameters.timeout", "write a duration from 10ms to 1h"),
    (route(parameters={"timeout": "0s"}), "spec.parameters.timeout", "write a duration from 10ms to 1h"),
    (budget(monthlyLimitUSD="0.00"), "spec.monthlyLimitUSD", "must be more than 0"),
    (budget(targetRefs=[_TARGET], routeSelector={}), "spec.routeSelector", "at most one of targetRefs and routeSelector"),
    (budget(targetRefs=[_TARGET], namespaceSelector={}), "spec.namespaceSelector", "use routeSelector instead"),
    (
        budget(steps=[{"atPercent": 80, "action": "Notify"}, {"atPercent": 50, "action": "Notify"}]),
        "spec.steps",
        "steps must ascend by atPercent",
    ),
    (
        budget(steps=[{"atPercent": 80, "action": "Notify"}, {"atPercent": 80, "action": "Notify"}]),
        "spec.steps",
        "steps must ascend by atPercent",
    ),
    (
        budget(
            steps=[
                {"atPercent": 50, "action": "StepDown", "maxTier": "Budget"},
                {"atPercent": 60, "action": "Notify"},
                {"atPercent": 80, "action": "StepDown", "maxTier": "MidRange"},
            ]
        ),
        "spec.steps",
        "maxTier must not rise",
    ),
    (budget(steps=[{"atPercent": 80, "action": "StepDown"}]), "spec.steps[0].maxTier", "needs maxTier"),
    (budget(steps=[{"atPercent": 80, "action": "Notify", "maxTier": "Budget"}]), "spec.steps[0].maxTier", "hides nothing"),
    (budget(override={"addUSD": "0", "until": "2026-11-30T00:00:00Z"}), "spec.override.addUSD", "override.addUSD is 0"),
    (
        budget(routeSelector={"matchExpressions": [{"key": "team", "operator": "In"}]}),
        "spec.routeSelector.matchExpressions[0]",
        "In and NotIn need at least one of values",
    ),
    (
        budget(routeSelector={"matchExpressions": [{"key": "team", "operator": "Exists", "values": ["a"]}]}),
        "spec.routeSelector.matchExpressions[0]",
        "In and NotIn need at least one of values",
    ),
    (proxy(name="a.b"), "", "metadata.name names the Service"),
    (proxy(name="7-proxies"), "", "metadata.name names the Service"),
    (proxy(name="p" * 51), "", "metadata.name names the Service"),
    (proxy(leaseHorizon="1s"), "spec.leaseHorizon", "write a duration from 10s to 1h"),
    (
        proxy(autoscaling={"minReplicas": 3, "maxReplicas": 2}),
        "spec.autoscaling.minReplicas",
        "minReplicas is above maxReplicas",
    ),
    (
        proxy(upstream={"channels": [channel("pro", "Pro/")]}),
        "spec.upstream.channels",
        "exactly one channel must be without modelPrefix",
    ),
    (
        proxy(upstream={"channels": [channel("a"), channel("b", "Pro/"), channel("c", "Pro/")]}),
        "spec.upstream.channels",
        "the same modelPrefix",
    ),
    (proxy(upstream={"channels": [channel("a"), channel("a", "Pro/")]}), "spec.upstream.channels", "the same name"),
    (
        proxy(allowedRoutes={"namespaces": {"from": "Selector"}}),
        "spec.allowedRoutes.namespaces.selector",
        "only Selector takes one",
    ),
    (
        proxy(allowedRoutes={"namespaces": {"from": "All", "selector": {}}}),
        "spec.allowedRoutes.namespaces.selector",
        "only Selector takes one",
    ),
    (
        catalog({"name": "m", "prices": _dated("2026-12-01T00:00:00Z", "2026-11-01T00:00:00Z")}),
        "spec.models[0].prices",
        "prices must ascend by from",
    ),
    (
        catalog({"name": "m", "prices": _dated("2026-12-01T00:00:00Z", "2026-12-01T00:00:00Z")}),
        "spec.models[0].prices",
        "prices must ascend by from",
    ),
    (
        catalog({"name": "m", "outputBound": "MaxTokensPlusReasoning"}),
        "spec.models[0].reasoningTokens",
        "MaxTokensPlusReasoning needs reasoningTokens",
    ),
    (
        catalog({"name": "m", "reasoningTokens": 9}),
        "spec.models[0].reasoningTokens",
        "MaxTokensPlusReasoning needs reasoningTokens",
    ),
]
"""(object, field of the problem, part of its message)."""

if __name__ == "__main__":
    print(json.dumps({"apiVersion": "v1", "kind": "List", "items": [document for document, _, _ in REFUSED]}, indent=1))
