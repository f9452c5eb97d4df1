"""What is ours and what is there, as the operator believes it. If these fail, drift stays, or objects are written for ever."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepdown.cluster.kinds import CONFIG_MAP, DEPLOYMENT, SERVICE
from stepdown.cluster.managed import last_other, owned_elsewhere, trace
from stepdown.cluster.mirror import MOST_REMOVED, Key, Mirror, newer
from stepdown.cluster.patience import FREE_PUTS, Drifts, Failure
from stepdown.cluster.takeover import refusal

OURS = {
    "manager": "stepdown",
    "operation": "Apply",
    "apiVersion": "apps/v1",
    "time": "2026-11-24T22:16:49Z",
    "fieldsV1": {"f:spec": {"f:replicas": {}, "f:template": {}}},
}
STATUS = {
    "manager": "kube-controller-manager",
    "operation": "Update",
    "subresource": "status",
    "time": "2026-11-24T23:00:00Z",
    "fieldsV1": {"f:status": {"f:replicas": {}}},
}
SCALE = {"manager": "kubectl", "operation": "Update", "subresource": "scale", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
NOTE = {"manager": "me", "operation": "Update", "time": "2026-11-24T22:20:00Z", "fieldsV1": {"f:metadata": {}}}


def managed(*entries: Any) -> dict[str, Any]:
    return {"managedFields": list(entries)}


def test_the_trace_moves_with_what_is_ours_and_with_nothing_else() -> None:
    left = trace(managed(OURS), "stepdown")
    assert left
    assert trace(managed(NOTE, STATUS, OURS), "stepdown") == left
    assert trace(managed({**OURS, "fieldsV1": {"f:spec": {"f:template": {}}}}, SCALE), "stepdown") != left, "taken from us"
    assert trace(managed({**OURS, "time": "2026-11-24T22:30:00Z"}), "stepdown") != left, "other values, in our name"
    for lost in (
        managed(),
        managed(STATUS),
        managed({**OURS, "operation": "Update"}),
        managed({**OURS, "subresource": "status"}),
    ):
        assert trace(lost, "stepdown") == ""


@pytest.mark.parametrize(
    "rubbish", [{}, {"managedFields": None}, {"managedFields": [None, 3, {}]}, {"managedFields": [{"fieldsV1": 3}]}]
)
def test_fields_that_make_no_sense_are_nobodys(rubbish: dict[str, Any]) -> None:
    assert trace(rubbish, "stepdown") == "" and last_other(rubbish, "stepdown") == ""
    assert not owned_elsewhere(rubbish, "stepdown", "spec", "replicas")


def test_an_autoscaler_is_told_from_ourselves() -> None:
    assert owned_elsewhere(managed(OURS, SCALE), "stepdown", "spec", "replicas")
    assert not owned_elsewhere(managed(OURS, STATUS, NOTE), "stepdown", "spec", "replicas")
    assert last_other(managed(OURS, STATUS, NOTE, SCALE), "stepdown") == "me"


# The mirror ---------------------------------------------------------------------------------------------------------------

WEB = Key(CONFIG_MAP, "shop", "web")


def meta(version: int, name: str = "web", **more: Any) -> dict[str, Any]:
    return {"name": name, "namespace": "shop", "uid": f"u-{name}", "resourceVersion": str(version), **more}


def item(version: int, name: str = "web") -> dict[str, Any]:
    return {"metadata": meta(version, name)}


def test_what_comes_late_changes_nothing() -> None:
    """The answer to our own write and the watch's word on it come in any order: the older one must not win."""
    mirror = Mirror()
    assert mirror.put(WEB, meta(5))
    assert not mirror.put(WEB, meta(5)) and not mirror.put(WEB, meta(4))
    assert mirror.put(WEB, meta(9)), "9 is older than 10 as text"
    assert mirror.put(WEB, meta(10))
    assert not mirror.remove(WEB, "7"), "what was deleted then has been made anew"
    assert mirror.get(WEB) is not None
    assert mirror.remove(WEB, "12") and mirror.get(WEB) is None
    assert not mirror.remove(WEB, "12")
    assert not mirror.put(WEB, meta(11)), "the answer to a write from before the deletion"
    assert mirror.put(WEB, meta(13))


def test_a_list_takes_away_what_is_gone_and_keeps_what_is_newer() -> None:
    mirror = Mirror()
    for name, version in (("kept", 5), ("gone", 6), ("written-meanwhile", 25), ("changed", 7)):
        mirror.put(Key(CONFIG_MAP, "shop", name), meta(version, name))
    mirror.put(Key(CONFIG_MAP, "other", "web"), meta(6))
    mirror.put(Key(SERVICE, "shop", "web"), meta(6))
    changed = mirror.relist(CONFIG_MAP, "shop", [item(5, "kept"), item(15, "changed"), item(12, "new")], "20")
    assert {key.name for key in changed} == {"gone", "changed", "new"}
    assert mirror.get(Key(CONFIG_MAP, "shop", "written-meanwhile")) is not None
    assert mirror.get(Key(CONFIG_MAP, "shop", "gone")) is None
    assert mirror.get(Key(CONFIG_MAP, "other", "web")) is not None and mirror.get(Key(SERVICE, "shop", "web")) is not None
    assert {key.name for key in mirror.relist(CONFIG_MAP, "", [], "30")} == {
        "kept",
        "changed",
        "new",
        "web",
        "written-meanwhile",
    }


