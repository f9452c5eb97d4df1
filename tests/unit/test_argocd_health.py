"""The health that Argo CD shows, by the very script, in Lua 5.1 with no more than Argo CD gives it. If these fail, a sync waits
for ever, goes on too early, or paints red what works as told.

Statuses are the project's own: those of every golden file, and of passes made here.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml
from lupa import lua51
from release import manifests

from stepdown.model.crd import UNKNOWN_STATUS
from stepdown.model.resources import KINDS
from tests.unit.kstatus import kstatus

ROOT = Path(__file__).parents[2]
GOLDENS = sorted((ROOT / "tests" / "golden").glob("*.out.yaml"))
SCRIPT = manifests.HEALTH.read_text()
GIVEN = (
    "assert",
    "error",
    "ipairs",
    "next",
    "pairs",
    "pcall",
    "select",
    "table",
    "tonumber",
    "tostring",
    "type",
    "unpack",
    "print",
)
"""What of Lua Argo CD opens for a health check (util/lua: base and table; no string, no io)."""
AS_KSTATUS = {"Current": "Healthy", "InProgress": "Progressing", "Failed": "Degraded"}


def bare() -> lua51.LuaRuntime:
    lua = lua51.LuaRuntime(unpack_returned_tuples=True)
    allowed = {name: lua.globals()[name] for name in GIVEN}
    lua.execute("getmetatable('').__index = nil; for name in pairs(_G) do if name ~= '_G' then _G[name] = nil end end")
    for name, value in allowed.items():
        lua.globals()[name] = value
    return lua


def health(obj: dict[str, Any]) -> tuple[str, str]:
    """Status and message, as Argo CD reads them."""
    lua = bare()
    lua.globals().obj = lua.table_from(obj, recursive=True)
    found = lua.execute(SCRIPT)
    return found.status, found.message


def test_there_is_no_more_here_than_in_argo_cd() -> None:
    """A script that leans on the string library passes here and fails there: then Argo CD shows no health at all."""
    lua = bare()
    for library in ("string", "io", "os", "require", "dofile"):
        assert lua.globals()[library] is None
    with pytest.raises(lua51.LuaError):
        lua.execute("return ('a'):upper()")


def document(status: dict[str, Any] | None, *, kind: str = "ModelRoute", generation: int = 3) -> dict[str, Any]:
    made: dict[str, Any] = {
        "apiVersion": "stepdown.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": "a", "generation": generation},
    }
    return made if status is None else {**made, "status": status}


def condition(type_: str, status: str, reason: str, message: str = "") -> dict[str, Any]:
    return {"type": type_, "status": status, "reason": reason, "message": message, "observedGeneration": 3}


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda path: path.name.removesuffix(".out.yaml"))
def test_it_agrees_with_kubectl_wait_and_flux(golden: Path) -> None:
    """Two tools that disagree about one object cannot both be believed."""
    documents = yaml.safe_load(golden.read_text())["status"]["documents"]
    assert documents
    for name, status in documents.items():
        generation = status["observedGeneration"]
        shown, message = health(document(status, kind=name.split()[0], generation=generation))
        assert shown == AS_KSTATUS[kstatus(generation, status)], name
        assert message
        assert health(document(status, generation=generation + 1))[0] == "Progressing", f"{name}: changed a moment ago"


ACCEPTED = condition("Accepted", "True", "Accepted")
READY = condition("Ready", "True", "Ready")
SHOWN: dict[str, tuple[dict[str, Any] | None, str, str]] = {
    "no operator yet": (UNKNOWN_STATUS, "Progressing", "is the operator running?"),
    "no status at all": (None, "Progressing", "is the operator running?"),
    "an empty status": ({}, "Progressing", "is the operator running?"),
    "ready": ({"observedGeneration": 3, "conditions": [ACCEPTED, READY]}, "Healthy", "Ready"),
    "an older generation": ({"observedGeneration": 2, "conditions": [ACCEPTED, READY]}, "Progressing", "this change yet"),
    "stepped down": (
        {
            "observedGeneration": 3,
            "conditions": [READY, condition("SteppedDown", "True", "StepInForce", "budget team is at 80 %")],
        },
        "Healthy",
        "StepInForce: budget team is at 80 %",
    ),
    "a budget that is exhausted": (
        {"observedGeneration": 3, "conditions": [READY, condition("WithinBudget", "False", "Exhausted", "until 1 December")]},
        "Healthy",
        "Exhausted: until 1 December",
    ),
    "waiting for proxies": (
        {"observedGeneration": 3, "conditions": [condition("Ready", "False", "NotProgrammed", "1 of 2 proxies")]},
        "Progressing",
        "NotProgrammed: 1 of 2 proxies",
    ),
    "a typing error": (
        {
            "observedGeneration": 3,
            "conditions": [
                condition("Accepted", "False", "Invalid", "spec.steps[0]"),
                condition("Ready", "False", "NotAccepted", "see Accepted"),
                condition("Stalled", "True", "Invalid", "spec.steps[0]"),
            ],
        },
        "Degraded",
        "Invalid: spec.steps[0]",
    ),
    "no longer stalled": (
        {"observedGeneration": 3, "conditions": [READY, condition("Stalled", "False", "Accepted")]},
        "Healthy",
        "Ready",
    ),
}


@pytest.mark.parametrize(("status", "shown", "message"), SHOWN.values(), ids=SHOWN)
def test_what_a_person_sees(status: dict[str, Any] | None, shown: str, message: str) -> None:
    """Green where it works as told, blue while it may come right, red where somebody must change it; and why, in words."""
    found, words = health(document(status))
    assert found == shown
    assert message in words


def test_every_kind_is_checked_and_by_this_script() -> None:
    """A kind without a check is green whatever it says."""
    config = yaml.safe_load((manifests.MANIFESTS / "argocd" / "argocd-cm.yaml").read_text())
    assert config["data"] == {f"resource.customizations.health.stepdown.dev_{kind}": SCRIPT for kind in KINDS}
    # Argo CD reads no ConfigMap without this label.
    assert config["metadata"]["labels"]["app.kubernetes.io/part-of"] == "argocd"
