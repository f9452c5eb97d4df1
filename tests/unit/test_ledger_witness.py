"""The ledger beside its witness, rule by rule. If one fails, an old backup refills a budget, or a restart locks money up."""

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from stepdown.budget.account import Balance, Binding
from stepdown.ledger import Ledger, errors
from stepdown.ledger.ledger import Judged
from stepdown.ledger.terms import HOPE_S, Begun
from stepdown.model.config import SHARDS
from stepdown.model.sync import Ask, Counter, LeaseReport, SyncAnswer, SyncRequest

FLEET = "shop/default"
START_S = 20_000 * 86_400
END_S = START_S + 30 * 86_400
TEAM, ALL, NEXT = f"shop/team@{START_S}", f"shop/all@{START_S}", f"shop/team@{END_S}"
LIMIT = 10_000
BLOCK = 100


def binding(limit: int = LIMIT, *, budget: str = "shop/team", hard: bool = True, start_s: int = START_S) -> Binding:
    return Binding(budget, start_s, start_s + END_S - START_S, limit, hard, frozenset({"shop/chat"}))


def lease(account: str = TEAM, **numbers: int) -> LeaseReport:
    plain = {"granted": 0, "returned": 0, "consumed": 0, "estimated": 0, "reserved": 0, "want": 0}
    return LeaseReport(account=account, **{**plain, **numbers})


def ask(id_: int, *rungs: int, account: str = TEAM) -> Ask:
    return Ask(id=id_, rungs=tuple({account: rung} for rung in rungs))


