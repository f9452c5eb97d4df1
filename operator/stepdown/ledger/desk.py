"""The decisions of one transaction: who is granted what. Pure; `Ledger.sync` loads the accounts, asks the desk, and stores.

The one rule: no grant leaves an account's committed money above its limit. Asks are served first, in order of arrival, all
accounts of a rung or none; then idle headroom; then the answers say what the keeper would like back.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from stepdown.ledger.lease import Account, Lease
from stepdown.ledger.marks import Marks
from stepdown.ledger.policy import fair_shares, idle_cap
from stepdown.model.sync import Ask, AskAnswer, LeaseGrant

PRESSED_S = 3.0
"""How long an ask that could not be granted makes others give back what is idle: asks are repeated about once a second."""


@dataclass
class Pressure:
    """Accounts that somebody waits for: who, how much is missing, and until when that is worth acting on. Lives across
    batches."""

    missing: dict[str, dict[int, tuple[int, float]]] = field(default_factory=dict)

    def press(self, account: str, instance: int, nusd: int, now_s: float) -> None:
        waiting = self.missing.setdefault(account, {})
        was, until_s = waiting.get(instance, (0, 0.0))
        waiting[instance] = (max(nusd, was if until_s >= now_s else 0), now_s + PRESSED_S)

    def on(self, account: str, now_s: float) -> int:
        return max(self._waiting(account, now_s).values(), default=0)

    def by(self, account: str, instance: int, now_s: float) -> int:
        """What this instance itself waits for."""
        return self._waiting(account, now_s).get(instance, 0)

    def by_others(self, account: str, instance: int, now_s: float) -> int:
        return max((nusd for each, nusd in self._waiting(account, now_s).items() if each != instance), default=0)

    def _waiting(self, account: str, now_s: float) -> dict[int, int]:
        waiting = self.missing.get(account)
        if not waiting:
            return {}
        for instance in [each for each, (_, until_s) in waiting.items() if until_s < now_s]:
            del waiting[instance]
        if not waiting:
            del self.missing[account]
        return {instance: nusd for instance, (nusd, _) in waiting.items()}


class Desk:
    """Accounts of one batch, by name, at one moment."""

    def __init__(
        self,
        accounts: Mapping[str, Account],
        pressure: Pressure,
        now_s: float,
        marks: Marks | None = None,
        witnessed: Collection[int] | None = None,
    ) -> None:
        """`marks`: no grant passes them, and only those instances get any that are `witnessed`. None: there is no witness."""
        self.accounts, self._pressure, self._now_s = accounts, pressure, now_s
        self._marks, self.witnessed = marks, witnessed
        self.unborn: set[int] = set()
        """Instances that would have been granted something, were they known to the witness."""
        self._targets: dict[str, dict[int, int]] = {}

    # Asks -------------------------------------------------------------------------------------------------------------

    def earmark(self, instance: int, ask: Ask, rung: int) -> None:
        """A ticket that was granted before and is still repeated: its money is idle here, but not free."""
        if rung < len(ask.rungs):
            for name, nusd in ask.rungs[rung].items():
                if (account := self.accounts.get(name)) is not None:
                    account.lease(instance).earmarked += nusd

    def answer(self, instance: int, horizon_s: float, ask: Ask, *, patient: bool = False) -> AskAnswer | None:
        """Grants the best rung that all its accounts can bear, or none. None: `patient`, it waits for the witness."""
        barred = False
        for index, rung in enumerate(ask.rungs):
            held = self._held_after(instance, horizon_s, rung)
            if held is None:
                continue
            if self._marks is not None and not self._may(self._marks, instance, held, patient):
                if patient and not self._marks.closed:
                    return None
                barred = True
                continue
            for name, nusd in rung.items():
                account = self.accounts[name]
                lease = account.lease(instance)
                account.grant(lease, held[name])
                lease.earmarked += nusd
            return AskAnswer(id=ask.id, rung=index)
        if barred:
            return AskAnswer(id=ask.id, rung=-1, recoverable=True)
        recoverable = False
        for rung in ask.rungs:
            if self._could_come(rung, horizon_s):
                recoverable = True
                self._press(instance, rung)
        return AskAnswer(id=ask.id, rung=-1, recoverable=recoverable)

    def _may(self, marks: Marks, instance: int, held: Mapping[str, int], patient: bool) -> bool:
        """Whether the witness knows of all that would be granted; what it lacks is wanted of it."""
        grants: dict[str, int] = {}
        for name, nusd in held.items():
            lease = self.accounts[name].lease(instance)
            more = max(nusd, lease.used) - lease.committed
            if self.accounts[name].hard and more > 0:
                grants[name] = more
        if not grants:
            return True
        if marks.closed:
            return False
        may = self._known(instance)
        for name, more in grants.items():
            may = may and more <= marks.room(self.accounts[name]) and not (patient and name in marks.short)
        if not may:
            for name, more in grants.items():
                if patient:
                    marks.wait(self.accounts[name], more)
                elif more > marks.room(self.accounts[name]):
                    marks.want(self.accounts[name], more)
        return may

    def _known(self, instance: int) -> bool:
        if self.witnessed is None or instance in self.witnessed:
            return True
        self.unborn.add(instance)
        return False

    def _held_after(self, instance: int, horizon_s: float, rung: Mapping[str, int]) -> dict[str, int] | None:
        """What the instance must hold of each account for this rung; None if an account cannot bear it."""
        held: dict[str, int] = {}
        for name, nusd in rung.items():
            account = self.accounts.get(name)
            if account is None or not self._begun(account, horizon_s):
                return None
            lease = account.lease(instance)
            held[name] = max(lease.held, lease.used + lease.earmarked + nusd)
            more = max(held[name], lease.used) - lease.committed
            if account.hard and more > 0 and more > account.headroom:
                return None
        return held

    def _could_come(self, rung: Mapping[str, int], horizon_s: float) -> bool:
        """Whether what is in flight or idle at live instances could still make this rung fit."""
        for name, nusd in rung.items():
            account = self.accounts.get(name)
            if account is None or not self._begun(account, horizon_s):
                return False
            if account.hard and nusd > account.remaining:
                return False
        return True

    def _press(self, instance: int, rung: Mapping[str, int]) -> None:
        for name, nusd in rung.items():
            account = self.accounts[name]
            lease = account.lease(instance)
            missing = lease.used + lease.earmarked + nusd - lease.held - max(0, account.headroom)
            if account.hard and missing > 0:
                self._pressure.press(name, instance, missing, self._now_s)

    def _begun(self, account: Account, horizon_s: float) -> bool:
        """The next period's money is not given away earlier than one horizon before it begins."""
        return self._now_s >= account.start_s - horizon_s

    # Idle headroom ----------------------------------------------------------------------------------------------------

    def top_up(self, instance: int, horizon_s: float) -> None:
        """Grants idle headroom where the instance wants it and the account can spare it."""
        for account, lease in self._leases(instance):
            free = lease.idle - lease.earmarked
            if not account.hard or free >= lease.want or self._drained(account) or not self._begun(account, horizon_s):
                continue
            cap = idle_cap(account.headroom + account.idle)
            more = min(self._target(account, instance) - free, cap - account.idle, account.headroom)
            if more > 0 and self._marks is not None:
                more = self._within(self._marks, account, instance, more)
            if more > 0:
                account.grant(lease, lease.held + more)

    def _within(self, marks: Marks, account: Account, instance: int, more: int) -> int:
        """What of it may be granted at once; for the rest, the witness is raised and the next message comes again."""
        if marks.closed or account.name in marks.short:
            return 0
        room = marks.room(account)
        if more > room:
            marks.want(account, more)
        return min(more, room) if self._known(instance) else 0

    def recall(self, account: Account, lease: Lease) -> int:
        """What the keeper asks this instance to give back, of what it holds idle.

        Who waits himself keeps what he has, or it would come here and go back; but not while others wait whom it could serve.
        """
        free = max(0, lease.idle - lease.earmarked)
        if not account.hard or not free:
            return 0
        if self._now_s >= account.end_s:
            return free
        over = max(-account.headroom, self._pressure.by_others(account.name, lease.instance, self._now_s))
        if over > 0:
            return min(free, over)
        if self._pressure.by(account.name, lease.instance, self._now_s):
            return 0
        surplus = account.idle - idle_cap(account.headroom + account.idle)
        return max(0, min(surplus, free - self._target(account, lease.instance)))

    def _drained(self, account: Account) -> bool:
        return self._now_s >= account.end_s or account.headroom <= 0 or self._pressure.on(account.name, self._now_s) > 0

    def _target(self, account: Account, instance: int) -> int:
        shares = self._targets.get(account.name)
        if shares is None:
            wants = {each.instance: each.want for each in account.leases.values() if not each.lost}
            shares = self._targets[account.name] = fair_shares(idle_cap(account.headroom + account.idle), wants)
        return shares.get(instance, 0)

    # Answers ----------------------------------------------------------------------------------------------------------

    def grants(self, instance: int, mentioned: Iterable[str]) -> tuple[LeaseGrant, ...]:
        """The keeper's side of the instance's leases: what the message named, and what lies idle without being named."""
        named = set(mentioned)
        return tuple(
            LeaseGrant(
                account=account.name,
                granted=lease.granted,
                recall=self.recall(account, lease),
                limit=account.limit,
                committed=account.committed,
                spent=account.spent,
            )
            for account, lease in self._leases(instance)
            if account.name in named or lease.idle
        )

    def _leases(self, instance: int) -> Iterator[tuple[Account, Lease]]:
        for account in self.accounts.values():
            lease = account.leases.get(instance)
            if lease is not None:
                yield account, lease
