"""Who may still serve though nobody hears it, on both databases. If one fails, `Enforced=True` is said of a ceiling that a
proxy which was cut off passes; or a node that died keeps every new budget from being enforced for good."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from stepdown.budget.serving import Enforcement, Pod, Serving, Unheard, enforcement
from tests.unit.test_ledger import ALL, NOW_S, TEAM, Keeper, binding

WEB, NEXT = Pod("web-1", "uid-1"), Pod("web-2", "uid-2")
HOURS_S = 3 * 3600.0


class Fleet(Keeper):
    """Its proxies have pods."""

    def hear(self, instance: str, pod: Pod | None, **more: object) -> None:
        request = self.message(instance, acknowledged=self.digests, **more)
        self.ledger.judge([request], self.now_s, (), {instance: pod} if pod is not None else {})

    def wait(self, instance: str = "other", pod: Pod | None = NEXT) -> None:
        """Whoever else is silent is given up meanwhile; this one is not."""
        self.now_s += HOURS_S
        self.hear(instance, pod)

    def bind_anew(self, name: str, *routes: str) -> None:
        self.bind(binding(1000, "shop/chat", *routes))
        self.publish(name)

    @property
    def unheard(self) -> list[str]:
        return [each.uid for each in self.balance().unheard]


@pytest.fixture
def fleet(ledger_url: str) -> Iterator[Fleet]:
    """Two proxies that obey a budget over one route; one of them has not been heard for hours, and another route came."""
    keeper = Fleet(ledger_url)
    keeper.bind_anew("one")
    keeper.hear("a", WEB)
    keeper.hear("other", NEXT)
    assert keeper.balance().enforced
    keeper.wait()
    keeper.bind_anew("two", "shop/new")
    keeper.hear("other", NEXT)
    yield keeper
    keeper.ledger.close()


def test_a_ceiling_waits_for_a_lost_proxy_whose_pod_may_run(fleet: Fleet) -> None:
    """It serves the new route as if no budget bound it, for it never heard of one."""
    balance = fleet.balance()
    assert not balance.enforced
    assert balance.unheard == (Unheard("shop", "web-1", "uid-1", NOW_S),)
    (lost,) = [each for each in fleet.ledger.instances() if each.state == "lost"]
    assert lost.pod == "web-1"


def test_it_holds_once_the_pod_is_gone_and_after_every_restart(fleet: Fleet) -> None:
    """Kubernetes is asked once: a budget that flickers with every restart of the operator is one that nobody believes."""
    fleet.ledger.vacate(["uid-1"])
    assert fleet.balance().enforced
    assert fleet.balance().unheard == ()
    fleet.ledger.take_epoch("the next leader")
    assert fleet.balance().enforced


def test_it_holds_once_the_lost_one_is_heard(fleet: Fleet) -> None:
    """A partition that is over leaves nothing for people to do."""
    fleet.hear("a", WEB)
    assert fleet.balance().enforced
    fleet.wait()
    assert fleet.balance().enforced, "what it has acknowledged it obeys, heard or not"


def test_it_holds_once_another_speaks_from_the_same_pod(fleet: Fleet) -> None:
    """A container that was started again without its log is another instance: the one before has ended."""
    fleet.hear("b", WEB)
    assert fleet.balance().enforced


def test_of_a_pod_only_the_last_that_spoke_is_waited_for(fleet: Fleet) -> None:
    """A crash loop would leave twenty that are waited for, where there is one pod."""
    for name in ("b", "c", "d"):
        fleet.hear(name, WEB)
    fleet.wait()
    fleet.bind_anew("three", "shop/new", "shop/third")
    fleet.hear("other", NEXT)
    assert fleet.unheard == ["uid-1"]


def test_budgets_that_the_lost_one_has_acknowledged_are_not_touched(fleet: Fleet) -> None:
    """One dead node must not say of every budget of the company that it does not hold."""
    fleet.bind(binding(1000, "shop/chat", "shop/new"), binding(500, "shop/chat", budget="shop/all"))
    fleet.publish("three")
    fleet.hear("other", NEXT)
    fleet.hear("a", WEB)
    fleet.wait()
    fleet.bind(binding(1000, "shop/chat", "shop/new", "shop/third"), binding(500, "shop/chat", budget="shop/all"))
    fleet.publish("four")
    fleet.hear("other", NEXT)
    assert (fleet.balance(TEAM).enforced, fleet.balance(ALL).enforced) == (False, True)
    assert fleet.balance(ALL).unheard == ()


def test_who_closed_itself_is_not_waited_for(fleet: Fleet) -> None:
    """It drained, and will serve nothing: every rollout would else keep new budgets waiting until the pods are gone."""
    fleet.hear("a", WEB, closing=True)
    assert fleet.balance().enforced


def test_who_was_closed_by_an_administrator_is_waited_for(fleet: Fleet) -> None:
    """What it spent was stated; that it has ended was not."""
    fleet.ledger.settle_instance("a", None, fleet.now_s)
    assert not fleet.balance().enforced
    assert fleet.unheard == ["uid-1"]
    fleet.hear("a", WEB)  # It is told to take another name, and does.
    fleet.hear("b", WEB)
    assert fleet.balance().enforced


@pytest.mark.parametrize("pod", [None, WEB], ids=["in no pod", "in a pod"])
def test_without_a_pod_nobody_is_waited_for_longer_than_a_lease_lives(ledger_url: str, pod: Pod | None) -> None:
    """Nobody could ever say that it has ended: under `stepdown run`, or of one that was lost before its pod was noted."""
    keeper = Fleet(ledger_url)
    keeper.bind_anew("one")
    keeper.hear("a", pod)
    keeper.wait(pod=None)
    keeper.bind_anew("two", "shop/new")
    keeper.hear("other", None)
    assert keeper.balance().enforced == (pod is None)
    keeper.ledger.close()


@contextmanager
def writes() -> Iterator[list[str]]:
    """The statements that write a pod."""
    found: list[str] = []

    def heard(connection: object, cursor: object, statement: str, *more: object) -> None:
        if statement.startswith(("UPDATE", "INSERT")) and "pod_uid" in statement:
            found.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", heard)
    try:
        yield found
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", heard)


def test_a_pod_is_written_with_the_first_message_and_not_again(fleet: Fleet) -> None:
    """It would be one more write a second and proxy."""
    with writes() as found:
        fleet.hear("z", Pod("web-9", "uid-9"))
        assert found
        found.clear()
        fleet.hear("z", Pod("web-9", "uid-9"))
        assert found == []


def test_a_message_that_was_overtaken_does_not_take_the_pod_back_for_good(fleet: Fleet) -> None:
    """Late, from the process that ended before; the one that runs says it again a second later."""
    fleet.hear("b", WEB)
    fleet.hear("a", WEB)
    fleet.hear("b", WEB)
    fleet.wait()
    fleet.bind_anew("three", "shop/new", "shop/third")
    fleet.hear("other", NEXT)
    assert [each.name for each in fleet.ledger.instances() if each.pod == "web-1"] == ["b"]


# Who is missing -------------------------------------------------------------------------------------------------------

REVISIONS = st.dictionaries(st.integers(0, 3), st.integers(0, 4), max_size=4)
UNHEARD = st.builds(Unheard, st.just("shop"), st.sampled_from("abc"), st.sampled_from("xyz"), st.integers(0, 9).map(float))
SERVING = st.builds(Serving, REVISIONS, st.none() | UNHEARD)


@given(REVISIONS, st.lists(SERVING, max_size=5))
def test_a_ceiling_holds_exactly_when_nobody_is_missing(needed: dict[int, int], serving: list[Serving]) -> None:
    """By the definition: for every shard each of them has acknowledged what is needed there."""
    found = enforcement(needed, serving)
    behind = [each for each in serving if not all(each.obeys.get(shard, 0) >= needed[shard] for shard in needed)]
    assert found.holds == (not behind)
    assert sorted(found.unheard) == sorted(each.unheard for each in behind if each.unheard is not None)


@given(REVISIONS, st.lists(SERVING, max_size=5), SERVING)
def test_one_more_that_may_serve_never_makes_a_ceiling_hold(
    needed: dict[int, int], serving: list[Serving], another: Serving
) -> None:
    """Whoever is taken for running although it has ended makes us wait, and never promise too much."""
    before, after = enforcement(needed, serving), enforcement(needed, [*serving, another])
    assert before.holds or not after.holds
    assert set(before.unheard) <= set(after.unheard)


def test_nobody_needs_to_acknowledge_nothing() -> None:
    """A budget without a route has nothing to wait for."""
    assert enforcement({}, [Serving({}, Unheard("shop", "a", "x", 0.0))]) == Enforcement(True, ())