class Keeper:
    """A ledger file, a witness that is a dict, and whoever keeps the one by the other."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ledger"
        self.witness: dict[str, int] = {}
        self.now_s = START_S + 3600.0
        self.seqs: dict[str, int] = {}
        self.bindings = [binding()]
        self.start()

    def start(self) -> Begun:
        self.ledger = Ledger.open(self.path, create=True)
        self.ledger.take_epoch("stepdown-0")
        self.ledger.guard()
        begun = self.ledger.begin(self.witness, self.now_s)
        self.raise_marks()
        self.bind(*self.bindings)
        return begun

    def bind(self, *bindings: Binding) -> None:
        self.bindings = list(bindings)
        self.ledger.bind(bindings, self.now_s)

    def raise_marks(self) -> dict[str, int]:
        """What it is raised to, as the service does it; empty when nothing is wanted."""
        marks = self.ledger.needed_marks()
        for name, value in marks.items():
            self.witness[name] = max(value, self.witness.get(name, 0))
        self.ledger.set_marks(marks)
        return marks

    def kill(self) -> None:
        self.ledger._database.close()

    def restart(self) -> Begun:
        self.ledger.close()
        return self.start()

    def crash(self) -> Begun:
        self.kill()
        return self.start()

    def backup(self) -> Path:
        copy = self.path.with_name(f"backup-{len(list(self.path.parent.iterdir()))}")
        with self.ledger._database.transaction() as connection:
            connection.exec_driver_sql("SELECT 1")
        source = self.ledger._database._connection
        source.execute(f"VACUUM INTO '{copy}'")
        return copy

    def restore(self, backup: Path) -> Begun:
        self.kill()
        for each in self.path.parent.glob("ledger*"):
            each.unlink()
        shutil.copy(backup, self.path)
        return self.start()

    def message(self, instance: str, *asks: Ask, leases: tuple[LeaseReport, ...] = (), **more: object) -> SyncRequest:
        first = instance not in self.seqs
        self.seqs[instance] = self.seqs.get(instance, 0) + 1
        plain = SyncRequest(instance=instance, fleet=FLEET, seq=self.seqs[instance], leases=leases, asks=asks, whole=first)
        return msgspec.structs.replace(plain, **more)

    def judge(self, *messages: SyncRequest) -> Judged:
        return self.ledger.judge(messages, self.now_s, range(len(messages)))

    def say(self, instance: str, *asks: Ask, leases: tuple[LeaseReport, ...] = (), **more: object) -> SyncAnswer:
        """As the service: what is short is judged again once the witness has been raised."""
        message = self.message(instance, *asks, leases=leases, **more)
        judged = self.judge(message)
        for _ in range(3):
            self.raise_marks()
            if not judged.short:
                break
            judged = self.judge(message)
        assert not judged.short, "a raise must be enough"
        return judged.answers[0]

    def grant(self, instance: str, nusd: int, id_: int = 1, **numbers: int) -> None:
        assert self.say(instance, ask(id_, nusd), leases=(lease(**numbers),)).asks[0].rung == 0

    def balance(self, account: str = TEAM) -> Balance:
        assert self.ledger.verify() == []
        return self.ledger.balances(self.now_s, ended=True)[account]


@pytest.fixture
def keeper(tmp_path: Path) -> Keeper:
    """A budget of 10,000 nUSD: a block is 100."""
    return Keeper(tmp_path)


# Marks before grants --------------------------------------------------------------------------------------------------


def test_no_grant_passes_the_mark(keeper: Keeper) -> None:
    """What the witness has not heard of an older copy of the ledger would grant again."""
    keeper.grant("a", 250)
    assert keeper.witness[TEAM] == 250 + BLOCK
    message = keeper.message("b", ask(1, 101))
    assert keeper.judge(message).short == (0,)
    assert keeper.balance().committed_nusd == 250
    (answer,) = keeper.ledger.sync([message], keeper.now_s)
    assert (answer.asks[0].rung, answer.asks[0].recoverable) == (-1, True)
    assert keeper.balance().committed_nusd == 250


def test_an_ask_waits_for_the_raise_and_then_gets_its_best_rung(keeper: Keeper) -> None:
    """Else a request would step down for the sake of a ConfigMap."""
    keeper.say("a")
    message = keeper.message("a", ask(1, 900, 10))
    assert keeper.judge(message).short == (0,)
    assert keeper.raise_marks()[TEAM] == 900 + BLOCK
    judged = keeper.judge(message)
    assert (judged.short, judged.answers[0].asks[0].rung) == ((), 0)


def test_while_the_witness_cannot_be_raised_what_fits_under_the_mark_is_granted(keeper: Keeper) -> None:
    """The API server is away: a cheaper answer is better than none, and the mark holds all the same."""
    keeper.grant("a", 250)
    (answer,) = keeper.ledger.sync([keeper.message("a", ask(2, 500, 60), leases=(lease(granted=250, consumed=250),))], 0.0)
    assert answer.asks[0].rung == 1
    (answer,) = keeper.ledger.sync([keeper.message("b", ask(1, 41))], 0.0)
    assert (answer.asks[0].rung, answer.asks[0].recoverable) == (-1, True)
    assert keeper.balance().committed_nusd <= keeper.witness[TEAM]


def test_who_waits_is_not_overtaken(keeper: Keeper) -> None:
    """The last money must not go to a later ask, only because the first was waiting for the witness."""
    keeper.grant("a", 9_000)
    keeper.say("b")
    first, second = (
        keeper.message("b", ask(1, 950)),
        keeper.message("a", ask(2, 60), leases=(lease(granted=9000, consumed=9000),)),
    )
    assert keeper.judge(first, second).short == (0, 1)
    keeper.raise_marks()
    judged = keeper.judge(first, second)
    assert [answer.asks[0].rung for answer in judged.answers] == [0, -1]


def test_marks_are_raised_ahead_so_that_nobody_waits(keeper: Keeper) -> None:
    """In steady state a request must not cost a write to the API server."""
    keeper.grant("a", 100)
    waits = writes = 0
    for n in range(2, 102):
        message = keeper.message("a", ask(n, 20), leases=(lease(granted=80 + 20 * (n - 1), consumed=80 + 20 * (n - 1)),))
        waits += len(keeper.judge(message).short)
        writes += bool(keeper.raise_marks())
    assert keeper.balance().committed_nusd == 100 + 100 * 20
    assert (waits, writes) == (0, 33), "a write for each 60 of 2,000: a block at a time"


def test_a_mark_never_passes_the_limit_but_with_what_was_spent(keeper: Keeper) -> None:
    """What is raised without need is locked up after a crash; what was spent beyond the mark must not be forgotten."""
    keeper.grant("a", 9_950)
    assert keeper.witness[TEAM] == LIMIT
    keeper.say("a", leases=(lease(granted=9_950, consumed=12_000),))
    assert keeper.balance().settled_nusd == 12_000, "it is taken in, whatever the mark says"
    assert keeper.witness[TEAM] == 12_000


def test_a_block_is_a_hundredth_of_the_limit_in_force(keeper: Keeper) -> None:
    """A budget that was raised would write to the API server a hundred times as often."""
    keeper.bind(binding(1_000_000))
    keeper.grant("a", 250)
    assert keeper.witness[TEAM] == 250 + 10_000
    keeper.bind(binding(300))
    keeper.say("a", leases=(lease(granted=250),))
    assert keeper.witness[TEAM] == 10_250, "it only grows"
    assert keeper.say("b", ask(1, 51)).asks[0].rung == -1, "the limit holds, whatever the mark"
    keeper.bind(binding(40))
    assert keeper.balance().headroom_nusd == -210


def test_idle_money_stays_under_the_mark_and_raises_it(keeper: Keeper) -> None:
    """Leases that are topped up are grants as well."""
    keeper.say("a", leases=(lease(want=40),))
    assert keeper.balance().idle_nusd == 0, "not before the witness knows"
    keeper.say("a", leases=(lease(want=40),))
    assert keeper.balance().idle_nusd == 40
    assert keeper.witness[TEAM] == 40 + BLOCK


def test_a_soft_budget_needs_no_marks(keeper: Keeper) -> None:
    """It grants nothing: nothing of it may wait for the API server."""
    keeper.bind(binding(10, hard=False))
    keeper.say("a", leases=(lease(consumed=500, reserved=20),))
    assert keeper.judge(keeper.message("a", ask(1, 999))).answers[0].asks[0].rung == 0
    assert TEAM not in keeper.witness


def test_the_next_period_has_a_mark_of_its_own(keeper: Keeper) -> None:
    """A new month begins with all of its money, and an old one keeps what it had."""
    keeper.grant("a", 5_000)
    keeper.bind(binding(), binding(start_s=END_S))
    keeper.now_s = END_S - 60.0
    assert keeper.say("a", ask(2, 10, account=NEXT)).asks[0].rung == 0
    assert (keeper.witness[TEAM], keeper.witness[NEXT]) == (5_000 + BLOCK, 10 + BLOCK)
    keeper.now_s = END_S + 2 * 86_400.0
    keeper.bind(binding(start_s=END_S), binding(start_s=2 * END_S - START_S))
    assert keeper.crash().awaited_nusd == BLOCK, "of the month that runs"


def test_what_fails_wants_nothing(keeper: Keeper) -> None:
    """A number given in a transaction that was undone would later look like a proxy that nobody knows."""
    with keeper.ledger._database.transaction() as connection:
        connection.exec_driver_sql("PRAGMA query_only = ON")
    with pytest.raises(errors.LedgerReadOnly):
        keeper.judge(keeper.message("a", ask(1, 10)))
    keeper.ledger._database._connection.execute("PRAGMA query_only = OFF")
    assert keeper.ledger.needed_marks() == {}
    keeper.say("a", ask(2, 10), whole=True)
    assert keeper.witness["born"] == 1


def test_without_a_witness_there_are_no_marks_and_nobody_is_asked_twice(tmp_path: Path) -> None:
    """`stepdown run` has none, and must not pay for it."""
    ledger = Ledger.open(tmp_path / "ledger", create=True)
    ledger.take_epoch("stepdown run")
    ledger.bind([binding()], START_S + 1.0)
    judged = ledger.judge([SyncRequest(instance="a", fleet=FLEET, seq=1, asks=(ask(1, LIMIT),))], START_S + 1.0, [0])
    assert (judged.short, judged.marks, judged.answers[0].asks[0].rung, judged.answers[0].whole) == ((), {}, 0, False)
    assert (ledger.needed_marks(), ledger.standstill) == ({}, "")
    ledger.close()


# The begin of a term --------------------------------------------------------------------------------------------------


def test_nothing_is_granted_before_the_witness_has_been_read_and_told(tmp_path: Path) -> None:
    """A leader that grants first and asks later is the very hole."""
    keeper = Keeper(tmp_path)
    keeper.ledger.close()
    ledger = keeper.ledger = Ledger.open(keeper.path, create=False)
    ledger.take_epoch("stepdown-0")
    ledger.guard()
    message = keeper.message("a", ask(1, 10), leases=(lease(consumed=7),))
    for standstill in ("has not been read", "has not been told"):
        assert standstill in ledger.standstill
        judged = keeper.judge(message)
        assert (judged.short, judged.answers[0].asks[0].rung, judged.answers[0].asks[0].recoverable) == ((), -1, True)
        assert keeper.balance().settled_nusd == 7, "what was spent is taken in"
        ledger.begin(keeper.witness, keeper.now_s)
    keeper.raise_marks()
    assert (ledger.standstill, keeper.say("a", ask(2, 10)).asks[0].rung) == ("", 0)


def test_a_restart_in_order_locks_nothing_up(keeper: Keeper) -> None:
    """Every upgrade would cost a budget a hundredth, again and again."""
    keeper.grant("a", 250)
    for _ in range(3):
        begun = keeper.restart()
        assert (begun.proven, begun.awaited_nusd) == (True, 0)
        assert keeper.balance().headroom_nusd == LIMIT - 250
        assert not keeper.say("a", leases=(lease(granted=250),)).whole


def test_after_a_kill_everything_up_to_the_mark_counts_until_all_have_spoken(keeper: Keeper) -> None:
    """Nobody can tell this file from one of yesterday; a second later all is known, and nothing is locked up."""
    keeper.grant("a", 250)
    keeper.grant("b", 50)
    begun = keeper.crash()
    assert (begun.proven, begun.accounts, begun.awaited_nusd) == (False, 1, BLOCK - 50)
    assert keeper.balance().committed_nusd == keeper.witness[TEAM]
    assert keeper.balance().used == 0, "no step is taken for it"
    answer = keeper.say("a", leases=(lease(granted=250, consumed=30),))
    assert (answer.verdict, answer.whole) == ("stale", True), "not enough: it has said only what has changed"
    assert keeper.balance().awaited_nusd == BLOCK - 50
    assert not keeper.say("a", leases=(lease(granted=250, consumed=30),), whole=True).whole
    assert keeper.balance().awaited_nusd == BLOCK - 50, "b has not spoken"
    keeper.say("b", leases=(lease(granted=50),), whole=True)
    assert (keeper.balance().awaited_nusd, keeper.balance().committed_nusd) == (0, 300)


def test_kills_do_not_add_up(keeper: Keeper) -> None:
    """An operator that is killed for its memory each hour would eat the budget."""
    keeper.grant("a", 250)
    for n in range(2, 30):
        keeper.crash()
        keeper.say("a", leases=(lease(granted=240 + 10 * (n - 1)),), whole=True)
        keeper.grant("a", 10, n, granted=240 + 10 * (n - 1))
        keeper.say("a", leases=(lease(granted=240 + 10 * n),))
        assert keeper.balance().committed_nusd == 240 + 10 * n
    assert keeper.witness[TEAM] <= 240 + 10 * 30 + BLOCK


def test_who_was_lost_before_holds_nothing_up(keeper: Keeper) -> None:
    """A pod is lost a day: each kill of the operator would wait for it for ever."""
    keeper.grant("gone", 250)
    keeper.now_s += 10_000
    keeper.grant("a", 40)
    keeper.crash()
    assert keeper.balance().awaited_nusd > 0
    keeper.say("a", leases=(lease(granted=40),), whole=True)
    assert (keeper.balance().awaited_nusd, keeper.balance().unreconciled_nusd) == (0, 250)


def test_who_comes_back_from_the_lost_is_granted_nothing_before_the_witness_knows(keeper: Keeper) -> None:
    """Else it would be taken for lost and known by an older copy, whatever it was granted since."""
    keeper.grant("a", 250)
    keeper.now_s += 10_000
    keeper.grant("b", 10)
    old = keeper.backup()
    message = keeper.message("a", ask(2, 20), leases=(lease(granted=250, consumed=250),))
    assert keeper.judge(message).short == (0,)
    keeper.raise_marks()
    assert keeper.judge(message).answers[0].asks[0].rung == 0
    assert keeper.witness["born"] == 3
    keeper.restore(old)
    keeper.say("b", leases=(lease(granted=10),), whole=True)
    assert keeper.balance().awaited_nusd > 0, "it may be anybody who was born third"


def test_who_comes_back_for_a_ticket_gets_the_money_with_it(keeper: Keeper) -> None:
    """The answer was lost, and then the proxy was: a ticket without its grant would break the proxy's sums."""
    keeper.say("a")
    message = keeper.message("a", ask(1, 250))
    keeper.judge(message)
    keeper.raise_marks()
    assert keeper.judge(message).answers[0].asks[0].rung == 0
    keeper.now_s += 10_000
    keeper.say("b")
    (answer,) = keeper.ledger.sync([keeper.message("a", ask(1, 250))], keeper.now_s)
    assert (answer.asks[0].rung, [each.granted for each in answer.leases]) == (0, [250])


