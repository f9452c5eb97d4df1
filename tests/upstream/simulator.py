"""The simulated upstream: `async with Simulator() as sim`, then `sim.url`, `sim.bill`, `sim.fault(...)`, `sim.log`.

It stands for `https://global-apis.com/v1` in every test that sends a request, in the demo, and in `python -m tests.upstream`.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, Self, get_args

import msgspec

from tests.upstream.answers import CREATED_S, Model, Pace, Script, answer, json_answer, refusal
from tests.upstream.bill import Bill, Outcome, Price, cost_nusd, read_price_list
from tests.upstream.faults import Fault, FaultBook, Kind
from tests.upstream.server import Connection, Request

STANDARD_KEY = "sk-upstream"
PRO_KEY = "ga_pro_upstream"

BillOnDisconnect = Literal["full", "sent", "none"]
"""What a request costs whose answer was cut, hung or abandoned: the whole completion, what had been sent, or nothing."""


class Entry(msgspec.Struct, kw_only=True):
    """One chat completion in the log."""

    number: int
    request: Request
    model: str
    key: str
    body: dict[str, Any]
    outcome: Outcome = "in_flight"
    cost_nusd: int = 0
    faults: tuple[str, ...] = ()
    latency_s: float = 0.0
    """Before the first byte, out of `latencies_s`; a slow fault comes on top."""


class Simulator:
    """A server in the running event loop. `keep` bounds log and bill lines (None: all; 0: totals only)."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        model: Model | None = None,
        latencies_s: Iterable[float] = (),
        per_chunk_s: float = 0.0,
        bill_on_disconnect: BillOnDisconnect = "full",
        standard_keys: Iterable[str] = (STANDARD_KEY,),
        pro_keys: Iterable[str] = (PRO_KEY,),
        prices: Mapping[str, Price | None] | None = None,
        keep: int | None = None,
    ) -> None:
        self._host, self._port = host, port
        self._model = model or Model()
        self.latencies_s = tuple(latencies_s) or (0.0,)
        """Before the first byte of an answer, in turn. May be changed between requests."""
        self._per_chunk_s = per_chunk_s
        if bill_on_disconnect not in get_args(BillOnDisconnect):
            raise ValueError(f"bill_on_disconnect is {bill_on_disconnect!r}; one of {', '.join(get_args(BillOnDisconnect))}")
        self._bill_on_disconnect = bill_on_disconnect
        self._pro_keys = frozenset(pro_keys)
        self._keys = self._pro_keys | frozenset(standard_keys)
        self._prices = read_price_list() | {name.lower(): price for name, price in (prices or {}).items()}
        self._keep = keep
        self._faults = FaultBook(self._model.seed)
        self._connections: set[Connection] = set()
        self._connection_number = 0
        self.reset()

    def reset(self) -> None:
        """Forgets the bill, the log and the faults. Requests in flight are billed to what was forgotten."""
        self.bill = Bill(self._prices, self._keep)
        self.log: deque[Entry] = deque(maxlen=self._keep)
        self.requests = 0
        self.in_flight: set[_Chat] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._arrival = asyncio.Event()
        self._faults.clear()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Connection(self), self._host, self._port, backlog=1024
        )
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        for connection in tuple(self._connections):
            connection.abort()
        await self._server.wait_closed()

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        """The base URL, as a RoutingProxy's `upstream.baseURL` names it."""
        return f"http://{self._host}:{self._port}/v1"

    @property
    def connections(self) -> int:
        return len(self._connections)

    def fault(self, kind: Kind, **order: Any) -> None:
        """Orders one fault; fields as in `faults.Fault`."""
        self.order([Fault(kind=kind, **order)])

    def order(self, faults: Iterable[Fault]) -> None:
        self._faults.order(faults)

    def clear_faults(self) -> None:
        self._faults.clear()

    async def idle(self) -> None:
        """Waits until no request is in flight: then the bill is final."""
        await self._idle.wait()

    async def arrived(self, requests: int) -> None:
        """Waits until so many chat completions have come since the last reset."""
        while self.requests < requests:
            self._arrival.clear()
            await self._arrival.wait()

    def reprice(self, model: str, price: Price) -> None:
        """What ends from here on costs this."""
        self._prices[model.lower()] = price

    def cut(self) -> None:
        """Every connection ends, as when an upstream is restarted; what was in flight is billed as any abandoned request."""
        for connection in tuple(self._connections):
            connection.abort()

    def pending(self) -> Iterator[tuple[Entry, int]]:
        """Each request in flight, and what it will be billed at most, in nUSD."""
        for chat in self.in_flight:
            price = self._prices.get(chat.entry.model.lower())
            tokens = chat.script.tokens
            yield chat.entry, cost_nusd(price, tokens) if price is not None and tokens is not None else 0

    # What `server.Connection` calls.

    def opened(self, connection: Connection) -> int:
        self._connections.add(connection)
        self._connection_number += 1
        return self._connection_number

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)

    def begin(self, request: Request) -> "_Answered | _Chat":
        path = request.path.partition("?")[0]
        if path == "/v1/chat/completions" and request.method == "POST":
            return self._chat(request)
        if path == "/v1/models" and request.method == "GET":
            return _Answered(self._models(request))
        if path.startswith("/_"):
            return _Answered(self._control(request, path))
        return _Answered(refusal(404, f"no such path: {request.method} {path}", "invalid_request_error"))

    def _chat(self, request: Request) -> "_Answered | _Chat":
        key = _bearer(request)
        try:
            body = msgspec.json.decode(request.raw)
        except msgspec.DecodeError as error:
            return _Answered(refusal(400, f"the body is not JSON: {error}", "invalid_request_error"))
        name = body.get("model") if isinstance(body, dict) else None
        if not isinstance(name, str):
            return _Answered(refusal(400, "you must provide a model parameter", "invalid_request_error"))
        self.requests += 1
        self._arrival.set()
        entry = Entry(number=self.requests, request=request, model=name, key=key, body=body)
        self.log.append(entry)
        script = self._refuse(entry)
        if script is None:
            faults = self._faults.take(name, body.get("stream") is True)
            if (stale := faults.pop("stale", None)) and request.reused:
                faults["drop"] = stale
            entry.faults = tuple(faults)
            entry.latency_s = self.latencies_s[(entry.number - 1) % len(self.latencies_s)]
            pace = Pace(entry.latency_s, self._per_chunk_s)
            script = answer(body, request.raw, entry.number, self._model, pace, faults)
        chat = _Chat(script, entry, self)
        self.in_flight.add(chat)
        self._idle.clear()
        return chat

    def _refuse(self, entry: Entry) -> Script | None:
        if entry.key not in self._keys:
            return refusal(401, "Incorrect API key provided", "invalid_request_error", code="invalid_api_key")
        if entry.model.lower() not in self._prices:
            return refusal(404, f"The model `{entry.model}` does not exist", "invalid_request_error", code="model_not_found")
        if entry.model.startswith("Pro/") and entry.key not in self._pro_keys:
            return refusal(
                401, "Models of the Pro channel need a key of the Pro channel", "invalid_request_error", code="invalid_api_key"
            )
        if (mistake := _mistake(entry.body)) is not None:
            return refusal(400, mistake, "invalid_request_error")
        return None

    def _models(self, request: Request) -> Script:
        if _bearer(request) not in self._keys:
            return refusal(401, "Incorrect API key provided", "invalid_request_error", code="invalid_api_key")
        data = [{"id": name, "object": "model", "created": CREATED_S, "owned_by": "simulator"} for name in self._prices]
        return json_answer({"object": "list", "data": data})

    def _control(self, request: Request, path: str) -> Script:
        """For tests and the demo that run the simulator as a process of its own. Neither logged nor billed."""
        match request.method, path:
            case "GET", "/_bill":
                state = self.bill.as_json() | {"requests": self.requests, "in_flight": len(self.in_flight)}
                if request.path.endswith("?lines"):
                    state["lines"] = list(self.bill.lines)
                return json_answer(state)
            case "GET", "/_requests":
                entries = [{"number": e.number, "model": e.model, "outcome": e.outcome, "body": e.body} for e in self.log]
                return json_answer(entries)
            case "POST", "/_faults":
                try:
                    ordered = msgspec.json.decode(request.raw, type=Fault | list[Fault])
                except msgspec.MsgspecError as error:
                    return refusal(400, str(error), "invalid_request_error")
                self.order(ordered if isinstance(ordered, list) else [ordered])
                return json_answer({})
            case "DELETE", "/_faults":
                self.clear_faults()
                return json_answer({})
            case "POST", "/_reset":
                self.reset()
                return json_answer({})
        return refusal(404, f"no such control: {request.method} {path}", "invalid_request_error")

    def settle(self, chat: "_Chat", sent: int, whole: bool) -> None:
        """Ends a request: what it is billed, by the policy for answers that did not arrive whole."""
        self.in_flight.discard(chat)
        if not self.in_flight:
            self._idle.set()
        entry, bill, tokens = chat.entry, chat.bill, chat.script.tokens
        if tokens is None:
            entry.outcome = "refused"
        elif whole:
            entry.outcome = "complete"
        else:
            entry.outcome = "interrupted"
            if self._bill_on_disconnect == "none":
                tokens = None
            elif self._bill_on_disconnect == "sent":
                tokens = msgspec.structs.replace(tokens, completion=sent, reasoning=min(sent, tokens.reasoning))
        bill.outcomes[entry.outcome] += 1
        if tokens is not None:
            entry.cost_nusd = bill.charge(entry.number, entry.model, entry.key, tokens, entry.outcome)


class _Answered:
    """An answer that nobody is billed for and that the log does not keep."""

    def __init__(self, script: Script) -> None:
        self.script = script

    def sent(self, tokens: int) -> None:
        pass

    def ended(self, whole: bool) -> None:
        pass


class _Chat:
    """A chat completion on its way."""

    def __init__(self, script: Script, entry: Entry, simulator: Simulator) -> None:
        self.script = script
        self.entry = entry
        self.bill = simulator.bill  # also after a reset
        self._simulator = simulator
        self._sent = 0

    def sent(self, tokens: int) -> None:
        self._sent = tokens

    def ended(self, whole: bool) -> None:
        self._simulator.settle(self, self._sent, whole)


def _bearer(request: Request) -> str:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key if scheme.lower() == "bearer" else ""


def _mistake(body: dict[str, Any]) -> str | None:
    """What a real provider would refuse with 400."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        return "'messages' must be an array of objects, at least one"
    for field in ("max_tokens", "max_completion_tokens", "n"):
        value = body.get(field)
        if value is not None and (type(value) is not int or value < 1):
            return f"'{field}' must be an integer of 1 or more; it is {value!r}"
    return None
