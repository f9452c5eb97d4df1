"""What puts a pass into force: here, from what spend on another one is due."""

from dataclasses import replace

from stepdown.budget.serving import Unheard
from stepdown.plan.plan import Plan
from stepdown.reconcile import decide
from stepdown.sync.keeper import moved, next_steps
from tests.unit.policy import NOW_S, budget, route, spent, world


def judged(usd: str, unreconciled_nusd: int = 0) -> tuple[Plan, dict[str, int]]:
    things = world(route(), budget(usd="100"))
    view = spent(things, team=usd)
    held = {key: replace(each, unreconciled_nusd=unreconciled_nusd) for key, each in view.balances.items()}
    plan = decide(things, replace(view, balances=held), NOW_S).plan
    return plan, next_steps(plan)


def test_a_pass_is_due_at_the_very_spend_at_which_the_verdict_is_another() -> None:
    """A nano-dollar late, and a step is in force with the next look only; one early, and nothing is gained by the pass."""
    for usd, next_usd in (("0", 50), ("49.99", 50), ("50", 80), ("80", 95), ("94", 95), ("95", 100)):
        plan, found = judged(usd)
        (nusd,) = found.values()
        assert nusd == next_usd * 10**9
        known = {each.account: each for each in plan.bindings}
        for at_nusd, other in ((nusd - 1, False), (nusd, True)):
            (balance,) = [each.balance for each in plan.budgets.values() if each.balance is not None]
            assert balance.account in known
            now = replace(balance, opening_nusd=0, settled_nusd=at_nusd)
            assert moved(plan, {balance.account: now}) is other


def test_what_is_held_for_lost_proxies_brings_the_step_nearer() -> None:
    _, found = judged("10", unreconciled_nusd=30 * 10**9)
    assert list(found.values()) == [20 * 10**9]


def test_a_spent_budget_waits_for_nothing() -> None:
    assert judged("100")[1] == {}
    assert judged("250")[1] == {}


def test_a_pass_is_due_when_a_ceiling_waits_for_somebody_else() -> None:
    """The status would go on naming a pod that is gone, and not the one that is to be deleted now."""
    plan, _ = judged("10")
    (balance,) = [each.balance for each in plan.budgets.values() if each.balance is not None]
    lost = Unheard("shop", "web-1", "uid-1", NOW_S)
    assert not moved(plan, {balance.account: balance})
    assert moved(plan, {balance.account: replace(balance, unheard=(lost,))})
