"""A fleet's config as files: `render` puts them into ConfigMaps, a proxy finds them in the volume that mounts those.

`fleet.json` and `shard-NN.json` are the canonical JSON of `model.config`, whose SHA-256 is the digest. A ConfigMap holds no
more than a mebibyte: a shard that is larger lies there compressed, as `shard-NN.json.gz`. One that is larger even so is in no
file; sync brings it all the same, but a proxy that starts while the operator is away lacks it.
"""

import gzip
import zlib

import msgspec

from stepdown.model.config import Fleet, Shard

FLEET_FILE = "fleet.json"
CA_FILE = "ca.crt"
"""The certificates that may have signed the operator's, as PEM: the proxy reads it again when it changes."""
COMPRESSED = ".gz"
MAX_BYTES = 900 * 1024
"""The most that goes into one ConfigMap, of the 1 MiB that the API server takes."""


def shard_file(index: int) -> str:
    """3 → `shard-03.json`."""
    return f"shard-{index:02}.json"


def encode(config: Fleet | Shard) -> bytes:
    """The canonical JSON: equal configs are equal bytes in every process."""
    return msgspec.json.encode(config, order="sorted")


def pack(name: str, data: bytes, max_bytes: int = MAX_BYTES) -> tuple[str, bytes] | None:
    """The file's name and content as a ConfigMap takes it: plain while that fits, so that people can read it. None: never."""
    if len(data) <= max_bytes:
        return name, data
    packed = gzip.compress(data, mtime=0)
    return (name + COMPRESSED, packed) if len(packed) <= max_bytes else None


def unpack(name: str, data: bytes) -> bytes:
    """What `pack` was given. Raises ValueError where it is not whole."""
    if not name.endswith(COMPRESSED):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{name} is not a whole gzip file: {error}") from error
