"""Latency at a steady rate, as an open loop: requests are due by the clock whether or not earlier ones were answered.

Latency is taken from the moment a request was due, so that a slow answer is charged with the waiting that it caused.
"""

import asyncio
import time

from bench.client import Connection
from bench.machine import BenchError

RATE_PER_S = 50


def percentile(samples: list[float], percent: float) -> float:
    """The smallest sample that so many per cent do not exceed."""
    ordered = sorted(samples)
    return ordered[max(0, -(-int(len(ordered) * percent) // 100) - 1)]


async def latencies_ms(port: int, request: bytes, seconds: float) -> list[float]:
    """One latency for each request that was due."""
    idle: list[Connection] = []
    samples: list[float] = []

    async def one(due_s: float) -> None:
        connection = idle.pop() if idle else await Connection.open(port)
        answer = await connection.ask(request)
        if answer.status != 200:
            raise BenchError(f"port {port} answered {answer.status}: {answer.body[:300]!r}")
        samples.append((answer.ended_s - due_s) * 1000)
        idle.append(connection)

    idle.extend([await Connection.open(port) for _ in range(4)])
    for _ in range(20):
        await one(time.monotonic())
    samples.clear()
    start_s = time.monotonic() + 0.1
    async with asyncio.TaskGroup() as tasks:
        for number in range(int(RATE_PER_S * seconds)):
            due_s = start_s + number / RATE_PER_S
            await _until(due_s)
            tasks.create_task(one(due_s))
    for connection in idle:
        connection.close()
    return samples


async def _until(due_s: float) -> None:
    """Sleeps to just before, then lets the loop turn: its timers are a millisecond coarse, and that is what is measured."""
    if (rest_s := due_s - time.monotonic()) > 0.002:
        await asyncio.sleep(rest_s - 0.002)
    while time.monotonic() < due_s:  # noqa: ASYNC110 - it waits for the clock, not for an event
        await asyncio.sleep(0)
