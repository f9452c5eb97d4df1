"""`kubectl get` in a terminal of 80 columns: ready, tier in force, spent, limit, percent, reset; nothing wraps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from stepdown.model.money import usd_to_nusd
from stepdown.model.resources import KINDS
from stepdown.plan.world import FleetSeen, RouteTotals
from stepdown.reconcile import reconcile
from stepdown.status import summary
from tests.unit.policy import NOW_S, budget, catalog, proxy, route, spent, world
from tests.unit.printed import steps, table

TWENTY = "a-name-of-20-letters"
WIDTH = 80


def objects(
    name: str, limit: str = "500.00", usd: str = "412.35", model: str = "DeepSeek V4 Flash"
) -> dict[str, dict[str, Any]]:
    """One of each kind with everything that it can show, by kind."""
    things = world(route(name, model), budget(name, limit), proxy(), catalog(name))
    view = replace(spent(things, **{name: usd}), totals={f"shop/{name}": RouteTotals(9, 9, 9, 9, usd_to_nusd(usd))})
    things = replace(things, fleets={"shop/default": FleetSeen(12, 10, 12)})
    made = reconcile(things, view, NOW_S)
    found = {}
    for (kind, key), document in made.statuses.items():
        shown = key.rpartition("/")[2] if kind != "RoutingProxy" else name
        if not (kind == "ModelCatalog" and key == "global-apis"):
            found[kind] = {"metadata": {"name": shown}, "status": document}
    return found


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize(
    ("limit", "usd"), [("500.00", "412.349999999"), ("0.05", "0.047"), ("250000", "249999.99"), ("20", "21")]
)
def test_each_kind_fits(kind: str, limit: str, usd: str) -> None:
    """A name of 20 letters, any sum below a million, any tier; a route's model may be as long as most are."""
    lines = table(KINDS[kind], [objects(TWENTY, limit, usd)[kind]])
    assert max(map(len, lines)) <= WIDTH, "\n".join(lines)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_all_kinds_at_once_fit(kind: str) -> None:
    """`kubectl get stepdown` puts the kind before each name; short names still fit."""
    lines = table(KINDS[kind], [objects("team")[kind]], prefix=True)
    assert max(map(len, lines)) <= WIDTH, "\n".join(lines)


def test_a_person_sees_what_counts() -> None:
    """Where the money is and what answers, without `-o yaml`."""
    shown = objects("chat", "500.00", "410.999999999", "DeepSeek V4 Pro")
    assert table(KINDS["SpendBudget"], [shown["SpendBudget"]]) == [
        "NAME   READY   TIER       SPENT   LIMIT   %    RESET",
        "chat   True    MidRange   410     500     82   1-Dec",
    ]
    assert table(KINDS["ModelRoute"], [shown["ModelRoute"]]) == [
        "NAME   READY   TIER       STEP   SPENT   MODEL",
        "chat   False   MidRange   80%    410     Hunyuan-Turbo",
    ]
    assert table(KINDS["RoutingProxy"], [shown["RoutingProxy"]])[0].split() == [
        "NAME", "READY", "PROGRAMMED", "PODS", "ROUTES", "AGE",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_new_object_shows_that_nobody_looked_at_it(kind: str) -> None:
    """Before the operator has come, READY is Unknown and nothing else is made up."""
    status = {"conditions": [{"type": "Ready", "status": "Unknown"}]}
    header, line = table(KINDS[kind], [{"metadata": {"name": "new"}, "status": status}])
    assert header.split()[1] == "READY" and line.split() in (["new", "Unknown"], ["new", "Unknown", "103m"])


@pytest.mark.parametrize(
    ("usd", "shown"),
    [
        ("0", "0"),
        ("0.0004", "0.00"),
        ("0.05", "0.05"),
        ("0.0429", "0.042"),
        ("7.319", "7.31"),
        ("99.999", "99.99"),
        ("412.9", "412"),
        ("98765.4", "98765"),
    ],
)
def test_money_is_cut_and_never_rounded_up(usd: str, shown: str) -> None:
    """499.99 of 500 is not shown as spent."""
    assert summary.money(usd_to_nusd(usd)) == shown
    assert summary.money(-usd_to_nusd(usd)) in (f"-{shown}", "0")


def test_columns_show_what_the_status_has() -> None:
    """A column whose path is spelt wrong is empty for ever and nobody is told."""
    crds = Path(__file__).parents[2] / "crds"
    for kind, resource in KINDS.items():
        schema = yaml.safe_load((crds / f"{resource.plural}.yaml").read_text())
        properties = schema["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
        for column in resource.columns:
            node: Any = {"properties": properties}
            if column.path.startswith(".metadata."):
                continue
            for step in steps(column.path):
                assert step.partition("[")[0] in node["properties"], f"{kind} {column.name}"
                node = node["properties"][step.partition("[")[0]]
                node = node["items"] if "[" in step else node