def test_who_is_not_known_to_the_witness_does_not_hear_of_its_first_grant(keeper: Keeper) -> None:
    """An upstream's excess is granted after the fact; who hears of it must count as born, or a stray is found by mistake."""
    (answer,) = keeper.ledger.sync([keeper.message("a", leases=(lease(consumed=7),))], keeper.now_s)
    assert answer.leases == ()
    assert keeper.raise_marks()["born"] == 1
    assert [each.granted for each in keeper.say("a", leases=(lease(consumed=7),)).leases] == [7]


def test_who_does_not_come_back_after_a_kill_is_unreconciled_until_settled(keeper: Keeper) -> None:
    """A node takes the operator and a proxy along: what that may have had shows, and an administrator can end it."""
    keeper.grant("a", 250)
    keeper.grant("b", 30)
    keeper.crash()
    keeper.say("a", leases=(lease(granted=250),), whole=True)
    keeper.now_s += HOPE_S + 10_000
    keeper.say("a", leases=(lease(granted=250),))
    left = keeper.witness[TEAM] - 280
    assert (keeper.balance().awaited_nusd, keeper.balance().unreconciled_nusd) == (0, 30 + left)
    keeper.crash()
    keeper.say("a", leases=(lease(granted=250),), whole=True)
    assert keeper.balance().unreconciled_nusd == 30 + left, "no other kill adds to it, or takes from it"
    keeper.ledger.settle_instance("b", {TEAM: 5}, keeper.now_s)
    assert (keeper.balance().unreconciled_nusd, keeper.balance().committed_nusd) == (0, 255)


