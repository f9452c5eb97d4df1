"""When not to ask a model again: a circuit breaker and Retry-After a model, and a budget of retries. `exchange` keeps one of
each.

An outage must not become more traffic. A model that failed `THRESHOLD` times in a row is left alone for a while, then probed
by one request; one that said Retry-After is left alone until then; and attempts beyond a request's first may be no more than
a share of all requests. Time is a parameter, in seconds of any clock that never steps.
"""

from typing import Final

THRESHOLD: Final = 5
"""Consecutive failures that open a model's breaker."""
OPEN_S: Final = 5.0
"""How long it then stays open; doubled each time the probe fails, up to `MAX_OPEN_S`."""
MAX_OPEN_S: Final = 60.0
MAX_RETRY_AFTER_S: Final = 600.0
"""A Retry-After beyond this is a mistake of the upstream's, and must not take a model away for a day."""
RETRY_SHARE: Final = 0.25
"""Attempts beyond the first, as a share of requests."""
RETRY_BURST: Final = 25.0
"""And so many at once, which also serves a proxy that has seen few requests."""


class Breaker:
    """One model's."""

    __slots__ = ("failures", "open_until_s", "opened", "probing")

    def __init__(self) -> None:
        self.failures = 0
        self.opened = 0
        """Times in a row that it was opened without a success between."""
        self.open_until_s = 0.0
        self.probing = False
        """Half open: one request is out to see."""


class Breakers:
    """All models'. Only those that have lately failed are kept, so a lookup on a good day is a test for an empty dict."""

    __slots__ = ("bad",)

    def __init__(self) -> None:
        self.bad: dict[str, Breaker] = {}

    def closed(self, model: str, now_s: float) -> bool:
        """Whether the model may be asked now. Does not take the probe: `sent` does."""
        breaker = self.bad.get(model)
        return breaker is None or (now_s >= breaker.open_until_s and not breaker.probing)

    def sent(self, model: str) -> None:
        """A request goes to the model; if its breaker was open, this is the probe."""
        breaker = self.bad.get(model)
        if breaker is not None and breaker.open_until_s:
            breaker.probing = True

    def succeeded(self, model: str) -> None:
        self.bad.pop(model, None)

    def failed(self, model: str, now_s: float, retry_after_s: float | None = None) -> None:
        breaker = self.bad.get(model)
        if breaker is None:
            breaker = self.bad[model] = Breaker()
        breaker.failures += 1
        if retry_after_s is not None:
            until_s = now_s + min(max(retry_after_s, 0.0), MAX_RETRY_AFTER_S)
            breaker.open_until_s = max(breaker.open_until_s, until_s)
        if breaker.probing or breaker.failures >= THRESHOLD:
            breaker.open_until_s = max(breaker.open_until_s, now_s + min(OPEN_S * 2**breaker.opened, MAX_OPEN_S))
            breaker.opened = min(breaker.opened + 1, 10)
            breaker.failures = 0
        breaker.probing = False

    def unknown(self, model: str) -> None:
        """The attempt ended without saying anything about the model (the client went away, the money was refused)."""
        breaker = self.bad.get(model)
        if breaker is not None:
            breaker.probing = False

    def down(self) -> tuple[str, ...]:
        """Models that failed so often in a row that they were left alone, and that have not answered since. A model that said
        Retry-After is not among them: it told when it will."""
        return tuple(sorted(model for model, breaker in self.bad.items() if breaker.opened)) if self.bad else ()

    def retry_after_s(self, model: str, now_s: float) -> float:
        """How long until the model may be asked again."""
        breaker = self.bad.get(model)
        return max(0.0, breaker.open_until_s - now_s) if breaker is not None else 0.0


class RetryBudget:
    """Attempts beyond the first: a share of requests, and a burst."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = RETRY_BURST

    def request(self) -> None:
        if self.left < RETRY_BURST:
            self.left = min(self.left + RETRY_SHARE, RETRY_BURST)

    def take(self) -> bool:
        if self.left < 1.0:
            return False
        self.left -= 1.0
        return True
