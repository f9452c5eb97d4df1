"""Text to values. If these fail, a budget with a typo is silently not the budget that a person wrote."""

import json
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stepdown.local.parse import MAX_DEPTH, ParseError, line_of, parse_json, parse_yaml


def only(text: str) -> object:
    (parsed,) = parse_yaml(text)
    return parsed.value


def refused(text: str) -> ParseError:
    with pytest.raises(ParseError) as caught:
        parse_yaml(text)
    return caught.value


def test_documents_are_numbered_as_they_stand_with_their_lines() -> None:
    """A message that names the wrong document sends a person to the wrong place."""
    parsed = parse_yaml("# a comment\n---\nkind: A\n---\n---\n\nkind: B\n...\n")
    assert [(each.number, each.line, each.value) for each in parsed] == [(1, 3, {"kind": "A"}), (3, 7, {"kind": "B"})]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", True),
        ("Off", False),
        ("~", None),
        ("0123", 83),
        ("0x1F", 31),
        ("-7", -7),
        ("08", "08"),
        ("0.5", 0.5),
        ("1e3", 1000.0),
        ("500.00", 500.0),
        ('"500.00"', "500.00"),
        ("'yes'", "yes"),
        ("2026-11-30T00:00:00Z", "2026-11-30T00:00:00Z"),
        ("99999999999999999999999", 99999999999999999999999),
        ("!!str 5", "5"),
        ("Pro/deepseek-ai/DeepSeek-R1", "Pro/deepseek-ai/DeepSeek-R1"),
        ("60s", "60s"),
        ("never", "never"),
    ],
)
def test_scalars_mean_what_kubectl_takes_them_to_mean(text: str, value: object) -> None:
    """A file that kubectl accepts must not mean something else here, and no date may become an object."""
    found = only(f"a: {text}")
    assert found == {"a": value}
    assert type(found["a"]) is type(value)  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("a: 1\nb:\n  c: 2\n  c: 3\n", 4, "'c' is there twice"),
        ("a: &x [*x]\n", 1, "no anchor"),
        ("a: *nowhere\n", 1, "no anchor"),
        ("a: !!python/object/apply:os.system [ls]\n", 1, "tag"),
        ("a: !secret x\n", 1, "tag"),
        ("<<: {a: 1}\n", 1, "merge keys"),
        ("? [a]\n: 1\n", 1, "used as a key"),
        ("a:\n\tb: 1\n", 2, "not YAML"),
        ("kind: A\n---\nb: [1,\n", 4, "not YAML"),
        ("a: 1\nb: \x01\n", 2, "control character"),
        ("a: " + "9" * 5000, 1, "5000 digits"),
    ],
)
def test_what_would_hide_a_mistake_is_refused_with_its_line(text: str, line: int, says: str) -> None:
    """The last of two equal keys wins silently in most readers: a budget of 5000 instead of 500."""
    error = refused(text)
    assert says in error.message
    assert error.line == line


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 100_000, "- " * 100_000, "[" * 65 + "]" * 65])
def test_nesting_is_refused_and_does_not_crash(text: str) -> None:
    """PyYAML's own composer ends the process on this: one file would stop every route."""
    assert f"deeper than {MAX_DEPTH}" in refused(text).message


def test_aliases_are_read_and_bombs_are_not() -> None:
    """Nine lines of aliases would otherwise become a billion values at validation."""
    assert only("a: &x {b: 1}\nc: *x\nd: &s text\ne: *s") == {"a": {"b": 1}, "c": {"b": 1}, "d": "text", "e": "text"}
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))
    assert "aliases counted in full" in refused(bomb).message


def test_json_is_read_by_the_same_rules() -> None:
    """Generated policies come as JSON; a duplicate there is as silent."""
    assert parse_json('{"a": "\\ud83d\\ude00", "b": [1, 2.5, null]}')[0].value == {"a": "😀", "b": [1, 2.5, None]}
    for text, line, says in [
        ('{"a": 1,\n "a": 2}', 2, "twice"),
        ('{"a": NaN}', 1, "NaN"),
        ('{"a": 1,\n}', 1, "not JSON"),
        ("[" * 100_000, 1, "deeper"),
    ]:
        with pytest.raises(ParseError) as caught:
            parse_json(text)
        assert says in caught.value.message
        assert caught.value.line >= line


def test_a_field_is_found_on_its_line() -> None:
    """`routes.yaml:7` opens an editor at the mistake; the line of the document would leave 60 lines to search."""
    first = "---\nkind: A\nspec:\n  models:\n    default: x\n    fallbacks: [a,\n      b]\n"
    text = first + "  steps:\n  - a: 1\n  - {a: 1,\n     b: 2}\n---\nkind: B\n"
    lines = {
        (): 2,
        ("kind",): 2,
        ("spec", "models", "fallbacks", 1): 7,
        ("spec", "models", "fallbacks", 9): 6,
        ("spec", "steps", 1, "b"): 11,
        ("spec", "absent", "x"): 3,
    }
    assert {path: line_of(text, 1, path) for path in lines} == lines
    assert line_of(text, 2, ("kind",)) == 13


# PyYAML writes the text 1e5 without quotes; kubectl and we read that as a number.
texts = st.text().filter(lambda text: not re.fullmatch(r"[-+]?[0-9]+[eE][-+]?[0-9]+", text))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(texts, json_values, max_size=5))
def test_an_object_survives_both_formats(value: dict[str, object]) -> None:
    """What another tool wrote as YAML or JSON must come back as the same object."""
    assert parse_json(json.dumps(value))[0].value == value
    assert only(yaml.safe_dump(value)) == value


@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!\"'#%>|\n \t,?<~1.e")))
def test_no_text_makes_it_fail_otherwise_than_by_its_own_error(text: str) -> None:
    """A file half written by an editor must never end `stepdown run`."""
    for parse in (parse_yaml, parse_json):
        try:
            parse(text)
        except ParseError as error:
            assert error.line >= 1 and error.document >= 1
            assert re.search(r"\w", error.message)