def test_who_closes_has_said_everything(keeper: Keeper) -> None:
    """A rollout right after a kill must not lock up what the old pods had."""
    keeper.grant("a", 250)
    keeper.crash()
    answer = keeper.say("a", leases=(lease(granted=250, consumed=100),), closing=True)
    assert (answer.verdict, answer.whole) == ("stale", True), "it may have left something out: it is asked once more"
    keeper.say("a", leases=(lease(granted=250, consumed=100),), closing=True, whole=True)
    assert keeper.balance().committed_nusd == 100


def test_a_term_that_was_never_told_proves_nothing_and_hides_nothing(keeper: Keeper) -> None:
    """The operator is killed between reading the witness and writing to it: it has granted nothing."""
    keeper.grant("a", 250)
    keeper.ledger.close()
    for _ in range(2):
        ledger = Ledger.open(keeper.path, create=False)
        ledger.take_epoch("stepdown-0")
        ledger.guard()
        ledger.begin(keeper.witness, keeper.now_s)
        ledger._database.close()
    begun = keeper.start()
    assert (begun.proven, keeper.balance().awaited_nusd) == (True, 0)


# Older copies ---------------------------------------------------------------------------------------------------------


def test_an_older_backup_refills_nothing(keeper: Keeper) -> None:
    """The promise: what was granted since the backup stays charged, until those that have it say what became of it."""
    keeper.grant("a", 1_000)
    old = keeper.backup()
    keeper.grant("a", 3_000, 2, granted=1_000, consumed=1_000)
    begun = keeper.restore(old)
    assert (begun.proven, begun.awaited_nusd) == (False, 3_000 + BLOCK)
    assert keeper.say("b", ask(1, LIMIT - 4_000)).asks[0].rung == -1
    answer = keeper.say("a", leases=(lease(granted=4_000, consumed=1_500),))
    assert answer.whole
    assert keeper.balance().committed_nusd == 4_000 + BLOCK, "it has spoken, and nothing is counted twice"
    keeper.say("a", leases=(lease(granted=4_000, consumed=1_500),), whole=True)
    assert keeper.balance().committed_nusd == 4_000
    keeper.grant("b", LIMIT - 4_000, 2)


