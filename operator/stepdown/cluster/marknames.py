"""Names of marks as keys of a ConfigMap, and back. `witness` calls it; pure.

A key may have letters, digits, `-`, `.` and `_`, and 253 characters. An account is `shop/team@1793491200`: everything but
letters, digits, `-` and `.` is written as `_` and two hexadecimal digits a byte. A name that is too long for that becomes a
hash, and stands whole beside its value.
"""

import hashlib
import re

MOST = 253
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.")
_HASHED = "__"
"""No encoded name begins so: `_` is `_5F`."""


def encode(name: str) -> str:
    """The key of a name."""
    raw = name.encode()
    key = "".join(chr(byte) if byte in _PLAIN else f"_{byte:02X}" for byte in raw)
    if key.startswith("."):  # `..` and what begins with it is no key
        key = f"_2E{key[1:]}"
    return key if 0 < len(key) <= MOST else _HASHED + hashlib.sha256(raw).hexdigest()


def decode(key: str) -> str | None:
    """The name of a key; None: it is no key of ours."""
    try:
        name = re.sub(r"_([0-9A-F]{2})", lambda found: chr(int(found[1], 16)), key).encode("latin-1").decode()
    except ValueError:
        return None
    return name if encode(name) == key else None


def entry(name: str, mark: int) -> tuple[str, str]:
    """The key and the value of a mark."""
    key = encode(name)
    return key, f"{mark} {name}" if key.startswith(_HASHED) else str(mark)


def read(key: str, value: str) -> tuple[str, int] | None:
    """Name and mark of an entry; None: it is nothing that we wrote."""
    number, _, told = value.partition(" ")
    name = told if key.startswith(_HASHED) and encode(told) == key else decode(key)
    if name is None or not re.fullmatch(r"0|[1-9][0-9]{0,40}", number) or entry(name, int(number)) != (key, value):
        return None
    return name, int(number)
