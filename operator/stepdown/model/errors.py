"""From a document to a resource, or to sentences that say what to write instead. `local`, `reconcile` and the CLI call `parse`.

pydantic says where and what kind of mistake; here it becomes a line that names the object, the field by its API path, the value
seen, what would be valid and what to do. A field may be wrong in several ways: all are told at once.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from stepdown.model.base import API_VERSION, GROUP, PATTERNS, camel
from stepdown.model.names import did_you_mean, nearest
from stepdown.model.resources import KINDS, AnyResource, ModelCatalog

Path = tuple[str | int, ...]
"""Where a value is: `("spec", "models", "fallbacks", 0)`."""

MAX_VALUE_CHARS = 80
"""Of a value in a message; a longer one is cut."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with one object."""

    kind: str
    key: str
    """`namespace/name`."""
    field: str
    """`spec.models.fallbacks[0]`; empty: the object as a whole."""
    message: str
    """What is wrong and what to do, continuing the field's name: `is 'x'; …`."""
    path: Path = ()
    """The field again, for finding its line in a file."""

    def __str__(self) -> str:
        return (
            f"{self.kind} {self.key}: {self.field} {self.message}" if self.field else f"{self.kind} {self.key}: {self.message}"
        )


class InvalidObject(ValueError):
    """A document that is none of our resources, or a wrong one. Nothing of it is used."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


def parse(document: Mapping[str, Any], *, namespace: str = "default") -> AnyResource:
    """The resource that a document describes. Raises InvalidObject.

    `namespace` is for a namespaced object that names none, as kubectl's own is. A `status` is left out: Stepdown writes it.
    """
    kind, metadata = document.get("kind"), document.get("metadata")
    model = KINDS.get(kind) if isinstance(kind, str) else None
    if model is None or document.get("apiVersion") != API_VERSION:
        raise InvalidObject([_wrong_kind(document, namespace)])
    content = {field: value for field, value in document.items() if field != "status"}
    if isinstance(metadata, dict):
        content["metadata"] = {**metadata, "namespace": (metadata.get("namespace") or namespace) if model.namespaced else ""}
    try:
        resource: AnyResource = model.model_validate(content, by_alias=True, by_name=False)
    except ValidationError as error:
        key = key_of(document, namespace)
        problems = [each for details in error.errors() for each in _problems(model.kind_name, key, model, details)]
        raise InvalidObject(problems) from None
    if isinstance(resource, ModelCatalog) and (twice := resource.names_stated_twice()):
        message = f"names {twice[0]!r} twice, as a name or id; every name and id belongs to one model: remove one"
        raise InvalidObject([Problem("ModelCatalog", resource.key, "spec.models", message, ("spec", "models"))])
    return resource


def key_of(document: Mapping[str, Any], namespace: str = "default") -> str:
    """`namespace/name` of a document that may be anything; `?` where there is no name to go by."""
    metadata = document.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    name = metadata.get("name") or "?"
    kind = KINDS.get(kind_name) if isinstance(kind_name := document.get("kind"), str) else None
    return str(name) if kind and not kind.namespaced else f"{metadata.get('namespace') or namespace}/{name}"


def field_text(path: Path) -> str:
    """`("spec", "callers", 0)` → `spec.callers[0]`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def _wrong_kind(document: Mapping[str, Any], namespace: str) -> Problem:
    kind, version = document.get("kind"), document.get("apiVersion")
    shown = kind if isinstance(kind, str) and kind else "Object"
    key = key_of(document, namespace)
    if isinstance(kind, str) and kind in KINDS:
        return Problem(shown, key, "apiVersion", f"is {_show(version)}; write {API_VERSION}", ("apiVersion",))
    if (isinstance(version, str) and version.partition("/")[0] == GROUP) or version is None or kind is None:
        hint = did_you_mean(kind, KINDS) if isinstance(kind, str) else ""
        return Problem(shown, key, "kind", f"is {_show(kind)}{hint}; {GROUP} has {', '.join(KINDS)}", ("kind",))
    return Problem(
        shown, key, "apiVersion", f"is {_show(version)}; only objects of {API_VERSION} are read here", ("apiVersion",)
    )


def _problems(kind: str, key: str, model: type[BaseModel], error: ErrorDetails) -> Iterator[Problem]:
    path = tuple(step for step in error["loc"] if step != "[key]")
    if error["type"] == "rules":
        for field, message in error["ctx"]["broken"]:
            there: Path = (*path, *((field,) if field else ()))
            yield Problem(kind, key, field_text(there), f"is not valid: {message}", there)
        return
    yield Problem(kind, key, field_text(path), _sentence(model, path, error), path)


