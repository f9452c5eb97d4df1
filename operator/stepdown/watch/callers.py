"""Asks once a minute by which keys callers' ServiceAccount tokens are verified, for the plan. `lead` starts it.

Keys are rotated rarely, and a new one signs nothing before it has been published for a while; so a minute is soon enough, and
what was last heard stands for as long as the API server says nothing else.
"""

import asyncio
import contextlib
from collections.abc import Callable

from stepdown.cluster.client import Cluster
from stepdown.cluster.errors import ClusterError, Forbidden
from stepdown.model.config import Issuer
from stepdown.sync import log
from stepdown.sync.callers import token_issuer

ASK_S = 60.0
FIRST_S = 5.0
"""How long the first pass may wait for it: without keys no caller with a token is known."""
FIRST_TRIES = 5
RETRY_S = 2.0


class Callers:
    """`first` before the first pass, then `run`."""

    def __init__(self, cluster: Cluster, changed: Callable[[], None]) -> None:
        self._cluster, self._changed = cluster, changed
        self._wrong = ""
        self.issuer: Issuer | None = None
        """None: nobody has said yet."""

    async def first(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_S):
                for _ in range(FIRST_TRIES):
                    if await self._ask():
                        return
                    await asyncio.sleep(FIRST_S / FIRST_TRIES)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(ASK_S if not self._wrong else RETRY_S)
            await self._ask()

    async def _ask(self) -> bool:
        try:
            issuer = await token_issuer(self._cluster)
        except ClusterError as error:
            self._failed(error)
            return False
        if self._wrong:
            log.info("the keys of callers' tokens are known again", event="callers")
        self._wrong = ""
        if issuer != self.issuer:
            self.issuer = issuer
            self._changed()
        return True

    def _failed(self, error: ClusterError) -> None:
        if self._wrong == type(error).__name__:
            return
        self._wrong = type(error).__name__
        hint = "bind the ClusterRole system:service-account-issuer-discovery to the operator: "
        log.error(
            "the keys that callers' ServiceAccount tokens are verified by are not known, and it is tried again until they are: "
            f"{hint if isinstance(error, Forbidden) else ''}{error}",
            event="callers",
        )
