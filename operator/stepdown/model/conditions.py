"""Every condition that an object's status can carry, and every reason with what it means. `status` and `reconcile` write them,
`docs` and alerts quote them, so a reason is never changed, only added.

One condition a question, positive polarity, no phase. Flux, Argo CD and `kubectl wait` read them by the rules of kstatus:

* `Ready=True` is "current". A route that is stepped down and a budget that is exhausted work as told: they are Ready;
* `Ready=False` or Unknown is "in progress": it may come right by itself, or by another object that comes a moment later with
  the same `kubectl apply`, such as the Secret, the catalog or the RoutingProxy that is named;
* `Stalled=True` is "failed": only a change of the object itself, or of the operator's settings, can mend it. It is kstatus' own
  condition, true where something is wrong and absent otherwise, and the one exception to positive polarity.
"""

from dataclasses import dataclass
from typing import Literal

Status = Literal["True", "False", "Unknown"]


@dataclass(frozen=True, slots=True)
class Condition:
    """One answer. When it last changed is for the status document's writer, who knows the previous one."""

    type: str
    status: Status
    reason: str
    message: str = ""


# --- types ---------------------------------------------------------------------------------------------------------------

ACCEPTED = "Accepted"
"""Is the object valid and in force? False: its last accepted spec is in force, if there ever was one. All kinds."""
RESOLVED_REFS = "ResolvedRefs"
"""Does everything that the object names exist? ModelRoute, RoutingProxy."""
PROGRAMMED = "Programmed"
"""Has every ready proxy this generation in force? ModelRoute, RoutingProxy."""
READY = "Ready"
"""Does the object do what it says? The summary. All kinds."""
STEPPED_DOWN = "SteppedDown"
"""Does a budget's step hide the model that the route wants? True is not an error. ModelRoute."""
ENFORCED = "Enforced"
"""Does the ceiling hold: has every proxy that may serve acknowledged the binding? SpendBudget."""
WITHIN_BUDGET = "WithinBudget"
"""Is there money left? SpendBudget."""
RECONCILED = "Reconciled"
"""Is the upstream's last invoice what the ledger says? Absent until one was read (`stepdown reconcile`). SpendBudget."""
STALLED = "Stalled"
"""Must the object itself be changed? Absent where not; its reason and message are those of Accepted. All kinds."""

TYPES: dict[str, tuple[str, ...]] = {
    "ModelRoute": (ACCEPTED, RESOLVED_REFS, PROGRAMMED, READY, STEPPED_DOWN, STALLED),
    "SpendBudget": (ACCEPTED, ENFORCED, WITHIN_BUDGET, READY, RECONCILED, STALLED),
    "RoutingProxy": (ACCEPTED, RESOLVED_REFS, PROGRAMMED, READY, STALLED),
    "ModelCatalog": (ACCEPTED, READY, STALLED),
}
"""Which conditions each kind has, in the order in which they are shown."""

# --- reasons -------------------------------------------------------------------------------------------------------------

PENDING = "Pending"
"""Any type, Unknown: the operator has not looked yet; every object starts so. Reconciled: the budget holds money that the
invoice could not settle, since it does not cover when that can have been spent, or since nobody can tell whose it was."""

ACCEPTED_REASON = "Accepted"
"""Accepted=True: valid and in force."""
INVALID = "Invalid"
"""Accepted=False: the spec breaks a rule; the message says which and what to write. The last accepted spec stays in force."""
CONFLICT = "Conflict"
"""Accepted=False: two objects claim one name, in the folder of `stepdown run`."""
NOT_ALLOWED = "NotAllowed"
"""Accepted=False: the RoutingProxy does not allow the route's namespace, its own namespace is not among the operator's
fleetNamespaces or its baseURL not among the allowedUpstreams, a budget outside the operator's namespace has a
namespaceSelector, or callers are needed and absent."""
NOTHING_MEETS_REQUIREMENTS = "NothingMeetsRequirements"
"""Accepted=False: no model of the catalog meets the route's requirements, or a model that it names does not."""
FLOOR_ABOVE_DEFAULT = "FloorAboveDefault"
"""Accepted=False: stepDown.floor is above the default model's tier, so nothing could ever answer."""

RESOLVED = "ResolvedRefs"
"""ResolvedRefs=True: all that is named is there."""
PROXY_NOT_FOUND = "ProxyNotFound"
"""ResolvedRefs=False: proxyRef names no RoutingProxy."""
MODEL_NOT_FOUND = "ModelNotFound"
"""ResolvedRefs=False: a model that the route names is in no catalog; the message has the nearest names."""
TASK_NOT_FOUND = "TaskNotFound"
"""ResolvedRefs=False: no catalog states a model for the route's task."""
CATALOG_NOT_FOUND = "CatalogNotFound"
"""ResolvedRefs=False: catalogRefs names no ModelCatalog; the last one of that name stays in force."""
SECRET_NOT_FOUND = "SecretNotFound"
"""ResolvedRefs=False: proxies report that a channel's Secret, or its key, is not there."""
TARGET_NOT_FOUND = "TargetNotFound"
"""Accepted=True on a SpendBudget: targetRefs names a route that is not there; the others are bound."""

