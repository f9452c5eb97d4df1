"""A rung: a model of the catalog as a route means it. And what a route requires of every rung. `plan.ladder` calls this.

A route names a model by the catalog's name or any of its ids; what it wrote as an id is what the upstream is asked for.
"""

from dataclasses import dataclass
from typing import NamedTuple

from stepdown.model.catalog import Catalog, CatalogModel
from stepdown.model.config import Tier
from stepdown.model.money import pusd_to_usd_per_mtok
from stepdown.model.resources import Requirements


@dataclass(frozen=True, slots=True)
class Rung:
    """One model that may answer. Compared by what the upstream is asked for: an id belongs to one model."""

    upstream_id: str
    model: CatalogModel

    @property
    def tier(self) -> Tier:
        return self.model.tier


def find(catalog: Catalog, written: str) -> Rung | None:
    """The rung that a route means by what it wrote. What is only a baseline for savings is never one."""
    model = catalog.get(written)
    if model is None or model.baseline_only:
        return None
    return Rung(model.request_id(written), model)


class Needs(NamedTuple):
    """A route's requirements as values. Hashable: many routes share their ladders by it."""

    context_tokens: int | None = None
    capabilities: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    compliance: tuple[str, ...] = ()
    max_output_pusd: int | None = None

    @classmethod
    def of(cls, spec: Requirements) -> "Needs":
        return cls(
            spec.context_tokens,
            spec.capabilities,
            spec.providers.allow,
            spec.providers.deny,
            spec.compliance,
            spec.max_output_pusd,
        )

    def unmet_by(self, model: CatalogModel) -> str:
        """Why the model does not meet them, in a sentence that continues its name; empty: it does."""
        if self.context_tokens is not None:
            if model.context_tokens is None:
                return f"its context is not known; contextTokens asks for {self.context_tokens}"
            if model.context_tokens < self.context_tokens:
                return f"its context is {model.context_tokens} tokens; contextTokens asks for {self.context_tokens}"
        if missing := [each for each in self.capabilities if each not in model.capabilities]:
            return f"it lacks the capability {' and '.join(missing)}"
        if not model.meets_providers(self.allow, self.deny):
            return self._provider(model)
        if missing := [each for each in self.compliance if each not in model.compliance]:
            return f"the catalog states no {' and '.join(missing)} for it"
        if self.max_output_pusd is not None:
            most = pusd_to_usd_per_mtok(self.max_output_pusd)
            if model.output_pusd is None:
                return f"its output price is not known; maxOutputUSDPerMTok allows {most}"
            if model.output_pusd > self.max_output_pusd:
                return f"its output costs ${pusd_to_usd_per_mtok(model.output_pusd)}/M; maxOutputUSDPerMTok allows {most}"
        return ""

    def _provider(self, model: CatalogModel) -> str:
        if model.upstream_routed:
            return "the upstream picks its provider, so no provider rule is ever met"
        if model.provider is None:
            return "its provider is not known, so no provider rule is met"
        if model.provider in self.deny:
            return f"its provider {model.provider} is denied"
        return f"its provider {model.provider} is not among those allowed: {', '.join(self.allow)}"


NO_NEEDS = Needs()
