"""Callers' ServiceAccount tokens. If this fails, anyone who can write JSON spends a team's money, or nobody of it can call."""

import asyncio
import hmac
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from stepdown.cluster.errors import Unavailable
from stepdown.model.config import Issuer, TokenKey
from stepdown.proxy.tokens import LEEWAY_S, TokenError, Verifier
from stepdown.sync.callers import DISCOVERY, KEYS, token_issuer
from tests.unit.proxy_money import NOW_S
from tests.unit.token_issuer import EC_KEY, ISSUER, RSA_KEY, URL, PrivateKey, b64, claims, public, token

VERIFIER = Verifier(ISSUER)


def account(said: str | bytes, now_s: float = NOW_S) -> tuple[str, float]:
    return VERIFIER.account(said.encode() if isinstance(said, str) else said, now_s)


@pytest.mark.parametrize("key", [RSA_KEY, EC_KEY], ids=["RS256", "ES256"])
def test_a_token_of_the_cluster_names_its_service_account(key: PrivateKey) -> None:
    """The way in for every workload that has no key."""
    assert account(token(claims(NOW_S), key)) == ("shop/web", int(NOW_S) + 3600)
    assert account(token(claims(NOW_S, aud="stepdown-proxy"), key))[0] == "shop/web", "one audience may stand alone"


def symmetric(said: dict[str, Any]) -> str:
    """Signed with the public key as the secret: who lets the token choose the algorithm takes it."""
    pem = RSA_KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    signed = ".".join(b64(json.dumps(each).encode()) for each in ({"alg": "HS256", "kid": "rsa"}, said))
    return f"{signed}.{b64(hmac.digest(pem, signed.encode(), 'sha256'))}"


GOOD = claims(NOW_S)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (token(claims(NOW_S, exp=NOW_S)), "it has expired"),
        (token(claims(NOW_S, nbf=NOW_S + LEEWAY_S + 1)), "not good yet"),
        (token(claims(NOW_S, aud=["stepdown"])), "not meant for audience 'stepdown-proxy'"),
        (token(claims(NOW_S, aud=[])), "not meant for audience"),
        (token(claims(NOW_S, iss="https://elsewhere")), "of issuer 'https://elsewhere'"),
        (token(claims(NOW_S, sub="shop:web")), "which is no ServiceAccount"),
        (token(claims(NOW_S, sub="system:serviceaccount:shop")), "which is no ServiceAccount"),
        (token(claims(NOW_S, sub="system:serviceaccount::web")), "which is no ServiceAccount"),
        (token(GOOD, kid="other"), "signed by key 'other'"),
        (token(GOOD, kid=""), "signed by key ''"),
        (token(GOOD, rsa.generate_private_key(65537, 2048)), "its signature is wrong"),
        (token(GOOD, ec.generate_private_key(ec.SECP256R1())), "its signature is wrong"),
        (token(GOOD, RSA_KEY, kid="ec"), "is not that of its key"),
        (token(GOOD, EC_KEY, kid="rsa"), "is not that of its key"),
        (token(GOOD, RSA_KEY, alg="RS512"), "is not that of its key"),
        (token(GOOD, RSA_KEY, alg="none"), "is not that of its key"),
        (symmetric(GOOD), "is not that of its key"),
        (token(GOOD).rpartition(".")[0] + ".", "its signature is wrong"),
        (token(GOOD, EC_KEY)[:-8], "is not that of its key"),
        (token({"iss": URL}), "it is no ServiceAccount token"),
        (token({**GOOD, "exp": "tomorrow"}), "it is no ServiceAccount token"),
        ("sd-" + "0" * 64, "it is no ServiceAccount token"),
        ("a.b.c", "it is no ServiceAccount token"),
        (token(GOOD) + ".x", "it is no ServiceAccount token"),
        (token(GOOD) + "=", "it is no ServiceAccount token"),
        ("." * 2, "it is no ServiceAccount token"),
        (token(claims(NOW_S, pad="x" * 20_000)), "it is no ServiceAccount token"),
    ],
)
def test_what_is_refused_and_why(said: str, why: str) -> None:
    """Each of these opened a door somewhere once; and a workload must be able to see what is wrong with its own."""
    with pytest.raises(TokenError, match=why):
        account(said)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=3))
def test_no_changed_byte_is_taken(at: int, other: bytes) -> None:
    """A token is opaque to its holder: whatever they change, it is worth nothing or says the same."""
    good = token(GOOD, EC_KEY).encode()
    at %= len(good)
    changed = good[:at] + other + good[at + len(other) :]
    try:
        assert account(changed) == account(good)
    except TokenError:
        return


def test_keys_that_cannot_be_used_are_left_out() -> None:
    """One key of a kind that is not known would take the others with it."""
    odd = (
        TokenKey(kid="curve", kty="EC", crv="P-384", x="AQ", y="AQ"),
        TokenKey(kid="off", kty="EC", crv="P-256", x="AQ", y="AQ"),
        TokenKey(kid="none", kty="RSA"),
        TokenKey(kid="small", kty="RSA", n=public(rsa.generate_private_key(65537, 1024), "s").n, e="AQAB"),
        TokenKey(kid="text", kty="RSA", n="!", e="AQAB"),
    )
    verifier = Verifier(Issuer(url=URL, keys=(*odd, *ISSUER.keys)))
    assert verifier.account(token(GOOD).encode(), NOW_S)[0] == "shop/web"
    for each in odd:
        with pytest.raises(TokenError, match="is not of this cluster's issuer"):
            verifier.account(token(GOOD, kid=each.kid).encode(), NOW_S)


class Published:
    """What an API server publishes."""

    def __init__(self, **pages: object) -> None:
        self.pages = {DISCOVERY: {"issuer": URL, "jwks_uri": "https://x"}, KEYS: {"keys": []}, **pages}

    async def raw_get(self, path: str) -> bytes:
        page = self.pages[path]
        return page if isinstance(page, bytes) else json.dumps(page).encode()


def test_the_clusters_keys_are_read_as_they_are_published() -> None:
    """The config would change, and travel to every proxy, because an API server lists its keys in another order."""

    def entry(key: TokenKey) -> dict[str, str]:
        shown = {name: getattr(key, name) for name in ("kid", "kty", "n", "e", "crv", "x", "y") if getattr(key, name)}
        return {**shown, "use": "sig", "alg": "RS256"}

    entries = [entry(each) for each in ISSUER.keys]
    for order in (entries, entries[::-1]):
        keys = {"keys": [*order, {"kty": "OKP", "kid": "new"}]}
        assert asyncio.run(token_issuer(Published(**{KEYS: keys}))) == ISSUER


@pytest.mark.parametrize("pages", [{KEYS: b"<html>"}, {KEYS: {}}, {DISCOVERY: {"jwks_uri": "https://x"}}])
def test_rubbish_instead_of_keys_is_no_answer(pages: dict[str, object]) -> None:
    """No keys would be taken for: this cluster has none, and every caller would be locked out."""
    with pytest.raises(Unavailable, match="is not what"):
        asyncio.run(token_issuer(Published(**pages)))