PROGRAMMED_REASON = "Programmed"
"""Programmed=True: every ready proxy serves by this generation."""
PROPAGATING = "Propagating"
"""Programmed=False: some ready proxies have not reported that they serve by this generation."""
NO_PROXIES = "NoProxies"
"""Programmed=False: no proxy of the fleet is ready."""
NO_REPLICAS = "NoReplicas"
"""Programmed=True on a RoutingProxy: spec.replicas is 0, so there is no pod that could lack anything."""
ROLLING_OUT = "RollingOut"
"""Programmed=False on a RoutingProxy: pods are being replaced, for another image, other resources or other channels."""
APPLY_FAILED = "ApplyFailed"
"""Programmed=False on a RoutingProxy: the API server did not take an object of the fleet; the message says which and why. It is
tried again."""

READY_REASON = "Ready"
"""Ready=True: the object does what it says."""
NOT_ACCEPTED = "NotAccepted"
"""Ready=False: see Accepted."""
REFS_NOT_RESOLVED = "RefsNotResolved"
"""Ready=False: see ResolvedRefs."""
NOT_PROGRAMMED = "NotProgrammed"
"""Ready=False: see Programmed."""
NOT_ENFORCED = "NotEnforced"
"""Ready=False on a SpendBudget: see Enforced."""
BLOCKED = "Blocked"
"""Ready=False on a ModelRoute: the route refuses every request; the message says for which budget or setting."""
UNPRICED = "Unpriced"
"""Accepted and Ready=False on a ModelRoute: under a Hard budget no model that the route can reach has a price."""

WANTED = "Wanted"
"""SteppedDown=False: the route has the model that it wants."""
STEP_IN_FORCE = "StepInForce"
"""SteppedDown=True: a budget's step hides the wanted model; the message names budget, step and what answers now."""
REQUIREMENTS_HOLD = "RequirementsHold"
"""SteppedDown=True: nothing at or below the step's tier meets the requirements, so the cheapest that does answers."""
FLOOR_HOLDS = "FloorHolds"
"""SteppedDown=True: the step asks for less than the route's floor, so the cheapest at the floor answers."""

ENFORCED_REASON = "Enforced"
"""Enforced=True: from here on the bill cannot pass the ceiling."""
AWAITING_ACKNOWLEDGEMENT = "AwaitingAcknowledgement"
"""Enforced=False: some open instances still serve requests that were admitted before the budget bound them."""
PROXY_LOST = "ProxyLost"
"""Enforced=False: a proxy that has not acknowledged the budget cannot be heard, and its pod is there still, so it may serve. It
ends when the pod is heard again, has ended or is deleted; the message names it, and since when it has been silent."""
SOFT = "Soft"
"""Enforced=False: the budget only steps and alerts, as its spec says."""
NO_ROUTES = "NoRoutes"
"""Enforced=True: the budget binds no route, so there is nothing to hold."""

WITHIN = "WithinBudget"
"""WithinBudget=True: money is left."""
EXHAUSTED = "Exhausted"
"""WithinBudget=False: what is spent and unreconciled has reached the limit."""
OVER_LIMIT = "OverLimit"
"""WithinBudget=False: an edit lowered the limit under what is spent, or the upstream exceeded max_tokens; says by how much."""

RECONCILED_REASON = "Reconciled"
"""Reconciled=True: bill and ledger are one, but for what the bill is rounded by, and nothing is unreconciled."""
DIFFERENCE = "Difference"
"""Reconciled=False: more was billed than was metered or held, or what was metered was not billed; the message says how much."""

# --- Events --------------------------------------------------------------------------------------------------------------

EventType = Literal["Normal", "Warning"]

EVENT_STEP_REACHED = "StepReached"
"""A budget reached a step that notifies."""
EVENT_STEPPED_DOWN = "SteppedDown"
"""A budget reached a step that hides models; the message counts the routes."""
EVENT_RESTORED = "Restored"
"""A budget's steps no longer hide anything: a new period, a higher limit."""
EVENT_EXHAUSTED = "Exhausted"
"""A budget has nothing left."""
EVENT_PERIOD_STARTED = "PeriodStarted"
"""A new period has begun."""
EVENT_FORECAST_OVER_LIMIT = "ForecastOverLimit"
"""If spending goes on as it did, the month ends over the limit."""
EVENT_UPSTREAM_EXCEEDED = "UpstreamExceededMaxTokens"
"""A model has answered more than max_tokens allows. It is charged in full, and its requests reserve more from now on."""
EVENT_UPSTREAM_OUTAGE = "UpstreamOutage"
"""Fallbacks answer for a model that cannot be reached."""
EVENT_INVALID_SPEC = "InvalidSpec"
"""An object was changed to something invalid; the last accepted spec stays in force."""
EVENT_REFS_NOT_RESOLVED = "RefsNotResolved"
"""A RoutingProxy names a Secret or a ModelCatalog that is not there."""
EVENT_APPLY_FAILED = "ApplyFailed"
"""The API server did not take an object of a fleet; it is tried again."""

EVENT_TYPES: dict[str, EventType] = {
    EVENT_STEP_REACHED: "Normal",
    EVENT_STEPPED_DOWN: "Warning",
    EVENT_RESTORED: "Normal",
    EVENT_EXHAUSTED: "Warning",
    EVENT_PERIOD_STARTED: "Normal",
    EVENT_FORECAST_OVER_LIMIT: "Warning",
    EVENT_UPSTREAM_EXCEEDED: "Warning",
    EVENT_UPSTREAM_OUTAGE: "Warning",
    EVENT_INVALID_SPEC: "Warning",
    EVENT_REFS_NOT_RESOLVED: "Warning",
    EVENT_APPLY_FAILED: "Warning",
}
"""The `type` of each Event: Kubernetes knows only these two."""
