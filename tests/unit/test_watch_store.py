"""What the operator believes to be there: events, LISTs and GETs in any order end in what the API server has."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepdown.plan.world import Invalid, World
from stepdown.watch.store import WATCHED, HistoryWentBack, Seen, Store, read


def route(name: str, version: int, *, uid: str = "", generation: int = 1, **more: Any) -> dict[str, Any]:
    metadata = {
        "name": name,
        "namespace": "shop",
        "uid": uid or f"uid-{name}",
        "resourceVersion": str(version),
        "generation": generation,
        "labels": more.pop("labels", {"team": "support"}),
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
        "managedFields": [],
        **more.pop("metadata", {}),
    }
    spec = more.pop("spec", {"models": {"default": "Qwen3-14B"}})
    return {"apiVersion": "stepdown.dev/v1alpha1", "kind": "ModelRoute", "metadata": metadata, "spec": spec, **more}


def listed(store: Store, kind: str = "ModelRoute", *objects: dict[str, Any], at: int = 1) -> bool:
    return store.replace(kind, [read(each) for each in objects], at, store.newest(kind))


def complete(*routes: dict[str, Any], at: int = 1) -> Store:
    store = Store()
    for kind in WATCHED:
        listed(store, kind, *(routes if kind == "ModelRoute" else ()), at=at)
    return store


def world(store: Store) -> World:
    found = store.world(
        operator_namespace="stepdown-system",
        allowed_upstreams=("*",),
        fleet_namespaces=("*",),
        secrets={},
        fleets={},
        issuer=None,
    )
    assert found is not None
    return found


def names(store: Store) -> list[str]:
    return [each.key for each in world(store).routes]


def test_nothing_is_judged_before_every_kind_has_been_listed() -> None:
    """An operator that took a kind that it could not list for an empty one would prune what that kind's objects asked for."""
    store = Store()
    for kind in WATCHED[:-1]:
        listed(store, kind)
    settings = {"allowed_upstreams": ("*",), "fleet_namespaces": ("*",), "secrets": {}, "fleets": {}}
    assert store.world(operator_namespace="s", **settings) is None  # type: ignore[arg-type]
    assert store.missing() == ("Namespace",)
    listed(store, "Namespace")
    assert store.world(operator_namespace="s", **settings) is not None  # type: ignore[arg-type]


def test_an_event_of_an_object_that_is_known_to_be_newer_changes_nothing() -> None:
    """A delayed event would bring back a spec that its owner has replaced."""
    store = complete(route("chat", 10, generation=2), at=20)
    assert not store.put(read(route("chat", 9, generation=1)))
    assert world(store).routes[0].metadata.generation == 2


def test_an_event_of_an_object_that_a_list_no_longer_had_does_not_bring_it_back() -> None:
    store = complete(route("chat", 10), at=20)
    listed(store, at=30)
    assert not store.put(read(route("chat", 25)))
    assert names(store) == []


def test_an_event_older_than_the_deletion_does_not_bring_it_back() -> None:
    store = complete(route("chat", 10), at=20)
    assert store.remove("ModelRoute", "shop/chat", 40)
    assert not store.put(read(route("chat", 35)))
    assert names(store) == []


def test_a_list_that_is_older_than_an_event_does_not_undo_it() -> None:
    """The LIST was asked for before the object was made, and answered after its event."""
    store = complete(at=20)
    since = store.newest("ModelRoute")
    assert store.put(read(route("chat", 25)))
    assert not store.replace("ModelRoute", [], 22, since)
    assert names(store) == ["shop/chat"]


def test_a_deletion_that_no_event_told_of_is_found_by_the_list() -> None:
    """kopf tells of no deletion that happened while its watch was cut off: the budget would bind for ever."""
    store = complete(route("chat", 10), route("search", 11), at=20)
    difference = store.compare("ModelRoute", [("shop/search", "uid-search", 11)], 30, 20)
    assert (difference.newer, difference.gone) == ((), ("shop/chat",))


def test_an_object_that_came_again_under_its_name_is_another_one() -> None:
    store = complete(route("chat", 10), at=20)
    before = world(store).routes[0]
    difference = store.compare("ModelRoute", [("shop/chat", "uid-2", 25)], 30, 20)
    assert difference.newer == ("shop/chat",)
    assert store.put(read(route("chat", 25, uid="uid-2")), 30)
    assert world(store).routes[0] is not before
    assert world(store).routes[0].metadata.uid == "uid-2"


def test_a_late_deletion_of_the_former_object_leaves_the_new_one() -> None:
    store = complete(route("chat", 10), at=20)
    store.put(read(route("chat", 31, uid="uid-2")))
    assert not store.remove("ModelRoute", "shop/chat", 30)
    assert names(store) == ["shop/chat"]


def test_our_own_status_leaves_the_very_same_value_in_the_world() -> None:
    """Otherwise each status that is written would have every route judged again, which writes a status."""
    store = complete(route("chat", 10), at=20)
    before = world(store).routes[0]
    conditions = [
        {"type": "Ready", "status": "True", "reason": "Ready", "message": "", "lastTransitionTime": "2026-11-01T00:00:00Z"}
    ]
    assert not store.put(read(route("chat", 30, status={"conditions": conditions})))
    assert world(store).routes[0] is before
    seen = store.get("ModelRoute", "shop/chat")
    assert seen is not None
    assert b"2026-11-01" in seen.status


