"""The upstream's keys, by channel: where they come from, and how a new one is noticed. `exchange` asks before each attempt.

A key is never in the config (docs/design.md, RoutingProxy): in a cluster it is a file of a mounted Secret, with `stepdown
run` a Secret in the folder or the environment. It becomes a header line, so only visible ASCII may be in it.
"""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from stepdown.proxy.files import WatchedFile

_LOOK_S = 1.0
"""How often a file is looked at: a rotated Secret is in use a second after the kubelet has written it."""

ENV_KEYS = {"pro": "UPSTREAM_API_KEY_PRO"}
ENV_KEY = "UPSTREAM_API_KEY"


class KeySource(Protocol):
    """Where a channel's key comes from."""

    def key(self, channel: str) -> bytes | None:
        """The key, or None where there is none that could be sent."""

    def whence(self, channel: str) -> str:
        """Where it would have to be put, for messages."""


def clean(key: bytes) -> bytes | None:
    """The key without the line end that editors and `echo` add; None if it could not stand in a header."""
    key = key.strip()
    return key if key and all(0x21 <= byte <= 0x7E for byte in key) else None


class FixedKeys:
    """Keys by channel, held in memory. `replace` puts others in their place, as `stepdown run` does when a Secret changes."""

    def __init__(self, keys: Mapping[str, str], whence: str = "the proxy's key source") -> None:
        self._whence = whence
        self.replace(keys)

    def replace(self, keys: Mapping[str, str]) -> None:
        self._keys = {channel: clean(key.encode()) for channel, key in keys.items()}

    def key(self, channel: str) -> bytes | None:
        return self._keys.get(channel)

    def whence(self, channel: str) -> str:
        return f"{self._whence} (channel {channel})"


class EnvKeys:
    """`UPSTREAM_API_KEY_PRO` for the channel `pro`, `UPSTREAM_API_KEY` for every other."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        names = {ENV_KEY, *ENV_KEYS.values()}
        self._keys = {name: clean(environment.get(name, "").encode("utf-8", "surrogateescape")) for name in names}

    def key(self, channel: str) -> bytes | None:
        return self._keys[ENV_KEYS.get(channel, ENV_KEY)]

    def whence(self, channel: str) -> str:
        return f"the environment variable {ENV_KEYS.get(channel, ENV_KEY)}"


class _Seen:
    __slots__ = ("file", "key", "looked_s", "raw")

    def __init__(self, path: Path) -> None:
        self.file = WatchedFile(path)
        self.raw: bytes | None = None
        self.key: bytes | None = None
        self.looked_s = float("-inf")


class KeyDir:
    """A file a channel, named like the channel: how Secrets are mounted. Read again when it has changed."""

    def __init__(self, path: Path, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock_s = clock_s
        self._seen: dict[str, _Seen] = {}

    def key(self, channel: str) -> bytes | None:
        """A file that is away for a moment leaves nothing: a removed Secret must stop being used."""
        seen = self._seen.get(channel)
        if seen is None:
            seen = self._seen[channel] = _Seen(self._path / channel)
        now_s = self._clock_s()
        if now_s - seen.looked_s >= _LOOK_S:
            seen.looked_s = now_s
            raw = seen.file.read()
            if raw is not seen.raw:
                seen.raw, seen.key = raw, clean(raw) if raw is not None else None
        return seen.key

    def whence(self, channel: str) -> str:
        return f"the file {self._path / channel}, which the channel's apiKeySecretRef mounts"


class FirstOf:
    """The first source that has a key for the channel."""

    def __init__(self, *sources: KeySource) -> None:
        self._sources = sources

    def key(self, channel: str) -> bytes | None:
        for source in self._sources:
            key = source.key(channel)
            if key is not None:
                return key
        return None

    def whence(self, channel: str) -> str:
        return " or ".join(source.whence(channel) for source in self._sources)
