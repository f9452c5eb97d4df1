"""Where a budget stands: its limit in force, the steps that its spend has reached, the verdict. `plan` and `status` call this.

Shares are Fractions and compared exactly: a step at 80 % is in force from 80 % on, not from 79.9999 %. A stricter step stays in
force under a later Notify: the verdict's tier is the strictest of all steps reached.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from stepdown.model.config import TIERS, Tier

Action = Literal["Notify", "StepDown"]
State = Literal["Within", "Stepped", "Exhausted"]


@dataclass(frozen=True, slots=True)
class Step:
    """One of a budget's steps: at this share of the limit, do that."""

    at_percent: int
    action: Action
    max_tier: Tier | None = None
    """With StepDown: the dearest tier that stays visible."""


@dataclass(frozen=True, slots=True)
class Terms:
    """A SpendBudget's spec as values: what the arithmetic needs of it, and nothing of Kubernetes."""

    monthly_nusd: int
    zone: str
    steps: tuple[Step, ...]
    """Ascending by `at_percent`."""
    hard: bool
    protect_critical: bool
    override_nusd: int = 0
    override_until_s: int = 0
    """Exclusive: at this second the override has ended."""

    def limit_nusd(self, now_s: float) -> int:
        """The limit in force: the monthly one, and the override's money until it ends."""
        return self.monthly_nusd + (self.override_nusd if now_s < self.override_until_s else 0)

    def next_limit_change_s(self, now_s: float) -> int | None:
        """When the limit changes by itself; None: never again."""
        return self.override_until_s if self.override_nusd and now_s < self.override_until_s else None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where one budget stands at one moment."""

    state: State
    step: Step | None
    """The last step reached, Notify included."""
    max_tier: Tier | None
    """What the steps reached still leave visible; None: everything."""


WITHIN = Verdict("Within", None, None)


def judge(steps: Sequence[Step], used: Fraction) -> Verdict:
    """The verdict on a budget of which the share `used` is gone."""
    reached = [step for step in steps if Fraction(step.at_percent, 100) <= used]
    max_tier = strictest(step.max_tier for step in reached if step.action == "StepDown")
    if used >= 1:
        return Verdict("Exhausted", reached[-1] if reached else None, max_tier)
    if not reached:
        return WITHIN
    return Verdict("Stepped" if max_tier is not None else "Within", reached[-1], max_tier)


def strictest(tiers: Iterable[Tier | None]) -> Tier | None:
    """The cheapest of several `maxTier`s; None where none of them hides anything."""
    return min((tier for tier in tiers if tier is not None), key=TIERS.index, default=None)


def percent(used: Fraction) -> str:
    """A share as people read it, one decimal, rounded down: 99.96 % is not shown as spent."""
    tenths = int(used * 1000)
    return f"{tenths // 10}.{tenths % 10}"
