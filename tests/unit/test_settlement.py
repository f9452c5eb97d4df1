"""What of the unreconciled money an invoice takes. If one fails, a budget pays for others, or passes its ceiling."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from stepdown.budget.settlement import ModelCost, Pool, Share, divide


def share(account: str, held: int, charged: int, kept: int) -> Share:
    return Share(account, held, charged, kept)


def test_what_was_billed_beyond_the_counters_is_charged_and_the_rest_is_free() -> None:
    """A proxy that was killed with its log must not cost more than the upstream says."""
    made = divide([ModelCost("m", 1_300, 0, 1_000)], [Pool("a", 900)])
    assert made.shares == (share("a", 900, 300, 0),)
    assert (made.shares[0].released_nusd, made.agrees) == (600, True)


def test_an_estimate_that_was_too_high_pays_first() -> None:
    """It is in the spend already: charging the whole difference would charge it twice."""
    models = [ModelCost("m", 1_200, 0, 1_000, 300), ModelCost("n", 500, 0, 700, 250)]
    made = divide(models, [Pool("a", 900, estimated_nusd=550)])
    assert made.shares == (share("a", 900, 0, 0),)
    assert made.agrees


def test_a_model_that_was_not_billed_pays_for_no_other() -> None:
    """A line that is missing in the bill would set money free that another line has taken."""
    made = divide([ModelCost("m", 1_300, 0, 1_000), ModelCost("n", 0, 0, 5_000)], [Pool("a", 900)])
    assert made.shares == (share("a", 900, 300, 0),)
    assert (made.short_nusd, made.agrees) == (5_000, False)


def test_more_than_was_held_is_nobody_s() -> None:
    """Somebody else spends with the key, or a price is wrong: no budget may be charged for it."""
    made = divide([ModelCost("m", 3_000, 0, 1_000)], [Pool("a", 900), Pool("b", 100)])
    assert made.shares == (share("a", 900, 900, 0), share("b", 100, 100, 0))
    assert (made.excess_nusd, made.agrees) == (1_000, False)


def test_where_nobody_can_tell_whose_it_was_the_doubt_stays_held() -> None:
    """Half of it set free at the wrong budget is a budget that passes its ceiling."""
    made = divide([ModelCost("m", 1_300, 0, 1_000)], [Pool("a", 600), Pool("b", 300)])
    assert made.shares == (share("a", 600, 200, 100), share("b", 300, 100, 200))
    assert made.kept_nusd == 300


def test_a_budget_within_another_is_charged_in_both_and_counted_once() -> None:
    """The same request holds money in each of its budgets: the bill has it once."""
    made = divide([ModelCost("m", 1_300, 0, 1_000)], [Pool("all", 900), Pool("team", 450, outer=False)])
    assert made.shares == (share("all", 900, 300, 0), share("team", 450, 150, 150))
    assert made.excess_nusd == 0


def test_what_a_bill_may_be_rounded_by_is_no_difference_and_stays_held() -> None:
    """Bills are in cents and the ledger in nano-dollars: no month would ever agree."""
    made = divide([ModelCost("m", 1_010, 5, 1_006)], [Pool("a", 900)])
    assert made.shares == (share("a", 900, 4, 5),)
    assert made.agrees and divide([ModelCost("m", 1_010, 5, 1_006)], []).agrees


nusd = st.integers(0, 500)
truths = st.lists(
    st.tuples(
        st.lists(nusd, min_size=2, max_size=2),
        st.lists(nusd, min_size=2, max_size=2),
        st.lists(nusd, min_size=2, max_size=2),
        nusd,
    ),
    min_size=1,
    max_size=4,
)
"""By account: what two models were metered by usage; estimates as charged; what the lost have spent; what else they held."""


@given(truths, st.lists(st.integers(0, 100), min_size=8, max_size=8), st.integers(1, 40))
def test_no_budget_is_freed_of_what_it_was_billed(truth: Sequence[tuple], shrink: list[int], rounded: int) -> None:
    """Whatever the truth is behind the bill: each account goes on bearing all of it, and the sum is the bill."""
    models, pools, spent = [], [], []
    for index in range(2):
        metered = sum(exact[index] + guess[index] for exact, guess, _, _ in truth)
        guessed = sum(guess[index] for _, guess, _, _ in truth)
        true_guess = sum(guess[index] * shrink[2 * at + index] // 100 for at, (_, guess, _, _) in enumerate(truth))
        bill = sum(exact[index] + lost[index] for exact, _, lost, _ in truth) + true_guess
        models.append(ModelCost(f"m{index}", -(-bill // rounded) * rounded, rounded, metered, guessed))
    for at, (_, guess, lost, more) in enumerate(truth):
        pools.append(Pool(f"a{at}", sum(lost) + more, sum(guess)))
        spent.append(sum(lost) + sum(guess[index] * shrink[2 * at + index] // 100 for index in range(2)))
    made = divide(models, pools)
    for pool, each, true in zip(pools, made.shares, spent, strict=True):
        assert min(each.charged_nusd, each.kept_nusd, each.released_nusd) >= 0
        assert each.charged_nusd + each.kept_nusd + pool.estimated_nusd >= true
    beyond = sum(max(-each.estimated_nusd, each.difference_nusd) for each in models)
    assert sum(each.charged_nusd for each in made.shares) + made.excess_nusd == max(0, beyond)
    assert made.agrees
