"""The end of a schedule: all faults are over, everything drains, and every nano-dollar is accounted for."""

import asyncio

from stepdown.budget.account import Balance
from stepdown.ledger import Ledger
from stepdown.proxy.refusal import Refused
from stepdown.proxy.shape import RequestShape
from stepdown.proxy.waiting import Wish
from tests.proof.truth import Violation
from tests.proof.world import HORIZON_S, LONGEST_S, World

_SMALL_NUSD = 1_000
"""What is less than this is left alone: no request costs less."""


async def reckon(world: World) -> None:
    """Raises Violation."""
    truth = world.truth
    truth.quiet = True
    await _drained(world)
    truth.check_charges(world.dear)
    keeper = world.leader
    assert keeper is not None
    world.look()
    unreconciled = [balance.unreconciled_nusd for balance in keeper.balances().values()]
    truth.tally.unreconciled_nusd = max(unreconciled, default=0)
    if truth.lost or world.put_back:  # (an older ledger may think that somebody who has closed is still open)
        await asyncio.sleep(HORIZON_S + LONGEST_S + 5.0)
        world.look()
        unreconciled = [balance.unreconciled_nusd for balance in keeper.balances().values()]
        truth.tally.unreconciled_nusd = max(unreconciled, default=0)
    truth.quiet = False
    await asyncio.sleep(8.0)
    if world.chance.random() < 0.5:
        await world.settle_lost()
    await _spend_the_rest(world)
    for host in list(world.hosts):
        if not await host.leave():
            raise Violation(f"lost: {host.name} could not say its last word")
    await _compare(world)


async def _drained(world: World) -> None:
    """Until the last request is over, everybody is there again, and nothing waits for the keeper."""
    ends_s = world.loop.time() + LONGEST_S + 60.0
    while True:
        await asyncio.sleep(2.0)
        busy = any(not host.alive or host.server.wire.attempts or host.partitioned for host in world.hosts)
        if not busy and world.leader is not None and not world.upstream.in_flight and not world.keeping.locked():
            break
        if world.loop.time() > ends_s:
            raise Violation("lost: requests are still in flight long after their end")


async def _spend_the_rest(world: World) -> None:
    """At least 99 % of what is not spent and not honestly unreconciled can be had, in one piece."""
    host = world.chance.choice(world.hosts)
    table = host.till.table
    assert table is not None
    for route in sorted(table.routes, key=lambda each: each.name):
        now_s = host.till.clock.now_s()
        accounts = [budget.account_at(now_s) for budget in route.budgets if budget.hard]
        if not accounts:
            continue
        assert world.leader is not None
        balances = world.leader.balances()
        left = min(_left(balances[each.id]) for each in accounts if each is not None)
        if left < _SMALL_NUSD:
            continue
        small = route.ladders["default"].rungs[-1]
        prices = small.prices_at(now_s, now_s + LONGEST_S + 10)
        assert prices is not None
        tokens = (left * 99 // 100 - 20 * prices[2] // 1000) * 1000 // prices[0]
        shape = RequestShape(tokens, False, 1, 1, False)
        dear = host.till.offers(Wish(route, "default", shape, None, None), now_s)[-1].amount_nusd - left * 99 // 100
        if dear > 0:  # (an upstream that was seen to take more than it may: each request reserves so much more)
            shape = shape._replace(input_tokens_bound=tokens - 1 - dear * 1000 // prices[0])
        if shape.input_tokens_bound < 1:
            continue
        try:
            hold = host.till.admit(route, "default", shape) or await host.till.admit_later(route, "default", shape)
        except Refused as refused:
            lies = {each.id: balances[each.id] for each in accounts if each is not None}
            raise Violation(
                f"false refusal: after all faults, {left} nUSD are left to {route.name} and 99 % of them cannot be had: "
                f"{refused.message}; {lies}"
            ) from None
        host.till.settle(hold, None, success=False)
        await asyncio.sleep(3.0)


def _left(balance: Balance) -> int:
    return balance.limit_nusd - balance.spent_nusd - balance.unreconciled_nusd - balance.awaited_nusd


async def _compare(world: World) -> None:
    truth = world.truth
    assert world.leader is not None
    ledger: Ledger = world.leader.ledger
    balances = world.leader.balances()
    wrong = ledger.verify()
    if wrong:
        raise Violation(f"lost: the ledger's own sums disagree: {wrong[0]}")
    views = {view.name: view for view in world.leader.instances()}
    exact = not world.put_back and not truth.tally.notes.get("fenced")
    for name, balance in sorted(balances.items()):
        bill = truth.bill(name)
        hard = name in truth.ceilings
        unseen = sum(each.unseen for each in truth.promises if name in each.accounts)
        truth.tally.excess_nusd += sum(each.excess for each in truth.promises if name in each.accounts)
        beyond = truth.beyond(name, balance.excess_nusd)
        if hard and bill > truth.ceilings[name].allowed + beyond + unseen:
            raise Violation(
                f"over: the bill of {name} is {bill} nUSD, allowed are {truth.ceilings[name].allowed}, and "
                f"{beyond} that are recorded as excess, and {unseen} that nobody could see"
            )
        known = balance.spent_nusd + balance.unreconciled_nusd + balance.awaited_nusd
        known += unseen + truth.unheard_of.get(name, 0)
        if hard and bill > known and balance.end_s > world.ledger_s():
            raise Violation(f"lost: the bill of {name} is {bill} nUSD, the ledger knows of {known}: {balance}")
        truth.tally.estimated_nusd = max(truth.tally.estimated_nusd, balance.estimated_nusd)
        if not exact:
            continue
        # One that had said its last word before its log was lost is closed: what it charged is known in full.
        unsure = {each for each in truth.lost if each in world.settled or each in views}
        charged = sum(each.charged or 0 for each in truth.promises if name in each.accounts and each.settled_in not in unsure)
        for instance in unsure:
            if instance in world.settled:
                charged += world.settled[instance].get(name, 0)
            else:
                charged += sum(lease.consumed_nusd for lease in views[instance].leases if lease.account == name)
        if charged != balance.settled_nusd and (hard or not unsure):
            raise Violation(f"lost: the proxies charged {charged} nUSD to {name}, the ledger has {balance.settled_nusd}")
        named = balance.estimated_nusd + balance.unreconciled_nusd
        if world.dearer_from_s is None and hard and balance.settled_nusd - bill > named:
            raise Violation(f"lost: {balance.settled_nusd} nUSD were settled, {bill} billed, and {named} named: {balance}")
