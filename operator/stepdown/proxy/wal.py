"""The write-ahead log of one instance: what was promised survives `kill -9`. The till writes it, `identity` decides who may
resume it.

Grants are in the log before they are used, returns before they are sent, reservations before a request is forwarded, endings
before its answer ends. The log is a segment of fixed size, mapped into memory: a record is a copy into the kernel's page
cache (0.4 µs where a write() takes 1.2), so it outlives the process. It does not outlive the machine, and need not: a log of
another boot is never resumed (`identity`), so nothing here waits for a disk.

* A segment's blocks are allocated when it is made. A full disk therefore shows when a segment is made, never while one is
written; and a reservation is only taken when the room for its ending is there too. A settlement cannot fail for want of room.
* A segment begins with a snapshot. When it is full the next one is made under another name and renamed over it, so there is
always exactly one log, and it is bounded.
* A record is ``crc32 | length | sequence | kind | payload``. Behind the last one there are only zeros. A process that dies in
the middle of a record leaves one that does not check, with nothing valid behind it: that request was never forwarded, so it
is cut off. Anything else that does not check is damage, and the log is lost (`LogLost`).
"""

import mmap
import os
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from stepdown.proxy.books import Books, Line, Reservation
from stepdown.proxy.records import Definition, Identity, Snapshot, State

SEGMENT_BYTES: Final = 2 * 1024 * 1024
_SLACK: Final = 16 * 1024
"""Room kept for grants, returns and the closing mark while the disk is full."""
_RETRY_S: Final = 0.25
"""After a segment could not be made, how long until the next try: a full disk must not cost the processor too."""
_TORN_BYTES: Final = 64 * 1024
"""No record but the snapshot is longer, so neither is what a torn one leaves."""

_SNAPSHOT: Final = 1
_DEFINE: Final = 2
_GRANT: Final = 3
_RETURN: Final = 4
_RESERVE: Final = 5
_SETTLE: Final = 6
_RELEASE: Final = 7
_CLOSE: Final = 8

_CRC: Final = struct.Struct("<I")
_HEAD: Final = struct.Struct("<IQB")
_RESERVE_BODY: Final = struct.Struct("<IQBQIQ")
_SETTLE_BODY: Final = struct.Struct("<IQBQQQQQB")
_RELEASE_BODY: Final = struct.Struct("<IQBQB")
_AMOUNT: Final = struct.Struct("<Q")
_RESERVE_BYTES: Final = _CRC.size + _RESERVE_BODY.size
_SETTLE_BYTES: Final = _CRC.size + _SETTLE_BODY.size
_RELEASE_BYTES: Final = _CRC.size + _RELEASE_BODY.size
_RESERVE_PAYLOAD: Final = _RESERVE_BODY.size - _HEAD.size
_SETTLE_PAYLOAD: Final = _SETTLE_BODY.size - _HEAD.size
_RELEASE_PAYLOAD: Final = _RELEASE_BODY.size - _HEAD.size

_pack_reserve: Final = _RESERVE_BODY.pack
_pack_settle: Final = _SETTLE_BODY.pack
_crc32: Final = zlib.crc32


class LogError(Exception):
    """What can be wrong with a log."""


class LogUnavailable(LogError):
    """The record could not be written: the disk is full. Nothing has changed; a later try may succeed."""


class LogLost(LogError):
    """The log cannot be resumed; what it says is not to be relied on."""


class LogClosed(LogLost):
    """Its instance ended in good order: nothing is lost, a new one begins."""


