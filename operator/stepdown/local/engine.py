"""Keeps a fleet's config what the folder and the money say, while it serves. `run` starts it beside the proxy.

One pass: read the folder (if it changed), judge it (`plan`), render it, bind the ledger, remember what was accepted, publish.
Reading and judging run in a thread of their own and the ledger in its own, so that no stream waits for either. A pass happens
when a file changed, when a balance crossed a step, when time alone changes the plan, and every half minute in any case.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec

from stepdown.budget.account import Balance
from stepdown.ledger.errors import LedgerError, LedgerFenced
from stepdown.local.check import planned
from stepdown.local.documents import Folder, FolderMissing, Problem
from stepdown.local.secrets import ChannelKey
from stepdown.local.world import IMPLICIT, Gathered, Gatherer, NoSuchProxy
from stepdown.model.conditions import EVENT_INVALID_SPEC, EVENT_REFS_NOT_RESOLVED
from stepdown.model.config import Fleet
from stepdown.plan.world import LedgerView
from stepdown.reconcile import Pass, reconcile
from stepdown.render.config import FleetConfig
from stepdown.sync import log
from stepdown.sync.clock import now_ns, now_s
from stepdown.sync.keeper import Keeper, gone, moved
from stepdown.sync.service import SyncService

POLL_S = 0.5
"""How often balances are looked at: a step is in force this long after it was reached, at most."""
RESYNC_S = 30.0
"""How often the folder is read without any notice of a change."""
_SAID_WITH_PLACE = (EVENT_INVALID_SPEC, EVENT_REFS_NOT_RESOLVED)
"""Events that are problems too, which name the file and the line."""


class NothingValid(Exception):
    """Nothing of the folder can be used."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One pass, before anything was done about it."""

    gathered: Gathered
    made: Pass
    config: FleetConfig
    problems: tuple[Problem, ...]


