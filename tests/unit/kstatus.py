"""How kstatus, by which Flux and others wait, reads an object: its documented algorithm for custom resources.

Written from sigs.k8s.io/cli-utils, pkg/kstatus: generic properties first, then the condition Ready.
"""

from collections.abc import Mapping
from typing import Any, Literal

Verdict = Literal["Terminating", "InProgress", "Failed", "Current"]


def kstatus(generation: int | None, status: Mapping[str, Any] | None, *, deleting: bool = False) -> Verdict:
    """What a tool that waits for the object makes of it."""
    if deleting:
        return "Terminating"
    status = status or {}
    observed = status.get("observedGeneration")
    if generation is not None and observed is not None and observed != generation:
        return "InProgress"
    for condition in status.get("conditions", ()):
        if condition["type"] == "Reconciling" and condition["status"] == "True":
            return "InProgress"
        if condition["type"] == "Stalled" and condition["status"] == "True":
            return "Failed"
    for condition in status.get("conditions", ()):
        if condition["type"] == "Ready":
            return "Current" if condition["status"] == "True" else "InProgress"
    return "Current"
