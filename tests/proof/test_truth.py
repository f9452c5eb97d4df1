"""What the proof itself calls false, and what it must not: a checker that is wrong hides what it is for, or accuses in vain."""

import pytest

from tests.proof.sums import Sums
from tests.proof.truth import Truth, Violation, Waiting

TEAM = "shop/team@0"


class _Till:
    class books:
        leases: dict[str, object] = {}


class _Host:
    """One that holds nothing, and speaks when the test says so."""

    till = _Till()


class World:
    """An account of 1,000 nUSD, one proxy, and a request that waits for 600 of them."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.truth = Truth(lambda: self.now_s)
        self.truth.bound(TEAM, 1_000, 0)
        self.host = _Host()
        self.truth.hosts.append(self.host)  # type: ignore[arg-type]
        self.held = 0
        self.truth.look = lambda: self.truth.others.update({TEAM: self.held})
        self.truth.disturbed()
        self.wait = Waiting((TEAM,), self.now_s)
        self.truth.waiting.append(self.wait)

    def exchanges(self, times: int) -> None:
        for _ in range(times):
            began_s, self.now_s = self.now_s + 0.1, self.now_s + 1.0
            self.truth.exchanged(self.host, began_s)  # type: ignore[arg-type]


def test_money_that_lies_there_all_the_while_and_is_refused_is_found_out() -> None:
    """`make prove` would not see that somebody is refused for nothing."""
    world = World()
    world.exchanges(4)
    with pytest.raises(Violation, match="false refusal"):
        world.truth.refused(world.wait, 600, "a request")


def test_what_lay_there_for_who_asked_earlier_was_not_there_for_who_came_after() -> None:
    """First come, first served: what he leaves of it may be too little, and that is no false refusal."""
    world = World()
    late = Waiting((TEAM,), world.now_s)
    world.truth.waiting.append(late)
    world.exchanges(4)
    world.truth.served(world.wait)
    world.truth.waiting.remove(world.wait)
    world.truth.others[TEAM] = world.held = 500
    world.exchanges(1)
    world.truth.refused(late, 600, "a request")
    assert world.truth.tally.judged == 1


def test_what_the_keeper_comes_to_hold_for_the_unheard_is_not_there() -> None:
    """What is given back to a keeper that doubts its ledger it holds until everybody has spoken: the refusal is a true one."""
    world = World()
    world.held = 500
    world.exchanges(4)
    world.truth.refused(world.wait, 600, "a request")
    assert world.truth.tally.judged == 1


def test_a_budget_that_is_hard_again_is_held_to_what_was_committed_then() -> None:
    """What it let pass while it was soft may stay, by the ledger's word or by nobody's; nothing comes on top of it."""
    truth = World().truth
    truth.worth[TEAM] = 1_400
    truth.freed(TEAM)
    truth.committed({TEAM: Sums(1_000, 10**9, 900, 900, 0)}, {}, 100.0)  # soft: nothing is claimed
    truth.hardened(TEAM, 1_000, 1_300)
    truth.committed({TEAM: Sums(1_000, 10**9, 1_300, 1_300, 0)}, {}, 101.0)
    with pytest.raises(Violation, match=r"over: the ledger has granted 1401 nUSD, allowed are 1400"):
        truth.committed({TEAM: Sums(1_000, 10**9, 1_401, 1_401, 0)}, {}, 102.0)
    truth.worth[TEAM] = 1_401
    with pytest.raises(Violation, match=r"lost: .* may come to 1401 nUSD, the ledger knows of 1300"):
        truth.committed({TEAM: Sums(1_000, 10**9, 1_300, 1_300, 0)}, {}, 102.0)
