"""What a proxy has promised survives its death; what does not check is never relied on."""

import random
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepdown.proxy import wal
from stepdown.proxy.books import ESTIMATED, SUCCESS, UNPRICED, Books, Reservation
from stepdown.proxy.identity import StateDir, StateDirBusy
from tests.unit.proxy_money import Hands

SMALL_SEGMENT = 64 * 1024
ME = wal.Identity(instance="me", boot_id="boot", pod_uid="pod")


class Writer:
    """Books and log in step, as the till keeps them: log first."""

    def __init__(self, path: Path, segment_bytes: int = SMALL_SEGMENT) -> None:
        self.books = Books()
        self.hands = Hands()
        self.log = wal.Log(path / "log", ME, self.books, lambda: self.hands.boot_s, segment_bytes=segment_bytes)
        self.lines = [
            self.books.line("ns/r", "model-a", "default", 20_000, ["ns/b@0"]),
            self.books.line("ns/r", "model-b", "critical", 20_000, ["ns/b@0", "ns/c@0"]),
            self.books.line("ns/ü", "model-a", "background", 20_001, []),
        ]

    def grant(self, account: str, nusd: int) -> None:
        self.log.grant(account, nusd)
        self.books.lease(account).grant(nusd)

    def give_back(self, account: str, nusd: int) -> None:
        self.log.give_back(account, nusd)
        self.books.lease(account).give_back(nusd)

    def reserve(self, line: int, nusd: int) -> int:
        reservation = Reservation(self.books.next_hold, self.lines[line], nusd)
        self.log.reserve(reservation.id, reservation.line, nusd)
        self.books.reserve(reservation)
        return reservation.id

    def settle(self, hold: int, cost_nusd: int, flags: int = SUCCESS) -> None:
        self.log.settle(hold, cost_nusd, 1, 2, 3, flags)
        self.books.settle(self.books.open[hold], cost_nusd, 1, 2, 3, flags)

    def release(self, hold: int, *, attempted: bool) -> None:
        self.log.release(hold, attempted=attempted)
        self.books.release(self.books.open[hold], attempted=attempted)


def same(one: Books, other: Books) -> bool:
    """Counters that have never counted are not worth a record."""

    def visible(books: Books) -> object:
        state = books.state()
        counted = {(each.route, each.model, each.request_class, each.day): each for each in state.counters if each.requests}
        leases = {each.account: each for each in state.leases if each.granted or each.consumed or each.returned}
        return state.next_hold, counted, leases, {each.id: each for each in state.open}

    return visible(one) == visible(other)


STEPS = st.lists(
    st.tuples(st.sampled_from(["grant", "return", "reserve", "settle", "release"]), st.integers(0, 2), st.integers(0, 10**14)),
    max_size=60,
)


def play(writer: Writer, steps: list[tuple[str, int, int]]) -> None:
    for what, which, nusd in steps:
        account = ("ns/b@0", "ns/c@0", "ns/ü@5")[which]
        oldest = next(iter(writer.books.open), None)
        if what == "grant":
            writer.grant(account, nusd)
        elif what == "return":
            writer.give_back(account, nusd)
        elif what == "reserve":
            writer.reserve(which, nusd)
        elif what == "settle" and oldest is not None:
            writer.settle(oldest, nusd, (SUCCESS, ESTIMATED, SUCCESS | UNPRICED)[which])
        elif what == "release" and oldest is not None:
            writer.release(oldest, attempted=bool(which))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_the_books_after_a_crash_are_the_books_before_it(tmp_path: Path, steps: list[tuple[str, int, int]]) -> None:
    """A restart would forget money spent, or charge it twice."""
    writer = Writer(tmp_path)
    play(writer, steps)
    assert same(wal.read(tmp_path / "log", ME), writer.books)


def test_a_full_segment_is_replaced_and_the_disk_use_stays_bounded(tmp_path: Path) -> None:
    """A busy proxy would fill its volume within the hour."""
    writer = Writer(tmp_path)
    writer.grant("ns/b@0", 10**12)
    kept = writer.reserve(1, 77)
    for _ in range(5_000):
        writer.settle(writer.reserve(0, 10), 7)
    assert writer.log.segment > 5
    assert [each.name for each in tmp_path.iterdir()] == ["log"]
    assert (tmp_path / "log").stat().st_size == SMALL_SEGMENT
    restored = wal.read(tmp_path / "log", ME)
    assert same(restored, writer.books)
    assert restored.open[kept].amount_nusd == 77
    assert [lease.account for lease in restored.open[kept].line.leases] == ["ns/b@0", "ns/c@0"]


