"""`python -m bench.routes`: `stepdown run` with 10,000 routes: how soon it serves, and how soon a changed file is in force.

In force means what a user sees: an answer of the changed route comes from the model that the file now names. The run has core 0
to itself. Writes bench/routes.json.
"""

import argparse
import http.client
import json
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from tests.upstream import STANDARD_KEY, SimulatorProcess

from bench.machine import GATEWAY_CORE, BenchError, Process, described, free_port

FOLDER = Path(".bench") / "routes"
RESULT = Path(__file__).with_name("routes.json")
PER_FILE = 100
MODELS = ("deepseek-v4-flash", "Qwen/Qwen3-32B")
CHANGED = "Qwen3-32B"
"""The second, as the catalog and the answer name it."""
GOALS = {"ready_s": 5.0, "changed_s": 1.0}
_POLL_S = 0.005
_GIVE_UP_S = 60.0

_ROUTE = """\
apiVersion: stepdown.dev/v1alpha1
kind: ModelRoute
metadata: {{name: route-{number}, namespace: default, labels: {{team: team-{team}}}}}
spec:
  models: {{default: {model}}}
  parameters: {{maxTokens: 100}}
---
"""
_BUDGET = """\
apiVersion: stepdown.dev/v1alpha1
kind: SpendBudget
metadata: {{name: team-{team}, namespace: default}}
spec:
  monthlyLimitUSD: "500.00"
  routeSelector: {{matchLabels: {{team: team-{team}}}}}
---
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.routes", description=__doc__)
    parser.add_argument("--routes", type=int, default=10_000)
    parser.add_argument("--changes", type=int, default=10, help="files changed one after the other (default 10)")
    arguments = parser.parse_args()
    try:
        result = measure(arguments.routes, arguments.changes)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    for name, goal in GOALS.items():
        print(f"{name:10} {result[name]:6.2f}   goal < {goal:g}   {'reached' if result[name] < goal else 'MISSED'}")
    print(f"the slowest of {arguments.changes} changes: {max(result['changes_s']):.2f} s; {result['rss_mib']:.0f} MiB resident")
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def measure(routes: int, changes: int) -> dict[str, Any]:
    shutil.rmtree(FOLDER, ignore_errors=True)
    policies = FOLDER.absolute() / "policies"
    policies.mkdir(parents=True)
    port = free_port()
    with SimulatorProcess("--keep", "0", "--output", "20", "20") as upstream:
        for first in range(0, routes, PER_FILE):
            _write(policies, first, min(first + PER_FILE, routes), MODELS[0])
        os.environ["UPSTREAM_API_KEY"] = STANDARD_KEY
        ledger = ["--listen", f"127.0.0.1:{port}", "--ledger", str(FOLDER.absolute() / "ledger.db")]
        argv = [sys.executable, "-m", "stepdown", "run", "-f", str(policies), "--upstream", upstream.url, *ledger]
        with Process("stepdown-run", argv, GATEWAY_CORE, FOLDER.absolute(), lambda: _ready(port)) as run:
            _model(port, routes - 1)
            took_s = []
            for change in range(changes):
                number = change * (routes // changes)
                first = number // PER_FILE * PER_FILE
                _model(port, number)
                _write(policies, first, min(first + PER_FILE, routes), MODELS[1], only=number)
                took_s.append(_until_changed(port, number, CHANGED))
                if change % 2:
                    time.sleep(0.5)  # also from rest, not only while the last change may still be settling
            return {
                "routes": routes,
                "ready_s": round(run.start_s, 3),
                "changed_s": round(statistics.median(took_s), 3),
                "changes_s": [round(each, 3) for each in took_s],
                "rss_mib": round(run.rss_mib(), 1),
                "machine": described(),
                "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }


def _write(policies: Path, first: int, end: int, model: str, *, only: int | None = None) -> None:
    """One file of routes and their team's budget; with `only`, all but that route keep the first model."""
    team = first // PER_FILE
    parts = [_BUDGET.format(team=team)]
    for number in range(first, end):
        wanted = model if only in (None, number) else MODELS[0]
        parts.append(_ROUTE.format(number=number, team=team, model=wanted))
    file = policies / f"team-{team}.yaml"
    fresh = file.with_suffix(".new")
    fresh.write_text("".join(parts))
    fresh.replace(file)


def _ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _model(port: int, number: int) -> str:
    """The model that answers for a route now."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    body = json.dumps({"model": f"route-{number}", "messages": [{"role": "user", "content": "hello"}]})
    try:
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise BenchError(f"route-{number} answered {response.status}: {answer[:300]!r}")
        return response.getheader("x-stepdown-model", "")
    finally:
        connection.close()


def _until_changed(port: int, number: int, wanted: str) -> float:
    start_s = time.monotonic()
    while (model := _model(port, number)) != wanted:
        if time.monotonic() - start_s > _GIVE_UP_S:
            raise BenchError(
                f"route-{number} is still served by {model!r}, not by {wanted!r}, {_GIVE_UP_S:g} s after the change"
            )
        time.sleep(_POLL_S)
    return time.monotonic() - start_s


if __name__ == "__main__":
    sys.exit(main())
