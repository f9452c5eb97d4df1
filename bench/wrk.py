"""One run of wrk: as many requests as fit through 32 connections."""

import re
import subprocess
from pathlib import Path

from bench.machine import LOAD_CORE, BenchError

CONNECTIONS = 32
_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}
_SCRIPT = """
local file = io.open("{body}"); wrk.body = file:read("*a"); file:close()
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer {key}"
"""


def script(folder: Path, name: str, body: bytes, key: str) -> Path:
    """Writes what wrk sends; returns the Lua file."""
    file = folder / f"{name}.json"
    file.write_bytes(body)
    lua = folder / f"{name}.lua"
    lua.write_text(_SCRIPT.format(body=file, key=key))
    return lua


def run(port: int, lua: Path, seconds: int) -> dict[str, float]:
    """Requests a second and latency in ms. Raises BenchError if any answer was not a 2xx or any connection failed."""
    argv = ["taskset", "-c", str(LOAD_CORE), "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "30s", "--latency"]
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    done = subprocess.run([*argv, "-s", str(lua), url], capture_output=True, text=True, check=False)
    trouble = re.findall(r"(Non-2xx.*|Socket errors.*)", done.stdout)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    if trouble or rate is None or done.returncode:
        raise BenchError(f"wrk on port {port}: {'; '.join(trouble) or done.stdout + done.stderr}")
    run: dict[str, float] = {"per_s": float(rate[1])}
    for percent, value, unit in re.findall(r"^\s+(50|99)%\s+([\d.]+)(us|ms|s|m)\s*$", done.stdout, re.MULTILINE):
        run[f"p{percent}_ms"] = round(float(value) * _MS[unit], 3)
    return run