def test_a_segment_grows_with_what_must_be_remembered(tmp_path: Path) -> None:
    """Thousands of streams in flight would not fit their own snapshot."""
    writer = Writer(tmp_path)
    for _ in range(3_000):
        writer.reserve(0, 1)
    assert (tmp_path / "log").stat().st_size > SMALL_SEGMENT
    for hold in list(writer.books.open):
        writer.settle(hold, 1)
    assert same(wal.read(tmp_path / "log", ME), writer.books)


def written(path: Path) -> tuple[bytes, list[int]]:
    """A log with a record of every kind, and where its records begin; the last entry is the end."""
    writer = Writer(path)
    writer.grant("ns/b@0", 1_000)
    first = writer.reserve(0, 100)
    second = writer.reserve(1, 200)
    writer.settle(first, 60)
    writer.give_back("ns/b@0", 50)
    writer.release(second, attempted=True)
    writer.reserve(2, 0x0102_0304_0506_0708)  # no byte of it is 0, so that a torn one differs
    data = (path / "log").read_bytes()
    starts, at = [], 0
    while (length := struct.unpack_from("<I", data, at + 4)[0]) or data[at : at + 4] != b"\0\0\0\0":
        starts.append(at)
        at += 17 + length
    return data, [*starts, at]


def put(path: Path, data: bytes) -> Books | None:
    """Those bytes in the same file (the same inode); the books, or None: the log is lost."""
    with (path / "log").open("r+b") as file:
        file.truncate(len(data))
        file.write(data)
    try:
        return wal.read(path / "log", ME)
    except wal.LogLost:
        return None


def test_a_log_cut_at_any_byte_is_lost(tmp_path: Path) -> None:
    """A record that is missing without a trace would be money spent without a trace."""
    data, starts = written(tmp_path)
    for end in {*range(starts[-1] + 40), len(data) - 1}:
        assert put(tmp_path, data[:end]) is None, end
    assert put(tmp_path, data) is not None


def test_a_final_record_torn_at_any_byte_is_cut_off(tmp_path: Path) -> None:
    """A proxy killed while it writes would lose its lease for no reason."""
    data, starts = written(tmp_path)
    begin, end = starts[-2], starts[-1]
    assert len(put(tmp_path, data).open) == 1
    for torn in range(begin, end):
        books = put(tmp_path, data[:torn] + bytes(len(data) - torn))
        assert books is not None, torn
        assert not books.open
        # In any order of its bytes: a copy is not made from left to right everywhere.
        books = put(tmp_path, data[:begin] + bytes(torn - begin) + data[torn:])
        assert books is not None
        assert len(books.open) == (1 if torn == begin else 0)


def test_a_byte_flipped_anywhere_before_the_final_record_loses_the_log(tmp_path: Path) -> None:
    """A damaged log would be taken for a shorter one: spent money would be leased again."""
    data, starts = written(tmp_path)
    for at in range(starts[-2]):
        for bit in (1, 128):
            flipped = bytearray(data)
            flipped[at] ^= bit
            assert put(tmp_path, bytes(flipped)) is None, at
    assert put(tmp_path, data) is not None


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False), st.integers(1, 400))
def test_rubbish_in_the_middle_is_never_replayed(tmp_path: Path, rng: random.Random, length: int) -> None:
    """Whatever a broken disk returns, the books are those of a prefix or none at all."""
    data, starts = written(tmp_path)
    at = rng.randrange(0, starts[-2])
    books = put(tmp_path, data[:at] + rng.randbytes(length) + data[at + length :])
    if books is not None:
        assert at + length >= starts[-2], "a record before the last was damaged, and the log was resumed all the same"


def test_a_copied_log_is_not_resumed(tmp_path: Path) -> None:
    """Two proxies from one cloned volume would spend the same lease twice."""
    written(tmp_path)
    clone = tmp_path / "clone"
    clone.mkdir()
    shutil.copy2(tmp_path / "log", clone / "log")
    with pytest.raises(wal.LogLost, match="copy"):
        wal.read(clone / "log", ME)