def test_deletions_are_remembered_for_a_while_and_not_for_ever() -> None:
    mirror = Mirror()
    for index in range(MOST_REMOVED * 2):
        mirror.remove(Key(CONFIG_MAP, "shop", str(index)), "10")
    assert len(mirror._removed) == MOST_REMOVED
    mirror.relist(CONFIG_MAP, "", [], "20")
    assert not mirror._removed


Event = tuple[str, int]


@given(st.permutations([("put", 1), ("put", 2), ("remove", 3), ("put", 4), ("put", 5)]), st.booleans())
def test_any_order_of_news_ends_with_the_newest(news: list[Event], deleted: bool) -> None:
    mirror = Mirror()
    for what, version in [*news, *([("remove", 6)] if deleted else [])]:
        if what == "put":
            mirror.put(WEB, meta(version))
        else:
            mirror.remove(WEB, str(version))
    there = mirror.get(WEB)
    assert (there.version if there is not None else None) == (None if deleted else "5")


def test_whose_a_child_is() -> None:
    mirror = Mirror()
    reference = {"apiVersion": "stepdown.dev/v1alpha1", "kind": "RoutingProxy", "name": "p", "uid": "u-p", "controller": True}
    for name, references in {
        "ours": [reference],
        "not-controlled": [{**reference, "controller": False}],
        "another-kind": [{**reference, "kind": "Deployment"}],
        "another-group": [{**reference, "apiVersion": "stepdown.example/v1"}],
        "another-uid": [{**reference, "uid": "u-old"}],
        "nobodys": None,
    }.items():
        mirror.put(Key(CONFIG_MAP, "shop", name), meta(1, name, ownerReferences=references))
    assert mirror.of("shop/p", "u-p") == [Key(CONFIG_MAP, "shop", "ours")]


def test_versions_that_are_no_numbers_are_taken_as_they_come() -> None:
    assert newer("10", "9") and not newer("9", "10") and not newer("9", "9")
    assert newer("abc", "9") and newer("9", "abc") and not newer("abc", "abc")


# Whose name it is ---------------------------------------------------------------------------------------------------------

LABELS = {"app.kubernetes.io/managed-by": "stepdown", "stepdown.dev/proxy": "p"}
PROXY = {"apiVersion": "stepdown.dev/v1alpha1", "kind": "RoutingProxy", "name": "p", "uid": "u-p", "controller": True}


@pytest.mark.parametrize(
    ("references", "labels", "says"),
    [
        ([PROXY], {}, ""),
        ([], LABELS, ""),
        ([{**PROXY, "controller": False}], LABELS, ""),
        ([], {}, "is there already and not part of RoutingProxy shop/p"),
        ([], {**LABELS, "stepdown.dev/proxy": "q"}, "is there already and not part of RoutingProxy shop/p"),
        ([{**PROXY, "uid": "u-old"}], LABELS, "still belongs to the RoutingProxy shop/p that was deleted"),
        ([{**PROXY, "name": "q", "uid": "u-q"}], LABELS, "is controlled by RoutingProxy q"),
        ([{"kind": "ReplicaSet", "name": "r", "uid": "x", "controller": True}], LABELS, "is controlled by ReplicaSet r"),
    ],
)
def test_a_name_is_taken_only_where_it_is_ours(references: list[Any], labels: dict[str, str], says: str) -> None:
    """Taken by force, an application's Service would send its traffic to the proxies."""
    answer = refusal(meta(1, ownerReferences=references, labels=labels), "shop/p", "u-p", LABELS)
    assert answer.startswith(says) and bool(answer) == bool(says)


# Patience -----------------------------------------------------------------------------------------------------------------


def test_a_drift_is_put_back_at_once_and_a_fight_ever_later() -> None:
    """Two controllers that correct each other without a pause are an outage of their own."""
    drifts, now_s, waits = Drifts(), 1000.0, []
    for _ in range(12):
        wait_s = drifts.put_back(now_s)
        if wait_s:
            assert drifts.put_back(now_s + wait_s / 2) > 0
            now_s += wait_s
            assert drifts.put_back(now_s) == 0
        waits.append(wait_s)
    assert waits[:FREE_PUTS] == [0.0] * FREE_PUTS
    assert all(0.5 <= wait_s <= 60.0 for wait_s in waits[FREE_PUTS:])
    assert waits[-1] >= 30.0
    now_s = drifts.next_s + 301
    assert [drifts.put_back(now_s) for _ in range(FREE_PUTS)] == [0.0] * FREE_PUTS, "after five calm minutes it is forgiven"


def test_a_failure_is_tried_again_ever_later() -> None:
    failure, now_s = Failure(b"digest"), 0.0
    waits = [failure.again("no", ValueError(), now_s) for _ in range(10)]
    assert 0.5 <= waits[0] <= 1.0 and 30.0 <= waits[-1] <= 60.0
    assert failure.until_s == now_s + waits[-1] and failure.message == "no"


def test_a_key_reads_as_people_write_it() -> None:
    assert str(Key(DEPLOYMENT, "shop", "stepdown-web")) == "Deployment shop/stepdown-web"
