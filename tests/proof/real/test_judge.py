"""What the judge of real schedules calls false, and what it must not. If these fail, `make prove-real` says OK of anything, or
accuses in vain."""

import pytest

from stepdown.budget.account import Balance
from tests.proof.real.judge import Asked, Ceiling, Judge, Look, Sent
from tests.proof.truth import Violation

LIMIT_NUSD = 1_000


def judge(*, hard: bool = True) -> Judge:
    return Judge([Ceiling("team", hard, frozenset({"chat"}), LIMIT_NUSD)])


def look(at_s: float = 100.0, *, dead: int = 0, limit: int = LIMIT_NUSD, **numbers: int) -> Look:
    """The ledger, with some of its numbers."""
    nusd = {f"{name}_nusd": value for name, value in numbers.items()}
    balance = Balance("shop/team@0", "shop/team", 0, 1_000_000, limit, **nusd)
    return Look(at_s, at_s + 0.01, {"team": balance}, {"team": dead})


def asked(number: int = 1, at_s: float = 10.0, *, most: int = 500, least: int = 100) -> Asked:
    return Asked(number, "chat", "a", at_s, most, least)


def billed(to: Judge, number: int, nusd: int, *, whole: bool = True, at_s: float = 10.0, charged: int | None = None) -> Sent:
    record = asked(number, at_s)
    record.status, record.whole, record.ended_s = 200, whole, at_s + 2.0
    sent = to.came(record, at_s + 1.0)
    to.ended(sent, nusd, nusd if charged is None else charged, usual=whole)
    return sent


def test_a_bill_over_the_ceiling_is_found_out_while_it_is_still_in_flight() -> None:
    """Promise 1."""
    truth = judge()
    billed(truth, 1, 700)
    flying = truth.came(asked(2), 11.0)
    truth.check_ceilings(truth.worth([(flying, 300)]))
    with pytest.raises(Violation, match=r"over: .* 700 nUSD and 301 are in flight, allowed are 1000"):
        truth.check_ceilings(truth.worth([(flying, 301)]))


def test_a_soft_budget_may_be_passed() -> None:
    truth = judge(hard=False)
    billed(truth, 1, 5_000)
    truth.check_ceilings(truth.worth([]))


def test_what_an_edit_pushed_over_the_limit_may_be_spent_and_no_more() -> None:
    """A keeper that goes on granting after a budget was lowered would pass; or one that does not be accused."""
    truth = judge()
    truth.ceilings["team"].applying(400)
    billed(truth, 1, 600)
    truth.check_ceilings(truth.worth([]))  # not in force yet, as far as anybody knows
    truth.check_ledger(truth.worth([]), look(settled=600, idle=100, limit=400))
    assert truth.ceilings["team"].allowed_nusd == 700
    billed(truth, 2, 100)
    truth.check_ceilings(truth.worth([]))
    billed(truth, 3, 1)
    with pytest.raises(Violation, match="over"):
        truth.check_ceilings(truth.worth([]))


def test_an_older_copys_limit_does_not_raise_the_ceiling() -> None:
    """A ledger that is put back from before a budget was lowered would be allowed what it thinks."""
    truth = judge()
    truth.ceilings["team"].applying(400)
    truth.check_ledger(truth.worth([]), look(limit=400))
    truth.check_ledger(truth.worth([]), look(limit=LIMIT_NUSD))
    assert truth.ceilings["team"].allowed_nusd == 400


def test_a_raised_limit_may_be_used_as_soon_as_it_is_applied() -> None:
    truth = judge()
    truth.ceilings["team"].applying(2_000)
    billed(truth, 1, 1_500)
    truth.check_ceilings(truth.worth([]))


def test_money_that_the_ledger_does_not_know_of_is_found_out() -> None:
    """A keeper that forgets a grant would hand it out again."""
    truth = judge()
    flying = truth.came(asked(), 11.0)
    worth = truth.worth([(flying, 300)])
    truth.check_ledger(worth, look(reserved=300))
    with pytest.raises(Violation, match="lost: 300 nUSD of team are billed or in flight, the ledger knows of 299"):
        truth.check_ledger(worth, look(settled=200, reserved=99))


def test_a_request_while_the_budget_was_deleted_is_not_held_against_it() -> None:
    """Nobody could say under which config it was admitted: it may be missing there, and may be there."""
    truth = judge()
    team = truth.ceilings["team"]
    team.deleted(20.0)
    assert not billed(truth, 1, 5_000, at_s=19.5).sure
    assert not billed(truth, 2, 5_000, at_s=25.0).sure
    assert billed(truth, 3, 10, at_s=10.0).sure == (team,)
    team.enforced(30.0)
    assert billed(truth, 4, 10, at_s=31.0).sure == (team,)
    truth.check_ceilings(truth.worth([]))
    truth.check_sums(look(settled=20))
    truth.check_sums(look(settled=10_020))


