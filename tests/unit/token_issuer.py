"""A cluster's issuer of ServiceAccount tokens, and whoever would like to be one: keys, and tokens signed with them."""

import base64
import json
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from stepdown.model.config import Issuer, TokenKey

URL = "https://kubernetes.default.svc.cluster.local"
RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value: int) -> str:
    return b64(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def public(key: PrivateKey, kid: str) -> TokenKey:
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.public_key().public_numbers()
        return TokenKey(kid=kid, kty="RSA", n=number(numbers.n), e=number(numbers.e))
    point = key.public_key().public_numbers()
    x, y = (b64(each.to_bytes(32, "big")) for each in (point.x, point.y))
    return TokenKey(kid=kid, kty="EC", crv="P-256", x=x, y=y)


ISSUER = Issuer(url=URL, keys=(public(EC_KEY, "ec"), public(RSA_KEY, "rsa")))


def claims(now_s: float, account: str = "shop/web", **more: Any) -> dict[str, Any]:
    namespace, _, name = account.partition("/")
    sub = f"system:serviceaccount:{namespace}:{name}"
    times = {"iat": int(now_s), "nbf": int(now_s), "exp": int(now_s) + 3600}
    return {"iss": URL, "sub": sub, "aud": ["stepdown-proxy"], **times, "kubernetes.io": {"namespace": namespace}, **more}


def token(said: dict[str, Any], key: PrivateKey = RSA_KEY, **head: Any) -> str:
    """Signed. `head` replaces what the key would say of itself."""
    is_rsa = isinstance(key, rsa.RSAPrivateKey)
    header = {"alg": "RS256" if is_rsa else "ES256", "kid": "rsa" if is_rsa else "ec", **head}
    signed = ".".join(b64(json.dumps(each).encode()) for each in (header, said)).encode()
    if isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
    else:
        r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA256())))
        signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    return f"{signed.decode()}.{b64(signature)}"
