"""Asks Kubernetes what has become of the pods for which a ceiling waits (`budget.serving`). `lead` starts it.

Nothing is asked while no Hard budget waits for a proxy that cannot be heard; then only about its pod, at once and every few
seconds. A pod that is gone or has ended is noted in the ledger, and not asked about again. One of which the API server says
nothing is there: the ceiling goes on waiting.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from typing import Any, Protocol

from stepdown.budget.serving import Unheard
from stepdown.cluster.errors import ClusterError
from stepdown.cluster.kinds import POD, KindRef
from stepdown.ledger.errors import LedgerError, LedgerFenced
from stepdown.plan.plan import Plan
from stepdown.sync import log

ASK_S = 10.0
"""Between two questions about one pod."""
AT_ONCE = 8
_ENDED = ("Succeeded", "Failed")


class Api(Protocol):
    """What is asked of the API server (`cluster.client.Cluster`). Raises ClusterError."""

    async def get(self, kind: KindRef, namespace: str, name: str) -> Mapping[str, Any] | None: ...


class LostPods:
    """`tell` with every pass; `run` until cancelled."""

    def __init__(
        self,
        api: Api,
        namespace_there: Callable[[str], bool],
        vacate: Callable[[Collection[str]], Awaitable[None]],
        *,
        interval_s: float = ASK_S,
    ) -> None:
        """`vacate` notes in the ledger that these pods, by UID, are gone; it raises a LedgerError."""
        self._api, self._namespace_there, self._vacate, self._interval_s = api, namespace_there, vacate, interval_s
        self._waited_for: dict[str, Unheard] = {}
        self._asked_s: dict[str, float] = {}
        self._woken = asyncio.Event()
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._wrong = ""

    def tell(self, plan: Plan) -> None:
        """For whom the ceilings of this plan wait."""
        waited_for = {
            each.uid: each
            for budget in plan.budgets.values()
            if budget.balance is not None and budget.terms is not None and budget.terms.hard
            for each in budget.balance.unheard
        }
        if waited_for.keys() - self._waited_for.keys():
            self._woken.set()
        self._waited_for = waited_for
        self._asked_s = {uid: at_s for uid, at_s in self._asked_s.items() if uid in waited_for}

    async def run(self) -> None:
        """Raises LedgerFenced."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s if self._waited_for else None):
                    await self._woken.wait()
            self._woken.clear()
            await self._ask()

    async def _ask(self) -> None:
        now_s = asyncio.get_running_loop().time()
        due = [uid for uid in self._waited_for if now_s - self._asked_s.get(uid, float("-inf")) >= self._interval_s]
        self._asked_s |= dict.fromkeys(due, now_s)
        asked = [self._waited_for[uid] for uid in due]
        gone = [each for each, is_gone in zip(asked, await asyncio.gather(*map(self._is_gone, asked)), strict=True) if is_gone]
        if not gone:
            return
        names = ", ".join(f"{each.namespace}/{each.pod}" for each in gone)
        try:
            await self._vacate([each.uid for each in gone])
        except LedgerFenced:
            raise
        except LedgerError as error:
            log.warning(
                f"that pods are gone could not be noted, so budgets wait for {names}, which are asked about again: {error}",
                event="lost",
            )
            return
        for each in gone:
            self._waited_for.pop(each.uid, None)
        log.info(f"no budget waits any more for what ran in pods that are gone: {names}", event="lost")

    async def _is_gone(self, each: Unheard) -> bool:
        if not self._namespace_there(each.namespace):  # Then nobody may have the right to ask, either.
            return True
        try:
            async with self._at_once:
                pod = await self._api.get(POD, each.namespace, each.pod)
        except ClusterError as error:
            self._say_once(each, error)
            return False
        self._wrong = ""
        return pod is None or pod["metadata"].get("uid") != each.uid or (pod.get("status") or {}).get("phase") in _ENDED

    def _say_once(self, each: Unheard, error: ClusterError) -> None:
        if self._wrong != type(error).__name__:
            self._wrong = type(error).__name__
            log.warning(
                f"pod {each.namespace}/{each.pod} cannot be heard, and whether it is there is not known, so its budgets wait "
                f"and it is asked about again: {error}",
                event="lost",
            )