@pytest.mark.parametrize(
    ("who", "why"),
    [
        (wal.Identity(instance="", boot_id="other", pod_uid="pod"), "another boot"),
        (wal.Identity(instance="", boot_id="", pod_uid="pod"), "another boot"),
        (wal.Identity(instance="", boot_id="boot", pod_uid="other"), "pod 'pod', this is 'other'"),
    ],
)
def test_a_log_of_another_life_is_not_resumed(tmp_path: Path, who: wal.Identity, why: str) -> None:
    """After a power failure the last records may be missing; in another pod the first may still be running."""
    written(tmp_path)
    with pytest.raises(wal.LogLost, match=why):
        wal.read(tmp_path / "log", who)


def test_a_snapshot_that_was_not_begun_is_no_log(tmp_path: Path) -> None:
    """An empty or foreign file must not become an instance with empty books."""
    for content in (b"", bytes(100), b"not a log at all", bytes(SMALL_SEGMENT)):
        (tmp_path / "log").write_bytes(content)
        with pytest.raises(wal.LogLost):
            wal.read(tmp_path / "log", ME)


# The state directory ----------------------------------------------------------------------------------------------------------


def state_dir(path: Path, **more: str) -> StateDir:
    return StateDir(path, Hands().clock(), boot=more.pop("boot", "boot"), **more)


def spend(state: StateDir, nusd: int) -> int:
    line = state.books.line("ns/r", "m", "default", 20_000, ["ns/b@0"])
    reservation = Reservation(state.books.next_hold, line, nusd)
    state.log.reserve(reservation.id, line, nusd)
    state.books.reserve(reservation)
    return reservation.id


def test_a_killed_proxy_goes_on_under_its_name_and_what_was_in_flight_is_charged(tmp_path: Path) -> None:
    """The upstream may have answered: an uncharged reservation would be money spent and leased again."""
    first = state_dir(tmp_path)
    spend(first, 100)
    first.close(finished=False)
    second = state_dir(tmp_path)
    assert second.resumed
    assert second.instance == first.instance
    assert second.charged_on_resume == 1
    lease = second.books.lease("ns/b@0")
    assert (lease.consumed, lease.estimated, lease.reserved) == (100, 100, 0)
    (counter,) = second.books.counters.reports()
    assert (counter.requests, counter.successes, counter.cost_nusd, counter.estimated_nusd) == (1, 0, 100, 100)
    second.close(finished=False)
    third = state_dir(tmp_path)
    assert third.charged_on_resume == 0
    assert third.books.lease("ns/b@0").consumed == 100


def test_a_proxy_that_was_closed_takes_a_new_name(tmp_path: Path) -> None:
    """The keeper has closed the old one: everything it would say is fenced."""
    first = state_dir(tmp_path)
    spend(first, 100)
    first.close(finished=True)
    second = state_dir(tmp_path)
    assert not second.resumed
    assert second.instance != first.instance
    assert not second.books.leases
    assert second.lost_because == ""


@pytest.mark.parametrize("more", [{"boot": "other"}, {"pod_uid": "other"}, {"boot": ""}])
def test_another_life_takes_a_new_name_and_keeps_the_old_log(tmp_path: Path, more: dict[str, str]) -> None:
    """Nothing of a lost log may be used; the administrator who settles it needs to read it."""
    first = state_dir(tmp_path)
    spend(first, 100)
    first.close(finished=False)
    second = state_dir(tmp_path, **more)
    assert second.instance != first.instance
    assert not second.books.leases
    assert str(tmp_path) in second.lost_because
    assert (tmp_path / "log.lost").exists()


def test_one_directory_has_one_proxy(tmp_path: Path) -> None:
    """Two processes would spend one lease twice."""
    first = state_dir(tmp_path)
    with pytest.raises(StateDirBusy, match="state directory of its own"):
        state_dir(tmp_path)
    first.close(finished=False)
    state_dir(tmp_path).close(finished=False)


def test_a_fenced_instance_is_followed_by_another_with_what_is_unsaid(tmp_path: Path) -> None:
    """What the keeper has not heard of the old one would be lost from the bill."""
    state = state_dir(tmp_path)
    old = state.instance
    lease = state.books.lease("ns/b@0")
    lease.grant(1_000)
    lease.acked = lease.report()
    said = spend(state, 100)
    open_ = spend(state, 30)
    state.log.settle(said, 80, 1, 1, 1, SUCCESS)
    state.books.settle(state.books.open[said], 80, 1, 1, 1, SUCCESS)
    books = state.renew()
    assert state.instance != old
    heir = books.lease("ns/b@0")
    assert (heir.granted, heir.consumed, heir.reserved, heir.free) == (0, 80, 30, -110)
    assert [each.cost_nusd for each in books.counters.reports()] == [80]
    assert list(books.open) == [open_]
    state.close(finished=False)
    resumed = state_dir(tmp_path)
    assert resumed.books.lease("ns/b@0").consumed == 110


