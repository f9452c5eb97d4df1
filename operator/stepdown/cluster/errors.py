"""What can go wrong between us and the API server, as a tree. All that `cluster` raises is here; `watch` and `sync` judge it.

ClusterError
├── NotConfigured       no kubeconfig and no pod: nothing was sent
├── Unavailable         no answer, rubbish, 429 or 5xx: the same request may succeed later
├── Forbidden           403: RBAC, a quota, an admission rule
│   └── Unauthorized    401: the API server does not know who we are
├── NotFound            404: the object is not there
│   └── NotServed       404: the API server has no such kind; is the CRD installed?
├── Conflict            409: somebody was faster; read again
│   └── AlreadyExists   409: the name is taken
├── Gone                410: the resourceVersion is too old to go on from; list again
└── Rejected            400, 413, 415, 422: the request itself is wrong, now and later
"""

from collections.abc import Mapping
from typing import Any

MAX_MESSAGE = 2000
"""Characters of the API server's own words that are kept: a rejected CRD quotes itself whole."""

_NOT_OF_ITS_SCHEMA = "failed to create typed patch object"
"""How the API server refuses an apply whose fields are of the wrong type: with a 500, though it will never be otherwise."""


class ClusterError(Exception):
    """The API server did not do what it was asked."""

    def __init__(self, message: str, *, status: int = 0, reason: str = "", details: Mapping[str, Any] | None = None) -> None:
        """`status`: the HTTP status, 0 where there was no answer. `reason`, `details`: of the API's Status object."""
        super().__init__(message)
        self.message, self.status, self.reason = message, status, reason
        self.details: Mapping[str, Any] = details or {}

    def __str__(self) -> str:
        return self.message


class NotConfigured(ClusterError):
    """There is no way to an API server: not in a pod, and no usable kubeconfig."""


class Unavailable(ClusterError):
    """No answer, not an answer, or one that asks to come back. Whether a write has happened is not known."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        reason: str = "",
        details: Mapping[str, Any] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, status=status, reason=reason, details=details)
        self.retry_after_s = retry_after_s
        """What the API server asked for (Retry-After)."""


class Forbidden(ClusterError):
    """We may not do this: RBAC, a quota, an admission rule, a namespace that is being deleted."""


class Unauthorized(Forbidden):
    """The credentials are not valid (any more)."""


class NotFound(ClusterError):
    """The object is not there."""


class NotServed(NotFound):
    """The API server does not know the kind: a CRD is not installed (yet)."""


class Conflict(ClusterError):
    """The object is not what we thought it was: another resourceVersion or UID."""


class AlreadyExists(Conflict):
    """There is an object of that name."""


class Gone(ClusterError):
    """The history from that resourceVersion on is compacted: only a new LIST tells what is there."""


class Rejected(ClusterError):
    """The API server understood and refuses: the message is its own."""


def error_of(
    status: int, reason: str, message: str, details: Mapping[str, Any] | None, retry_after_s: float | None, *, what: str
) -> ClusterError:
    """An answer as an error. `what`: the request in words, so that a log line says what was tried."""
    text = f"{what}: {message[:MAX_MESSAGE] or reason or 'no reason given'} ({status})"
    if status == 500 and _NOT_OF_ITS_SCHEMA in message:
        return Rejected(text, status=status, reason=reason, details=details)
    if status == 429 or status >= 500 or status == 408:
        return Unavailable(text, status=status, reason=reason, details=details, retry_after_s=retry_after_s)
    if status == 404 and not (details or {}).get("name"):
        return NotServed(text, status=status, reason=reason, details=details)
    if status == 409 and reason == "AlreadyExists":
        return AlreadyExists(text, status=status, reason=reason, details=details)
    kinds: dict[int, type[ClusterError]] = {401: Unauthorized, 403: Forbidden, 404: NotFound, 409: Conflict, 410: Gone}
    if 400 <= status < 500:
        return kinds.get(status, Rejected)(text, status=status, reason=reason, details=details)
    return Unavailable(f"{text}. Is this a Kubernetes API server?", status=status, reason=reason, details=details)
