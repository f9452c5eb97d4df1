"""What all resources share: how an API object is read, its rules, its metadata. The resource modules build on this.

An object is defined once, in pydantic: the CRDs are generated from these classes (`model.crd`), and what an API server would
refuse by CEL is refused here by the same rule, with the same message.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

GROUP = "stepdown.dev"
VERSION = "v1alpha1"
API_VERSION: Literal["stepdown.dev/v1alpha1"] = "stepdown.dev/v1alpha1"

_CAPITALS = {"usd": "USD", "mtok": "MTok", "url": "URL", "sha256": "SHA256", "cpu": "CPU"}


def camel(name: str) -> str:
    """`monthly_limit_usd` → `monthlyLimitUSD`: the API's name of an attribute."""
    head, *rest = name.rstrip("_").split("_")
    return head + "".join(_CAPITALS.get(word) or word.capitalize() for word in rest)


@dataclass(frozen=True, slots=True)
class Rule:
    """What an object must hold beyond the types of its fields: once in CEL for the API server, once in Python for us."""

    message: str
    """What to write instead. The same words from kubectl, `stepdown validate` and the object's condition."""
    cel: str
    holds: Callable[[Any], bool]
    field: str = ""
    """The API name of the field that the rule is about, below the object that has the rule; empty: the object."""


class Api(BaseModel):
    """Any part of an API object: frozen, camelCase outside, snake_case inside, no unknown fields."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )

    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _obeys_its_rules(self) -> Self:
        broken = [rule for rule in self.rules if not rule.holds(self)]
        if broken:
            text = "; ".join(rule.message for rule in broken)
            raise PydanticCustomError("rules", "{text}", {"text": text, "broken": [(r.field, r.message) for r in broken]})
        return self


# Kubernetes' own formats. A pattern without an explanation in PATTERNS would be shown to people as a regular expression.
LABEL_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
TIME_PATTERN = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"
WORD_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"
LABEL_KEY_PATTERN = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
LABEL_VALUE_PATTERN = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
MODEL_PATTERN = r"^[^\s:\x00-\x1f]([^\x00-\x1f]*[^\s\x00-\x1f])?$"

PATTERNS: dict[str, str] = {
    LABEL_PATTERN: "use lower-case letters, digits and '-', beginning and ending with a letter or digit",
    NAME_PATTERN: "use lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit",
    TIME_PATTERN: "write a moment in UTC such as 2026-12-01T00:00:00Z",
    WORD_PATTERN: "use letters, digits, '.', '_' and '-', beginning and ending with a letter or digit",
    LABEL_KEY_PATTERN: "write a label's key such as team or example.com/team",
    LABEL_VALUE_PATTERN: "write a label's value: letters, digits, '-', '_' and '.'",
    MODEL_PATTERN: "write a model's name or id as the catalog has it, without spaces around it",
}
"""What to write, for each pattern that a field may have. The modules that define more patterns add theirs."""

Label = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=LABEL_PATTERN)]
"""The name of a namespace, a Secret's key holder, a channel."""
Name = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=NAME_PATTERN)]
"""The name of an object."""
Word = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=WORD_PATTERN)]
"""A capability, a provider's attestation."""
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=MODEL_PATTERN)]
"""A name or request id of the catalog."""
Provider = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=MODEL_PATTERN)]
Time = Annotated[str, StringConstraints(max_length=20, pattern=TIME_PATTERN), Field(json_schema_extra={"format": "date-time"})]
Count = Annotated[StrictInt, Field(ge=0, le=9_007_199_254_740_991)]
"""A number in a status; JSON carries it exactly."""
Brief = Annotated[str, StringConstraints(max_length=24)]
"""A number or day as `kubectl get` prints it."""
TierName = Literal["UltraBudget", "Budget", "MidRange", "Premium", "Flagship"]


