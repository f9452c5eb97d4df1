"""`make demo`: a month's policy in a minute. A simulated upstream and `stepdown run` as real processes, real requests by the
official `openai` client: a route steps down tier by tier and then refuses, an outage is served by the fallback, a critical
request by premium. The last line compares the ledger with the upstream's own bill and with the ceiling.
"""

import itertools
import shutil
import sys
import textwrap
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openai

from stepdown.ledger import Ledger
from stepdown.local.documents import Folder
from stepdown.local.world import Gatherer
from stepdown.model.money import nusd_to_usd
from stepdown.sync.view import month_days
from tests.e2e.process import RunProcess
from tests.upstream import SimulatorProcess

SAMPLES = Path("manifests") / "samples"
PLACE = Path(".demo")
BUDGET = "stepdown-demo/demo"
WIDTH = 96
MOST_REQUESTS = 300
DOCUMENT = (
    "Incident review. The probe of the checkout service asked port 8080 while the new image listened on 9090; the rollout"
    " stalled at one of six pods, and retries of the web tier tripled the load on the old ones. "
)
BOLD, RED, PLAIN = ("\033[1m", "\033[31m", "\033[0m") if sys.stdout.isatty() else ("", "", "")


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request got."""

    model: str
    tier: str
    reason: str
    note: str
    """What it cost; or, of a stream, whose head is sent before that is known, in how many chunks it came."""


def main() -> int:
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir()
    ledger = PLACE / "ledger.db"
    with SimulatorProcess("--output", "60", "400", "--price", "Pro/deepseek-ai/DeepSeek-R1=0.55,2.50") as upstream:
        with RunProcess(SAMPLES, ledger, upstream=upstream.url) as run:
            title("Stepdown: one month's policy in a minute")
            fact("upstream", f"a simulator of https://global-apis.com/v1 at {upstream.url}, with a bill of its own")
            fact("proxy", f"stepdown run -f {SAMPLES}/  at {run.url}")
            fact("budget", f"{BUDGET}: ${ceiling_usd()} this month, for the routes classify, analyze and router")
            client = openai.OpenAI(base_url=run.url, api_key="unused", max_retries=0, timeout=60)
            Story(client, upstream, run, ledger).tell()
        if run.process.returncode:
            print("\n".join(run.raw))
            print(f"FAILED stepdown run ended with {run.process.returncode}")
            return 1
        bill = upstream.final_bill()["total_nusd"]
    return verdict(ledger, bill)


class Story:
    """The acts, in order."""

    def __init__(self, client: openai.OpenAI, upstream: SimulatorProcess, run: RunProcess, ledger: Path) -> None:
        self.client, self.upstream, self.run, self.ledger = client, upstream, run, ledger
        self.refusal: openai.APIStatusError | None = None

    def tell(self) -> None:
        title("1  Routes are called by name, with the official openai client")
        header()
        row("classify", self.ask("classify", "Spam or not: you have won a prize"))
        row("analyze, streamed", self.stream("analyze", "Summarise: " + DOCUMENT))
        row("router", self.ask("router", "Summarise: " + DOCUMENT))
        title("2  A critical request is served by premium capacity")
        header()
        row("router:critical", self.ask("router:critical", "Find the cause: " + DOCUMENT))
        title("3  An outage of the default model is served by the fallback")
        print("  The upstream now answers 503 for DeepSeek V4 Flash.")
        header()
        self.upstream.fault("status", model="deepseek-ai/DeepSeek-V4-Flash", status=503)
        row("router", self.ask("router", "Summarise: " + DOCUMENT))
        row("router, streamed", self.stream("router", "Summarise again: " + DOCUMENT))
        self.upstream.clear_faults()
        title("4  The month's money runs out: router:critical steps down tier by tier, and is at last refused")
        self.run_out()
        self.said()
        title("5  What is small enough still gets an answer, by what the step at 95 % leaves visible")
        self.last_answers()

    def ask(self, route: str, content: str, max_tokens: int = 400) -> Answer:
        raw = self.client.chat.completions.with_raw_response.create(
            model=route, messages=[{"role": "user", "content": content}], max_tokens=max_tokens
        )
        assert raw.parse().choices[0].message.content
        return self.answer(raw.headers, "$" + raw.headers["x-stepdown-cost-usd"])

    def stream(self, route: str, content: str) -> Answer:
        raw = self.client.chat.completions.with_raw_response.create(
            model=route, messages=[{"role": "user", "content": content}], max_tokens=400, stream=True
        )
        parts = [chunk.choices[0].delta.content for chunk in raw.parse() if chunk.choices]
        return self.answer(raw.headers, f"{len(parts)} chunks as they came")

    def answer(self, headers: Any, note: str) -> Answer:
        model, tier, reason = (headers[f"x-stepdown-{name}"] for name in ("model", "tier", "reason"))
        return Answer(model, tier, reason, note)

    def run_out(self) -> None:
        """Sends the same long question again and again; a line is printed when the answer changes hands."""
        print(f"  {BOLD}{'REQUESTS':<12}{'MODEL':<22}{'TIER':<13}{'REASON':<16}{'SPENT':>11}{'USED':>9}{PLAIN}")
        number, first, last = 0, 1, None
        for number in itertools.count(1):
            try:
                answer = self.ask("router:critical", f"Report {number}. Find the cause: " + DOCUMENT * 40, 400)
            except openai.RateLimitError as error:
                self.refusal = error
                break
            now = (answer.model, answer.tier, answer.reason)
            if last is not None and now != last:
                self.handed_over(first, number - 1, last)
                first = number
            last = now
            if number >= MOST_REQUESTS:
                raise SystemExit(f"FAILED {number} requests and no refusal")
            time.sleep(0.15)  # so that a person, and the step in force, can follow
        if last is not None:
            self.handed_over(first, number - 1, last)
        assert self.refusal is not None
        body: Any = self.refusal.body
        print(f"  {number:<12}{RED}refused: HTTP {self.refusal.status_code}, code {body['code']}{PLAIN}\n")
        print(textwrap.fill(str(body["message"]), WIDTH - 4, initial_indent="    ", subsequent_indent="    "))

    def handed_over(self, first: int, last: int, served: tuple[str, str, str]) -> None:
        spent_nusd, limit_nusd = spent(self.ledger)
        model, tier, reason = served
        numbers = f"{first}–{last}" if last > first else str(first)
        share = f"{1000 * spent_nusd // limit_nusd / 10} %"
        print(f"  {numbers:<12}{model:<22}{tier:<13}{reason:<16}{'$' + nusd_to_usd(spent_nusd, digits=6):>11}{share:>9}")

    def said(self) -> None:
        """What `stepdown run` told its log meanwhile."""
        print("\n  Meanwhile in the log of stepdown run:")
        self.run.wait_for("SteppedDown", lambda line: "maxTier UltraBudget" in line["msg"])
        for line in self.run.log:
            if line.get("event") in ("StepReached", "SteppedDown", "Exhausted"):
                print(textwrap.fill(line["msg"], WIDTH - 4, initial_indent="    ", subsequent_indent="      "))

    def last_answers(self) -> None:
        header()
        for route, content in (("classify", "Spam or not: cheap watches"), ("analyze", "Summarise: all is well.")):
            row(route, self.ask(route, content, 20))


def verdict(ledger: Path, bill_nusd: int) -> int:
    """The table, what to type next, and the line that counts."""
    opened = Ledger.open(ledger, create=False, read_only=True)
    try:
        now = datetime.now(UTC).timestamp()  # noqa: TID251 (a program for people, on today's date)
        rows = opened.counters(*month_days(now))
        differences = opened.verify()
        (balance,) = (each for each in opened.balances(now).values() if each.budget == BUDGET and each.start_s <= now)
    finally:
        opened.close()
    title("The month by route, model and tier")
    print(f"  {BOLD}{'ROUTE':<12}{'CLASS':<12}{'MODEL':<20}{'TIER':<13}{'REQUESTS':>8}{'TOKENS':>11}{'COST':>13}{PLAIN}")
    tiers = tiers_by_model()
    for each in sorted(rows, key=lambda each: (each.route, each.request_class, -each.cost_nusd)):
        tokens = each.input_tokens + each.cached_input_tokens + each.output_tokens
        print(
            f"  {each.route.partition('/')[2]:<12}{each.request_class:<12}{each.model:<20}{tiers.get(each.model, '?'):<13}"
            f"{each.requests:>8,}{tokens:>11,}{'$' + nusd_to_usd(each.cost_nusd):>13}"
        )
    title("On the real upstream, with your own key")
    print("  export UPSTREAM_API_KEY=…")
    print(f"  {stepdown_command()} run -f {SAMPLES}/\n")
    for difference in differences:
        print(f"  {difference}")
    counted = sum(each.cost_nusd for each in rows)
    spent_nusd, limit_nusd = balance.spent_nusd, balance.limit_nusd
    well = spent_nusd == bill_nusd == counted and spent_nusd <= limit_nusd and not differences
    figures = f"ledger {spent_nusd} nUSD = bill {bill_nusd} nUSD <= ceiling {limit_nusd} nUSD"
    print(f"{'OK' if well else 'FAILED'} {figures}", flush=True)
    return 0 if well else 1


def spent(ledger: Path) -> tuple[int, int]:
    """What the ledger says now, read beside the process that writes it: spent and limit, nUSD."""
    opened = Ledger.open(ledger, create=False, read_only=True)
    try:
        now = datetime.now(UTC).timestamp()  # noqa: TID251 (as above)
        return next(
            (each.spent_nusd, each.limit_nusd)
            for each in opened.balances(now).values()
            if each.budget == BUDGET and each.start_s <= now < each.end_s
        )
    finally:
        opened.close()


def ceiling_usd() -> str:
    (budget,) = Gatherer().gather(Folder([str(SAMPLES)]).load(0)).world.budgets
    return budget.spec.monthly_limit_usd


def tiers_by_model() -> dict[str, str]:
    from stepdown.model.catalog import Catalog, built_in

    return {model.name: model.tier for model in Catalog.of([built_in()], 0.0).models}


def stepdown_command() -> str:
    return "stepdown" if shutil.which("stepdown") else str(Path(".venv") / "bin" / "stepdown")


def title(text: str) -> None:
    print(f"\n{BOLD}{text}{PLAIN}\n", flush=True)


def fact(name: str, text: str) -> None:
    print(f"  {name:<10}{text}", flush=True)


def header() -> None:
    print(f"  {BOLD}{'CALLED':<20}{'ANSWERED BY':<22}{'TIER':<13}{'REASON':<13}COST{PLAIN}")


def row(called: str, answer: Answer) -> None:
    print(f"  {called:<20}{answer.model:<22}{answer.tier:<13}{answer.reason:<13}{answer.note}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
