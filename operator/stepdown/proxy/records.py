"""What the log keeps as JSON: whose it is, the books as a snapshot, what a line's number stands for. `wal` and
`books` use them."""

import msgspec

from stepdown.model.config import RequestClass
from stepdown.model.sync import Counter


class LeaseState(msgspec.Struct, frozen=True, array_like=True):
    account: str
    granted: int
    returned: int
    consumed: int
    estimated: int


class OpenState(msgspec.Struct, frozen=True, array_like=True):
    id: int
    amount_nusd: int
    route: str
    model: str
    request_class: RequestClass
    day: int
    accounts: tuple[str, ...]


class State(msgspec.Struct, frozen=True):
    """The books as a snapshot in the log."""

    next_hold: int
    leases: tuple[LeaseState, ...]
    counters: tuple[Counter, ...]
    open: tuple[OpenState, ...]


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Whose log it is. Only the same pod on the same boot, in the same file, resumes it."""

    instance: str
    boot_id: str
    pod_uid: str


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The first record of a segment. A copy of the file has another inode, a cut one another size."""

    identity: Identity
    device: int
    inode: int
    size: int
    state: State


class Definition(msgspec.Struct, frozen=True, array_like=True):
    key_id: int
    route: str
    model: str
    request_class: RequestClass
    day: int
    accounts: tuple[str, ...]
