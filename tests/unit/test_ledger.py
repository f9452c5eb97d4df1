"""The lease protocol, rule by rule, on both databases. If one fails, a budget is passed, a request refused for nothing, or
money locked up."""

from collections.abc import Iterator

import msgspec
import pytest

from stepdown.budget.account import Balance, Binding
from stepdown.ledger import Ledger, errors
from stepdown.ledger.policy import fair_shares, idle_cap
from stepdown.model.config import SHARDS, Shard, digest, shard_of
from stepdown.model.sync import Ask, AskAnswer, Counter, LeaseReport, SyncAnswer, SyncRequest
from stepdown.model.traffic import Overrun

FLEET = "shop/default"
DAY_S = 86_400
START_S = 20_000 * DAY_S
END_S = START_S + 30 * DAY_S
TEAM, ALL = f"shop/team@{START_S}", f"shop/all@{START_S}"
NOW_S = START_S + 3600.0
HORIZON_S = 600.0


class Keeper:
    """A new ledger, with what tests say over and over."""

    def __init__(self, url: str) -> None:
        self.ledger = Ledger.open(url, create=True)
        self.now_s = NOW_S
        self.seqs: dict[str, int] = {}
        self.digests: dict[int, str] = {}

    def bind(self, *bindings: Binding) -> None:
        self.ledger.bind(bindings, self.now_s)

    def publish(self, name: str) -> dict[int, str]:
        """A config in which every shard is new."""
        self.digests = {shard: f"{name}-{shard}" for shard in range(SHARDS)}
        self.ledger.publish(FLEET, self.digests, HORIZON_S)
        return self.digests

    def message(self, instance: str, *asks: Ask, leases: tuple[LeaseReport, ...] = (), **more: object) -> SyncRequest:
        self.seqs[instance] = self.seqs.get(instance, 0) + 1
        plain = SyncRequest(instance=instance, fleet=FLEET, seq=self.seqs[instance], leases=leases, asks=asks)
        return msgspec.structs.replace(plain, **more)

    def say(self, instance: str, *asks: Ask, leases: tuple[LeaseReport, ...] = (), **more: object) -> SyncAnswer:
        (answer,) = self.ledger.sync([self.message(instance, *asks, leases=leases, **more)], self.now_s)
        return answer

    def balance(self, account: str = TEAM) -> Balance:
        assert self.ledger.verify() == []
        return self.ledger.balances(self.now_s, ended=True)[account]


def binding(limit: int, *routes: str, budget: str = "shop/team", hard: bool = True, start_s: int = START_S) -> Binding:
    return Binding(budget, start_s, start_s + END_S - START_S, limit, hard, frozenset(routes or ("shop/chat",)))


def lease(account: str = TEAM, **numbers: int) -> LeaseReport:
    plain = {"granted": 0, "returned": 0, "consumed": 0, "estimated": 0, "reserved": 0, "want": 0}
    return LeaseReport(account=account, **{**plain, **numbers})


def ask(id_: int, *rungs: int, accounts: tuple[str, ...] = (TEAM,)) -> Ask:
    return Ask(id=id_, rungs=tuple(dict.fromkeys(accounts, rung) for rung in rungs))


