"""One round of a sync transaction: messages of different instances, applied and answered. `Ledger.sync` runs these.

The order matters: what has been spent is taken in from everybody before anything is granted to anybody.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple

import sqlalchemy as sa

from stepdown.budget.serving import Pod
from stepdown.ledger import binding, closing, store, terms, traffic
from stepdown.ledger.desk import Desk, Pressure
from stepdown.ledger.errors import LedgerRefused
from stepdown.ledger.lease import Account, start_of
from stepdown.ledger.marks import BORN, Marks
from stepdown.ledger.memory import Memory
from stepdown.ledger.schema import bindings, counters
from stepdown.ledger.store import Instance
from stepdown.model.config import SHARDS, Shard, digest
from stepdown.model.sync import AskAnswer, LeaseGrant, SyncAnswer, SyncRequest

EMPTY = {index: digest(Shard(index=index)) for index in range(SHARDS)}
"""What a proxy that has no config of a shard obeys."""

DIGESTS_KEPT = 256
"""How many published digests of a shard are remembered: a request may be in flight under any of them."""

DEFAULT_HORIZON_S = 600.0


@dataclass
class Published:
    """Which digest stands for which revision of the bindings, by fleet and shard. In memory: published anew at start."""

    revisions: dict[tuple[str, int], dict[str, int]] = field(default_factory=dict)
    horizons: dict[str, float] = field(default_factory=dict)

    def add(self, fleet: str, digests: Mapping[int, str], horizon_s: float, revision: int) -> None:
        self.horizons[fleet] = horizon_s
        for shard in range(SHARDS):
            known = self.revisions.setdefault((fleet, shard), {})
            known.pop(current := digests.get(shard, EMPTY[shard]), None)
            known[current] = revision
            while len(known) > DIGESTS_KEPT:
                del known[next(iter(known))]

    def horizon_s(self, fleet: str) -> float:
        return self.horizons.get(fleet, DEFAULT_HORIZON_S)

    def obeyed(self, fleet: str, acknowledged: Mapping[int, str]) -> dict[int, int]:
        """By shard: the revision that an instance obeys which has acknowledged these digests, with all that is in flight."""
        found = {}
        for shard in range(SHARDS):
            known = self.revisions.get((fleet, shard), {})
            under = (acknowledged.get(shard) or EMPTY[shard]).split(",")
            if all(each in known for each in under):
                found[shard] = min(known[each] for each in under)
        return found


class Tables(NamedTuple):
    """Where a round reads and writes: a transaction, and what is known of its tables from before."""

    connection: sa.Connection
    together: Callable[[sa.Connection], AbstractContextManager[None]]
    """`Database.together`."""
    names: store.Names
    memory: Memory


class Round:
    """The messages of one round, the instances that sent them, and the accounts that they touch."""

    def __init__(
        self,
        tables: Tables,
        pressure: Pressure,
        published: Published,
        revision: int,
        now_s: float,
        marks: Marks | None = None,
        pods: Mapping[str, Pod] | None = None,
    ) -> None:
        """`pods`: by instance, where its message came from."""
        self._connection, self._together, self._names, self._memory = tables
        self._pressure, self._published, self._revision, self._now_s = pressure, published, revision, now_s
        self._marks, self._pods = marks, pods or {}
        self._instances: dict[str, Instance] = {}
        self._accounts: dict[str, Account] = {}
        self._asked: dict[str, tuple[AskAnswer, ...]] = {}
        self._new_tickets: list[dict[str, int]] = []
        self._gone_tickets: list[dict[str, int]] = []
        self._plain = True
        """Nothing was changed but by way of what `_memory` keeps."""
        self.short: set[str] = set()
        """Instances with an ask that waits for the witness."""
        self.revealed = False
        """Somebody was heard of whom this ledger may not have known everything."""

    def run(self, batch: Sequence[SyncRequest], patient: Collection[str] = ()) -> list[SyncAnswer]:
        """`patient`: instances whose asks may wait until the witness is raised, rather than be refused for its sake."""
        self._instances = self._memory.instances(self._connection, [each.instance for each in batch])
        verdicts = {each.instance: self._judge(each) for each in batch}
        fresh = [each for each in batch if verdicts[each.instance] == "ok"]
        unheard = [self._instances[each.instance].id for each in fresh if self._instances[each.instance].unheard]
        before = binding.told(self._connection, unheard)
        back = {self._instances[each.instance].id for each in fresh if self._meet(each)}
        self._plain = not (unheard or back or any(each.closing for each in fresh))
        self._seat(fresh)
        traffic.merge(
            self._connection,
            self._names,
            [(self._instances[each.instance].id, each.counters) for each in fresh if each.counters],
        )
        self._load([each for each in batch if verdicts[each.instance] != "fenced"])
        for account in self._accounts.values():
            for instance in back & account.leases.keys():
                account.mark(account.leases[instance], lost=False)
        for each in fresh:
            self._take_in(each)
        for each in fresh:
            self._open(each)
        if unheard:
            binding.charge_between(self._connection, self._accounts, unheard, before)
        for each in fresh:
            self._hear_out(each)
            if each.closing:
                closing.close(self._connection, self._instances[each.instance], self._accounts.values())
        live = [each for each in fresh if not each.closing]
        desk = Desk(self._accounts, self._pressure, self._now_s, self._marks, self._witnessed(batch))
        self._serve(desk, live, [each for each in batch if verdicts[each.instance] == "stale"], patient)
        for each in live:
            desk.top_up(self._instances[each.instance].id, self._instances[each.instance].horizon_s)
        self._look_ahead(desk, live)
        answers = [self._answer(desk, each, verdicts[each.instance]) for each in batch]
        with self._together(self._connection):
            store.save_tickets(self._connection, self._new_tickets, self._gone_tickets)
            store.save_accounts(self._connection, self._accounts.values())
            store.save_instances(self._connection, [self._instances[each.instance] for each in fresh])
        if not self._plain:
            self._memory.forget()
        return answers

    # Taking in --------------------------------------------------------------------------------------------------------

    def _judge(self, request: SyncRequest) -> str:
        instance = self._instances.get(request.instance)
        if instance is None:
            instance = store.create_instance(self._connection, request.instance, request.fleet, self._now_s)
            self._instances[request.instance] = instance
            if self._marks is not None and request.protocol > 1 and not request.whole:
                instance.unheard, self.revealed = terms.SILENT, True  # It thinks that it is known here.
                store.save_instances(self._connection, [instance])
        if instance.fleet != request.fleet:
            raise LedgerRefused(
                f"sync from {request.instance}: it says fleet {request.fleet!r}, but began as one of {instance.fleet!r}; "
                "an instance stays in its fleet"
            )
        if instance.state == "closed":
            return "ended" if request.closing and request.seq >= instance.seq else "fenced"
        unsaid = instance.unheard and request.protocol > 1 and not request.whole  # What it says is taken in whole, or not yet.
        return "stale" if request.seq < instance.seq or unsaid else "ok"

    def _meet(self, request: SyncRequest) -> bool:
        """The instance is heard from. True: it had been given up, and is back with all that it holds."""
        instance = self._instances[request.instance]
        was_lost = instance.state == "lost"
        instance.state, instance.seq = "open", request.seq
        instance.last_s, instance.longest_s = self._now_s, request.longest_s
        instance.horizon_s = self._published.horizon_s(request.fleet)
        if was_lost and instance.born > 0:
            instance.born = terms.AGAIN
        return was_lost

    def _seat(self, fresh: Sequence[SyncRequest]) -> None:
        """Notes in which pods they run. One that closes will run in none."""
        for request in fresh:
            instance = self._instances[request.instance]
            was = Pod(instance.pod, instance.pod_uid)
            now = Pod("", "") if request.closing else self._pods.get(request.instance, was)
            if now != was:
                instance.pod, instance.pod_uid = now
                self._plain = False
                store.seat(self._connection, instance)

    def _load(self, batch: Sequence[SyncRequest]) -> None:
        wanted = {report.account for each in batch for report in each.leases}
        wanted |= {name for each in batch for ask in each.asks for rung in ask.rungs for name in rung}
        instances = [self._instances[each.instance].id for each in batch]
        self._accounts = self._memory.accounts(self._connection, wanted, instances)

    def _take_in(self, request: SyncRequest) -> None:
        instance = self._instances[request.instance]
        for report in request.leases:
            account = self._accounts.get(report.account)
            if account is None:
                if not (report.granted or report.consumed or report.reserved):
                    continue
                account = self._accounts[report.account] = self._unheard_of(request, report.account)
            lease = account.lease(instance.id)
            was, knew = lease.committed, lease.granted
            account.report(lease, report)
            if instance.unheard or (self._marks is not None and report.granted > knew):
                more = lease.committed - was
                if more > 0 or instance.unheard:
                    account.account_for(more, long_silent=bool(instance.unheard & terms.LONG_SILENT))

    def _unheard_of(self, request: SyncRequest, name: str) -> Account:
        """Money spent from an account that the plan has not named: it is recorded."""
        if start_of(name) is None:
            raise LedgerRefused(f"sync from {request.instance}: {name!r} is no account; valid is NAMESPACE/BUDGET@START")
        self._plain = False
        return store.create_stub(self._connection, name)

    def _hear_out(self, request: SyncRequest) -> None:
        """Whether all is known of the instance from here on, and whether it is one that this ledger had lost."""
        instance = self._instances[request.instance]
        if instance.unheard and (request.whole or request.protocol < 2):
            if not request.whole:
                terms.never_sure(self._connection)
            instance.unheard, self.revealed = 0, True
        if self._marks is None or instance.born or not any(report.granted for report in request.leases):
            return
        if terms.come_forward(self._connection):
            instance.born, self.revealed = terms.AGAIN, True

    def _open(self, request: SyncRequest) -> None:
        """Charges what bound routes spent before the instance obeyed, and then notes what it obeys now."""
        instance = self._instances[request.instance]
        if len(instance.acked) == SHARDS and min(instance.acked.values()) >= self._revision:
            return
        self._plain = False
        oldest = min((instance.acked.get(shard, 0) for shard in range(SHARDS)), default=0)
        where = sa.and_(counters.c.instance == instance.id, bindings.c.revision > oldest)
        binding.charge(self._connection, self._accounts, where, now_s=self._now_s, obeyed=instance.acked)
        for shard, revision in self._published.obeyed(request.fleet, request.acknowledged).items():
            instance.acked[shard] = max(revision, instance.acked.get(shard, 0))

    # The witness ------------------------------------------------------------------------------------------------------

    def _witnessed(self, batch: Sequence[SyncRequest]) -> set[int] | None:
        """Those to whom something may be granted; None: there is no witness, and to everybody."""
        if self._marks is None:
            return None
        born = self._marks.known.get(BORN, 0)
        return {each.id for each in map(self._instances.__getitem__, {m.instance for m in batch}) if 0 < each.born <= born}

    def _look_ahead(self, desk: Desk, live: Sequence[SyncRequest]) -> None:
        """What the witness should hold soon: marks with room, and a number for everybody who is to hold money."""
        if self._marks is None:
            return
        self._marks.look_ahead(self._accounts.values())
        for request in live:
            instance = self._instances[request.instance]
            holds = not instance.born and any(
                a.leases[instance.id].granted for a in self._accounts.values() if instance.id in a.leases
            )
            if holds or instance.id in desk.unborn:
                if instance.born <= 0:
                    instance.born = terms.next_born(self._connection)
                self._marks.want_value(BORN, instance.born)

    # Answering --------------------------------------------------------------------------------------------------------

    def _serve(self, desk: Desk, live: Sequence[SyncRequest], stale: Sequence[SyncRequest], patient: Collection[str]) -> None:
        """Answers every ask: those granted before as before, the others in order of arrival."""
        granted = self._memory.tickets(self._connection, [self._instances[each.instance].id for each in (*live, *stale)])
        for each in (*live, *stale):
            number = self._instances[each.instance].id
            for ask in each.asks:
                if (rung := granted[number].get(ask.id)) is not None:
                    desk.earmark(number, ask, rung)
        for each in live:
            instance, known = self._instances[each.instance], granted[self._instances[each.instance].id]
            repeated = {ask.id for ask in each.asks}
            for gone in [id_ for id_ in known if id_ not in repeated]:
                del known[gone]
                self._gone_tickets.append({"i": instance.id, "a": gone})
            answers = []
            for ask in each.asks:
                if ask.id in known:
                    answers.append(AskAnswer(id=ask.id, rung=known[ask.id]))
                    continue
                answer = desk.answer(instance.id, instance.horizon_s, ask, patient=each.instance in patient)
                if answer is None:
                    self.short.add(each.instance)
                    continue
                answers.append(answer)
                if (rung := answer.rung) >= 0:
                    known[ask.id] = rung
                    self._new_tickets.append({"instance": instance.id, "ask": ask.id, "rung": rung})
            self._asked[each.instance] = tuple(answers)
        for each in stale:
            known = granted[self._instances[each.instance].id]
            self._asked[each.instance] = tuple(AskAnswer(id=ask.id, rung=known[ask.id]) for ask in each.asks if ask.id in known)

    def _answer(self, desk: Desk, request: SyncRequest, verdict: str) -> SyncAnswer:
        leases: tuple[LeaseGrant, ...] = ()
        if verdict in ("ok", "stale") and not request.closing:
            mentioned = {report.account for report in request.leases}
            mentioned |= {name for ask in request.asks for rung in ask.rungs for name in rung}
            leases = desk.grants(self._instances[request.instance].id, mentioned)
            if self._is_news(desk, request):
                leases = tuple(each for each in leases if not each.granted)
        return SyncAnswer(
            seq=request.seq,
            now_s=self._now_s,
            verdict="fenced" if verdict == "fenced" else "stale" if verdict == "stale" else "ok",
            leases=leases,
            asks=self._asked.get(request.instance, ()),
            whole=request.protocol > 1 and self._instances[request.instance].unheard > 0,
        )

    def _is_news(self, desk: Desk, request: SyncRequest) -> bool:
        """Whether it would be the first that the instance hears of a grant, while the witness does not know of the instance.

        It would come forward with that as one of the strays, and the witness would not have counted it among them.
        """
        if desk.witnessed is None or self._instances[request.instance].id in desk.witnessed:
            return False
        answers = self._asked.get(request.instance, ())
        return not any(report.granted for report in request.leases) and not any(each.rung >= 0 for each in answers)
