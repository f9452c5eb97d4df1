"""Every way in which the proxy says no, in OpenAI's error shape. `canon`, `auth`, `front` and `exchange` raise; `exchange`
and `front` send what `ApiError.body` says.

    ApiError
    ├── BadRequest          400  the body or its framing; names the field
    ├── Unauthenticated     401  no key, or one that nobody was given
    ├── Forbidden           403  the route is there, and refuses
    ├── NotFound            404  an unknown route, or a path that is not served
    ├── MethodNotAllowed    405
    ├── TooSlow             408  the request did not come in time
    ├── TooLarge            413  the body
    ├── HeadersTooLarge     431
    ├── OutOfBudget         429  `insufficient_quota`, with the budget's numbers
    ├── Unavailable         503  no key for the upstream, no ledger, no log, draining
    └── UpstreamFailed      429, 502, 503, 504: what was tried, and how each attempt ended
"""

import time
from collections.abc import Mapping
from typing import Any

import msgspec

from stepdown.model.money import nusd_to_usd
from stepdown.proxy.refusal import Refused

REASONS: dict[int, bytes] = {
    200: b"OK",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    413: b"Content Too Large",
    415: b"Unsupported Media Type",
    417: b"Expectation Failed",
    422: b"Unprocessable Content",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    505: b"HTTP Version Not Supported",
}

JSON_HEAD = b"content-type: application/json\r\n"


class ApiError(Exception):
    """One refusal: status, body and headers."""

    status = 500
    type = "api_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        stepdown: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code
        if status is not None:
            self.status = status
        self.headers = dict(headers or {})
        self.stepdown = stepdown

    def body(self) -> bytes:
        """OpenAI's error object; `stepdown` beside its four fields where there are numbers to give."""
        error: dict[str, Any] = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        if self.stepdown is not None:
            error["stepdown"] = self.stepdown
        return msgspec.json.encode({"error": error})

    def head(self) -> bytes:
        """Header lines for the answer."""
        return JSON_HEAD + b"".join(b"%b: %b\r\n" % (name.encode(), value.encode()) for name, value in self.headers.items())


class BadRequest(ApiError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class Unauthenticated(ApiError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class Forbidden(ApiError):
    status = 403
    type = "invalid_request_error"
    code = "route_refused"


class NotFound(ApiError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class MethodNotAllowed(ApiError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class TooSlow(ApiError):
    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class TooLarge(ApiError):
    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class HeadersTooLarge(ApiError):
    status = 431
    type = "invalid_request_error"
    code = "headers_too_large"


class OutOfBudget(ApiError):
    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"


class Unavailable(ApiError):
    status = 503
    type = "service_unavailable"
    code = "service_unavailable"


class UpstreamFailed(ApiError):
    status = 502
    type = "upstream_error"
    code = "upstream_failed"


def refusal(refused: Refused) -> ApiError:
    """What the till's refusal looks like to a client.

    `x-should-retry: false` where the answer stays the same until the period ends: the openai SDK obeys it, and would
    otherwise send every refused request three times.
    """
    headers: dict[str, str] = {}
    if refused.retry_after_s is not None:
        headers["retry-after"] = str(refused.retry_after_s)
    numbers = {
        "budget": refused.budget or None,
        "limitUSD": _usd(refused.limit_nusd),
        "spentUSD": _usd(refused.spent_nusd),
        "remainingUSD": _usd(refused.remaining_nusd),
        "neededUSD": _usd(refused.needed_nusd),
        "resetsAt": _utc(refused.resets_at_s),
    }
    if refused.code == "budget_exhausted":
        if refused.retry_after_s is None or refused.retry_after_s > 1:
            headers["x-should-retry"] = "false"
        return OutOfBudget(refused.message, headers=headers, stepdown=numbers)
    if refused.code == "unbounded_request":
        return BadRequest(refused.message, code=refused.code)
    if refused.code == "route_gone":
        return NotFound(refused.message, param="model", code="model_not_found")
    return Unavailable(refused.message, code=refused.code, headers=headers, stepdown=numbers if refused.budget else None)


def _usd(nusd: int | None) -> str | None:
    return None if nusd is None else nusd_to_usd(nusd)


def _utc(moment_s: int | None) -> str | None:
    return None if moment_s is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment_s))
