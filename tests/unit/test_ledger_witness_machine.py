"""The ledger beside its witness under everything that may happen. If this fails, an old backup passes somebody's ceiling.

As `test_ledger_machine`, and on top of it: at any moment the keeper is killed, an older copy of the ledger is put in its place
while the proxies go on with the leases that they have, another leader takes over while the earlier one still writes, and the
witness is away, or does not say whether it was raised.
"""

import shutil
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from stepdown.ledger import Ledger, errors
from stepdown.model.sync import SyncAnswer, SyncRequest
from tests.unit.ledger_world import FLEET, HORIZON_S, LONGEST_S, Budget, Config, Proxy
from tests.unit.test_ledger_machine import PICK, LedgerMachine


class WitnessMachine(LedgerMachine):
    ended_too = False  # An older copy is not charged with them: nobody spends of them any more.

    def __init__(self) -> None:
        self.witness: dict[str, int] = {}
        self.mode = "well"
        self.backups: list[Path] = []
        self.rolled_back = False
        self.ceilings: dict[str, int] = {}
        """The highest limit that was ever in force: of a month that is over, an older copy may know a lower one."""
        super().__init__()

    # The keeper -------------------------------------------------------------------------------------------------------

    def open_ledger(self) -> Ledger:
        ledger = Ledger.open(self.path, create=True)
        self.lead(ledger)
        return ledger

    def lead(self, ledger: Ledger) -> None:
        ledger.take_epoch("stepdown-0")
        ledger.guard()
        ledger.begin(self.witness, self.world.now_s)
        self.raise_marks(ledger)
        self.before = {}

    def replan(self) -> None:
        for each in self.world.bindings():
            self.ceilings[each.account] = max(each.limit_nusd, self.ceilings.get(each.account, 0))
        super().replan()

    def raise_marks(self, ledger: Ledger) -> bool:
        marks = ledger.needed_marks()
        if self.mode != "away":
            for name, value in marks.items():
                self.witness[name] = max(value, self.witness.get(name, 0))
        ledger.set_marks(marks if self.mode == "well" else {})
        return self.mode == "well"

    def sync(self, batch: list[SyncRequest]) -> list[tuple[Proxy, SyncAnswer, Config]]:
        """As the service: whoever needs a raise is judged again after it, or as far as the marks go."""
        answers = self.judge(batch, patient=self.mode == "well")
        return [(self.by_name[m.instance], a, self.world.config) for m, a in zip(batch, answers, strict=True)]

    def judge(self, batch: list[SyncRequest], *, patient: bool, raises: int = 0) -> list[SyncAnswer]:
        judged = self.ledger.judge(batch, self.world.now_s, range(len(batch)) if patient else ())
        self.check_grants()
        assert raises < 3 or not judged.short, "two raises are enough, were it that after the first a better rung fits"
        raised = self.raise_marks(self.ledger)
        if judged.short:
            again = self.judge([batch[index] for index in judged.short], patient=raised, raises=raises + 1)
            for index, answer in zip(judged.short, again, strict=True):
                judged.answers[index] = answer
        return judged.answers

    @initialize(limits=st.lists(st.integers(100, 3000), min_size=2, max_size=2))
    def begin(self, limits: list[int]) -> None:
        """Every route is bound from the start, so nothing is ever charged as an opening: each nano-dollar is a lease's."""
        self.world.budgets = {
            "shop/one": Budget("shop/one", limits[0], True, frozenset({"shop/a", "shop/b"})),
            "shop/two": Budget("shop/two", limits[1], True, frozenset({"shop/b", "shop/c"})),
        }
        self.replan()
        for _ in range(3):
            self.new_proxy()
        self.everybody_syncs()

    @rule(pick=PICK, limit=st.integers(0, 3000))
    def edit(self, pick: int, limit: int) -> None:
        self.edit_limit(pick, limit)

    @rule(mode=st.sampled_from(["well", "well", "away", "unknown"]))
    def the_witness_is(self, mode: str) -> None:
        self.mode = mode
        self.raise_marks(self.ledger)

    @rule()
    def back_up(self) -> None:
        copy = self.path.with_name(f"backup-{len(self.backups)}")
        self.ledger._database._connection.execute(f"VACUUM INTO '{copy}'")
        self.backups.append(copy)

    @rule(pick=PICK, heard=st.booleans(), restore=st.sampled_from([False, True, True]))
    def kill(self, pick: int, heard: bool, restore: bool) -> None:
        """The keeper ends in the middle of things; perhaps an older copy is put in its place, and perhaps from another life.

        A proxy has one message under way: what it says to the next keeper it says when the last one's answer has come, or
        never will.
        """
        self.ledger._database.close()
        for each in self.down if heard else ():
            self.hear(*each)
        self.drop_everything()
        if restore and self.backups:
            self.rolled_back = True
            for each in self.path.parent.glob(f"{self.path.name}*"):
                each.unlink()
            shutil.copy(self.backups[pick % len(self.backups)], self.path)
        self.ledger = self.open_ledger()
        self.replan()

    @rule(pick=PICK)
    def take_over(self, pick: int) -> None:
        """Another leader; the earlier one was paused, wakes up, and still wants to grant."""
        earlier = self.ledger
        self.ledger = Ledger.open(self.path, create=False, beside=True)
        self.lead(self.ledger)
        self.ledger.publish(FLEET, self.world.config.digests, HORIZON_S)
        proxy = self.some(pick)
        before = self.ledger.balances(self.world.now_s, ended=True), self.ledger.instances(closed=True)
        for write in (
            lambda: earlier.sync([proxy.message(self.world.now_s)] if proxy is not None else [], self.world.now_s),
            lambda: earlier.bind([], self.world.now_s),
        ):
            try:
                write()
            except errors.LedgerFenced:
                continue
            raise AssertionError("the earlier leader wrote")
        earlier.close()
        assert before == (self.ledger.balances(self.world.now_s, ended=True), self.ledger.instances(closed=True))
        self.replan()

    # What must hold ---------------------------------------------------------------------------------------------------

    def check_grants(self) -> None:
        super().check_grants()
        for name, balance in self.before.items():
            mark = self.witness.get(name, 0)
            assert balance.opening_nusd or balance.committed_nusd <= mark, f"{name}: {balance} passes its mark {mark}"

    @invariant()
    def the_bill_is_under_the_ceiling(self) -> None:
        """However old the ledger is: whatever was spent is committed there, and nothing beyond the limit was ever spent."""
        self.before = self.ledger.balances(self.world.now_s)
        for name, balance in self.ledger.balances(self.world.now_s, ended=True).items():
            true = self.world.charged(name)
            assert true <= balance.committed_nusd or name not in self.before, f"{name}: {true} was spent, {balance}"
            if name not in self.world.lowered:
                assert true <= self.ceilings[name], f"{name}: {true} was spent, it passed its ceiling: {balance}"

    def settle_one(self, name: str) -> None:
        """An administrator reads the upstream's statement: of every account, whether the ledger knows of it or not."""
        true: dict[str, int] = {}
        for each in self.world.bill:
            for account in each.charged if each.instance == name else ():
                true[account] = true.get(account, 0) + each.cost
        view = next(each for each in self.ledger.instances() if each.name == name)
        known = {lease.account for lease in view.leases}
        try:
            self.ledger.settle_instance(name, true, self.world.now_s)
        except errors.LedgerRefused:
            self.ledger.settle_instance(name, {a: n for a, n in true.items() if a in known}, self.world.now_s)

    def drain(self) -> None:
        """Everybody says everything and closes, the lost are settled. Unless the ledger was put back, all is known then."""
        self.mode = "well"
        for proxy in list(self.proxies):
            for hold in list(proxy.holds):
                proxy.settle(hold, hold.amount // 3)
            proxy.asks.clear()
            self.exchange(proxy)
            if proxy in self.proxies:
                self.sync([proxy.message(self.world.now_s, closing=True)])
                self.proxies.remove(proxy)
        self.world.now_s += HORIZON_S + LONGEST_S + 1
        self.sync([])
        for view in self.ledger.instances():
            self.settle_one(view.name)
        assert self.ledger.verify() == []
        for name, balance in self.ledger.balances(self.world.now_s, ended=True).items():
            if self.rolled_back:
                assert balance.end_s <= self.world.now_s or self.world.charged(name) <= balance.committed_nusd, (
                    f"{name}: {balance}"
                )
            else:
                assert balance.committed_nusd == balance.settled_nusd == self.world.charged(name), f"{name}: {balance}"


WitnessMachine.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    report_multiple_bugs=False,
    phases=[Phase.explicit, Phase.generate],
)
TestLedgerBesideItsWitness = WitnessMachine.TestCase