class Metadata(BaseModel):
    """What we read of an object's metadata; everything else there is other people's business and ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: Name
    namespace: Annotated[str, StringConstraints(max_length=63)] = ""
    """Empty for a cluster-scoped object."""
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    uid: str = ""
    """Empty where no API server has given one (`stepdown run`)."""
    generation: int = 0


class LabelSelectorRequirement(Api):
    key: Annotated[str, StringConstraints(min_length=1, max_length=317, pattern=LABEL_KEY_PATTERN)]
    """The label's key."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How the label's value is compared with `values`."""
    values: Annotated[
        tuple[Annotated[str, StringConstraints(max_length=63, pattern=LABEL_VALUE_PATTERN)], ...], Field(max_length=32)
    ] = ()
    """For In and NotIn: at least one. For Exists and DoesNotExist: none."""

    rules = (
        Rule(
            "In and NotIn need at least one of values; Exists and DoesNotExist take none",
            "self.operator in ['In', 'NotIn'] ? has(self.values) && size(self.values) > 0"
            " : !has(self.values) || size(self.values) == 0",
            lambda r: (r.operator in ("In", "NotIn")) == bool(r.values),
        ),
    )


class LabelSelector(Api):
    """A label selector as Kubernetes has it: every requirement must hold; an empty one selects everything."""

    match_labels: Annotated[
        dict[
            Annotated[str, StringConstraints(max_length=317)],
            Annotated[str, StringConstraints(max_length=63, pattern=LABEL_VALUE_PATTERN)],
        ],
        Field(max_length=32),
    ] = Field(default_factory=dict)
    """Labels that must be there with just these values."""
    match_expressions: Annotated[tuple[LabelSelectorRequirement, ...], Field(max_length=32)] = ()
    """Requirements beyond equality."""

    def matches(self, labels: dict[str, str]) -> bool:
        return all(labels.get(key) == value for key, value in self.match_labels.items()) and all(
            _meets(requirement, labels) for requirement in self.match_expressions
        )


def _meets(requirement: LabelSelectorRequirement, labels: dict[str, str]) -> bool:
    """As in Kubernetes: NotIn also holds where the label is absent."""
    match requirement.operator:
        case "In":
            return labels.get(requirement.key) in requirement.values
        case "NotIn":
            return requirement.key not in labels or labels[requirement.key] not in requirement.values
        case "Exists":
            return requirement.key in labels
        case "DoesNotExist":
            return requirement.key not in labels


class ConditionStatus(Api):
    """A condition as Kubernetes has it (metav1.Condition)."""

    type: Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=WORD_PATTERN)]
    """Which question the condition answers."""
    status: Literal["True", "False", "Unknown"]
    """The answer."""
    observed_generation: Count | None = None
    """The generation of the object that the answer is about."""
    last_transition_time: Time
    """When `status` last changed."""
    reason: Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
    """Why, as one word; the words are in the documentation of conditions."""
    message: Annotated[str, StringConstraints(max_length=4096)]
    """Why, as a sentence for people."""


Conditions = Annotated[
    tuple[ConditionStatus, ...],
    Field(max_length=16, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
]


class Resource(Api):
    """The envelope of every kind."""

    kind_name: ClassVar[str]
    plural: ClassVar[str]
    short_name: ClassVar[str]
    namespaced: ClassVar[bool] = True
    columns: ClassVar[tuple["Column", ...]] = ()
    """What `kubectl get` prints."""

    api_version: Literal["stepdown.dev/v1alpha1"] = API_VERSION
    metadata: Metadata

    @property
    def key(self) -> str:
        """`namespace/name`, or `name` of a cluster-scoped object: how all of Stepdown names an object."""
        return f"{self.metadata.namespace}/{self.metadata.name}" if self.namespaced else self.metadata.name

    @property
    def namespace(self) -> str:
        return self.metadata.namespace

    @property
    def name(self) -> str:
        return self.metadata.name


@dataclass(frozen=True, slots=True)
class Column:
    """A printer column of `kubectl get`."""

    name: str
    path: str
    """A simple JSONPath, as Kubernetes takes it."""
    type: Literal["string", "integer", "date", "boolean"] = "string"
    wide: bool = False
    """Only with `-o wide`."""
    description: str = ""