class Log:
    """One instance's log, open for writing. Not thread-safe: one event loop owns it."""

    __slots__ = (
        "_books",
        "_boot_s",
        "_map",
        "_next_key",
        "_owed",
        "_path",
        "_pos",
        "_retry_at_s",
        "_segment_bytes",
        "_seq",
        "_size",
        "errors",
        "identity",
        "segment",
    )

    def __init__(
        self,
        path: Path,
        identity: Identity,
        books: Books,
        boot_s: Callable[[], float],
        *,
        state: State | None = None,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """Makes a log at `path`, in place of one that may be there. Raises LogUnavailable.

        `state`: what the first snapshot says, where it is not yet what `books` say.
        """
        self._path = path
        self._books = books
        self._boot_s = boot_s
        self._segment_bytes = segment_bytes
        self.identity = identity
        self.segment = 0
        self.errors = 0
        """Times that a segment could not be made."""
        self._seq = 0
        self._size = self._pos = 0
        self._owed = 0
        """Room that the endings of the requests in flight will need."""
        self._next_key = 1
        self._map: mmap.mmap | None = None
        self._retry_at_s = 0.0
        self._begin_segment(state or books.state())

    @property
    def records(self) -> int:
        """How many records this instance has written, snapshots included."""
        return self._seq

    def reserve(self, hold_id: int, line: Line, amount_nusd: int) -> None:
        """A request is about to be forwarded. Raises LogUnavailable."""
        if self._pos + self._owed + (_RESERVE_BYTES + _SETTLE_BYTES + _SLACK) > self._size:
            self._rotate()
        if line.segment != self.segment:
            self._define(line)
        pos = self._pos
        seq = self._seq + 1
        body = _pack_reserve(_RESERVE_PAYLOAD, seq, _RESERVE, hold_id, line.key_id, amount_nusd)
        self._pos = end = pos + _RESERVE_BYTES
        self._map[pos:end] = _crc32(body).to_bytes(4, "little") + body  # type: ignore[index]
        self._seq = seq
        self._owed += _SETTLE_BYTES

    def settle(self, hold_id: int, cost_nusd: int, uncached_input: int, cached_input: int, output: int, flags: int) -> None:
        """A request has ended. Never fails for want of room; raises struct.error on a number that is not one of 64 bits."""
        pos = self._pos
        seq = self._seq + 1
        body = _pack_settle(_SETTLE_PAYLOAD, seq, _SETTLE, hold_id, cost_nusd, uncached_input, cached_input, output, flags)
        self._pos = end = pos + _SETTLE_BYTES
        self._map[pos:end] = _crc32(body).to_bytes(4, "little") + body  # type: ignore[index]
        self._seq = seq
        self._owed -= _SETTLE_BYTES

    def release(self, hold_id: int, *, attempted: bool) -> None:
        """A request has ended at no cost. Never fails for want of room."""
        self._put(_RELEASE_BODY.pack(_RELEASE_PAYLOAD, self._seq + 1, _RELEASE, hold_id, attempted))
        self._owed -= _SETTLE_BYTES

    def grant(self, account: str, granted_nusd: int) -> None:
        """A cumulative grant is about to be used. Raises LogUnavailable."""
        self._append(_GRANT, _AMOUNT.pack(granted_nusd) + account.encode())

    def give_back(self, account: str, returned_nusd: int) -> None:
        """A cumulative return is about to be sent. Raises LogUnavailable."""
        self._append(_RETURN, _AMOUNT.pack(returned_nusd) + account.encode())

    def close(self, *, finished: bool) -> None:
        """Lets go of the file. `finished`: the keeper has closed this instance, the next start takes a new id."""
        if self._map is None:
            return
        if finished:
            with suppress(LogUnavailable):
                self._append(_CLOSE, b"")
        self._map.close()
        self._map = None

    def _append(self, kind: int, payload: bytes) -> None:
        room = _CRC.size + _HEAD.size + len(payload)
        if self._pos + self._owed + room + _SLACK > self._size:
            try:
                self._rotate()
            except LogUnavailable:
                if self._pos + self._owed + room > self._size:
                    raise
        self._put(_HEAD.pack(len(payload), self._seq + 1, kind) + payload)

    def _define(self, line: Line) -> None:
        count = line.count
        accounts = tuple(lease.account for lease in line.leases)
        key_id = self._next_key
        payload = msgspec.json.encode(Definition(key_id, count.route, count.model, count.request_class, count.day, accounts))
        self._append(_DEFINE, payload)
        self._next_key = key_id + 1
        line.key_id = key_id
        line.segment = self.segment

    def _put(self, body: bytes) -> None:
        pos = self._pos
        self._pos = end = pos + _CRC.size + len(body)
        self._map[pos:end] = _crc32(body).to_bytes(4, "little") + body  # type: ignore[index]
        self._seq += 1

    def _rotate(self) -> None:
        now_s = self._boot_s()
        if now_s < self._retry_at_s:
            raise LogUnavailable(f"{self._path}: no room for another segment")
        try:
            self._begin_segment(self._books.state())
        except LogUnavailable:
            self.errors += 1
            self._retry_at_s = now_s + _RETRY_S
            raise

    def _begin_segment(self, state: State) -> None:
        """Makes the next segment under another name, then puts it in the old one's place. On failure the old one stays."""
        owed = len(state.open) * _SETTLE_BYTES
        draft = self._path.with_name(self._path.name + ".new")
        try:
            fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LogUnavailable(f"{draft}: {error.strerror}") from error
        try:
            made = os.fstat(fd)
            rough = len(msgspec.json.encode(state)) + owed + _SLACK
            size = max(self._segment_bytes, -(-2 * rough // mmap.PAGESIZE) * mmap.PAGESIZE)
            _allocate(fd, size)
            mapped = mmap.mmap(fd, size)
            snapshot = Snapshot(identity=self.identity, device=made.st_dev, inode=made.st_ino, size=size, state=state)
            payload = msgspec.json.encode(snapshot)
            body = _HEAD.pack(len(payload), self._seq + 1, _SNAPSHOT) + payload
            end = _CRC.size + len(body)
            mapped[0:end] = _crc32(body).to_bytes(4, "little") + body
            draft.replace(self._path)
        except OSError as error:
            with suppress(OSError):
                draft.unlink()
            raise LogUnavailable(f"{draft}: {error.strerror}: a log segment needs its room before it is used") from error
        finally:
            os.close(fd)
        if self._map is not None:
            self._map.close()
        self._map, self._size, self._pos, self._owed = mapped, size, end, owed
        self._seq += 1
        self.segment += 1
        self._next_key = 1


def read(path: Path, identity: Identity) -> Books:
    """The books as the log left them, requests in flight included. `identity.instance` is not asked for: the log says it.

    Raises LogLost, with the reason, unless the log is whole but for a torn final record, and of this boot and pod and file.
    """
    with path.open("rb") as file:
        made = os.fstat(file.fileno())
        data = file.read()
    seq, end, kind, payload = _record(data, 0) or (0, 0, 0, b"")
    if kind != _SNAPSHOT:
        raise LogLost("it does not begin with a snapshot")
    try:
        snapshot = msgspec.json.decode(payload, type=Snapshot)
    except msgspec.MsgspecError as error:
        raise LogLost(f"its snapshot cannot be read: {error}") from error
    was = snapshot.identity
    if not identity.boot_id or was.boot_id != identity.boot_id:
        raise LogLost("it is from another boot of the machine")
    if was.pod_uid != identity.pod_uid:
        raise LogLost(f"it is of pod {was.pod_uid!r}, this is {identity.pod_uid!r}")
    if (snapshot.device, snapshot.inode) != (made.st_dev, made.st_ino):
        raise LogLost("it is a copy: its inode is not the one that it was written in")
    if snapshot.size != len(data):
        raise LogLost(f"it has {len(data)} bytes and was made with {snapshot.size}")
    return _replay(data, seq, end, Books.restored(snapshot.state))


def instance_of(path: Path) -> str:
    """The instance that the log says it is of, for messages and for resuming; empty when it cannot be read."""
    try:
        data = path.read_bytes()
        payload = (_record(data, 0) or (0, 0, 0, b""))[3]
        return msgspec.json.decode(payload, type=Snapshot).identity.instance
    except (OSError, msgspec.MsgspecError):
        return ""


def _allocate(fd: int, size: int) -> None:
    """Gives the file all its blocks now, so that writing to the mapping cannot meet a full disk."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
        return
    written = 0
    while written < size:
        written += os.write(fd, bytes(min(1 << 20, size - written)))


def _record(data: bytes, at: int) -> tuple[int, int, int, bytes] | None:
    """(sequence, end, kind, payload) of the record at that offset; None: there is no valid one."""
    start = at + _CRC.size
    payload_at = start + _HEAD.size
    if payload_at > len(data):
        return None
    length, seq, kind = _HEAD.unpack_from(data, start)
    end = payload_at + length
    if seq == 0 or end > len(data) or _CRC.unpack_from(data, at)[0] != _crc32(memoryview(data)[start:end]):
        return None
    return seq, end, kind, data[payload_at:end]


def _replay(data: bytes, seq: int, at: int, books: Books) -> Books:
    lines: dict[int, Line] = {}
    used = len(data.rstrip(b"\0"))
    while at < used:
        record = _record(data, at)
        if record is None:
            _check_torn(data, at, used)
            break
        if record[0] != seq + 1:
            raise LogLost(f"record {record[0]} follows record {seq}")
        seq, at, kind, payload = record
        try:
            _apply(kind, payload, books, lines)
        except (KeyError, struct.error, UnicodeDecodeError, msgspec.MsgspecError) as error:
            raise LogLost(f"record {seq} makes no sense: {error!r}") from error
    return books


def _check_torn(data: bytes, at: int, used: int) -> None:
    """What does not check at `at` must be the final record: short, and nothing valid behind it."""
    if used - at > _TORN_BYTES or any(_record(data, later) for later in range(at + 1, used)):
        raise LogLost(f"it is damaged at byte {at}")


def _apply(kind: int, payload: bytes, books: Books, lines: dict[int, Line]) -> None:
    if kind == _RESERVE:
        hold_id, key_id, amount_nusd = struct.unpack("<QIQ", payload)
        books.reserve(Reservation(hold_id, lines[key_id], amount_nusd))
    elif kind == _SETTLE:
        hold_id, cost_nusd, uncached, cached, output, flags = struct.unpack("<QQQQQB", payload)
        books.settle(books.open[hold_id], cost_nusd, uncached, cached, output, flags)
    elif kind == _RELEASE:
        hold_id, attempted = struct.unpack("<QB", payload)
        books.release(books.open[hold_id], attempted=bool(attempted))
    elif kind == _DEFINE:
        was = msgspec.json.decode(payload, type=Definition)
        lines[was.key_id] = books.line(was.route, was.model, was.request_class, was.day, was.accounts)
    elif kind in (_GRANT, _RETURN):
        lease = books.lease(payload[_AMOUNT.size :].decode())
        (total_nusd,) = _AMOUNT.unpack_from(payload)
        (lease.grant if kind == _GRANT else lease.give_back)(total_nusd)
    elif kind == _CLOSE:
        raise LogClosed("its instance has been closed")
    else:
        raise LogLost(f"a record of kind {kind}: it was written by another version")
