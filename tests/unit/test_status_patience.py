"""`kubectl apply -k` of a folder leaves no Warning behind that was only true for a moment, and hides none that stays true."""

from typing import Any

from stepdown.model import conditions
from stepdown.plan.world import ObjectKey
from stepdown.status.events import Event
from stepdown.status.patience import HOLD_S, Patience

ROUTE: ObjectKey = ("ModelRoute", "shop/chat")


def warning(message: str = "There is no RoutingProxy shop/default.") -> Event:
    return Event("ModelRoute", "shop/chat", conditions.EVENT_INVALID_SPEC, message)


def saying(status: str, message: str) -> dict[ObjectKey, Any]:
    return {ROUTE: {"conditions": [{"type": conditions.ACCEPTED, "status": status, "message": message}]}}


def test_what_is_right_again_a_moment_later_is_never_told() -> None:
    patience = Patience()
    assert patience.told([warning()], 100.0) == []
    assert patience.due(saying("False", warning().message), 100.0 + HOLD_S - 0.1) == []
    assert patience.due(saying("True", ""), 100.0 + HOLD_S) == []
    assert patience.next_s() is None


def test_what_stays_wrong_is_told_once() -> None:
    patience = Patience()
    patience.told([warning()], 100.0)
    assert patience.next_s() == 100.0 + HOLD_S
    wrong = saying("False", warning().message)
    assert patience.due(wrong, 100.0 + HOLD_S) == [warning()]
    assert patience.due(wrong, 200.0) == []


def test_a_message_that_keeps_changing_is_not_put_off_for_ever() -> None:
    """The latest is told, when the first would have been."""
    patience = Patience()
    patience.told([warning("a")], 100.0)
    patience.told([warning("b")], 100.0 + HOLD_S - 1)
    assert patience.due(saying("False", "b"), 100.0 + HOLD_S) == [warning("b")]


def test_an_object_that_was_deleted_meanwhile_has_no_event() -> None:
    patience = Patience()
    patience.told([warning()], 100.0)
    assert patience.due({}, 100.0 + HOLD_S) == []


def test_what_is_about_the_object_alone_does_not_wait() -> None:
    spent = Event("SpendBudget", "shop/team", conditions.EVENT_EXHAUSTED, "Nothing is left.")
    assert Patience().told([spent, warning()], 100.0) == [spent]