def _sentence(model: type[BaseModel], path: Path, error: ErrorDetails) -> str:
    """What follows the field's name."""
    value, context = error["input"], error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            return _unknown_field(model, path)
        case "missing":
            return f"is missing; {_advice(path[-1])}"
        case "string_pattern_mismatch":
            return f"is {_show(value)}; {PATTERNS.get(context['pattern'], 'it must match ' + context['pattern'])}"
        case "literal_error":
            choices = [choice.strip("'") for choice in context["expected"].replace(" or ", ", ").split(", ")]
            hint = did_you_mean(value, choices) if isinstance(value, str) else ""
            return f"is {_show(value)}{hint}; write {_either(choices)}"
        case "string_type":
            number = isinstance(value, int | float) and not isinstance(value, bool)
            fix = f'put it in quotes: "{value}"' if number else "write a string"
            return f"is {_show(value)}, {_type(value)}; {fix}"
        case "int_type" | "int_from_float" | "int_parsing_size":
            return f"is {_show(value)}, {_type(value)}; write a whole number without quotes"
        case "float_type":
            return f"is {_show(value)}, {_type(value)}; write a number without quotes"
        case "bool_type":
            return f"is {_show(value)}, {_type(value)}; write true or false without quotes"
        case "tuple_type":
            return f"is {_show(value)}, {_type(value)}; write a list"
        case "dict_type" | "model_type" | "model_attributes_type":
            return f"is {_show(value)}, {_type(value)}; write a map of fields"
        case "greater_than_equal":
            return f"is {_show(value)}; write {_number(context['ge'])} or more"
        case "less_than_equal":
            return f"is {_show(value)}; write {_number(context['le'])} or less"
        case "too_long":
            seen = context.get("actual_length") or "too many"
            return f"has {seen} entries; at most {context['max_length']} are allowed: remove some"
        case "too_short":
            return f"has {context['actual_length']} entries; write at least {context['min_length']}"
        case "string_too_long":
            return f"is {_show(value)}, {len(value)} characters; write at most {context['max_length']}"
        case "string_too_short":
            return f"is {_show(value)}; write at least {context['min_length']} characters"
        case "finite_number":
            return f"is {_show(value)}; write a finite number"
        case _:
            return f"is {_show(value)}; {error['msg']}"


def _unknown_field(model: type[BaseModel], path: Path) -> str:
    known = sorted(_fields_at(model, path[:-1]))
    wrong = path[-1]
    near = nearest(str(wrong), known, limit=1)
    parent = field_text(path[:-1]) or "the object"
    if near:
        return f"is not a field of {parent}; did you mean '{near[0]}'?"
    return f"is not a field of {parent}; it has {', '.join(known)}: remove it"


def _fields_at(model: type[BaseModel], path: Path) -> set[str]:
    """The API names of the fields of the object at `path`."""
    if not path:
        return {field.alias or name for name, field in model.model_fields.items()}
    if isinstance(path[0], int):
        return _fields_at(model, path[1:])
    for name, field in model.model_fields.items():
        if path[0] in (field.alias, name, camel(name)):
            inner = _model_in(field.annotation)
            return _fields_at(inner, path[1:]) if inner is not None else set()
    return set()


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The object type inside `X`, `X | None`, `tuple[X, ...]` or `Annotated[…]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if (found := _model_in(argument)) is not None:
            return found
    return None


def _advice(field: str | int) -> str:
    if field == "maxReplicas":
        return "autoscaling needs the most pods: add it, or remove autoscaling"
    return _MISSING.get(str(field), "add it")


_MISSING = {
    "metadata": "add it with the object's name",
    "name": "add the name",
    "spec": "add it: it says what is wanted",
    "default": "name the model that answers while nothing speaks against it",
    "monthlyLimitUSD": 'write the month\'s ceiling, for example "500.00"',
    "until": "write when the override ends, for example 2026-12-01T00:00:00Z",
    "addUSD": 'write how much is added, for example "100.00"',
    "upstream": "add it with at least one channel",
    "channels": "add at least one channel with its apiKeySecretRef",
    "apiKeySecretRef": "name the Secret that holds the channel's key",
    "group": f"write {GROUP}",
}


def _show(value: Any) -> str:
    if value is None:
        return "empty (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple | dict):
        return "a list" if isinstance(value, list | tuple) else "a map"
    text = repr(value)
    return text if len(text) <= MAX_VALUE_CHARS else f"{text[:MAX_VALUE_CHARS]}… (cut)"


def _type(value: Any) -> str:
    if value is None:
        return "not a value"
    names: dict[type, str] = {bool: "a truth value", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value), "not a single value" if isinstance(value, list | dict) else "of another type")


def _number(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else str(bound)


def _either(choices: list[str]) -> str:
    return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"
