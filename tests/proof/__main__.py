"""`python -m tests.proof --seeds 1000`, `make prove`; `--seed S` replays one. The last line is the verdict."""

import argparse
import os
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from tests.proof.ending import verdict
from tests.proof.schedule import play
from tests.proof.truth import Tally


class Played(NamedTuple):
    """What became of one seed."""

    seed: int
    tally: Tally | None
    why: str
    trace: str


def one(seed: int) -> Played:
    try:
        return Played(seed, play(seed), "", "")
    except Exception as error:  # noqa: BLE001 (whatever it is, the seed is told)
        return Played(seed, None, f"{error}" or type(error).__name__, traceback.format_exc())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.proof", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many schedules, from --first on")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--seed", type=int, help="replay this one, and say what happened in it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--go-on", action="store_true", help="after a failure too; tells of all")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return _replay(options.seed)
    return _run(range(options.first, options.first + options.seeds), options.jobs, go_on=options.go_on)


def _replay(seed: int) -> int:
    played = one(seed)
    if played.tally is None:
        print(played.trace)
        return _failed(played)
    for what, count in sorted(played.tally.notes.items()):
        print(f"{count:6} {what}")
    print(played.tally)
    return _verdict([played.tally])


def _run(seeds: range, jobs: int, *, go_on: bool) -> int:
    began_s = time.monotonic()
    tallies: list[Tally] = []
    bad: Played | None = None
    with ProcessPoolExecutor(jobs) as pool:
        for played in pool.map(one, seeds, chunksize=4):
            if played.tally is not None:
                tallies.append(played.tally)
                if len(tallies) % 100 == 0:
                    print(f"{len(tallies)} schedules, {time.monotonic() - began_s:.0f} s", flush=True)
                continue
            bad = bad or played
            _failed(played)
            if not go_on:
                pool.shutdown(wait=False, cancel_futures=True)
                return 1
    return _failed(bad) if bad is not None else _verdict(tallies)


def _verdict(tallies: list[Tally]) -> int:
    return verdict(tallies, f"{sum(t.promises for t in tallies)} reservations")


def _failed(played: Played) -> int:
    print(f"FAILED seed {played.seed}: {played.why}; replay: python -m tests.proof --seed {played.seed}", flush=True)
    return 1


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # what a seed means must not depend on how this process hashes
        os.execve(sys.executable, [sys.executable, "-m", "tests.proof", *sys.argv[1:]], os.environ | {"PYTHONHASHSEED": "0"})
    sys.exit(main())
