"""The simulator as a process of its own, for the demo and for tests that kill things: `with SimulatorProcess(…) as sim`."""

import http.client
import json
import subprocess
import sys
import time
from typing import Any, Self

_START_S = 15.0
_REST_S = 0.05


class SimulatorProcess:
    """Starts `python -m tests.upstream` on a free port, talks to its control endpoints, ends it."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.upstream", *self._arguments],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("listening on "):
            self._process.kill()
            raise RuntimeError(f"the simulator did not start: {line!r}")
        self.url = line.removeprefix("listening on ").strip()
        self._host, _, rest = self.url.removeprefix("http://").partition(":")
        self.port = int(rest.partition("/")[0])
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def bill(self) -> dict[str, Any]:
        """`total_nusd`, `by_model`, `by_key`, `outcomes`, `requests`, `in_flight`, `unpriced`."""
        bill: dict[str, Any] = self._call("GET", "/_bill")
        return bill

    def final_bill(self, timeout_s: float = 30.0) -> dict[str, Any]:
        """The bill once no request is in flight."""
        until_s = time.monotonic() + timeout_s
        while (bill := self.bill())["in_flight"]:
            if time.monotonic() > until_s:
                raise TimeoutError(f"the simulator still has {bill['in_flight']} requests in flight after {timeout_s} s")
            time.sleep(_REST_S)
        return bill

    def requests(self) -> list[dict[str, Any]]:
        """`number`, `model`, `outcome`, `body` of each chat completion that came."""
        requests: list[dict[str, Any]] = self._call("GET", "/_requests")
        return requests

    def fault(self, kind: str, **order: object) -> None:
        self._call("POST", "/_faults", {"kind": kind, **order})

    def clear_faults(self) -> None:
        self._call("DELETE", "/_faults")

    def reset(self) -> None:
        self._call("POST", "/_reset")

    def _call(self, method: str, path: str, body: object = None) -> Any:
        connection = http.client.HTTPConnection(self._host, self.port, timeout=_START_S)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), {"connection": "close"})
            response = connection.getresponse()
            answer = json.loads(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise ValueError(f"{method} {path}: {answer}")
        return answer
