"""docs/conditions.md is what alerts and people go by: it must be what the code says, and say all that the code can say."""

import re
from pathlib import Path

import yaml

from stepdown.model.conditions import EVENT_TYPES, TYPES
from stepdown.model.reference import conditions_page, constants

ROOT = Path(__file__).parents[2]


def test_what_is_committed_is_what_the_code_says() -> None:
    """`make generate` writes it."""
    assert (ROOT / "docs" / "conditions.md").read_text(encoding="utf-8") == conditions_page()


def test_every_answer_of_the_goldens_is_documented() -> None:
    """Whoever looks up what they see finds it under the condition that shows it."""
    sections = dict(re.findall(r"## (\w+)\n(.*?)(?=\n## |\Z)", conditions_page(), re.S))
    seen = set()
    for golden in (ROOT / "tests" / "golden").glob("*.out.yaml"):
        for document in yaml.safe_load(golden.read_text())["status"]["documents"].values():
            seen |= {(each["type"], each["status"], each["reason"]) for each in document["conditions"]}
    assert len(seen) > 20
    for type_, status, reason in sorted(seen):
        # Unknown is Pending everywhere, and Stalled says what Accepted says: both are told once, above the tables.
        if status != "Unknown" and type_ != "Stalled":
            assert f"| {status} | `{reason}` |" in sections[type_], f"{type_}={status}, {reason}"


def test_every_constant_is_on_the_page() -> None:
    """A reason without a sentence, or an Event that is not listed, is one that nobody can look up."""
    page = conditions_page()
    for each in constants():
        assert f"`{each.value}`" in page, each.name
    assert all(f"| `{event}` | {kind} |" in page for event, kind in EVENT_TYPES.items())
    assert all(f"## {each}\n" in page for kinds in TYPES.values() for each in kinds if each != "Stalled")