# Another process --------------------------------------------------------------------------------------------------------------

KILLED = """
import sys
from pathlib import Path
from stepdown.proxy.books import SUCCESS, Reservation
from stepdown.proxy.clock import Clock
from stepdown.proxy.identity import StateDir
state = StateDir(Path(sys.argv[1]), Clock(), boot="boot")
line = state.books.line("ns/r", "m", "default", 20_000, ["ns/b@0"])
while True:
    hold = Reservation(state.books.next_hold, line, 3)
    state.log.reserve(hold.id, line, 3)
    state.books.reserve(hold)
    print("r", hold.id, flush=True)
    if hold.id % 3:
        state.log.settle(hold.id, 2, 1, 0, 1, SUCCESS)
        state.books.settle(hold, 2, 1, 0, 1, SUCCESS)
        print("s", hold.id, flush=True)
"""


def child(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True)


def test_kill_nine_loses_nothing_that_was_said(tmp_path: Path) -> None:
    """Whatever was forwarded before the kill must be in the books after it."""
    process = child(KILLED, str(tmp_path))
    assert process.stdout is not None
    for _ in range(4_000):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read()
    process.wait()
    process.stdout.close()
    last = [line.split() for line in rest.splitlines() if len(line.split()) == 2][-1:]
    state = state_dir(tmp_path)
    assert state.resumed
    if last:
        assert state.books.next_hold > int(last[0][1])
    reserved = state.books.next_hold - 1
    (counter,) = state.books.counters.reports()
    assert counter.requests == reserved
    settled = counter.successes
    # Every third one was left open; the one in progress may be on either side of the kill.
    assert settled in (reserved - reserved // 3, reserved - reserved // 3 - 1)
    assert counter.cost_nusd == settled * 2 + (reserved - settled) * 3
    assert counter.estimated_nusd == (reserved - settled) * 3


FULL = """
import resource, signal, sys
from pathlib import Path
from stepdown.proxy import wal
from stepdown.proxy.books import SUCCESS, Books, Reservation
books, now = Books(), [0.0]
identity = wal.Identity(instance="me", boot_id="boot", pod_uid="pod")
log = wal.Log(Path(sys.argv[1]), identity, books, lambda: now[0], segment_bytes=65536)
line = books.line("ns/r", "m", "default", 20_000, ["ns/b@0"])
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
done = 0
try:
    while True:
        hold = Reservation(books.next_hold, line, 3)
        log.reserve(hold.id, line, 3)
        books.reserve(hold)
        done += 1
except wal.LogUnavailable as error:
    print("refused", "too large" in str(error))
log.grant("ns/b@0", 5)
books.lease("ns/b@0").grant(5)
for hold in list(books.open.values()):
    log.settle(hold.id, 2, 1, 0, 1, SUCCESS)
    books.settle(hold, 2, 1, 0, 1, SUCCESS)
print("settled", done == books.lease("ns/b@0").consumed // 2)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
try:
    log.reserve(books.next_hold, line, 3)
except wal.LogUnavailable:
    print("too soon to try again")
now[0] += 1
hold = Reservation(books.next_hold, line, 4)
log.reserve(hold.id, line, 4)
books.reserve(hold)
again = wal.read(Path(sys.argv[1]), identity)
print("works again", again.state() == books.state(), log.errors)
"""


def test_a_full_disk_refuses_new_requests_and_settles_the_old(tmp_path: Path) -> None:
    """A settlement that finds no room would leave its request charged at its worst case, or not at all."""
    process = child(FULL, str(tmp_path / "log"))
    output, _ = process.communicate(timeout=60)
    assert output.splitlines() == ["refused True", "settled True", "too soon to try again", "works again True 1"]
    assert [each.name for each in tmp_path.iterdir()] == ["log"]


def test_a_log_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    """Route names and spend are nobody else's business on a shared machine."""
    state = state_dir(tmp_path / "state")
    assert {oct(each.stat().st_mode & 0o777) for each in (tmp_path / "state").iterdir()} == {"0o600"}
    assert oct((tmp_path / "state").stat().st_mode & 0o777) == "0o700"
    state.close(finished=False)