def test_a_backup_of_this_morning_does_not_take_everybody_for_lost(keeper: Keeper) -> None:
    """By its clock all have been silent for hours; they were heard, granted and charged in another copy."""
    keeper.grant("a", 1_000)
    old = keeper.backup()
    for _ in range(20):
        keeper.now_s += 500.0
        keeper.say("a", leases=(lease(granted=1_000, consumed=1_000),))
    keeper.grant("a", 3_000, 2, granted=1_000, consumed=1_000)
    keeper.restore(old)
    assert keeper.balance().committed_nusd == 4_000 + BLOCK
    keeper.say("b")
    assert keeper.balance().committed_nusd == 4_000 + BLOCK
    keeper.say("a", leases=(lease(granted=4_000, consumed=1_500),), whole=True)
    assert keeper.balance().committed_nusd == 4_000


def test_after_an_outage_nobody_is_lost_who_could_not_speak(keeper: Keeper) -> None:
    """The operator was away for an hour: its fleet would show as unreconciled, and each proxy would wait for the witness."""
    keeper.grant("a", 1_000)
    keeper.now_s += 3_600.0
    keeper.restart()
    keeper.say("b")
    assert keeper.balance().unreconciled_nusd == 0
    keeper.now_s += 601.0
    keeper.say("b")
    assert keeper.balance().unreconciled_nusd == 1_000


def test_a_return_that_the_backup_does_not_know_is_not_granted_twice(keeper: Keeper) -> None:
    """a gave back what c was granted. To the backup a still has it; when a speaks, that is c's money and nobody else's."""
    keeper.say("c")
    keeper.grant("a", 5_000)
    keeper.grant("b", 4_900)
    keeper.grant("c", 1)
    old = keeper.backup()
    keeper.say("a", leases=(lease(granted=5_000, returned=5_000),))
    keeper.grant("c", 4_999, 2, granted=1)
    keeper.restore(old)
    keeper.say("a", leases=(lease(granted=5_000, returned=5_000),), whole=True)
    keeper.say("b", leases=(lease(granted=4_900),), whole=True)
    assert keeper.say("b", ask(9, 200), leases=(lease(granted=4_900, consumed=4_900),)).asks[0].rung == -1
    keeper.say("c", leases=(lease(granted=5_000),), whole=True)
    assert keeper.balance().committed_nusd == 9_900


