"""When a child may be written again: after a failure, and when somebody keeps changing it. `children` asks; time is given."""

from dataclasses import dataclass, field

from stepdown.cluster.backoff import Backoff

MOST_S = 60.0
FREE_PUTS = 3
"""Drifts that are put back at once. Then each waits twice as long as the one before: another controller wants something else,
and two that correct each other without a pause are an outage of their own."""
CALM_S = 300.0
"""So long without a drift, and it counts from the beginning."""


def _waits() -> Backoff:
    return Backoff(1.0, MOST_S)


@dataclass(slots=True)
class Failure:
    """One child that could not be made what it should be."""

    digest: bytes
    """Of what it should be: something else is worth a try at once."""
    message: str = ""
    until_s: float = 0.0
    waits: Backoff = field(default_factory=_waits)

    def again(self, message: str, error: BaseException, now_s: float) -> float:
        """It has failed (again): how long to wait."""
        self.message = message
        wait_s = self.waits.next_s(error)
        self.until_s = now_s + wait_s
        return wait_s


@dataclass(slots=True)
class Drifts:
    """One child that was changed behind our back."""

    count: int = 0
    next_s: float = 0.0
    calm_s: float = 0.0
    waits: Backoff = field(default_factory=_waits)

    def put_back(self, now_s: float) -> float:
        """0: put it back now, and it is counted. Else how long to wait."""
        if now_s < self.next_s:
            return self.next_s - now_s
        if now_s >= self.calm_s:
            self.count = 0
            self.waits.reset()
        self.count += 1
        self.next_s = now_s + (self.waits.next_s() if self.count >= FREE_PUTS else 0.0)
        self.calm_s = self.next_s + CALM_S
        return 0.0
