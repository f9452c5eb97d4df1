"""What proxies say of themselves. If this fails, `Programmed` is true too early or never, or a missing key is not seen."""

import msgspec

from stepdown.model.config import SHARDS, Shard, digest
from stepdown.model.sync import SyncRequest
from stepdown.sync.roll import EMPTY_DIGESTS, FORGOTTEN_S, HEARD_S, Roll

FLEET = "shop/default"
NEW = "0123456789abcdef"
PUBLISHED = (NEW, *EMPTY_DIGESTS[1:])
HAS = {0: NEW}


def said(instance: str = "a", **more: object) -> SyncRequest:
    return msgspec.structs.replace(SyncRequest(instance=instance, fleet=FLEET, seq=1, ready=True), **more)


def test_a_shard_nobody_sent_is_the_empty_one() -> None:
    """A fleet with one route would wait for ever for the fifteen shards that have none."""
    assert tuple(digest(Shard(index=index)) for index in range(SHARDS)) == EMPTY_DIGESTS
    roll = Roll()
    roll.hear(said(digests=HAS), "pod", PUBLISHED, 0.0)
    serving = roll.proxies(0.0)[FLEET].serving
    assert [serving[index] for index in range(SHARDS)] == [{each: 1} for each in PUBLISHED]


def test_only_ready_proxies_count() -> None:
    """A pod that starts has no config yet: it would hold `Programmed` back though no request reaches it."""
    roll = Roll()
    roll.hear(said("a", digests=HAS), "pod-a", PUBLISHED, 0.0)
    roll.hear(said("b", ready=False), "pod-b", PUBLISHED, 0.0)
    seen = roll.proxies(0.0)[FLEET]
    assert (seen.ready, seen.pods, seen.serving[0]) == (1, 2, {NEW: 1})


def test_a_proxy_that_falls_silent_is_not_ready() -> None:
    """A pod on a node that is gone would count as programmed."""
    roll = Roll()
    roll.hear(said(), "pod", PUBLISHED, 100.0)
    assert roll.proxies(100.0 + HEARD_S - 0.1)[FLEET].ready == 1
    silent = roll.proxies(100.0 + HEARD_S)[FLEET]
    assert (silent.ready, silent.pods, silent.serving) == (0, 0, {})
    assert roll.proxies(100.0 + FORGOTTEN_S)[FLEET] == silent, "a fleet that was heard of stays known"


def test_a_key_is_missing_when_one_proxy_misses_it() -> None:
    """A Secret that is mounted into all pods but one fails every fourth request, and status would say that all is well."""
    roll = Roll()
    roll.hear(said("a", keys={"standard": True, "pro": True}), "pod-a", PUBLISHED, 0.0)
    assert roll.proxies(0.0)[FLEET].keys == {"standard": True, "pro": True}
    roll.hear(said("b", keys={"standard": True, "pro": False}), "pod-b", PUBLISHED, 1.0)
    assert roll.proxies(1.0)[FLEET].keys == {"standard": True, "pro": False}
    roll.hear(said("b", keys={"standard": True, "pro": True}, seq=2), "pod-b", PUBLISHED, 2.0)
    assert roll.proxies(2.0)[FLEET].keys == {"standard": True, "pro": True}


def test_the_operator_is_told_when_the_last_proxy_has_the_config_and_not_before() -> None:
    """It would plan once for each proxy and edit, or find out a minute later that all of them serve."""
    roll = Roll()
    for instance in "abc":
        assert roll.hear(said(instance), instance, PUBLISHED, 0.0), "one more is there"
    told = [roll.hear(said(instance, digests=HAS), instance, PUBLISHED, 1.0) for instance in "abc"]
    assert told == [False, False, True]
    assert not any(roll.hear(said(instance, digests=HAS), instance, PUBLISHED, 2.0) for instance in "abc")


def test_the_operator_is_told_of_what_comes_goes_and_lacks() -> None:
    """Each of these is a line of `kubectl get` that would be wrong until the next resync."""
    roll = Roll()
    assert roll.hear(said(), "pod", PUBLISHED, 0.0), "came"
    assert roll.hear(said(keys={"pro": False}), "pod", PUBLISHED, 1.0), "lacks a key"
    assert roll.hear(said(keys={"pro": False}, ready=False), "pod", PUBLISHED, 2.0), "is not ready"
    assert roll.hear(said(keys={"pro": False}, ready=False, closing=True), "pod", PUBLISHED, 3.0), "went"
    assert roll.proxies(3.0)[FLEET].pods == 0
    roll.hear(said(), "pod", PUBLISHED, 4.0)
    assert roll.hear(said(), "pod", PUBLISHED, 4.0 + HEARD_S), "is back from a silence"


def test_two_processes_of_one_pod_are_one_pod() -> None:
    """A container that restarted would count twice for a while."""
    roll = Roll()
    roll.hear(said("before"), "pod", PUBLISHED, 0.0)
    roll.hear(said("after"), "pod", PUBLISHED, 1.0)
    assert roll.proxies(1.0)[FLEET].pods == 1


def test_protocol_1_counts_as_ready() -> None:
    """During an upgrade the old pods serve: without them the fleet would show as not ready."""
    roll = Roll()
    roll.hear(said(protocol=1, ready=False), "pod", PUBLISHED, 0.0)
    assert roll.proxies(0.0)[FLEET].ready == 1


def test_nothing_new_is_the_same_object() -> None:
    """A plan compares by identity first: 10,000 statuses would be made again every second."""
    roll = Roll()
    roll.hear(said(), "pod", PUBLISHED, 0.0)
    first = roll.proxies(0.0)[FLEET]
    roll.hear(said(seq=2), "pod", PUBLISHED, 1.0)
    assert roll.proxies(1.0)[FLEET] is first


def test_an_outage_is_counted_over_ready_proxies() -> None:
    """A pod that starts or leaves knows nothing of the upstream; one that comes to know must be heard at once."""
    roll = Roll()
    roll.hear(said("a"), "pod-a", PUBLISHED, 0.0)
    assert roll.hear(said("a", seq=2, down=("big", "small")), "pod-a", PUBLISHED, 1.0), "a plan would judge otherwise"
    roll.hear(said("b", down=("big",)), "pod-b", PUBLISHED, 1.0)
    roll.hear(said("c", ready=False, down=("big",)), "pod-c", PUBLISHED, 1.0)
    assert roll.proxies(1.0)[FLEET].down == {"big": 2, "small": 1}
    assert roll.hear(said("a", seq=3), "pod-a", PUBLISHED, 2.0) and roll.proxies(2.0)[FLEET].down == {"big": 1}
