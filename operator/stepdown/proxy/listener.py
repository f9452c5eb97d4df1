"""Hears of a changed config at once: keeps one question open at the keeper, and has the syncer fetch it. `app` runs it.

Everything that goes wrong here is nothing but slower: the syncer asks once a second in any case.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final

from stepdown.model.news import HOLD_S, Have, News
from stepdown.model.sync import SyncError
from stepdown.proxy.till import Till

Ask = Callable[[Have], Awaitable[News]]
"""One question. Raises SyncError or OSError."""

_PATIENCE_S: Final = HOLD_S + 10.0
_PAUSE_S: Final = 0.2
"""After an answer that something changed: the sync that fetches it takes as long, and then there is nothing to fetch."""
_BACKOFF_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0)

_log = logging.getLogger("stepdown.proxy.sync")


class Listener:
    """One process's ear."""

    def __init__(self, till: Till, ask: Ask, *, jitter: Callable[[], float] = random.random) -> None:
        self._till, self._ask, self._jitter = till, ask, jitter
        self.heard = 0
        """How often something had changed."""

    async def run(self) -> None:
        """Until cancelled."""
        failures, fruitless = 0, 0
        last: Have | None = None
        while True:
            have = self._have()
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    news = await self._ask(have)
            except (SyncError, OSError, TimeoutError) as error:
                if not failures:
                    _log.info("changes of the config are heard of once a second only: %s", error or type(error).__name__)
                await asyncio.sleep(self._pause_s(failures))
                failures += 1
                continue
            failures = 0
            if not news.changed:
                continue
            self.heard += 1
            fruitless = fruitless + 1 if have == last else 0
            last = have
            self._till.kick()
            # A config that cannot be used is fetched again and again by nobody: it is not what we have, and will not be.
            await asyncio.sleep(_PAUSE_S if not fruitless else self._pause_s(fruitless - 1))

    def _have(self) -> Have:
        table = self._till.table
        if table is None:
            return Have()
        digests = {index: shard.digest for index, shard in table.shards.items()}
        return Have(fleet_digest=table.fleet_digest, digests=digests)

    def _pause_s(self, failures: int) -> float:
        return _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)] * (0.5 + self._jitter())
