"""`python -m tests.proof.real --seeds 30`, `make prove-real`; `--seed S` replays one. The last line is the verdict.

Schedules run in a few workers beside each other, each with a control plane of its own. What the processes of one that failed
said is kept in a folder that is named.
"""

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple

import msgspec
from devcluster import ControlPlane

from tests.cluster.operator_world import install
from tests.proof.ending import verdict
from tests.proof.real.schedule import Schedule, Tally
from tests.proof.truth import Violation

_MODULE = "tests.proof.real"


class Played(msgspec.Struct, frozen=True):
    """What became of one seed."""

    seed: int
    folder: str
    took_s: float
    tally: Tally
    story: str
    false: str = ""
    """What does not hold."""
    broke: str = ""
    """Why it could not be played to its end, which is nobody's money."""


class _Given(NamedTuple):
    folder: Path
    privileged: bool
    broken: str
    keep: bool


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}", description=__doc__)
    parser.add_argument("--seeds", type=int, default=30, help="how many schedules, from --first on")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--seed", type=int, help="replay this one, and say what happened in it")
    parser.add_argument("--jobs", type=int, default=3, help="how many at a time")
    parser.add_argument("--go-on", action="store_true", help="after a failure too; tells of all")
    parser.add_argument("--keep", type=Path, help="a folder for all that was said, also in schedules that pass")
    parser.add_argument("--broken", choices=("no witness",), default="", help="something that must be found out")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    privileged = os.geteuid() == 0 and all(map(shutil.which, ("ip", "nsenter", "unshare", "mount")))
    folder = options.keep or Path(tempfile.mkdtemp(prefix="prove-real-"))
    folder.mkdir(parents=True, exist_ok=True)
    given = _Given(folder.absolute(), privileged, options.broken, options.keep is not None)
    if options.worker is not None:
        return _work(given)
    seeds = (
        range(options.first, options.first + options.seeds) if options.seed is None else range(options.seed, options.seed + 1)
    )
    if not privileged:
        print("not root, or without iproute2 and util-linux: no full disks, no other boots, no network of a proxy's own")
    try:
        return _run(seeds, min(options.jobs, len(seeds)), given, go_on=options.go_on, tell=options.seed is not None)
    finally:
        if options.keep is None and not any(folder.iterdir()):
            folder.rmdir()


# A worker -------------------------------------------------------------------------------------------------------------


def _work(given: _Given) -> int:
    """Seeds come in by line, results go out."""
    with ControlPlane() as cluster:
        install(cluster)
        for line in sys.stdin:
            print(msgspec.json.encode(_one(cluster, int(line), given)).decode(), flush=True)
    return 0


def _one(cluster: ControlPlane, seed: int, given: _Given) -> Played:
    """What could not be played to its end is played once more: a machine that was busy is no news, a second time is."""
    played = _play_once(cluster, seed, given, "")
    if not played.broke:
        return played
    again = _play_once(cluster, seed, given, "-again")
    again.tally.note(f"played again, after {played.broke}")
    return again


def _play_once(cluster: ControlPlane, seed: int, given: _Given, suffix: str) -> Played:
    folder = given.folder / f"seed-{seed}{suffix}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    began_s = time.monotonic()
    schedule = Schedule(seed, cluster, folder, privileged=given.privileged, broken=given.broken)
    false = broke = ""
    try:
        asyncio.run(schedule.run())
    except Violation as violation:
        false = str(violation)
    except Exception as error:  # noqa: BLE001 (whatever it is, the seed is told)
        broke = f"{type(error).__name__}: {error}"
        (folder / "traceback").write_text(traceback.format_exc())
    return Played(seed, str(folder), time.monotonic() - began_s, schedule.tally, str(schedule), false, broke)


# The whole --------------------------------------------------------------------------------------------------------------


def _run(seeds: range, jobs: int, given: _Given, *, go_on: bool, tell: bool) -> int:
    began_s = time.monotonic()
    passed: list[Played] = []
    bad: Played | None = None
    for played in _play(seeds, jobs, given):
        print(f"{time.monotonic() - began_s:5.0f} s  {_line(played)}", flush=True)
        if tell:
            print(played.story)
            for what, count in sorted(played.tally.notes.items()):
                print(f"{count:6} {what}")
        if not (played.false or played.broke):
            passed.append(played)
            if not given.keep:
                shutil.rmtree(played.folder)
            continue
        bad = bad or played
        if not go_on:
            break
    if bad is not None:
        return _failed(bad, given)
    return verdict([each.tally for each in passed], f"{sum(each.tally.requests for each in passed)} requests")


def _play(seeds: range, jobs: int, given: _Given) -> Iterator[Played]:
    """As they come."""
    left, done = SimpleQueue[int](), SimpleQueue[Played | str]()
    for seed in seeds:
        left.put(seed)
    workers = [_start_worker(number, given) for number in range(jobs)]
    threads = [threading.Thread(target=_feed, args=(worker, left, done), daemon=True) for worker in workers]
    try:
        for thread in threads:
            thread.start()
        for _ in seeds:
            played = done.get()
            if isinstance(played, str):
                raise SystemExit(played)
            yield played
    finally:
        while True:
            try:
                left.get_nowait()
            except Empty:
                break
        for worker in workers:
            worker.terminate()
            worker.wait()


def _start_worker(number: int, given: _Given) -> "subprocess.Popen[str]":
    command = ["setpriv", "--pdeathsig", "KILL"]
    if given.privileged:
        command += ["unshare", "--mount", "--propagation", "private"]
    command += [sys.executable, "-m", _MODULE, "--worker", str(number), "--keep", str(given.folder)]
    command += ["--broken", given.broken] if given.broken else []
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _feed(worker: "subprocess.Popen[str]", left: "SimpleQueue[int]", done: "SimpleQueue[Played | str]") -> None:
    assert worker.stdin is not None
    assert worker.stdout is not None
    while True:
        try:
            seed = left.get_nowait()
        except Empty:
            worker.stdin.close()
            return
        worker.stdin.write(f"{seed}\n")
        worker.stdin.flush()
        line = worker.stdout.readline()
        if not line:
            done.put(f"the worker that played seed {seed} ended with {worker.wait()}")
            return
        done.put(msgspec.json.decode(line, type=Played))


def _line(played: Played) -> str:
    tally = played.tally
    what = played.false or played.broke or "ok"
    return (
        f"seed {played.seed} in {played.took_s:.0f} s: {tally.requests} requests, {tally.bill_nusd} nUSD billed, "
        f"{tally.refusals} refusals ({tally.judged} judged), {tally.estimated_nusd} estimated, "
        f"{tally.unreconciled_nusd} unreconciled: {what}"
    )


def _failed(played: Played, given: _Given) -> int:
    options = f" --broken '{given.broken}'" if given.broken else ""
    options += " (as root)" if given.privileged else " (as now, not as root)"  # a seed has other faults there
    why = played.false or f"could not be played: {played.broke}"
    print(played.story)
    print(f"what its processes said is in {played.folder}")
    print(f"FAILED seed {played.seed}: {why}; replay: python -m {_MODULE} --seed {played.seed}{options}", flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