def chat(cost: int, day: int = START_S // DAY_S, route: str = "shop/chat") -> Counter:
    return Counter(route=route, model="m", request_class="default", day=day, requests=1, cost_nusd=cost)


@pytest.fixture
def unbound(ledger_url: str) -> Iterator[Keeper]:
    """Without a budget."""
    keeper = Keeper(ledger_url)
    yield keeper
    keeper.ledger.close()


@pytest.fixture
def keeper(unbound: Keeper) -> Keeper:
    """A budget of 1,000 nUSD over one route."""
    unbound.bind(binding(1000))
    return unbound


# Asks -----------------------------------------------------------------------------------------------------------------


def test_an_ask_gets_the_best_rung_that_fits(keeper: Keeper) -> None:
    """Else a request steps down, or is refused, while the money for a better model is there."""
    assert keeper.say("a", ask(1, 800, 100)).asks == (AskAnswer(id=1, rung=0),)
    assert keeper.say("b", ask(1, 800, 100)).asks == (AskAnswer(id=1, rung=1),)
    assert keeper.balance().committed_nusd == 900


def test_asks_of_one_batch_never_pass_the_limit_together(keeper: Keeper) -> None:
    """Promise 1, under concurrency."""
    batch = [keeper.message(f"i{n}", ask(1, 300)) for n in range(10)]
    answers = keeper.ledger.sync(batch, NOW_S)
    assert [answer.asks[0].rung for answer in answers] == [0, 0, 0, *[-1] * 7]
    assert keeper.balance().headroom_nusd == 100


def test_all_accounts_of_a_rung_or_none(keeper: Keeper) -> None:
    """A reservation in one budget only would let the other be passed."""
    keeper.bind(binding(1000), binding(50, budget="shop/all"))
    answer = keeper.say("a", ask(1, 100, 40, accounts=(TEAM, ALL)), ask(2, 60, accounts=(TEAM, ALL)))
    assert [each.rung for each in answer.asks] == [1, -1]
    assert (keeper.balance(TEAM).committed_nusd, keeper.balance(ALL).committed_nusd) == (40, 40)
    assert keeper.say("a", ask(3, 1, accounts=(TEAM, "shop/none@0"))).asks[0].rung == -1


def test_a_ticket_is_granted_once_however_often_it_is_sent(keeper: Keeper) -> None:
    """A lost answer would cost the budget twice."""
    first = keeper.message("a", ask(7, 400, 100))
    for message in (first, first, keeper.message("a", ask(7, 400, 100)), first):
        (answer,) = keeper.ledger.sync([message], NOW_S)
        assert answer.asks == (AskAnswer(id=7, rung=0),)
        assert answer.leases[0].granted == 400
    assert keeper.balance().committed_nusd == 400


def test_what_an_instance_holds_idle_serves_its_own_asks(keeper: Keeper) -> None:
    """Near the end, the last money may lie at the very proxy that asks: granting on top of it would refuse for nothing."""
    keeper.say("a", ask(1, 950))
    answer = keeper.say("a", ask(2, 900), leases=(lease(granted=950, consumed=100),))
    assert answer.asks == (AskAnswer(id=2, rung=0),)
    assert answer.leases[0].granted == 1000
    again = keeper.say("a", ask(2, 900), ask(3, 1), leases=(lease(granted=950, consumed=100),))
    assert [each.rung for each in again.asks] == [0, -1], "what a ticket was given is not idle"


def test_an_older_message_changes_nothing_but_is_told_its_grants(keeper: Keeper) -> None:
    """Reordered messages would bring reservations back that have ended."""
    old = keeper.message("a", ask(1, 10), leases=(lease(reserved=0),))
    keeper.say("a", ask(1, 10))
    keeper.say("a", ask(1, 10), leases=(lease(granted=10, consumed=3),), counters=(chat(3),))
    (answer,) = keeper.ledger.sync([msgspec.structs.replace(old, counters=(chat(9),))], NOW_S)
    assert (answer.verdict, answer.leases[0].granted, answer.asks) == ("stale", 10, (AskAnswer(id=1, rung=0),))
    assert keeper.ledger.route_totals(0, 99_999)["shop/chat"].cost_nusd == 3


def test_recoverable_is_what_is_in_flight_or_idle_at_live_instances(keeper: Keeper) -> None:
    """An exhausted budget must refuse at once; one whose money is in flight must not."""
    keeper.say("a", ask(1, 1000))
    assert keeper.say("b", ask(1, 200)).asks == (AskAnswer(id=1, rung=-1, recoverable=True),)
    assert keeper.say("b", ask(2, 1001)).asks == (AskAnswer(id=2, rung=-1, recoverable=False),)
    keeper.say("a", leases=(lease(granted=1000, consumed=900, reserved=100),))
    assert keeper.say("b", ask(3, 100)).asks == (AskAnswer(id=3, rung=-1, recoverable=True),)
    keeper.say("a", leases=(lease(granted=1000, consumed=950, reserved=50),))
    assert keeper.say("b", ask(4, 100)).asks == (AskAnswer(id=4, rung=-1, recoverable=False),)


def test_the_next_period_is_granted_one_horizon_early(keeper: Keeper) -> None:
    """Earlier, this month's proxies would lock up next month's money; later, the first requests of a month would wait."""
    keeper.bind(binding(1000), binding(1000, start_s=END_S))
    after = f"shop/team@{END_S}"
    keeper.now_s = END_S - HORIZON_S - 1
    assert keeper.say("a", ask(1, 10, accounts=(after,))).asks == (AskAnswer(id=1, rung=-1),)
    keeper.now_s = END_S - HORIZON_S
    assert keeper.say("a", ask(1, 10, accounts=(after,))).asks == (AskAnswer(id=1, rung=0),)


def test_a_soft_budget_records_and_never_limits(keeper: Keeper) -> None:
    """Soft promises to refuse nothing."""
    keeper.bind(binding(10, hard=False))
    keeper.say("a", leases=(lease(consumed=500, reserved=20),))
    assert keeper.say("a", ask(1, 999)).asks[0].rung == 0
    assert keeper.balance().settled_nusd == 500


# Idle money -----------------------------------------------------------------------------------------------------------


def test_idle_money_is_shared_fairly_and_stays_small() -> None:
    """One busy proxy must not take all that may lie idle, and a quiet one not keep what it does not want."""
    assert idle_cap(1_000_000) == 5000
    assert idle_cap(-5) == 0
    assert fair_shares(90, {1: 10, 2: 1000, 3: 1000}) == {1: 10, 2: 40, 3: 40}
    assert fair_shares(90, {1: 0}) == {1: 0}
    assert fair_shares(0, {1: 5, 2: 5}) == {1: 0, 2: 0}


def test_wants_are_granted_up_to_half_a_percent_together(unbound: Keeper) -> None:
    """Idle money at one proxy is missing at another when the budget ends."""
    keeper = unbound
    keeper.bind(binding(1_000_000))
    for _ in range(3):
        for name in "abcd":
            keeper.say(name, leases=(lease(want=4000),))
    assert 0 < keeper.balance().idle_nusd <= 5000


def test_an_ask_that_fails_calls_back_what_others_hold_idle(keeper: Keeper) -> None:
    """Else it would wait for nothing, with the money lying beside it."""
    keeper.say("a", ask(1, 900))
    assert keeper.say("b", ask(1, 300)).asks[0].recoverable
    answer = keeper.say("a", leases=(lease(granted=900, consumed=100),))
    assert answer.leases[0].recall == 200
    keeper.say("a", leases=(lease(granted=900, returned=200, consumed=100),))
    assert keeper.say("b", ask(1, 300)).asks == (AskAnswer(id=1, rung=0),)


def test_a_lowered_limit_takes_back_what_is_idle_and_says_by_how_much_it_is_over(keeper: Keeper) -> None:
    """An administrator who lowers a budget wants it to hold as far as it can, and to see how far not."""
    keeper.say("a", ask(1, 900))
    keeper.bind(binding(300))
    assert keeper.balance().headroom_nusd == -600
    answer = keeper.say("a", leases=(lease(granted=900, consumed=400, reserved=100),))
    assert answer.leases[0].recall == 400
    keeper.say("a", leases=(lease(granted=900, returned=400, consumed=400, reserved=100),))
    assert keeper.balance().headroom_nusd == -200
    assert keeper.say("b", ask(1, 1)).asks == (AskAnswer(id=1, rung=-1, recoverable=False),)


# The lives of instances -----------------------------------------------------------------------------------------------


def test_closing_frees_what_was_not_consumed_and_leaves_a_tombstone(keeper: Keeper) -> None:
    """A rollout would lock up every old pod's lease for good; a late message of one would charge twice."""
    keeper.say("a", ask(1, 900))
    last = keeper.message("a", leases=(lease(granted=900, consumed=250),), counters=(chat(250),), closing=True)
    assert [keeper.ledger.sync([last], NOW_S)[0].verdict for _ in range(2)] == ["ok", "ok"], "its answer may have been lost"
    assert (keeper.balance().committed_nusd, keeper.balance().settled_nusd) == (250, 250)
    assert keeper.say("a", ask(2, 10)).verdict == "fenced"
    assert keeper.balance().committed_nusd == 250
    assert keeper.ledger.route_totals(0, 99_999)["shop/chat"].cost_nusd == 250


def test_a_silent_instance_stays_charged_until_it_is_back_or_settled(keeper: Keeper) -> None:
    """Behind a partition it may go on spending its lease: nobody else may have that money."""
    keeper.say("a", ask(1, 900), longest_s=60.0)
    keeper.say("a", leases=(lease(granted=900, consumed=100, reserved=50),), longest_s=60.0)
    keeper.now_s += HORIZON_S + 60
    keeper.say("b", ask(1, 200))
    assert keeper.balance().unreconciled_nusd == 0
    keeper.now_s += 1
    assert keeper.say("b", ask(1, 200)).asks == (AskAnswer(id=1, rung=-1, recoverable=False),)
    assert (keeper.balance().unreconciled_nusd, keeper.balance().settled_nusd) == (800, 100)
    with pytest.raises(errors.LedgerRefused, match="itself reported 100"):
        keeper.ledger.settle_instance("a", {TEAM: 99}, keeper.now_s)
    answer = keeper.say("a", leases=(lease(granted=900, consumed=300),))
    assert (answer.verdict, answer.leases[0].granted) == ("ok", 900)
    assert (keeper.balance().unreconciled_nusd, keeper.balance().settled_nusd) == (0, 300)


def test_an_administrator_settles_a_lost_instance(keeper: Keeper) -> None:
    """A node that burnt down would hold its lease for the rest of the month."""
    keeper.say("a", ask(1, 900))
    with pytest.raises(errors.LedgerRefused, match="only a lost one"):
        keeper.ledger.settle_instance("a", None, keeper.now_s)
    keeper.now_s += 10_000
    keeper.ledger.settle_instance("a", {TEAM: 120}, keeper.now_s)
    assert (keeper.balance().committed_nusd, keeper.balance().estimated_nusd) == (120, 120)
    assert keeper.say("a").verdict == "fenced"
    with pytest.raises(errors.LedgerRefused, match="no instance"):
        keeper.ledger.settle_instance("zzz", None, keeper.now_s)


def test_time_never_runs_backwards(keeper: Keeper) -> None:
    """A clock set back would bring the lost back to life, and grant from a month that is over."""
    keeper.now_s += 5000
    assert keeper.say("a").now_s == keeper.now_s
    keeper.now_s -= 4000
    assert keeper.say("a").now_s == keeper.now_s + 4000


def test_an_upstream_that_charges_too_much_shows(keeper: Keeper) -> None:
    """It ignored max_tokens: the money is gone, and hiding it would pass the next requests."""
    keeper.say("a", ask(1, 100))
    answer = keeper.say("a", leases=(lease(granted=100, consumed=1250),))
    assert answer.leases[0].granted == 1250, "the proxy's sums are whole again"
    assert (keeper.balance().excess_nusd, keeper.balance().headroom_nusd) == (1150, -250)
    keeper.say("a", leases=(lease(granted=1250, consumed=1250),), closing=True)
    assert keeper.balance().excess_nusd == 1150


def test_money_spent_from_an_account_that_the_plan_has_forgotten_is_recorded(keeper: Keeper) -> None:
    """After an old backup was brought back, proxies know of accounts that the ledger does not."""
    keeper.say("a", leases=(lease("shop/old@5", granted=70, consumed=40),))
    assert keeper.balance("shop/old@5").committed_nusd == 70
    keeper.bind(binding(1000), Binding("shop/old", 5, END_S, 500, True, frozenset()))
    assert keeper.balance("shop/old@5").headroom_nusd == 430
    with pytest.raises(errors.LedgerRefused, match="is no account"):
        keeper.say("a", leases=(lease("rubbish", consumed=1),))


@pytest.mark.parametrize(
    "bad",
    [
        {"leases": (lease(consumed=-1),)},
        {"leases": (lease(granted=2**63),)},
        {"asks": (ask(1, -5),)},
        {"asks": (ask(2**70, 5),)},
        {"counters": (chat(-3),)},
        {"counters": (chat(1, day=10**9),)},
        {"longest_s": float("nan")},
        {"longest_s": float("inf")},
        {"instance": ""},
        {"fleet": "x" * 600},
    ],
)
def test_what_cannot_be_is_refused_and_nothing_of_it_happens(keeper: Keeper, bad: dict[str, object]) -> None:
    """A negative report would create money."""
    with pytest.raises(errors.LedgerRefused):
        keeper.ledger.sync([msgspec.structs.replace(keeper.message("a", ask(1, 5)), **bad)], NOW_S)
    assert keeper.balance().committed_nusd == 0
    assert keeper.ledger.instances() == []


# Bindings -------------------------------------------------------------------------------------------------------------


def test_enforced_begins_when_every_open_instance_obeys(keeper: Keeper) -> None:
    """Before that, somebody still serves the route without the budget, and promise 1 would be a lie."""
    old = keeper.publish("one")
    keeper.say("a", acknowledged=old)
    keeper.say("b", acknowledged=old)
    assert keeper.balance().enforced
    keeper.bind(binding(1000, "shop/chat", "shop/new"))
    new = keeper.publish("two")
    assert not keeper.balance().enforced
    keeper.say("a", acknowledged=new)
    assert not keeper.balance().enforced
    keeper.say("b", acknowledged={**new, shard_of("shop/new"): old[shard_of("shop/new")]})
    assert not keeper.balance().enforced, "a request is in flight under the old config"
    keeper.say("b", acknowledged=new)
    assert keeper.balance().enforced


def test_a_config_that_comes_again_is_not_obeyed_by_what_is_in_flight_from_between(keeper: Keeper) -> None:
    """A budget deleted and made anew as it was would never charge the requests that were admitted in between."""
    shard = shard_of("shop/chat")
    with_it = keeper.publish("with")
    keeper.say("a", acknowledged=with_it)
    keeper.bind()
    without = keeper.publish("without")
    keeper.bind(binding(1000))
    keeper.publish("with")
    keeper.say("a", acknowledged={**with_it, shard: f"{with_it[shard]},{without[shard]}"})
    assert not keeper.balance().enforced
    keeper.say("a", acknowledged=with_it, counters=(chat(40),))
    assert keeper.balance().opening_nusd == 40
    assert keeper.balance().enforced


def test_a_proxy_without_config_obeys_empty_shards_only(keeper: Keeper) -> None:
    """A proxy that has just begun must not stand in the way, nor be taken for one that obeys what it has not got."""
    shard = shard_of("shop/chat")
    empty = {index: digest(Shard(index=index)) for index in range(SHARDS)}
    keeper.ledger.publish(FLEET, {**empty, shard: "full"}, HORIZON_S)
    keeper.say("a")
    assert not keeper.balance().enforced
    keeper.say("a", acknowledged={shard: "full"})
    assert keeper.balance().enforced


def test_a_new_budget_opens_with_what_its_routes_have_spent(unbound: Keeper) -> None:
    """A budget made in mid-month would allow the month's limit once more."""
    keeper = unbound
    keeper.bind()
    old = keeper.publish("one")
    keeper.say("gone", counters=(chat(30), chat(500, route="shop/else")), acknowledged=old, closing=True)
    keeper.say("a", counters=(chat(100),), acknowledged=old)
    keeper.bind(binding(1000))
    new = keeper.publish("two")
    assert keeper.balance().opening_nusd == 130
    keeper.say("a", counters=(chat(150),), acknowledged=old)
    assert keeper.balance().opening_nusd == 180, "it serves without the budget still"
    keeper.say("a", counters=(chat(170),), acknowledged=new)
    keeper.say("a", ask(1, 50))
    keeper.say("a", leases=(lease(granted=50, consumed=40),), counters=(chat(210),), acknowledged=new)
    assert (keeper.balance().opening_nusd, keeper.balance().settled_nusd) == (200, 40)


def test_traffic_that_a_lease_has_charged_opens_nothing(unbound: Keeper) -> None:
    """Between the new config and the end of the last old request a route is served under both: nothing is charged twice."""
    keeper = unbound
    keeper.bind()
    old = keeper.publish("one")
    keeper.say("a", counters=(chat(100),), acknowledged=old)
    keeper.bind(binding(1000))
    keeper.publish("two")
    keeper.say("a", ask(1, 50), acknowledged=old)
    keeper.say("a", leases=(lease(granted=50, consumed=50),), counters=(chat(150),), acknowledged=old)
    assert (keeper.balance().opening_nusd, keeper.balance().settled_nusd) == (100, 50)


def test_deleting_and_re_creating_never_resets(keeper: Keeper) -> None:
    """Else kubectl delete and apply would be a way to spend a month's limit twice."""
    seen = keeper.publish("one")
    keeper.say("a", ask(1, 600), acknowledged=seen)
    keeper.say("a", leases=(lease(granted=600, consumed=600),), counters=(chat(600),), acknowledged=seen)
    keeper.bind()
    without = keeper.publish("two")
    keeper.say("a", counters=(chat(750),), acknowledged=without)
    keeper.bind(binding(1000))
    keeper.say("a", acknowledged=keeper.publish("three"))
    assert (keeper.balance().settled_nusd, keeper.balance().opening_nusd) == (600, 150)


def test_a_renamed_budget_opens_with_all_that_its_routes_have_spent(keeper: Keeper) -> None:
    """Renaming is deleting and creating: the new name must not begin at nothing."""
    keeper.say("a", ask(1, 600), acknowledged=keeper.publish("one"))
    keeper.say("a", leases=(lease(granted=600, consumed=600),), counters=(chat(600),), acknowledged=keeper.digests)
    keeper.bind(binding(1000, budget="shop/all"))
    keeper.say("a", acknowledged=keeper.publish("two"))
    assert keeper.balance(ALL).spent_nusd == 600


def test_a_new_month_opens_at_nothing(keeper: Keeper) -> None:
    """The last month's edge day must not be charged to a budget that simply goes on."""
    after = f"shop/team@{END_S}"
    keeper.bind(binding(1000), binding(1000, start_s=END_S))
    keeper.say("a", counters=(chat(300, day=END_S // DAY_S - 1),), acknowledged=keeper.publish("one"))
    keeper.now_s = END_S + 60
    keeper.bind(binding(1000, start_s=END_S), binding(1000, start_s=2 * END_S - START_S))
    keeper.say("a", acknowledged=keeper.publish("two"))
    assert keeper.balance(after).spent_nusd == 0


# Views ----------------------------------------------------------------------------------------------------------------


def test_counters_come_back_as_they_were_said_whoever_said_them(keeper: Keeper) -> None:
    """Reports and the savings table are made of these."""
    day = START_S // DAY_S
    keeper.say("a", counters=(chat(5), chat(7, day + 1)))
    keeper.say("b", counters=(chat(10),), closing=True)
    assert [(each.day, each.requests, each.cost_nusd) for each in keeper.ledger.counters(0, 99_999, by_day=True)] == [
        (day, 2, 15),
        (day + 1, 1, 7),
    ]
    assert [each.cost_nusd for each in keeper.ledger.counters(0, 99_999)] == [22]
    assert keeper.ledger.route_totals(day + 1, day + 1)["shop/chat"].cost_nusd == 7


def test_accepted_specs_are_kept_and_forgotten(keeper: Keeper) -> None:
    """While an object is invalid, its last accepted spec is what is in force."""
    keeper.ledger.accept({"u1": (1, "{}"), "u2": (1, "{}")})
    keeper.ledger.accept({"u1": (2, '{"a":1}')}, gone=["u2", "u9"])
    assert keeper.ledger.accepted() == {"u1": (2, '{"a":1}')}


def test_verify_names_a_row_that_was_tampered_with(keeper: Keeper) -> None:
    """A check that cannot fail is no check."""
    keeper.say("a", ask(1, 100), counters=(chat(5),))
    with keeper.ledger._database.transaction() as connection:
        connection.exec_driver_sql("UPDATE accounts SET opening = 77")
        connection.exec_driver_sql("UPDATE leases SET consumed = 900")
        connection.exec_driver_sql("UPDATE instances SET state = 'closed'")
    found = "\n".join(keeper.ledger.verify())
    assert f"account {TEAM} opens with 77 nUSD, its openings add up to 5" in found
    assert "uses 900 nUSD of 100 held" in found
    assert "1 rows of counters belong to instances that are closed" in found


def test_what_an_upstream_took_beyond_its_bound_outlives_the_proxy_that_saw_it(keeper: Keeper) -> None:
    """After a rollout the model would be trusted again, and pass the ceiling again."""
    over = [msgspec.structs.replace(chat(cost), overrun_nusd=overrun) for cost, overrun in ((50, 30), (90, 70), (120, 40))]
    for each in over[:2]:
        keeper.say("a", counters=(each,))
    keeper.say("b", counters=(over[2],))
    keeper.say("a", closing=True, whole=True)
    assert keeper.balance().overruns == (Overrun("m", 70, START_S // DAY_S),)
    keeper.bind(binding(1000, "shop/other"))
    assert keeper.balance().overruns == (), "it was no route of this budget"
