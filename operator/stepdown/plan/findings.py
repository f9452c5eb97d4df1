"""How a judgement is stated: a verdict, a reason in one word, a sentence. The plan makes them, the status shows them."""

from dataclasses import dataclass, replace
from typing import Literal

InForce = Literal["Current", "LastAccepted", "Nothing"]
"""Which spec of an object is in force: what it says now, what was last accepted of it, or none."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to one question about an object."""

    holds: bool
    reason: str
    message: str
    stalled: bool = False
    """Nothing but a change of the object itself, or of the operator's own settings, can mend it. What another object can mend
    is not: that one may come with the same `kubectl apply` a moment later."""


def kept(finding: Finding, in_force: InForce) -> Finding:
    """The finding, with what is in force meanwhile: a person must know whether the last spec still serves."""
    if finding.holds or in_force == "Current":
        return finding
    meanwhile = {
        "LastAccepted": "Until it is fixed, the last accepted spec stays in force.",
        "Nothing": "No earlier spec was ever accepted, so nothing of it is in force.",
    }[in_force]
    return replace(finding, message=f"{finding.message} {meanwhile}")
