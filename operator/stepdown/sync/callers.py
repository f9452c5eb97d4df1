"""By which keys proxies verify callers' ServiceAccount tokens: the cluster's own, as its API server publishes them.

The shell asks once a minute and gives the answer to the plan (`World.issuer`); sync and the mounted config carry it to proxies.
"""

from typing import Protocol

import msgspec

from stepdown.cluster.errors import Unavailable
from stepdown.model.config import Issuer, TokenKey

DISCOVERY = "/.well-known/openid-configuration"
KEYS = "/openid/v1/jwks"


class Api(Protocol):
    """What is asked of the API server (`cluster.client.Cluster`). Raises ClusterError."""

    async def raw_get(self, path: str) -> bytes: ...


class _Discovery(msgspec.Struct):
    issuer: str


class _Key(msgspec.Struct):
    kty: str = ""
    kid: str = ""
    n: str = ""
    e: str = ""
    crv: str = ""
    x: str = ""
    y: str = ""


class _Keys(msgspec.Struct):
    keys: list[_Key]


async def token_issuer(api: Api) -> Issuer:
    """Raises a ClusterError. Equal while the cluster's keys are: their order does not count."""
    try:
        url = msgspec.json.decode(await api.raw_get(DISCOVERY), type=_Discovery).issuer
        found = msgspec.json.decode(await api.raw_get(KEYS), type=_Keys).keys
    except msgspec.MsgspecError as error:
        raise Unavailable(f"the API server's {DISCOVERY} or {KEYS} is not what RFC 7517 says: {error}") from error
    keys = [_typed(each) for each in found if each.kty in ("RSA", "EC")]
    return Issuer(url=url, keys=tuple(sorted(keys, key=lambda each: (each.kid, each.n, each.x))))


def _typed(key: _Key) -> TokenKey:
    if key.kty == "RSA":
        return TokenKey(kid=key.kid, kty="RSA", n=key.n, e=key.e)
    return TokenKey(kid=key.kid, kty="EC", crv=key.crv, x=key.x, y=key.y)
