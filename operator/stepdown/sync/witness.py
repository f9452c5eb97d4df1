"""The witness: marks kept outside the ledger, so that an older copy of it cannot refill a budget. `service` has a `Raiser`.

What a mark is worth is said in `ledger.marks` and `ledger.terms`; here it is read once a term, raised before the ledger grants
into it, and raised ahead, so that in steady state nobody waits. While it cannot be written, grants go on up to the marks.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from stepdown.cluster.backoff import Backoff
from stepdown.cluster.errors import ClusterError
from stepdown.ledger import Ledger
from stepdown.ledger.errors import LedgerError
from stepdown.ledger.terms import Begun
from stepdown.model.money import nusd_to_usd
from stepdown.sync import log

Call = Callable[[Callable[[Ledger], Any]], Awaitable[Any]]
"""Runs something on the ledger's thread."""

MOST_BACKOFF_S = 5.0
PRUNE_S = 86_400.0


class Witness(Protocol):
    """A few numbers by name that only grow, durable, and not in the same place as the ledger. Raises ClusterError."""

    async def read(self) -> Mapping[str, int]:
        """All of them; what was never raised is not there."""

    async def raise_to(self, marks: Mapping[str, int]) -> None:
        """When it returns, none is lower than in `marks`. Whether it has happened is not known when it raises."""

    async def prune(self, now_s: float) -> int:
        """Clears away the marks of accounts whose periods ended long ago."""


class Raiser:
    """Keeps the witness ahead of the ledger. One write at a time: what is wanted meanwhile goes with the next."""

    def __init__(
        self,
        witness: Witness,
        ledger: Ledger,
        call: Call,
        clock: Callable[[], float],
        judge_again: Callable[[], None],
    ) -> None:
        """`judge_again`: the witness was raised, or it cannot be: whoever waits for it must wait no longer."""
        self._witness, self._ledger, self._call, self._clock = witness, ledger, call, clock
        self._judge_again = judge_again
        self._backoff = Backoff(most_s=MOST_BACKOFF_S)
        self._task: asyncio.Task[None] | None = None
        self._prune_at_s = 0.0
        self._opened = self._begun = self._late = False
        self._trouble = ""
        self._said = ""

    @property
    def patient(self) -> bool:
        """Whether it is worth while to wait for a raise."""
        return self._begun and not self._trouble and not self._late

    @property
    def standstill(self) -> str:
        """Why nothing is granted, or nothing beyond the marks; empty when all is well."""
        return self._trouble or self._ledger.standstill

    async def begin(self) -> None:
        """Opens the term. When the witness does not answer it is asked again in the background; meanwhile nothing is granted.

        Raises a LedgerError.
        """
        self._opened = True
        if not await self._try(self._begin):
            self._start()

    def want(self, marks: Mapping[str, int]) -> None:
        """After every transaction: what the witness should hold, if it does not."""
        if self._opened and (marks or not self._begun):
            self._start()
        self._say(self.standstill)

    def hurry(self) -> None:
        """Somebody has waited in vain: nobody waits any more, until a raise has come to its end."""
        self._late = True

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name="witness")

    async def _work(self) -> None:
        """Until nothing is wanted. A ledger that fails ends it: the next message finds out, and starts it again."""
        try:
            while not await self._try(self._raise if self._begun else self._begin) or await self._call(Ledger.needed_marks):
                if self._trouble:
                    await asyncio.sleep(self._backoff.next_s())
        except (LedgerError, RuntimeError) as error:  # RuntimeError: the thread was shut down.
            log.error(f"the witness is not raised: {error}", event="witness")
        finally:
            self._task = None

    async def _try(self, step: Callable[[], Awaitable[None]]) -> bool:
        try:
            await step()
        except ClusterError as error:
            more = "grants go on up to its marks" if self._begun else "nothing is granted before it has been"
            self._trouble = f"the witness cannot be {'raised' if self._begun else 'read'}: {error}. Until then {more}"
        else:
            self._trouble = ""
            self._backoff.reset()
        self._late = False
        self._say(self.standstill)
        self._judge_again()
        return not self._trouble

    async def _begin(self) -> None:
        marks = await self._witness.read()
        begun: Begun = await self._call(lambda ledger: ledger.begin(marks, self._clock()))
        self._begun = True
        if begun.proven:
            log.info("the ledger is whole: nothing was granted that it does not know", event="witness", epoch=begun.epoch)
        elif not begun.lost:
            log.warning(
                "the last keeper did not end in order, or the ledger was put back from a backup: up to the witness's marks "
                f"{nusd_to_usd(begun.awaited_nusd)} USD more count as committed until every proxy has reported",
                event="witness",
                epoch=begun.epoch,
                accounts=begun.accounts,
            )
        await self._raise()

    async def _raise(self) -> None:
        marks: dict[str, int] = await self._call(Ledger.needed_marks)
        try:
            if marks:
                await self._witness.raise_to(marks)
        except ClusterError:
            await self._call(lambda ledger: ledger.set_marks({}))
            raise
        await self._call(lambda ledger: ledger.set_marks(marks))
        await self._prune()

    async def _prune(self) -> None:
        """Once a day at most, and not for its own sake."""
        now_s = self._clock()
        if now_s >= self._prune_at_s:
            self._prune_at_s = now_s + PRUNE_S
            with contextlib.suppress(ClusterError):
                await self._witness.prune(now_s)

    def _say(self, standstill: str) -> None:
        """Once for each reason, and once when it is over."""
        if standstill == self._said:
            return
        if standstill:
            log.error(standstill, event="witness")
        else:
            log.info("grants are made again", event="witness")
        self._said = standstill
