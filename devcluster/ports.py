"""Ports that stay ours while a cluster lives, also while its API server is down.

Not from the range that the kernel gives to outgoing connections: a client that tries again and again to reach a stopped API
server on such a port is some day given that very port to connect from, and then talks to itself. Nor from the NodePorts'.
"""

import random
import socket

from devcluster.errors import StartError

_FIRST, _LAST = 20_000, 29_999


def claim(name: str) -> socket.socket | None:
    """A name of this machine for as long as somebody has the socket open; None if it is taken. It leaves no file behind."""
    held = socket.socket(socket.AF_UNIX)
    try:
        held.bind(f"\0stepdown-devcluster/{name}")
    except OSError:
        held.close()
        return None
    return held


def reserve(address: str) -> tuple[int, socket.socket]:
    """A port that nobody listens on and no other cluster has, and what keeps it so while it is open."""
    for port in random.sample(range(_FIRST, _LAST + 1), 200):
        held = claim(f"port/{port}")
        if held is None:
            continue
        try:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address, port))
        except OSError:
            held.close()
            continue
        return port, held
    raise StartError(f"No free port on {address} from {_FIRST} to {_LAST} in 200 tries.")
