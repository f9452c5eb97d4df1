"""When one CA follows upon another. If this fails, every proxy loses the operator at once, on a day a year from now."""

from hypothesis import given, settings
from hypothesis import strategies as st

from stepdown.sync.rotation import (
    DAY_S,
    LAST_S,
    LIFE_S,
    RENEW_S,
    SETTLED_S,
    Term,
    in_bundle,
    needs_another,
    signer,
    told,
)

START_S = 1_795_000_000.0


def term(made_s: float, told_s: float | None = None) -> Term:
    return Term(f"made at {made_s}", made_s, made_s + LIFE_S, told_s)


FIRST = term(START_S, START_S)
NEAR_END_S = FIRST.ends_s - RENEW_S


def test_the_first_ca_signs_at_once() -> None:
    """Nobody trusts anything yet: waiting would help nobody, and no proxy could ever sync."""
    assert needs_another([], START_S)
    assert signer([term(START_S)], START_S) == term(START_S)
    assert not needs_another([FIRST], START_S)


def test_a_follower_is_made_in_time_and_known_before_it_signs() -> None:
    """Signed by a CA that it does not know, the server looks to every proxy like an attacker."""
    assert not needs_another([FIRST], NEAR_END_S - 1)
    assert needs_another([FIRST], NEAR_END_S)
    terms = [FIRST, term(NEAR_END_S)]
    assert in_bundle(terms, NEAR_END_S) == terms, "both are published"
    assert signer(terms, NEAR_END_S + 30 * DAY_S) == FIRST, "not told to everyone: it waits"
    at_s = NEAR_END_S + 3 * DAY_S
    terms = told(terms, frozenset(each.id for each in terms), at_s)
    assert signer(terms, at_s + SETTLED_S - 1) == FIRST
    assert signer(terms, at_s + SETTLED_S) == terms[1]
    assert in_bundle(terms, FIRST.ends_s - 1) == terms, "who knows only the old one loses nothing by keeping it"
    assert in_bundle(terms, FIRST.ends_s) == [terms[1]]


def test_one_namespace_that_cannot_be_written_does_not_end_sync_for_all() -> None:
    """A follower that could not be told to one fleet would let the CA of all of them run out."""
    terms = [FIRST, term(NEAR_END_S)]
    assert signer(terms, FIRST.ends_s - LAST_S - 1) == FIRST
    assert signer(terms, FIRST.ends_s - LAST_S) == terms[1]


def test_telling_again_does_not_start_the_wait_again() -> None:
    """The operator applies its ConfigMaps with every pass: the follower would never sign."""
    terms = told([FIRST, term(NEAR_END_S)], frozenset({term(NEAR_END_S).id}), NEAR_END_S + 1)
    assert told(terms, frozenset({terms[1].id}), NEAR_END_S + DAY_S) == terms


def test_a_clock_put_back_does_not_count_as_time_passed() -> None:
    """A follower told at a moment that has not been yet would sign at once when the clock is right again."""
    early = told([FIRST, term(NEAR_END_S)], frozenset({term(NEAR_END_S).id}), NEAR_END_S + 40 * DAY_S)
    again = told(early, frozenset({early[1].id}), NEAR_END_S + 1)
    assert again[1].told_s == NEAR_END_S + 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 40.0), st.booleans()), min_size=1, max_size=120))
def test_through_years_of_operation_there_is_a_ca_and_proxies_that_hear_know_it(steps: list[tuple[float, bool]]) -> None:
    """Whatever the pace at which bundles reach the fleets, the server's CA is alive, and it is one that they were told a day
    ago, or the very first, or the old one is within its last week."""
    now_s = START_S
    terms = [term(now_s)]
    first = terms[0].id
    for days, reaches in steps:
        now_s += days * DAY_S
        if needs_another(terms, now_s):
            terms = [*in_bundle(terms, now_s), term(now_s)]
        if reaches:
            terms = told(terms, frozenset(each.id for each in terms), now_s)
        chosen = signer(terms, now_s)
        assert chosen is not None and chosen.ends_s > now_s
        assert chosen in in_bundle(terms, now_s)
        older = [each for each in in_bundle(terms, now_s) if each.made_s < chosen.made_s]
        assert chosen.id == first or chosen.settled(now_s) or not older or all(each.ends_s - now_s <= LAST_S for each in older)
