"""A caller's ServiceAccount token, verified against the cluster's keys: no request waits for the API server. `auth` calls it.

Only what the API server itself takes is taken: RS256 or ES256 by the key that the token names, the issuer, our audience, and
the times. What is not seen here is that a token was taken back before its end (its pod is gone): it is good for its hour.
`cryptography` weighs several megabytes, so this module is imported when the first route asks for a token.
"""

import base64
import binascii

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from stepdown.model.config import CALLER_AUDIENCE, Issuer, TokenKey

LEEWAY_S = 60.0
"""How far the clock of who signed may be ahead of ours."""
MAX_TOKEN = 16_384
_MIN_RSA_BITS = 2048
_USER = "system:serviceaccount:"

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


class TokenError(Exception):
    """Not a token that opens anything here."""


class _Head(msgspec.Struct):
    alg: str
    kid: str = ""


class _Claims(msgspec.Struct):
    iss: str
    sub: str
    exp: float
    aud: list[str] | str = ""
    nbf: float = 0.0


class Verifier:
    """One issuer's keys, ready."""

    def __init__(self, issuer: Issuer) -> None:
        """A key of a kind that is not known is left out: its tokens are refused in words."""
        self._issuer = issuer
        self._keys = {key.kid: made for key in issuer.keys if (made := _public(key)) is not None}

    def account(self, token: bytes, now_s: float) -> tuple[str, float]:
        """The ServiceAccount as `namespace/name`, and when the token ends. Raises TokenError."""
        if len(token) > MAX_TOKEN or token.count(b".") != 2:
            raise TokenError("it is no ServiceAccount token")
        signed, _, signature = token.rpartition(b".")
        head, _, body = signed.partition(b".")
        try:
            header = msgspec.json.decode(_bytes(head), type=_Head)
            self._verify(header, signed, _bytes(signature))
            claims = msgspec.json.decode(_bytes(body), type=_Claims)
        except (ValueError, msgspec.MsgspecError):
            raise TokenError("it is no ServiceAccount token") from None
        return self._judged(claims, now_s), claims.exp

    def _verify(self, header: _Head, signed: bytes, signature: bytes) -> None:
        key = self._keys.get(header.kid)
        if key is None:
            raise TokenError(
                f"it is signed by key {header.kid[:100]!r}, which is not of this cluster's issuer {self._issuer.url}"
            )
        try:
            # The algorithm is the key's, never what the token would like it to be.
            if isinstance(key, rsa.RSAPublicKey) and header.alg == "RS256":
                key.verify(signature, signed, padding.PKCS1v15(), hashes.SHA256())
            elif isinstance(key, ec.EllipticCurvePublicKey) and header.alg == "ES256" and len(signature) == 64:
                r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
                key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))
            else:
                raise TokenError(f"its algorithm {header.alg[:20]!r} is not that of its key; RS256 and ES256 are known")
        except InvalidSignature:
            raise TokenError("its signature is wrong") from None

    def _judged(self, claims: _Claims, now_s: float) -> str:
        if claims.iss != self._issuer.url:
            raise TokenError(f"it is of issuer {claims.iss[:200]!r}, this cluster's is {self._issuer.url!r}")
        if CALLER_AUDIENCE not in ([claims.aud] if isinstance(claims.aud, str) else claims.aud):
            raise TokenError(f"it is not meant for audience {CALLER_AUDIENCE!r}: project one that is")
        if not claims.nbf - LEEWAY_S <= now_s < claims.exp:
            raise TokenError("it has expired" if now_s >= claims.exp else "it is not good yet")
        namespace, _, name = claims.sub.removeprefix(_USER).partition(":")
        if not claims.sub.startswith(_USER) or not namespace or not name:
            raise TokenError(f"it is of {claims.sub[:200]!r}, which is no ServiceAccount")
        return f"{namespace}/{name}"


def _public(key: TokenKey) -> PublicKey | None:
    try:
        if key.kty == "RSA":
            made = rsa.RSAPublicNumbers(_number(key.e), _number(key.n)).public_key()
            return made if made.key_size >= _MIN_RSA_BITS else None
        if key.crv == "P-256":
            return ec.EllipticCurvePublicNumbers(_number(key.x), _number(key.y), ec.SECP256R1()).public_key()
    except ValueError:
        return None
    return None


def _number(text: str) -> int:
    return int.from_bytes(_bytes(text.encode()), "big")


def _bytes(text: bytes) -> bytes:
    """Base64url without padding, and nothing else. Raises ValueError."""
    if b"=" in text:
        raise ValueError("padded")
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