def test_a_budget_that_was_soft_for_a_while_is_judged_by_what_it_held_before_and_since() -> None:
    """Soft, it refuses nothing and knows less than was spent: neither is held against it, and neither is an excuse later."""
    truth = judge()
    team = truth.ceilings["team"]
    billed(truth, 1, 600, at_s=10.0)
    team.deleted(20.0)  # as the schedule tells of a budget that does not bind
    billed(truth, 2, 3_000, at_s=21.0)
    truth.check_ceilings(truth.worth([]))
    truth.check_ledger(truth.worth([]), look(settled=599))  # one that is lost will say what is missing, or nobody will
    team.enforced(30.0)
    truth.check_ledger(truth.worth([]), look(settled=3_600))
    assert team.allowed_nusd == LIMIT_NUSD, "what was spent meanwhile raises no ceiling"
    with pytest.raises(Violation, match="lost: 600 nUSD of team"):
        truth.check_ledger(truth.worth([]), look(settled=599))
    billed(truth, 3, 400, at_s=31.0)
    truth.check_ceilings(truth.worth([]))
    billed(truth, 4, 1, at_s=32.0)
    with pytest.raises(Violation, match="over: the bill of team is 1001 nUSD"):
        truth.check_ceilings(truth.worth([]))


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ({"settled": 499}, "lost: the bill of team is 500 nUSD"),
        ({"settled": 501}, "501 nUSD of team were settled by usage, all that was billed is worth 500"),
        ({"settled": 700, "estimated": 201}, "499 nUSD of team were settled by usage, whole answers are worth 500"),
        ({"settled": 700, "estimated": 199}, "501 nUSD of team were settled by usage"),
    ],
)
def test_a_ledger_that_is_off_by_one_nano_dollar_is_found_out(numbers: dict[str, int], why: str) -> None:
    """Lost or doubled money would be no news."""
    truth = judge()
    billed(truth, 1, 200)
    billed(truth, 2, 300)
    truth.check_sums(look(settled=500))
    truth.check_sums(look(settled=700, estimated=200))
    with pytest.raises(Violation, match=why):
        truth.check_sums(look(**numbers))


def test_what_nobody_outside_can_know_is_not_accused() -> None:
    """A request that was cut may be charged as an estimate or by its usage; what a lost log knew is in `unreconciled`."""
    truth = judge()
    billed(truth, 1, 200)
    billed(truth, 2, 300, whole=False)
    assert truth.check_sums(look(settled=500)) == 300
    truth.check_sums(look(settled=600, estimated=400))
    truth.uncertain.add("a")
    truth.check_sums(look(unreconciled=500))


def test_a_price_that_rose_in_the_middle_is_charged_and_not_billed_before() -> None:
    """The product charges the dearest price of a request's time; what the upstream bills is less, and both are checked."""
    truth = judge()
    billed(truth, 1, 200, charged=400)
    truth.check_sums(look(settled=400))
    with pytest.raises(Violation, match="whole answers are worth 400"):
        truth.check_sums(look(settled=200))


def test_an_answer_that_tells_another_cost_than_it_has_is_found_out() -> None:
    truth = judge()
    sent = billed(truth, 1, 200)
    sent.asked.told_nusd = 200
    truth.check_told()
    sent.asked.told_nusd = 201
    with pytest.raises(Violation, match="an answer said that it cost 201 nUSD, it is worth 200"):
        truth.check_told()


def refused() -> Asked:
    record = asked(at_s=10.0)
    record.status, record.code, record.ended_s = 429, "insufficient_quota", 15.0
    return record


def test_a_refusal_while_the_money_lay_there_is_found_out() -> None:
    """Promise 2."""
    looks = [look(at_s, settled=800) for at_s in (9.0, 12.0, 16.0)]
    assert (judge().false_refusal(refused(), looks, []) or "").startswith("false refusal")


@pytest.mark.parametrize("used", [{"settled": 901}, {"settled": 800, "unreconciled": 101}, {"settled": 800, "reserved": 101}])
def test_a_refusal_for_want_of_money_at_any_moment_is_a_true_one(used: dict[str, int]) -> None:
    looks = [look(9.0), look(12.0, **used), look(16.0)]
    assert judge().false_refusal(refused(), looks, []) == ""


def test_money_that_the_dead_hold_or_others_may_have_been_promised_is_not_there() -> None:
    looks = [look(at_s, settled=700) for at_s in (9.0, 12.0, 16.0)]
    other = asked(2, at_s=11.0, most=201)
    other.ended_s = 12.0
    assert judge().false_refusal(refused(), looks, [other]) == ""
    assert judge().false_refusal(refused(), [look(at_s, settled=700, dead=201) for at_s in (9.0, 16.0)], []) == ""


def test_a_refusal_that_nobody_looked_at_is_not_judged() -> None:
    assert judge().false_refusal(refused(), [look(9.0)], []) is None
