"""One changed ModelRoute, again and again: how soon every proxy answers by it."""

import asyncio
import json
import random
from typing import Any

from bench.client import post
from bench.plane.api import Api
from bench.plane.probe import Asking, served
from bench.plane.scene import FREE, MODELS, Scene
from bench.steady import percentile

_REST_S = 1.0
"""At most, and at random, so that changes meet every moment of the second at which proxies sync."""


async def changes(scene: Scene, count: int, free: int) -> dict[str, Any]:
    """Of routes without a budget: a request then makes no proxy ask for money, which would bring the config by the way."""
    rest = random.Random(1)
    now = dict.fromkeys(range(free), MODELS[0])
    by_proxy: list[float] = []
    by_all: list[float] = []
    async with Api(scene.cluster, scene.namespace) as api:
        connections = [await Asking.open(proxy.port) for proxy in scene.proxies]
        for change in range(count):
            number = change * 7 % free
            name, model = f"{FREE}-{number:04}", next(each for each in MODELS if each != now[number])
            now[number] = model
            answered_s = await api.patch("ModelRoute", name, {"models": {"default": model}})
            taken = await served(connections, request(name), _by(model), answered_s, f"{name} is served by {model}")
            by_proxy += taken
            by_all.append(max(taken))
            await asyncio.sleep(rest.uniform(0.0, _REST_S))
        for each in connections:
            each.close()
    return {"changes": count, "each_proxy": summary(by_proxy), "all_proxies": summary(by_all)}


def request(route: str, *, words: int = 1, most_tokens: int = 4) -> bytes:
    body = {"model": route, "messages": [{"role": "user", "content": "word " * words}], "max_tokens": most_tokens}
    return post(json.dumps(body).encode(), "anybody")


def summary(samples: list[float]) -> dict[str, float]:
    """Seconds."""
    return {
        "p50_s": round(percentile(samples, 50), 3),
        "p99_s": round(percentile(samples, 99), 3),
        "max_s": round(max(samples), 3),
    }


def _by(model: str) -> Any:
    return lambda headers: headers.get("x-stepdown-model") == model