class Engine:
    """The loop around the pure core. `start` once, then `follow` for as long as it serves."""

    def __init__(
        self,
        folder: Folder,
        gatherer: Gatherer,
        service: SyncService,
        *,
        upstream: str,
        keys: Callable[[tuple[ChannelKey, ...]], None],
    ) -> None:
        """`upstream`: instead of the fleet's baseURL. `keys` is told the channels' keys at every pass."""
        self._folder, self._gatherer, self._service = folder, gatherer, service
        self._upstream, self._tell_keys = upstream, keys
        self._keeper = Keeper(service, at=self._at)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy")
        self._changed = asyncio.Event()
        self._gathered: Gathered | None = None
        self._made: Pass | None = None
        self._said: frozenset[str] = frozenset()
        self._wrong = False
        self._fleet = ""
        self._fenced: LedgerFenced | None = None
        service.fenced = self._end
        self.published: Callable[[], None] = _nothing
        """Called after every change of the config: the proxy fetches it at once instead of within a second."""

    def file_changed(self) -> None:
        self._changed.set()

    async def start(self) -> Judged:
        """The first pass; when it returns, the config is published.

        Raises NothingValid, NoSuchProxy, FolderMissing or a LedgerError.
        """
        await self._keeper.start()
        self._gatherer.remember(self._keeper.accepted)
        judged = await self._judged(reload=True)
        self._fleet = judged.gathered.fleet
        await self._apply(judged)
        return judged

    async def follow(self) -> None:
        """Until cancelled, or another has the ledger: raises LedgerFenced."""
        resync_s = now_s() + RESYNC_S
        while True:
            try:
                async with asyncio.timeout(POLL_S):
                    await self._changed.wait()
            except TimeoutError:
                pass
            if self._fenced is not None:
                raise self._fenced
            reload = self._changed.is_set() or now_s() >= resync_s
            self._changed.clear()
            if reload:
                resync_s = now_s() + RESYNC_S
            try:
                if reload or await self._has_moved():
                    await self._apply(await self._judged(reload=reload))
            except (NoSuchProxy, FolderMissing, NothingValid) as error:
                self._say_once(f"{error}. What was in force before stays in force", event="problem")
            except LedgerFenced:
                raise
            except LedgerError as error:
                self._say_once(f"the ledger: {error}. The config stays as it is until it works again", event="ledger")

    def _end(self, error: LedgerFenced) -> None:
        self._fenced = error
        self._changed.set()

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def _judged(self, *, reload: bool) -> Judged:
        now = now_s()
        balances = await self._service.call(lambda ledger: ledger.balances(now, ended=True))
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._judge, reload, balances, now)

    def _judge(self, reload: bool, balances: Mapping[str, Balance], now: float) -> Judged:
        """On the policy thread."""
        if reload or self._gathered is None:
            self._gathered = self._gatherer.gather(self._folder.load(now_ns()), self._keeper.accepted)
        gathered = self._gathered
        if self._fleet and gathered.fleet != self._fleet:
            raise NoSuchProxy(f"the RoutingProxy was {self._fleet} and is now {gathered.fleet}: restart to run that one")
        made = reconcile(gathered.world, LedgerView(balances, self._keeper.accepted), now, self._made)
        config = made.configs.get(gathered.fleet)
        if config is None:
            raise NothingValid(_not_served(gathered, made))
        return Judged(gathered, made, config, (*gathered.problems, *planned(made.plan, gathered.places)))

    async def _apply(self, judged: Judged) -> None:
        """The ledger first: what is published must be bound, and what is in force must be remembered."""
        made, config, gathered = judged.made, judged.config, judged.gathered
        if await self._keeper.bind(made):
            self._changed.set()  # an account may have opened with money spent: judge again by what the ledger says now
        assumed = f"RoutingProxy/{IMPLICIT}" if gathered.implicit else None
        accept = {uid: each for uid, each in made.accept if uid != assumed}
        await self._keeper.remember(accept, () if gathered.unreadable else gone(self._keeper.accepted, made.plan))
        await self._keeper.book(made.plan, now_s())
        self._made = made
        self._tell_keys(gathered.keys)
        if self._keeper.publish({gathered.fleet: config}):
            self.published()
            self._say_policy(config)
        self._report(judged)

    def _at(self, fleet: Fleet) -> Fleet:
        return msgspec.structs.replace(fleet, base_url=self._upstream) if self._upstream else fleet

    async def _has_moved(self) -> bool:
        """Whether money or time alone changes the plan. Cheap: it is asked twice a second."""
        assert self._made is not None
        now = now_s()
        if self._made.next_change_s is not None and now >= self._made.next_change_s:
            return True
        return moved(self._made.plan, await self._service.call(lambda ledger: ledger.balances(now)))

    # What people are told -------------------------------------------------------------------------------------------

    def _say_policy(self, config: FleetConfig) -> None:
        log.info("policy in force", event="policy", routes=len(config.placed))

    def _report(self, judged: Judged) -> None:
        """New problems and what happened. A problem is said again only after it had gone."""
        texts = set()
        for note in judged.gathered.notes:
            texts.add(str(note))
            if str(note) not in self._said:
                log.info(note.message, event="note", file=note.file, line=note.line, document=note.document)
        for problem in judged.problems:
            texts.add(str(problem))
            if str(problem) not in self._said:
                say = log.warning if problem.note else log.error
                say(problem.message, event="problem", file=problem.file, line=problem.line, document=problem.document)
        if self._wrong and not judged.problems:
            log.info("every problem has been mended", event="mended")
        self._wrong = bool(judged.problems)
        self._said = frozenset(texts)
        for event in judged.made.events:
            if event.reason not in _SAID_WITH_PLACE:
                say = log.warning if event.type == "Warning" else log.info
                say(f"{event.kind} {event.key}: {event.message}", event=event.reason, object=f"{event.kind} {event.key}")

    def _say_once(self, message: str, event: str) -> None:
        if message not in self._said:
            self._said |= {message}
            log.error(message, event=event)


def _not_served(gathered: Gathered, made: Pass) -> str:
    plan = made.plan.fleets.get(gathered.fleet)
    why = plan.accepted.message if plan is not None else "it is not there"
    return f"RoutingProxy {gathered.fleet} cannot be run: {why}"


def _nothing() -> None:
    """Until somebody wants to be told."""
