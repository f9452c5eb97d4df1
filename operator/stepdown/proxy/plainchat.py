"""The short way for the usual body: text messages and well-known numbers, decoded and checked in one go. `canon` tries it.

A body that fits `PlainChat` is one that the long way would accept, under a Hard budget too: no field here can be anything but
what `fields` allows, so nothing is left to check but duplicate keys. A body that does not fit is not wrong for that: the long
way judges it, and has the words for it.
"""

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from stepdown.proxy.fields import MAX_N, MAX_TOKENS

_Tokens = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]


class PlainMessage(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: str
    content: str
    name: str | UnsetType = UNSET


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    include_usage: bool | UnsetType = UNSET
    include_obfuscation: bool | UnsetType = UNSET


class PlainChat(msgspec.Struct, forbid_unknown_fields=True):
    """What most chat requests are made of."""

    model: Annotated[str, Meta(min_length=1)]
    messages: Annotated[list[PlainMessage], Meta(min_length=1)]
    max_tokens: _Tokens | UnsetType = UNSET
    max_completion_tokens: _Tokens | UnsetType = UNSET
    temperature: Annotated[float, Meta(ge=0, le=2)] | UnsetType = UNSET
    top_p: Annotated[float, Meta(ge=0, le=1)] | UnsetType = UNSET
    n: Annotated[int, Meta(ge=1, le=MAX_N)] | UnsetType = UNSET
    stream: bool | UnsetType = UNSET
    stream_options: StreamOptions | UnsetType = UNSET
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | UnsetType = UNSET
    user: str | UnsetType = UNSET
    stop: str | list[str] | UnsetType = UNSET
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | UnsetType = UNSET
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | UnsetType = UNSET


decode = msgspec.json.Decoder(PlainChat).decode
