"""What a chat request may say under a Hard budget: an allow-list of fields, each with what its value must be. `canon` walks it.

The ceiling stands on the worst case of a request, and the worst case on knowing what each field can do to the price. So
under a Hard budget a field that is not here is refused; without one it passes. A field here may make the answer longer only
within max_tokens, and must not call on anything that has a price of its own or that lies at the upstream.
"""

import math
from collections.abc import Callable
from typing import Any

from stepdown.proxy.errors import BadRequest

MAX_TOKENS = 2**31 - 1
MAX_N = 128

Check = Callable[[str, Any], None]


def wrong(field: str, value: object, valid: str, *, code: str = "invalid_value") -> BadRequest:
    """A value that the field cannot have."""
    seen = repr(value)
    if len(seen) > 60:
        seen = seen[:57] + "..."
    return BadRequest(f"{field} is {seen}; it must be {valid}", param=field, code=code)


def integer(low: int, high: int) -> Check:
    def check(field: str, value: Any) -> None:
        if type(value) is not int:
            raise wrong(field, value, f"an integer from {low} to {high}", code="invalid_type")
        if not low <= value <= high:
            raise wrong(field, value, f"an integer from {low} to {high}", code="out_of_range")

    return check


def number(low: float, high: float) -> Check:
    def check(field: str, value: Any) -> None:
        if type(value) is not float and type(value) is not int:
            raise wrong(field, value, f"a number from {low:g} to {high:g}", code="invalid_type")
        if not low <= value <= high or not math.isfinite(value):
            raise wrong(field, value, f"a number from {low:g} to {high:g}", code="out_of_range")

    return check


def a(valid: str, *types: type) -> Check:
    def check(field: str, value: Any) -> None:
        if type(value) not in types:
            raise wrong(field, value, valid, code="invalid_type")

    return check


def any_value(field: str, value: Any) -> None:
    """The upstream judges it; it cannot change the price."""


_STRING = a("a string", str)
_BOOLEAN = a("true or false", bool)
_OBJECT = a("an object", dict)
_LIST = a("a list", list)

ALWAYS: dict[str, Check] = {
    "max_tokens": integer(1, MAX_TOKENS),
    "max_completion_tokens": integer(1, MAX_TOKENS),
    "n": integer(1, MAX_N),
    "stream": _BOOLEAN,
    "stream_options": _OBJECT,
    "temperature": number(0, 2),
    "top_p": number(0, 1),
}
"""What the proxy reads or replaces, or what has one meaning everywhere: checked with and without a Hard budget."""


def _tools(field: str, tools: Any) -> None:
    """Tools that the client runs are text. A hosted one (web search, code interpreter, MCP) is billed by the call."""
    _LIST(field, tools)
    for index, tool in enumerate(tools):
        where = f"{field}[{index}]"
        _OBJECT(where, tool)
        kind = tool.get("type")
        if kind not in ("function", "custom"):
            raise BadRequest(
                f"{where}.type is {kind!r}; under a Hard budget only 'function' and 'custom' are served: a tool that the"
                f" upstream runs has a price of its own",
                param=f"{where}.type",
                code="hosted_tool",
            )


def _modalities(field: str, value: Any) -> None:
    """Audio that the model speaks is priced apart from text."""
    if value != ["text"]:
        raise wrong(field, value, '["text"] under a Hard budget: other output has a price of its own', code="unpriced_output")


def _store(field: str, value: Any) -> None:
    """A completion that is kept at the upstream is state that outlives the request."""
    if value is not False:
        raise wrong(field, value, "false under a Hard budget: the upstream would keep the completion", code="server_side_state")


def _stream_options(field: str, value: Any) -> None:
    _OBJECT(field, value)
    for name, option in value.items():
        if name not in ("include_usage", "include_obfuscation"):
            raise unknown(f"{field}.{name}")
        if option is not None:
            _BOOLEAN(f"{field}.{name}", option)


UNDER_HARD: dict[str, Check] = {
    **ALWAYS,
    "frequency_penalty": number(-2, 2),
    "function_call": a("a string or an object", str, dict),
    "functions": _LIST,
    "logit_bias": _OBJECT,
    "logprobs": _BOOLEAN,
    "metadata": _OBJECT,
    "min_p": number(0, 1),
    "modalities": _modalities,
    "parallel_tool_calls": _BOOLEAN,
    "presence_penalty": number(-2, 2),
    "prompt_cache_key": _STRING,
    "reasoning_effort": _STRING,
    "enable_thinking": _BOOLEAN,
    "repetition_penalty": number(0, 10),
    "response_format": _OBJECT,
    "safety_identifier": _STRING,
    "seed": integer(-(2**63), 2**63 - 1),
    "stop": a("a string or a list of strings", str, list),
    "store": _store,
    "stream_options": _stream_options,
    "tool_choice": a("a string or an object", str, dict),
    "tools": _tools,
    "top_k": integer(-1, 2**31 - 1),
    "top_logprobs": integer(0, 20),
    "user": _STRING,
    "verbosity": _STRING,
}
"""Beside `model` and `messages`, which `canon` checks. Reasoning (`reasoning_effort`, `enable_thinking`) is output: what it
may cost beyond max_tokens is the catalog's `outputBound`. `thinking_budget` is not here, since where it is honoured it is a
second bound beside max_tokens."""

REFUSED: dict[str, str] = {
    "audio": "audio that the model speaks has a price of its own",
    "background": "the answer would be made after the request has ended, and nobody would meter it",
    "best_of": "answers that are thrown away are billed; ask for `n` instead",
    "conversation": "what lies at the upstream has a length that the proxy cannot see",
    "prediction": "rejected prediction tokens are billed beyond max_tokens",
    "previous_response_id": "what lies at the upstream has a length that the proxy cannot see",
    "prompt": "a prompt that is stored at the upstream has a length that the proxy cannot see",
    "prompt_cache_retention": "keeping a cache at the upstream may have a price of its own",
    "service_tier": "each tier of service has prices of its own",
    "web_search_options": "the upstream's web search has a price of its own",
}
"""Never under a Hard budget, whatever `extraBodyFields` says: the worst case would not hold."""

MESSAGE = frozenset(
    (
        "role",
        "content",
        "name",
        "tool_calls",
        "tool_call_id",
        "refusal",
        "reasoning_content",
        "reasoning",
        "function_call",
        "annotations",
    )
)
"""Fields of a message that are its text. Assistant messages come back as the upstream made them, so its extras are here."""

TEXT_PARTS = {"text": "text", "refusal": "refusal", "input_text": "text", "output_text": "text"}
"""Parts of a message's content that are text, and the field that has it. Any other counts the model's whole context."""


def unknown(field: str) -> BadRequest:
    """A field of which nobody knows what it does to the price."""
    return BadRequest(
        f"{field} is not a field that is served under a Hard budget, since the proxy cannot say what it may cost. Leave it"
        f" out, or have an administrator add it to RoutingProxy spec.extraBodyFields",
        param=field,
        code="unknown_field",
    )


def never(field: str, why: str) -> BadRequest:
    """A field that breaks the worst case."""
    return BadRequest(
        f"{field} is not served under a Hard budget: {why}. Leave it out", param=field, code="not_under_hard_budget"
    )
