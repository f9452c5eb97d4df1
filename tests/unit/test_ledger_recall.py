"""Whom the keeper asks to give back what lies idle, while requests wait for money. Pure."""

from stepdown.ledger.desk import PRESSED_S, Desk, Pressure
from stepdown.ledger.lease import Account, Lease
from stepdown.model.sync import Ask

NOW_S = 1000.0
HERE, ELSEWHERE = 1, 2


def account(free: int) -> Account:
    """Of 100 nUSD, all held idle here, or spent here but for what is `free`."""
    made = Account(1, "shop/team@0", "shop/team", 0, 10_000, 100, True, 0, 0, 0, 0, 0)
    made.add(Lease(1, HERE, 100, 0, 100 - free, 0, 0, 0, 0))
    made.add(Lease(1, ELSEWHERE, 0, 0, 0, 0, 0, 0, 0))
    return made


def recalled(pressure: Pressure, team: Account, now_s: float = NOW_S) -> int:
    desk = Desk({team.name: team}, pressure, now_s)
    return desk.recall(team, team.leases[HERE])


def wait(pressure: Pressure, team: Account, instance: int, nusd: int) -> None:
    desk = Desk({team.name: team}, pressure, NOW_S)
    answer = desk.answer(instance, 600.0, Ask(id=1, rungs=({team.name: nusd},)))
    assert answer is not None and (answer.rung, answer.recoverable) == (-1, True)


def test_who_waits_gives_back_what_serves_somebody_elsewhere() -> None:
    """A request would be refused while the money for it lay at a proxy whose own request it was too little for."""
    pressure, team = Pressure(), account(30)
    wait(pressure, team, ELSEWHERE, 25)
    assert recalled(pressure, team) == 25


def test_who_waits_alone_keeps_what_he_has() -> None:
    """It would go to the keeper and come back, and be nobody's meanwhile."""
    pressure, team = Pressure(), account(30)
    team.lease(HERE).want = 0
    team.lease(HERE).reserved = 5
    pressure.press(team.name, HERE, 20, NOW_S)
    assert recalled(pressure, team) == 0
    assert recalled(pressure, team, NOW_S + PRESSED_S + 1) > 0, "nobody waits any more: it is too much to lie idle"


def test_both_wait_and_the_smaller_is_not_held_up_by_the_larger() -> None:
    pressure, team = Pressure(), account(30)
    pressure.press(team.name, HERE, 500, NOW_S)
    wait(pressure, team, ELSEWHERE, 10)
    assert recalled(pressure, team) == 10
    assert recalled(pressure, team, NOW_S + PRESSED_S + 1) == 30