@pytest.mark.parametrize(
    "changed",
    [
        {"generation": 2, "spec": {"models": {"default": "Qwen3-8B"}}},
        {"labels": {"team": "search"}},
        {"uid": "another"},
        {"metadata": {"deletionTimestamp": "2026-11-01T00:00:00Z"}},
    ],
)
def test_what_a_plan_could_see_makes_another_value(changed: dict[str, Any]) -> None:
    store = complete(route("chat", 10), at=20)
    before = world(store).routes[0]
    assert store.put(read(route("chat", 30, **changed), store.get("ModelRoute", "shop/chat")))
    assert world(store).routes[0] is not before


def test_an_object_that_is_being_deleted_is_there_until_it_is_gone() -> None:
    """A budget with somebody's finalizer would stop binding while its routes go on spending."""
    store = complete(route("chat", 10, metadata={"deletionTimestamp": "2026-11-01T00:00:00Z"}), at=20)
    assert names(store) == ["shop/chat"]


def test_an_invalid_object_keeps_what_it_says_and_why_it_is_wrong() -> None:
    store = complete(route("chat", 10, generation=3, spec={"models": {"default": 7}}, status={"observedGeneration": 2}), at=20)
    (invalid,) = world(store).invalid
    assert isinstance(invalid, Invalid)
    assert (invalid.key, invalid.uid, invalid.generation) == ("shop/chat", "uid-chat", 3)
    assert "spec.models.default" in invalid.message
    assert invalid.raw["status"] == {"observedGeneration": 2}
    assert invalid.labels == {"team": "support"}


def test_the_status_an_object_came_with_is_there_for_the_first_pass() -> None:
    """After a restart conditions keep their times, and Events are not told again."""
    status = {
        "observedGeneration": 1,
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "observedGeneration": 1,
                "lastTransitionTime": "2026-11-01T00:00:00Z",
                "reason": "Ready",
                "message": "",
            }
        ],
    }
    (thing,) = world(complete(route("chat", 10, status=status), at=20)).routes
    assert thing.status is not None
    assert thing.status.conditions[0].last_transition_time == "2026-11-01T00:00:00Z"


def test_a_status_that_is_none_of_ours_does_not_make_the_object_invalid() -> None:
    (thing,) = world(complete(route("chat", 10, status={"phase": "Running"}), at=20)).routes
    assert thing.status is None


def test_an_api_server_whose_storage_was_restored_is_noticed() -> None:
    """Its versions run again from an earlier one: every "older" and "newer" that is known would be wrong."""
    store = complete(route("chat", 100), at=200)
    with pytest.raises(HistoryWentBack):
        store.replace("ModelRoute", [], 150, store.newest("ModelRoute"))


def test_namespaces_are_known_by_their_labels() -> None:
    store = complete()
    store.put(
        read({"kind": "Namespace", "metadata": {"name": "shop", "uid": "1", "resourceVersion": "5", "labels": {"a": "b"}}})
    )
    assert world(store).namespace_labels == {"shop": {"a": "b"}}
    store.remove("Namespace", "shop", 6)
    assert world(store).namespace_labels == {}


def test_the_order_of_objects_does_not_depend_on_what_came_first() -> None:
    one, other = complete(route("a", 1), route("b", 2), at=5), complete(route("b", 2), route("a", 1), at=5)
    assert names(one) == names(other) == ["shop/a", "shop/b"]


class History:
    """An API server: every change has a version; events may come late and doubled, LISTs are of any moment."""

    def __init__(self) -> None:
        self.version = 1
        self.objects: dict[str, dict[str, Any]] = {}
        self.events: list[tuple[str, dict[str, Any], int]] = []

    def change(self, name: str, delete: bool) -> None:
        self.version += 1
        if delete and name in self.objects:
            self.events.append(("DELETED", self.objects.pop(name), self.version))
        else:
            before = self.objects.get(name)
            uid = before["metadata"]["uid"] if before else f"{name}-{self.version}"
            generation = before["metadata"]["generation"] + 1 if before else 1
            self.objects[name] = route(name, self.version, uid=uid, generation=generation)
            self.events.append(("MODIFIED", self.objects[name], self.version))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("change"), st.sampled_from("abc"), st.booleans()),
            st.tuples(st.just("deliver"), st.integers(0, 30), st.booleans()),
            st.tuples(st.just("lose"), st.integers(0, 30), st.booleans()),
            st.tuples(st.just("list"), st.just(0), st.booleans()),
        ),
        max_size=60,
    )
)
def test_whatever_is_lost_doubled_or_late_the_next_list_puts_right(steps: list[tuple[str, Any, bool]]) -> None:
    history, store = History(), Store()
    pending: list[tuple[str, dict[str, Any], int]] = []
    for kind in WATCHED:
        listed(store, kind)
    for what, where, flag in steps:
        if what == "change":
            history.change(where, flag)
            pending.append(history.events[-1])
        elif what == "list":
            items = list(history.objects.values())
            store.replace("ModelRoute", [read(each) for each in items], history.version, store.newest("ModelRoute"))
        elif pending:
            event = pending[where % len(pending)] if what == "deliver" and flag else pending.pop(0)
            if what == "deliver":
                deliver(store, *event)
    items = list(history.objects.values())
    store.replace("ModelRoute", [read(each) for each in items], history.version, store.newest("ModelRoute"))
    for event in pending:
        deliver(store, *event)
    assert {(each.key, each.metadata.uid, each.metadata.generation) for each in world(store).routes} == {
        (f"shop/{name}", each["metadata"]["uid"], each["metadata"]["generation"]) for name, each in history.objects.items()
    }


def deliver(store: Store, change: str, raw: dict[str, Any], version: int) -> None:
    if change == "DELETED":
        store.remove("ModelRoute", f"shop/{raw['metadata']['name']}", version)
    else:
        seen: Seen = read(raw, store.get("ModelRoute", f"shop/{raw['metadata']['name']}"))
        store.put(seen)