def test_proxies_that_the_backup_does_not_know_come_forward(keeper: Keeper) -> None:
    """A rollout since the backup: every one of the new pods speaks, and then all is known."""
    keeper.grant("a", 1_000)
    old = keeper.backup()
    for name in "bc":
        keeper.grant(name, 500)
    keeper.restore(old)
    keeper.say("a", leases=(lease(granted=1_000),), whole=True)
    keeper.say("d", leases=(), whole=True)
    assert keeper.say("b", leases=(lease(granted=500),)).whole
    keeper.say("b", leases=(lease(granted=500, consumed=500),), whole=True)
    assert keeper.balance().awaited_nusd > 0, "one is missing yet"
    keeper.say("c", leases=(lease(granted=500),), whole=True)
    keeper.now_s += HOPE_S
    keeper.say("c", leases=(lease(granted=500),))
    assert (keeper.balance().awaited_nusd, keeper.balance().unreconciled_nusd, keeper.balance().committed_nusd) == (0, 0, 2_000)


def test_a_proxy_that_came_and_went_since_the_backup_stays_charged(keeper: Keeper) -> None:
    """Nobody is left who could say what it spent. It shows as unreconciled, and ends with the month."""
    keeper.grant("a", 1_000)
    old = keeper.backup()
    keeper.grant("b", 500)
    keeper.say("b", leases=(lease(granted=500, consumed=480),), closing=True)
    keeper.restore(old)
    keeper.say("a", leases=(lease(granted=1_000),), whole=True)
    keeper.now_s += HOPE_S
    keeper.say("a", leases=(lease(granted=1_000),))
    assert keeper.balance().unreconciled_nusd >= 480
    unreconciled = keeper.balance().unreconciled_nusd
    keeper.grant("a", 100, 2, granted=1_000)
    keeper.crash()
    keeper.say("a", leases=(lease(granted=1_100),), whole=True)
    assert keeper.balance().unreconciled_nusd == unreconciled, "and no later kill adds to it"


def test_a_backup_of_an_earlier_term_is_told_by_its_epoch(keeper: Keeper) -> None:
    """It was made in order while the operator was down: only a later term can have granted more."""
    keeper.grant("a", 250)
    keeper.ledger.close()
    shutil.copy(keeper.path, keeper.path.with_name("cold"))
    keeper.start()
    keeper.say("a", leases=(lease(granted=250, consumed=250),))
    begun = keeper.restore(keeper.path.with_name("cold"))
    assert not begun.proven
    assert begun.epoch > 2, "and its numbers are never used again"


def test_a_copy_that_never_got_to_grant_is_not_taken_for_the_one_that_did(keeper: Keeper) -> None:
    """Two copies of a ledger take the same number; only that whose number the witness has may say that it ended in order."""
    keeper.grant("a", 250)
    keeper.ledger.close()
    first, copy = keeper.path, keeper.path.with_name("copy")
    shutil.copy(first, copy)
    idle = Ledger.open(copy, create=False)
    idle.take_epoch("stepdown-0")
    idle.guard()
    idle.begin(keeper.witness, keeper.now_s)
    idle.close()
    keeper.start()
    keeper.grant("a", 3_000, 2, granted=250, consumed=250)
    keeper.kill()
    keeper.path = copy
    assert not keeper.start().proven
    assert keeper.balance().committed_nusd == 3_250 + BLOCK


def test_accounts_that_the_backup_does_not_know_are_charged_to_their_marks(keeper: Keeper) -> None:
    """A budget that was created since would begin at nothing."""
    old = keeper.backup()
    keeper.bind(binding(), binding(budget="shop/all"))
    assert keeper.say("a", ask(1, 700, account=ALL)).asks[0].rung == 0
    keeper.restore(old)
    keeper.bind(binding(), binding(budget="shop/all"))
    assert keeper.balance(ALL).committed_nusd == 700 + BLOCK
    keeper.say("a", leases=(lease(ALL, granted=700),), whole=True)
    keeper.now_s += HOPE_S
    keeper.say("a")
    assert keeper.balance(ALL).committed_nusd == 700


def test_a_witness_that_was_deleted_is_whole_again_with_the_next_raise(keeper: Keeper) -> None:
    """Somebody tidied up ConfigMaps: nothing is locked up, and the next backup is caught again."""
    keeper.bind(binding(), binding(budget="shop/all"))
    keeper.grant("a", 250)
    keeper.say("a", ask(2, 300, account=ALL))
    keeper.witness.clear()
    keeper.grant("a", 200, 3, granted=250, consumed=250)
    assert keeper.witness.keys() == {TEAM, ALL, "epoch", "born"}
    keeper.witness.clear()
    begun = keeper.restart()
    assert (begun.proven, begun.awaited_nusd) == (True, 0)
    assert (keeper.witness[TEAM], keeper.witness[ALL], keeper.witness["born"]) == (450, 300, 1)


