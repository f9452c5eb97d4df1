"""A month's policy in a minute, as both demos tell it: routes called by name, premium, an outage, steps, and the refusal.

Real requests by the official `openai` client; where they go and how the stage shows its own state is the stage's business.
"""

import itertools
import textwrap
import time
from collections.abc import Iterable
from typing import Any, Protocol

import openai

from stepdown.model.catalog import Catalog, built_in
from stepdown.model.money import nusd_to_usd
from stepdown.model.sync import Counter
from tests.demo.page import BOLD, PLAIN, RED, WIDTH, Answer, header, row, title
from tests.upstream import SimulatorProcess

UPSTREAM = ("--output", "60", "400", "--price", "Pro/deepseek-ai/DeepSeek-R1=0.55,2.50")
"""How the simulator answers; its price for R1 is the example's (manifests/samples/example-prices.yaml)."""
MOST_REQUESTS = 300
DOCUMENT = (
    "Incident review. The probe of the checkout service asked port 8080 while the new image listened on 9090; the rollout"
    " stalled at one of six pods, and retries of the web tier tripled the load on the old ones. "
)


class Stage(Protocol):
    """Where the story is told."""

    client: openai.OpenAI
    upstream: SimulatorProcess

    def spent(self) -> tuple[int, int]:
        """What the budget has spent, and its limit, in nUSD, as far as the stage can see now."""

    def show(self) -> None:
        """What a person would look at after an act; nothing where there is nothing to look at."""

    def told(self) -> Iterable[str]:
        """What Stepdown said of the budget, once it has said that the last step is in force."""


class Story:
    """The acts, in order."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.client, self.upstream = stage, stage.client, stage.upstream

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
        self.stage.show()
        title("4  The month's money runs out: router:critical steps down tier by tier, and is at last refused")
        self.run_out()
        self.said()
        self.stage.show()
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
        first, last = 1, None
        for number in itertools.count(1):
            try:
                answer = self.ask("router:critical", f"Report {number}. Find the cause: " + DOCUMENT * 40, 400)
            except openai.RateLimitError as error:
                if last is not None:
                    self.handed_over(first, number - 1, last)
                self.refused(number, error)
                return
            now = (answer.model, answer.tier, answer.reason)
            if last is not None and now != last:
                self.handed_over(first, number - 1, last)
                first = number
            last = now
            if number >= MOST_REQUESTS:
                raise SystemExit(f"FAILED {number} requests and no refusal")
            time.sleep(0.15)  # so that a person, and the step in force, can follow

    def handed_over(self, first: int, last: int, served: tuple[str, str, str]) -> None:
        spent_nusd, limit_nusd = self.stage.spent()
        model, tier, reason = served
        numbers = f"{first}–{last}" if last > first else str(first)
        share = f"{1000 * spent_nusd // limit_nusd / 10} %"
        print(f"  {numbers:<12}{model:<22}{tier:<13}{reason:<16}{'$' + nusd_to_usd(spent_nusd, digits=6):>11}{share:>9}")

    def refused(self, number: int, refusal: openai.APIStatusError) -> None:
        body: Any = refusal.body
        print(f"  {number:<12}{RED}refused: HTTP {refusal.status_code}, code {body['code']}{PLAIN}\n")
        print(textwrap.fill(str(body["message"]), WIDTH - 4, initial_indent="    ", subsequent_indent="    "))

    def said(self) -> None:
        print("\n  Meanwhile Stepdown said:")
        for message in self.stage.told():
            print(textwrap.fill(message, WIDTH - 4, initial_indent="    ", subsequent_indent="      "))

    def last_answers(self) -> None:
        header()
        for route, content in (("classify", "Spam or not: cheap watches"), ("analyze", "Summarise: all is well.")):
            row(route, self.ask(route, content, 20))


def month_table(counters: Iterable[Counter]) -> None:
    """The month by route, class, model and tier."""
    title("The month by route, model and tier")
    print(f"  {BOLD}{'ROUTE':<12}{'CLASS':<12}{'MODEL':<20}{'TIER':<13}{'REQUESTS':>8}{'TOKENS':>11}{'COST':>13}{PLAIN}")
    tiers = {model.name: model.tier for model in Catalog.of([built_in()], 0.0).models}
    for each in sorted(counters, key=lambda each: (each.route, each.request_class, -each.cost_nusd)):
        tokens = each.input_tokens + each.cached_input_tokens + each.output_tokens
        print(
            f"  {each.route.partition('/')[2]:<12}{each.request_class:<12}{each.model:<20}{tiers.get(each.model, '?'):<13}"
            f"{each.requests:>8,}{tokens:>11,}{'$' + nusd_to_usd(each.cost_nusd):>13}"
        )


def verdict(spent_nusd: int, bill_nusd: int, limit_nusd: int, differences: Iterable[str] = ()) -> int:
    """The line that counts, last; the exit code."""
    differences = list(differences)
    for difference in differences:
        print(f"  {difference}")
    well = spent_nusd == bill_nusd and spent_nusd <= limit_nusd and not differences
    figures = f"ledger {spent_nusd} nUSD = bill {bill_nusd} nUSD <= ceiling {limit_nusd} nUSD"
    print(f"{'OK' if well else 'FAILED'} {figures}", flush=True)
    return 0 if well else 1
