"""The alerts of the chart ask for metrics that the operator has. If these fail, an alert is silent for ever, and nobody knows.

PromQL itself is not checked here: `promtool check rules` does, on what `helm template` gives.
"""

import re
from collections.abc import Iterator

import yaml
from prometheus_client.parser import text_string_to_metric_families
from release import helm

from stepdown.reconcile import reconcile
from stepdown.watch.metrics import Metrics, Shown
from tests.unit.policy import NOW_S, budget, route, spent, world

VALUES = {"metrics": {"prometheusRule": {"enabled": True}}}


def rules() -> list[dict[str, str]]:
    (found,) = (each for each in helm.objects(VALUES) if each["kind"] == "PrometheusRule")
    return [rule for group in found["spec"]["groups"] for rule in group["rules"]]


def samples() -> dict[str, set[str]]:
    """The labels of each sample that an operator shows which has a budget and has answered a proxy."""
    things = world(route(), budget())
    view = spent(things, team="50")
    text = Metrics().text(Shown(reconcile(things, view, NOW_S), view.balances, syncs={200: 1})).decode()
    families = text_string_to_metric_families(text)
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


def asked(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Each metric of an expression, and the labels that it is selected by."""
    for name, selector in re.findall(r"(stepdown_\w+)(?:\{([^}]*)\})?", expression):
        yield name, set(re.findall(r"(\w+)\s*[=!]~?", selector))


def test_every_metric_that_is_asked_for_is_there() -> None:
    """A name that was changed makes an expression that never is true."""
    there = samples()
    for rule in rules():
        wanted = list(asked(rule["expr"]))
        assert wanted, rule["alert"]
        for name, labels in wanted:
            assert name in there, f"{rule['alert']}: {name}"
            assert labels <= there[name], f"{rule['alert']}: {name}"


def test_every_label_that_a_message_names_is_there() -> None:
    """A page that says "SpendBudget /" has told nobody which."""
    there = samples()
    for rule in rules():
        (name, _), *_ = asked(rule["expr"])
        words = yaml.safe_dump(rule["annotations"])
        assert set(re.findall(r"\$labels\.(\w+)", words)) <= there[name], rule["alert"]


def test_every_alert_says_what_to_do() -> None:
    """Whoever is woken by it has never heard of Stepdown."""
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        assert {"summary", "description"} == rule["annotations"].keys(), rule["alert"]
    assert len(rules()) == len({rule["alert"] for rule in rules()}) >= 5
