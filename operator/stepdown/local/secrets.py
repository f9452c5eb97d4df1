"""The upstream's keys: from Secrets in the folder or from the environment, which wins. `world` and `run` call this.

Values never leave this module but as the mapping that the proxy is given: no message, log line or status has one.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stepdown.model.resources import RoutingProxy, UpstreamChannel

ENVIRONMENT = "UPSTREAM_API_KEY"
"""The key of the channel without a prefix; `UPSTREAM_API_KEY_PRO` is that of the channel named `pro`."""


@dataclass(frozen=True, slots=True)
class ChannelKey:
    """Where a channel's key comes from."""

    channel: str
    value: str
    """Empty: there is none."""
    source: str
    """`environment UPSTREAM_API_KEY`, `Secret default/upstream`, or what is missing and how to state it."""


class BadSecret(ValueError):
    """A Secret that cannot be read."""


def read_secret(body: Mapping[str, Any]) -> dict[str, str]:
    """The values of a Secret: `data` in base64, `stringData` as it is, which wins as in Kubernetes. Raises BadSecret."""
    values: dict[str, str] = {}
    for field in ("data", "stringData"):
        entries = body.get(field) or {}
        if not isinstance(entries, dict):
            raise BadSecret(f"{field} is not a map; write the key's name and its value below it")
        for name, value in entries.items():
            if not isinstance(value, str):
                raise BadSecret(f"{field}.{name} is not text; put it in quotes")
            values[name] = _decoded(name, value) if field == "data" else value
    return values


def channel_keys(
    proxy: RoutingProxy, secrets: Mapping[str, Mapping[str, str]], environment: Mapping[str, str]
) -> tuple[ChannelKey, ...]:
    """The key of each channel of a fleet. `secrets`: by `namespace/name`."""
    return tuple(_channel_key(channel, proxy.namespace, secrets, environment) for channel in proxy.spec.upstream.channels)


def variable(channel: UpstreamChannel) -> str:
    """The environment variable that holds a channel's key."""
    if channel.model_prefix is None:
        return ENVIRONMENT
    return f"{ENVIRONMENT}_{re.sub('[^A-Z0-9]', '_', channel.name.upper())}"


def presence(keys: Iterable[ChannelKey], proxy: RoutingProxy) -> dict[str, bool]:
    """For the plan: whether each Secret that the fleet names is there, or something stands in for it."""
    found: dict[str, bool] = {}
    for channel, key in zip(proxy.spec.upstream.channels, keys, strict=True):
        name = f"{proxy.namespace}/{channel.api_key_secret_ref.name}"
        found[name] = found.get(name, True) and bool(key.value)
    return found


def _channel_key(
    channel: UpstreamChannel, namespace: str, secrets: Mapping[str, Mapping[str, str]], environment: Mapping[str, str]
) -> ChannelKey:
    name = variable(channel)
    if value := environment.get(name, "").strip():
        return ChannelKey(channel.name, value, f"environment {name}")
    ref = channel.api_key_secret_ref
    secret = f"{namespace}/{ref.name}"
    if value := secrets.get(secret, {}).get(ref.key_or_default, "").strip():
        return ChannelKey(channel.name, value, f"Secret {secret}")
    return ChannelKey(channel.name, "", f"none: export {name}, or add Secret {secret} with the key {ref.key_or_default}")


def _decoded(name: str, value: str) -> str:
    try:
        return base64.b64decode(value, validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        raise BadSecret(f"data.{name} is not base64 of text; encode it, or write it as it is under stringData") from None