def test_a_ledger_from_before_the_witness_is_taken_as_it_is(keeper: Keeper, tmp_path: Path) -> None:
    """The first start with a witness, after years without: nothing is to be doubted, and from here on all is guarded."""
    ledger = Ledger.open(tmp_path / "old", create=True)
    ledger.bind([binding()], keeper.now_s)
    ledger.sync([SyncRequest(instance="a", fleet=FLEET, seq=1, asks=(ask(1, 250),))], keeper.now_s)
    ledger.close()
    keeper.kill()
    keeper.path, keeper.witness = tmp_path / "old", {}
    assert keeper.start().proven
    assert (keeper.witness["born"], keeper.witness[TEAM]) == (1, 250)


def test_a_lowered_limit_does_not_let_go_of_what_the_mark_says(keeper: Keeper) -> None:
    """The money may be out there, whatever the limit is now."""
    keeper.grant("a", 1_000)
    old = keeper.backup()
    keeper.grant("a", 3_000, 2, granted=1_000, consumed=1_000)
    keeper.restore(old)
    keeper.bind(binding(2_000))
    assert keeper.balance().headroom_nusd == 2_000 - 4_000 - BLOCK
    keeper.say("a", leases=(lease(granted=4_000, returned=3_900),), whole=True)
    assert keeper.balance().headroom_nusd == 1_900


