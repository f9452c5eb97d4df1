"""Durations, moments and resource quantities as Kubernetes writes them. The resource modules use these as field types."""

import re
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from importlib import resources
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from stepdown.model.base import PATTERNS
from stepdown.model.names import did_you_mean

DURATION_PATTERN = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"
QUANTITY_PATTERN = r"^[0-9]{1,12}(\.[0-9]{1,6})?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
ZONE_PATTERN = r"^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}$"
PATTERNS[DURATION_PATTERN] = "write a duration such as 60s, 10m or 1h30m"
PATTERNS[QUANTITY_PATTERN] = "write a quantity such as 100m, 2 or 128Mi"
PATTERNS[ZONE_PATTERN] = "write an IANA time zone such as UTC or Europe/Berlin"

_PART = re.compile(r"([0-9]+)(h|ms|m|s)", re.ASCII)
_UNIT_MS = {"h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}


def duration_ms(text: str) -> int:
    """`"1h30m"` → 5_400_000. The text is one that matches DURATION_PATTERN."""
    return sum(int(number) * _UNIT_MS[unit] for number, unit in _PART.findall(text))


def duration_s(text: str) -> float:
    """`"60s"` → 60.0."""
    return duration_ms(text) / 1000


@lru_cache(maxsize=64)
def duration_between(low: str, high: str) -> AfterValidator:
    """Refuses a duration outside [low, high]. Its CEL twin is `duration_cel`."""

    def check(text: str) -> str:
        if not duration_ms(low) <= duration_ms(text) <= duration_ms(high):
            raise PydanticCustomError("duration", "{text}", {"text": duration_message(low, high)})
        return text

    return AfterValidator(check)


def duration_message(low: str, high: str) -> str:
    return f"write a duration from {low} to {high}"


def duration_cel(low: str, high: str) -> dict[str, object]:
    """The same bounds for the API server, as the field's schema extra."""
    return {
        "x-kubernetes-validations": [
            {
                "rule": f"duration(self) >= duration('{low}') && duration(self) <= duration('{high}')",
                "message": duration_message(low, high),
            }
        ]
    }


DurationText = Annotated[str, StringConstraints(min_length=2, max_length=32, pattern=DURATION_PATTERN)]
Timeout = Annotated[DurationText, duration_between("10ms", "1h"), Field(json_schema_extra=duration_cel("10ms", "1h"))]
"""A request's time. The ledger waits for the longest request before it closes an instance, so an hour is the most."""
Horizon = Annotated[DurationText, duration_between("10s", "1h"), Field(json_schema_extra=duration_cel("10s", "1h"))]
"""A lease's life."""
Quantity = Annotated[str, StringConstraints(min_length=1, max_length=32, pattern=QUANTITY_PATTERN)]

_SUFFIX = {
    "": Decimal(1), "m": Decimal("0.001"), "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9),
    "T": Decimal(10**12), "P": Decimal(10**15), "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30),
    "Ti": Decimal(2**40), "Pi": Decimal(2**50),
}  # fmt: skip


def quantity(text: str) -> Decimal:
    """`"100m"` → 0.1, `"128Mi"` → 134217728. The text is one that matches QUANTITY_PATTERN."""
    number = text.rstrip("mkMGTPi")
    return Decimal(number) * _SUFFIX[text[len(number) :]]


def moment_s(text: str) -> int:
    """`"2026-12-01T00:00:00Z"` → Unix seconds. Raises ValueError for a day that no calendar has."""
    return int(datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp())


def moment_text(at_s: float) -> str:
    """Unix seconds → `"2026-12-01T00:00:00Z"`, as Kubernetes writes it; fractions are cut."""
    return datetime.fromtimestamp(int(at_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _real_moment(text: str) -> str:
    try:
        moment_s(text)
    except ValueError:
        raise PydanticCustomError(
            "moment", "{text}", {"text": "no calendar has it; write a moment in UTC such as 2026-12-01T00:00:00Z"}
        ) from None
    return text


@lru_cache(maxsize=1)
def _zones() -> frozenset[str]:
    """The IANA names, from the tzdata package: the same on every machine, and without `localtime` and `right/…`."""
    return frozenset(resources.files("tzdata").joinpath("zones").read_text().split())


def _real_zone(text: str) -> str:
    if text != "UTC" and text not in _zones():
        hint = did_you_mean(text, _zones())
        raise PydanticCustomError(
            "zone", "{text}", {"text": f"no such time zone{hint}; write an IANA time zone such as UTC or Europe/Berlin"}
        )
    return text


RealMoment = AfterValidator(_real_moment)
"""Beyond the pattern: the day exists. (The API server checks it by the schema's format, date-time.)"""
TimeZone = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=ZONE_PATTERN), AfterValidator(_real_zone)]
"""An IANA name. CEL cannot know the list: the API server checks the shape, the operator the name."""
