"""Invoices in the middle of everything that may happen to a ledger. If this fails, a settlement gives away what was spent.

As `test_ledger_witness_machine`, and on top of it: at any moment the upstream's true bill up to some day is settled, be it
early, late, twice, rounded, or by a ledger that is an older copy.
"""

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from stepdown.budget.invoice import Billed
from stepdown.ledger import errors
from stepdown.ledger.settlement import PREFIX, Statement
from tests.unit.ledger_world import DAY_S, FIRST_S
from tests.unit.test_ledger_witness_machine import WitnessMachine

MONTH = "2024-10"
FIRST = FIRST_S // DAY_S


class InvoiceMachine(WitnessMachine):
    @rule(days_ago=st.integers(1, 3), rounded=st.sampled_from([1, 1, 40]), long=st.booleans())
    def invoice(self, days_ago: int, rounded: int, long: bool) -> None:
        """What the upstream has billed for whole days; nothing of what is in flight. `long`: everybody is silent before."""
        if long:
            self.world.now_s += 2 * DAY_S
            for proxy in self.proxies:
                proxy.time_out(self.world.now_s)
            self.sync([])
        through = int(self.world.now_s // DAY_S) - days_ago
        true = sum(each.cost for each in self.world.bill if each.admitted_s < (through + 1) * DAY_S)
        said = Statement(
            MONTH, f"{through} {true} {rounded}", FIRST, through, (Billed("m", -(-true // rounded) * rounded, rounded),)
        )
        before = self.ledger.balances(self.world.now_s, ended=True)
        try:
            done = self.ledger.reconcile(said, self.world.now_s)
        except errors.LedgerRefused:
            assert self.ledger.balances(self.world.now_s, ended=True) == before
            return
        assert self.ledger.verify() == []
        for share in done.settlement.shares:
            assert share.released_nusd >= 0 and share.charged_nusd + share.kept_nusd <= share.held_nusd
        self.the_bill_is_under_the_ceiling()
        settled = self.ledger.balances(self.world.now_s, ended=True)
        again = self.ledger.reconcile(said, self.world.now_s)
        assert not again.changed and self.ledger.balances(self.world.now_s, ended=True) == settled

    def drain(self) -> None:
        """As before, but what invoices have divided is not known account by account: nobody bears less than the truth."""
        for proxy in list(self.proxies):
            for hold in list(proxy.holds):
                proxy.settle(hold, hold.amount // 3)
            proxy.asks.clear()
            self.exchange(proxy)
        self.world.now_s += 2 * DAY_S
        self.sync([])
        for view in self.ledger.instances():
            if not view.name.startswith(PREFIX):
                self.settle_one(view.name)
        assert self.ledger.verify() == []
        self.the_bill_is_under_the_ceiling()


InvoiceMachine.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    report_multiple_bugs=False,
    phases=[Phase.explicit, Phase.generate],
)
TestInvoicesBesideTheWitness = InvoiceMachine.TestCase