def test_openings_are_heard_again(keeper: Keeper) -> None:
    """Counters that have not changed since they were acknowledged are said once more: an older ledger may lack them."""
    old = keeper.backup()
    count = Counter(route="shop/chat", model="m", request_class="default", day=START_S // 86_400, requests=1, cost_nusd=77)
    keeper.say("a", counters=(count,))
    assert keeper.balance().opening_nusd == 77
    keeper.restore(old)
    assert keeper.say("a").whole
    keeper.say("a", counters=(count,), whole=True)
    assert keeper.balance().opening_nusd == 77


def spent_on_chat(nusd: int) -> tuple[Counter, ...]:
    day = START_S // 86_400
    return (Counter(route="shop/chat", model="m", request_class="default", day=day, requests=1, cost_nusd=nusd),)


def obeying(keeper: Keeper, config: str, *bindings: Binding) -> dict[int, str]:
    """What a proxy acknowledges that obeys this config; it is bound and published now."""
    keeper.bind(*bindings)
    digests = dict.fromkeys(range(SHARDS), config)
    keeper.ledger.publish(FLEET, digests, 600.0)
    return digests


def test_a_budget_made_anew_since_the_backup_opens_with_what_was_spent_without_it(keeper: Keeper) -> None:
    """The older ledger thinks that the budget was there all the time; what no lease charged meanwhile would be spent twice."""
    with_it = obeying(keeper, "with", binding())
    keeper.say("a", acknowledged=with_it)
    keeper.grant("a", 250)
    spent = lease(granted=250, consumed=100)
    keeper.say("a", leases=(spent,), counters=spent_on_chat(100), acknowledged=with_it)
    old = keeper.backup()
    without = obeying(keeper, "without")
    keeper.say("a", leases=(spent,), counters=spent_on_chat(900), acknowledged=without)
    obeying(keeper, "with", binding())
    keeper.say("a", leases=(spent,), counters=spent_on_chat(1_000), acknowledged=with_it)
    assert keeper.balance().opening_nusd == 900
    keeper.restore(old)
    obeying(keeper, "with", binding())
    keeper.say("a", leases=(spent,), counters=spent_on_chat(1_000), acknowledged=with_it)
    assert keeper.balance().opening_nusd == 0, "not heard: it may have left out what its leases have charged"
    keeper.say("a", leases=(spent,), counters=spent_on_chat(1_000), acknowledged=with_it, whole=True)
    assert (keeper.balance().opening_nusd, keeper.balance().spent_nusd, keeper.balance().awaited_nusd) == (900, 1_000, 0)


def test_what_leases_have_charged_since_the_backup_is_no_opening(keeper: Keeper) -> None:
    """Each kill of the keeper would charge a second's traffic twice."""
    digests = obeying(keeper, "with", binding())
    keeper.say("a", acknowledged=digests)
    keeper.grant("a", 5_000)
    keeper.crash()
    obeying(keeper, "with", binding())
    spent = lease(granted=5_000, consumed=700)
    keeper.say("a", leases=(spent,), counters=spent_on_chat(700), acknowledged=digests, whole=True)
    assert (keeper.balance().opening_nusd, keeper.balance().spent_nusd) == (0, 700)


def test_an_older_proxy_cannot_say_that_it_has_said_everything(keeper: Keeper) -> None:
    """It leaves out what has not changed; so the rest stays charged rather than be let go on its word."""
    keeper.grant("a", 250)
    keeper.crash()
    awaited = keeper.balance().awaited_nusd
    answer = keeper.say("a", leases=(lease(granted=250, consumed=10),), protocol=1)
    assert not answer.whole
    keeper.now_s += HOPE_S
    keeper.say("a", leases=(lease(granted=250, consumed=10),), protocol=1)
    assert (keeper.balance().unreconciled_nusd, keeper.balance().committed_nusd) == (awaited, 250 + awaited)


# An empty ledger ------------------------------------------------------------------------------------------------------


@pytest.fixture
def emptied(keeper: Keeper) -> Keeper:
    """The volume is gone, and with it 4,000 of 10,000 nUSD."""
    keeper.grant("a", 4_000)
    keeper.kill()
    for each in keeper.path.parent.glob("ledger*"):
        each.unlink()
    assert keeper.start().lost == 1
    return keeper


def accept(path: Path) -> None:
    """As `stepdown ledger init --accept-loss`, beside a keeper that runs."""
    beside = Ledger.open(path, create=False, beside=True)
    beside.accept_loss()
    beside.close()


def test_an_empty_ledger_beside_marks_grants_nothing_until_the_loss_is_accepted(emptied: Keeper) -> None:
    """A new volume must not mean a new month; and when it is accepted, what the marks say is spent."""
    assert "what was in it is lost. Bring it back from a backup; or accept" in emptied.ledger.standstill
    answer = emptied.say("b", ask(1, 10))
    assert (answer.asks[0].rung, answer.asks[0].recoverable) == (-1, True)
    emptied.say("a", leases=(lease(granted=4_000, consumed=900),), whole=True)
    assert emptied.balance().settled_nusd == 900, "what was spent is taken in"
    emptied.restart()
    assert emptied.ledger.standstill, "it is not empty any more, but nobody has accepted the loss"
    accept(emptied.path)
    emptied.now_s += HOPE_S
    assert emptied.say("b", ask(2, 10)).asks[0].rung == 0
    held = (emptied.ledger.standstill, emptied.balance().committed_nusd)
    assert held == ("", 4_010), "all that there ever were have spoken: nothing is lost after all"
    emptied.say("a", leases=(lease(granted=4_000, consumed=900, returned=3_000),))
    assert emptied.balance().committed_nusd == 1_010
    assert emptied.restart().lost == 0
    assert emptied.ledger.standstill == ""


def test_after_an_accepted_loss_nothing_more_than_the_rest_is_granted(emptied: Keeper) -> None:
    """The bill of the month, old and new, stays under the ceiling."""
    accept(emptied.path)
    emptied.now_s += HOPE_S
    assert emptied.say("b", ask(1, LIMIT - 4_000)).asks[0].rung == -1
    emptied.grant("b", LIMIT - 4_000 - BLOCK, 2)
    assert emptied.balance().unreconciled_nusd == 4_000 + BLOCK


def test_a_ledger_that_was_never_empty_has_no_loss_to_accept(keeper: Keeper) -> None:
    """The command must not be a way to wave through whatever comes."""
    keeper.grant("a", 10)
    with pytest.raises(errors.LedgerRefused, match="not empty"):
        accept(keeper.path)


def test_marks_of_months_that_are_over_stop_nobody(keeper: Keeper) -> None:
    """Stepdown is installed anew where it was a year ago."""
    keeper.grant("a", 4_000)
    keeper.kill()
    for each in keeper.path.parent.glob("ledger*"):
        each.unlink()
    keeper.now_s += 90 * 86_400
    begun = keeper.start()
    assert (begun.lost, begun.awaited_nusd, keeper.ledger.standstill) == (0, 0, "")


def test_marks_of_periods_that_are_over_are_not_written_again(keeper: Keeper) -> None:
    """They are cleared away after a while, and a ConfigMap has an end."""
    keeper.grant("a", 4_000)
    keeper.now_s = END_S + 3 * 86_400.0
    keeper.bind(binding(start_s=END_S))
    del keeper.witness[TEAM]
    assert keeper.say("a", ask(2, 10, account=NEXT), leases=(lease(granted=4_000, consumed=4_500),)).asks[0].rung == 0
    assert keeper.witness.keys() == {NEXT, "epoch", "born"}
    assert keeper.ledger.needed_marks() == {}


STRANGE: dict[str, Callable[[dict[str, int]], object]] = {
    "no epoch": lambda witness: witness.pop("epoch"),
    "no numbers": lambda witness: witness.pop("born"),
    "a name that is no account": lambda witness: witness.update({"rubbish": 5, "x@y": 9, "@5": 1}),
}


@pytest.mark.parametrize("what", STRANGE)
def test_a_witness_that_somebody_edited_is_read_on_the_safe_side(keeper: Keeper, what: str) -> None:
    """It is a ConfigMap, and people have editors."""
    keeper.grant("a", 1_000)
    old = keeper.backup()
    keeper.grant("a", 3_000, 2, granted=1_000, consumed=1_000)
    STRANGE[what](keeper.witness)
    keeper.restore(old)
    assert keeper.balance().committed_nusd == 4_000 + BLOCK
