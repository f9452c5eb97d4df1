"""How long to wait before the same thing is tried again. Loops of this package keep a `Backoff`; single calls use `retrying`.

The wait is drawn, not fixed: a crowd that an outage has aligned spreads out again.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from stepdown.cluster.errors import Unavailable

T = TypeVar("T")


class Backoff:
    """Doubles from `first_s` up to `most_s`, jittered between half and all of it."""

    def __init__(self, first_s: float = 0.25, most_s: float = 30.0, *, draw: Callable[[], float] = random.random) -> None:
        """`draw`: a number from [0, 1)."""
        self._first_s, self._most_s, self._draw = first_s, most_s, draw
        self._next_s = first_s

    def next_s(self, error: BaseException | None = None) -> float:
        """The wait before the next try; at least what the API server asked for (Retry-After)."""
        wait_s = self._next_s * (0.5 + self._draw() / 2)
        self._next_s = min(self._next_s * 2, self._most_s)
        asked_s = error.retry_after_s if isinstance(error, Unavailable) else None
        return max(wait_s, min(asked_s, self._most_s)) if asked_s is not None else wait_s

    def reset(self) -> None:
        """It has worked."""
        self._next_s = self._first_s


async def retrying(call: Callable[[], Awaitable[T]], *, attempts: int = 4, backoff: Backoff | None = None) -> T:
    """`call()`, again while it is Unavailable; any other error is final, as is the last. For calls that may happen twice."""
    waits = backoff or Backoff()
    for _ in range(attempts - 1):
        try:
            return await call()
        except Unavailable as error:
            await asyncio.sleep(waits.next_s(error))
    return await call()
