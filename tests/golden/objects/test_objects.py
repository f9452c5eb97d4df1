"""The objects of a fleet, word for word as they were reviewed: what runs with which rights, and what people find in a cluster.

`make golden` rewrites the files; the diff is the review.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from stepdown.plan.world import LedgerView
from stepdown.reconcile import reconcile
from stepdown.render.objects import Object, Observed, Settings, fleet_objects
from tests.golden.staged import world_of

CASES = sorted(Path(__file__).parent.glob("*.in.yaml"))
NOW_S = 1_795_435_200


def rendered(case: dict[str, Any]) -> tuple[Object, ...]:
    """The objects of the case's fleet."""
    world = world_of(case["objects"])
    world = replace(world, allowed_upstreams=tuple(case.get("allowed_upstreams", world.allowed_upstreams)))
    made = reconcile(world, LedgerView(), NOW_S)
    settings = {**case["settings"], "pull_secrets": tuple(case["settings"].get("pull_secrets", ()))}
    key = case["fleet"]
    return fleet_objects(made.plan.fleets[key], made.configs[key], case["uid"], Settings(**settings), Observed())


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name.removesuffix(".in.yaml"))
def test_objects(case: Path, rewrite_golden: bool) -> None:
    """Whoever applies this RoutingProxy gets these objects, and no others."""
    out = case.with_name(case.name.replace(".in.", ".out."))
    objects = rendered(yaml.safe_load(case.read_text()))
    text = "---\n".join(yaml.safe_dump(each, sort_keys=False, width=120, allow_unicode=True) for each in objects)
    # The dumper names what is there twice; a reader should see it where it stands.
    assert "&id" not in text
    if rewrite_golden:
        out.write_text(text)
    assert out.exists(), f"{out.name} is missing: run make golden, read it, commit it"
    assert out.read_text() == text


def test_there_are_cases() -> None:
    """A wrong path must not pass for a hundred per cent."""
    assert len(CASES) >= 2
