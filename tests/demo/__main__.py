"""`make demo`: the story on this machine. A simulated upstream and `stepdown run` as real processes; the last line compares the
ledger with the upstream's own bill and with the ceiling.
"""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import openai

from stepdown.ledger import Ledger
from stepdown.local.documents import Folder
from stepdown.local.world import Gatherer
from stepdown.sync.view import month_days
from tests.demo import story
from tests.demo.page import fact, title
from tests.demo.story import Story, month_table
from tests.e2e.process import RunProcess
from tests.upstream import SimulatorProcess

SAMPLES = Path("manifests") / "samples"
PLACE = Path(".demo")
BUDGET = "stepdown-demo/demo"


def main() -> int:
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir()
    ledger = PLACE / "ledger.db"
    with SimulatorProcess(*story.UPSTREAM) as upstream:
        with RunProcess(SAMPLES, ledger, upstream=upstream.url) as run:
            title("Stepdown: one month's policy in a minute")
            fact("upstream", f"a simulator of https://global-apis.com/v1 at {upstream.url}, with a bill of its own")
            fact("proxy", f"stepdown run -f {SAMPLES}/  at {run.url}")
            fact("budget", f"{BUDGET}: ${ceiling_usd()} this month, for the routes classify, analyze and router")
            Story(Machine(upstream, run, ledger)).tell()
        if run.process.returncode:
            print("\n".join(run.raw))
            print(f"FAILED stepdown run ended with {run.process.returncode}")
            return 1
        bill = upstream.final_bill()["total_nusd"]
    return verdict(ledger, bill)


class Machine:
    """This machine as the story's stage: one process, its log, its ledger file."""

    def __init__(self, upstream: SimulatorProcess, run: RunProcess, ledger: Path) -> None:
        self.upstream, self._run, self._ledger = upstream, run, ledger
        self.client = openai.OpenAI(base_url=run.url, api_key="unused", max_retries=0, timeout=60)

    def spent(self) -> tuple[int, int]:
        """Read beside the process that writes it."""
        opened = Ledger.open(self._ledger, create=False, read_only=True)
        try:
            now = datetime.now(UTC).timestamp()  # noqa: TID251 (a program for people, on today's date)
            return next(
                (each.spent_nusd, each.limit_nusd)
                for each in opened.balances(now).values()
                if each.budget == BUDGET and each.start_s <= now < each.end_s
            )
        finally:
            opened.close()

    def show(self) -> None:
        """The rows say it all."""

    def told(self) -> Iterator[str]:
        self._run.wait_for("SteppedDown", lambda line: "maxTier UltraBudget" in line["msg"])
        for line in self._run.log:
            if line.get("event") in ("StepReached", "SteppedDown", "Exhausted"):
                yield line["msg"]


def verdict(ledger: Path, bill_nusd: int) -> int:
    """The table, what to type next, and the line that counts."""
    opened = Ledger.open(ledger, create=False, read_only=True)
    try:
        now = datetime.now(UTC).timestamp()  # noqa: TID251 (as above)
        rows = opened.counters(*month_days(now))
        differences = opened.verify()
        (balance,) = (each for each in opened.balances(now).values() if each.budget == BUDGET and each.start_s <= now)
    finally:
        opened.close()
    month_table(rows)
    title("On the real upstream, with your own key")
    print("  export UPSTREAM_API_KEY=…")
    print(f"  {stepdown_command()} run -f {SAMPLES}/\n")
    counted = sum(each.cost_nusd for each in rows)
    if counted != balance.spent_nusd:
        differences.append(f"the counters sum up to {counted} nUSD")
    return story.verdict(balance.spent_nusd, bill_nusd, balance.limit_nusd, differences)


def ceiling_usd() -> str:
    (budget,) = Gatherer().gather(Folder([str(SAMPLES)]).load(0)).world.budgets
    return budget.spec.monthly_limit_usd


def stepdown_command() -> str:
    return "stepdown" if shutil.which("stepdown") else str(Path(".venv") / "bin" / "stepdown")


if __name__ == "__main__":
    raise SystemExit(main())
