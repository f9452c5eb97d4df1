"""Commands that ask a cluster, over real HTTP. If these fail, people read old money as new, or another team's as their own."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from click.testing import CliRunner, Result

from stepdown.budget.account import Balance
from stepdown.budget.months import month_at
from stepdown.budget.serving import Unheard
from stepdown.cli.app import kubectl_stepdown, stepdown
from stepdown.cli.completion import answer_kubectl
from stepdown.model.config import account_id
from stepdown.model.sync import Counter
from stepdown.plan.world import AcceptedSpec, RouteTotals
from stepdown.sync.clock import now_s
from stepdown.watch.views import Overview
from tests.unit.kube_api import KubeApi, kube_api

USD = 10**9
POLICY = """\
apiVersion: stepdown.dev/v1alpha1
kind: RoutingProxy
metadata: {name: default, namespace: shop}
spec:
  upstream: {channels: [{name: standard, apiKeySecretRef: {name: upstream}}]}
---
apiVersion: stepdown.dev/v1alpha1
kind: ModelRoute
metadata: {name: chat, namespace: shop}
spec: {models: {default: deepseek-v4-flash}}
---
apiVersion: stepdown.dev/v1alpha1
kind: SpendBudget
metadata: {name: team, namespace: shop}
spec: {monthlyLimitUSD: "10.00"}
---
apiVersion: stepdown.dev/v1alpha1
kind: ModelRoute
metadata: {name: search, namespace: hunt}
spec: {models: {default: qwen3-8b}}
"""


@pytest.fixture
def api() -> Iterator[KubeApi]:
    with kube_api() as made:
        made.add(POLICY)
        yield made


@pytest.fixture(autouse=True)
def at_home(api: KubeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's kubeconfig, at home in `shop`."""
    path = api.kubeconfig(tmp_path, "shop")
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.chdir(tmp_path)
    return path


def plugin(*arguments: str) -> Result:
    return CliRunner().invoke(kubectl_stepdown, arguments, prog_name="kubectl stepdown")


def said(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def balance(
    spent: int, *, reserved: int = 0, unreconciled: int = 0, budget: str = "shop/team", limit: int = 10 * USD
) -> Balance:
    month = month_at(now_s(), "UTC")
    return Balance(
        account=account_id(budget, month.start_s),
        budget=budget,
        start_s=month.start_s,
        end_s=month.end_s,
        limit_nusd=limit,
        settled_nusd=spent,
        reserved_nusd=reserved,
        unreconciled_nusd=unreconciled,
    )


def live(api: KubeApi, *balances: Balance, **others: Any) -> None:
    """An operator that knows this, as it encodes it."""
    known = Overview(
        now_s=now_s(),
        allowed_upstreams=("https://global-apis.com/v1",),
        balances={each.account: each for each in balances},
        **others,
    )
    api.views["/v1/status"] = json.loads(msgspec.json.encode(known))


def written(api: KubeApi, spent: str) -> None:
    """What the operator last wrote into the budget's status."""
    month = month_at(now_s(), "UTC")
    start, end = (datetime.fromtimestamp(each, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for each in (month.start_s, month.end_s))
    sums = {"limitUSD": "10.00", "spentUSD": spent, "reservedUSD": "0.00", "unreconciledUSD": "0.00", "remainingUSD": "1.00"}
    api.get("SpendBudget", "team")["status"] = {
        "period": {"month": month.month, "start": start, "end": end},
        "conditions": [],
        "usedPercent": "10.0",
        "summary": {"spent": "1.00", "limit": "10.00", "percent": "10", "reset": "1-Dec"},
        **sums,
    }


# status --------------------------------------------------------------------------------------------------------------------


def test_status_shows_the_money_of_this_moment_and_what_is_held_apart(api: KubeApi) -> None:
    """The status is up to ten seconds old, which is a lot of money; and what is reserved or lost is not yet spent."""
    written(api, "1.00")
    live(api, balance(6 * USD, reserved=USD, unreconciled=2 * USD), totals={"shop/chat": RouteTotals(4, 3, 10, 20, 5 * USD)})
    result = plugin("status")
    assert (result.exit_code, result.stderr) == (0, "")
    sections = {part.splitlines()[0]: part.splitlines() for part in result.stdout.split("\n\n") if part.strip()}
    assert list(sections) == ["RoutingProxy", "SpendBudget", "Money, now", "ModelRoute"]
    assert sections["Money, now"][2].split() == ["shop", "team", "6.00", "1.00", "2.00", "2.00", "10.00", "80.0"]
    assert sections["SpendBudget"][2].split()[-4:] == ["8.00", "10.00", "80", "1-Dec"], "as kubectl get has it, but new"
    assert sections["ModelRoute"][2].split() == ["shop", "chat", "5.00"]
    (budget,) = (each for each in said(plugin("status", "-o", "json"))["items"] if each["kind"] == "SpendBudget")
    money = [budget["status"][each] for each in ("spentUSD", "reservedUSD", "unreconciledUSD", "remainingUSD", "usedPercent")]
    assert money == ["6.00", "1.00", "2.00", "2.00", "80.0"]
    assert "managedFields" not in budget["metadata"] and budget["metadata"]["uid"] == "uid-3"


GARBAGE = {"balances": "many"}


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("forbidden", "have the Role stepdown-view-spend in stepdown-system bound to you"),
        (
            "away",
            "does not answer (get /api/v1/namespaces/stepdown-system/services/stepdown:http/proxy/v1/status: no endpoints",
        ),
        ("missing", "there is no operator in stepdown-system: say where it runs with --operator-namespace"),
        ("older", "is of a version that does not tell it"),
        ("newer", "answers what this version does not understand"),
    ],
)
def test_without_the_operator_the_status_is_shown_and_said_to_be_old(api: KubeApi, what: str, says: str) -> None:
    """An old figure that looks like a new one is the reason for a wrong decision; no figure at all is no help either."""
    written(api, "1.00")
    if what == "forbidden":
        api.forbidden.add(("services/proxy", ""))
    elif what == "newer":
        api.views["/v1/status"] = GARBAGE
    elif what != "older":
        api.service_error = (503, "no endpoints available") if what == "away" else (404, "not found")
    result = plugin("status")
    assert result.exit_code == 0
    (note,) = result.stderr.splitlines()
    assert note.startswith("note: ") and says in note and "up to 10 seconds old" in note
    assert "Money, as last written" in result.stdout
    row = next(line for line in result.stdout.partition("Money")[2].splitlines() if " team " in line)
    assert row.split()[2] == "1.00"
    assert said(plugin("status", "-o", "json")), "data goes to stdout, notes to stderr"


def test_a_namespace_is_the_context_s_the_one_that_is_named_or_all(api: KubeApi) -> None:
    """As with every other command of kubectl: a surprise here is a figure of another team."""
    live(api)

    def names(*arguments: str) -> set[str]:
        items = said(plugin("status", *arguments, "-o", "json"))["items"]
        return {f"{each['metadata']['namespace']}/{each['metadata']['name']}" for each in items}

    assert names() == {"shop/default", "shop/chat", "shop/team"}
    assert names("-n", "hunt") == {"hunt/search"}
    assert names("-A") == {"shop/default", "shop/chat", "shop/team", "hunt/search"}
    before = CliRunner().invoke(kubectl_stepdown, ["-n", "hunt", "status", "-o", "json"], prog_name="kubectl stepdown")
    assert [each["metadata"]["name"] for each in said(before)["items"]] == ["search"]
    nothing = plugin("status", "-n", "empty")
    assert (nothing.exit_code, nothing.stdout) == (0, "") and "-A looks at all of them" in nothing.stderr


def test_objects_that_no_operator_has_seen_yet_are_shown(api: KubeApi) -> None:
    """On the first day, between `kubectl apply` and `helm install`."""
    api.service_error = (404, "not found")
    result = plugin("status", "-A")
    assert result.exit_code == 0 and "search" in result.stdout


# explain -------------------------------------------------------------------------------------------------------------------


def test_explain_of_a_cluster_is_explain_of_the_same_folder(api: KubeApi, tmp_path: Path) -> None:
    """One core: what was tried in a folder and what the cluster does must be the same, to the last reason."""
    (tmp_path / "policy.yaml").write_text(POLICY)
    live(api)
    folder = CliRunner().invoke(stepdown, ["explain", "shop/chat", "-f", str(tmp_path / "policy.yaml"), "-o", "json"])
    assert said(plugin("explain", "chat", "-o", "json")) == said(folder)
    text = plugin("explain", "chat:critical").stdout
    assert "ModelRoute shop/chat   fleet shop/default" in text and "Not on the default ladder" in text


def test_the_rung_in_force_is_by_the_money_of_this_moment(api: KubeApi) -> None:
    """The step that was reached a second ago is what the person asks about."""
    written(api, "1.00")
    live(api, balance(9_600_000_000))
    found = said(plugin("explain", "chat", "-o", "json"))
    default = found["classes"]["default"]
    assert (default["reason"], default["maxTier"], default["inForce"]["tier"]) == ("StepInForce", "UltraBudget", "UltraBudget")
    assert found["budgets"] == [{"name": "shop/team", "hard": True, "usedPercent": "96.0"}]
    api.views.clear()
    stale = plugin("explain", "chat", "-o", "json")
    assert "is of a version that does not tell it" in stale.stderr
    assert said(stale)["classes"]["default"]["reason"] == "Wanted", "by the status: 10 %"


def test_a_pod_for_which_a_ceiling_waits_is_named(api: KubeApi) -> None:
    """Who asks why a budget is not enforced has to delete that pod, and cannot know which, or that it is on them."""
    lost = Unheard("shop", "stepdown-default-7d9f-abcde", "uid-9", 1_780_000_000.0)
    live(api, replace(balance(USD), unheard=(lost,)))
    text = " ".join(plugin("explain", "chat").stdout.split())
    assert "shop/stepdown-default-7d9f-abcde since 2026-05-28T20:26:40Z" in text
    assert "kubectl delete pod -n shop stepdown-default-7d9f-abcde --force" in text
    written(api, "1.00")
    said_of_it = {"type": "Enforced", "status": "False", "reason": "ProxyLost", "message": "Pods that cannot be heard"}
    api.get("SpendBudget", "team")["status"]["conditions"] = [said_of_it]
    assert "team: Enforced=False, Pods that cannot be heard" in plugin("status").stdout
    live(api, replace(balance(USD), enforced=True))
    assert "delete pod" not in plugin("explain", "chat").stdout


def test_what_was_last_accepted_is_what_is_explained(api: KubeApi) -> None:
    """An edit that is not valid leaves the last spec in force; to show the route as refused would send people the wrong way."""
    budget = api.get("SpendBudget", "team")
    budget["spec"]["timeZone"] = "Mars/Olympus"
    kept = AcceptedSpec("uid-3", 1, json.dumps({"monthlyLimitUSD": "10.00"}))
    live(api, balance(9 * USD), accepted={"uid-3": kept})
    found = said(plugin("explain", "chat", "-o", "json"))
    assert (found["refuse"], found["budgets"][0]["usedPercent"]) == ("", "90.0")
    api.forbidden.add(("services/proxy", ""))
    blind = plugin("explain", "chat", "-o", "json")
    assert "SpendBudget shop/team is not accepted as it is" in blind.stderr and "only the operator knows" in blind.stderr


def tenant(api: KubeApi, *namespaces: str) -> None:
    """May see what is in these namespaces, and may ask the operator."""
    api.forbidden.clear()
    for plural in ("modelroutes", "spendbudgets", "routingproxies"):
        api.forbidden |= {
            (plural, ""),
            *((plural, each) for each in ("shop", "hunt", "stepdown-system") if each not in namespaces),
        }
    api.forbidden |= {("modelcatalogs", ""), ("namespaces", "")}


def test_who_sees_one_namespace_is_told_of_it_and_of_what_was_not_seen(api: KubeApi) -> None:
    """A developer has `view` in their own namespace and nowhere else, and is who asks most often."""
    tenant(api, "shop")
    live(api, balance(9_600_000_000))
    result = plugin("explain", "chat", "-o", "json")
    assert said(result)["classes"]["default"]["reason"] == "StepInForce"
    assert "SpendBudgets of stepdown-system may bind this route too" in result.stderr
    assert "you may not list ModelCatalogs" in result.stderr
    shown = plugin("status")
    assert shown.exit_code == 0 and "shop" in shown.stdout and "ModelCatalogs" in shown.stderr
    everything = plugin("status", "-A")
    assert everything.exit_code == 5 and "name one of your namespaces with -n" in everything.stderr


def test_a_ladder_that_cannot_be_known_is_not_made_up(api: KubeApi) -> None:
    """Unknown is never empty: a RoutingProxy that may not be seen is not one that does not exist."""
    tenant(api, "hunt")
    live(api)
    route = api.get("ModelRoute", "search")
    route["spec"]["proxyRef"] = {"name": "default", "namespace": "shop"}
    result = plugin("explain", "search", "-n", "hunt")
    assert result.exit_code == 5
    assert "is served by RoutingProxy shop/default, and you may not see those of shop" in result.stderr
    tenant(api, "shop")
    api.get("RoutingProxy", "default")["spec"]["catalogRefs"] = [{"name": "ours"}]
    result = plugin("explain", "chat")
    assert result.exit_code == 5 and "takes prices from ModelCatalog ours" in result.stderr


# report --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def traffic(api: KubeApi) -> KubeApi:
    """November 2026: two routes, two days."""
    made = Counter(
        route="shop/chat",
        model="DeepSeek V4 Flash",
        request_class="default",
        day=20_770,
        requests=4,
        successes=3,
        input_tokens=1000,
        cached_input_tokens=500,
        output_tokens=2000,
        cost_nusd=3 * USD,
        estimated_nusd=USD,
    )
    counters = [
        made,
        msgspec.structs.replace(made, day=20_771, request_class="critical", cost_nusd=USD, estimated_nusd=0),
        msgspec.structs.replace(made, route="hunt/search", model="Qwen3-8B", cost_nusd=4 * USD),
    ]
    api.views["/v1/counters"] = json.loads(msgspec.json.encode(counters))
    return api


def test_report_month_adds_up_by_what_is_asked_for(traffic: KubeApi) -> None:
    """The table that goes to whoever pays: a row too few is money that nobody answers for."""
    ours = said(plugin("report", "month", "--month", "2026-11", "-o", "json"))
    assert [(each["route"], each["model"], each["costUSD"]) for each in ours["rows"]] == [
        ("shop/chat", "DeepSeek V4 Flash", "4.00")
    ]
    assert (ours["total"]["requests"], ours["total"]["cachedInputTokens"], ours["total"]["estimatedUSD"]) == (8, 1000, "1.00")
    everybody = said(plugin("report", "month", "--month", "2026-11", "-A", "--by", "namespace", "-o", "json"))
    assert [(each["namespace"], each["costUSD"]) for each in everybody["rows"]] == [("hunt", "4.00"), ("shop", "4.00")]
    days = said(plugin("report", "month", "--month", "2026-11", "--by", "day", "--by", "class", "-o", "json"))
    assert [(each["day"], each["class"]) for each in days["rows"]] == [("2026-11-13", "default"), ("2026-11-14", "critical")]
    table = plugin("report", "month", "--month", "2026-11", "-A").stdout
    assert "total" in table and "8.000000  100.0 %" in table and "$2.00 of it was charged at the reservation" in table
    assert (
        "There was no traffic in 2026-11 in namespace empty (-A looks"
        in plugin("report", "month", "--month", "2026-11", "-n", "empty").stdout
    )
    assert any("counters?since_day=20758&until_day=20787" in path for path in traffic.asked), "November has thirty days"


def test_a_statement_is_of_the_namespace_in_use_and_of_the_operator_s_ledger(traffic: KubeApi) -> None:
    """A team books its own; whoever pays for all asks for all."""
    counters = traffic.views["/v1/counters"]
    traffic.views["/v1/books"] = {"counters": counters, "orders": {"shop/chat": [[20_770, "4711"]]}, "accounts": []}
    ours = said(plugin("statement", "--month", "2026-11", "--by", "route", "-o", "json"))
    assert [(each["kind"], each["purchaseOrder"], each["usd"]) for each in ours["lines"]] == [
        ("metered", "4711", "3.00"),
        ("estimated", "4711", "1.00"),
    ]
    assert said(plugin("statement", "--month", "2026-11", "-A", "-o", "json"))["totalUSD"] == "8.00"
    assert any("books?since_day=20758&until_day=20787" in path for path in traffic.asked)
    traffic.views.pop("/v1/books")
    refused = plugin("statement", "--month", "2026-11")
    assert refused.exit_code == 5 and "a statement is made of the operator's ledger" in refused.stderr


def test_report_savings_is_of_the_cluster_s_traffic_and_prices(traffic: KubeApi) -> None:
    """The plugin's figures are real ones; the quoted scenarios are asked for by --model."""
    traffic.add(
        "apiVersion: stepdown.dev/v1alpha1\nkind: ModelCatalog\nmetadata: {name: ours}\nspec:\n  models:\n"
        '  - {name: Old, provider: us, tier: Flagship, inputUSDPerMTok: "1000", outputUSDPerMTok: "4000"}\n'
    )
    report = said(plugin("report", "savings", "--month", "2026-11", "--baseline", "Old", "-o", "json"))
    assert (report["total"]["costUSD"], report["total"]["baselineUSD"], report["total"]["savedPercent"]) == (
        "4.00",
        "19.00",
        "78.9",
    )
    explicit = CliRunner().invoke(stepdown, ["report", "savings", "-n", "shop", "--month", "2026-11", "--baseline", "Old"])
    assert explicit.exit_code == 0 and "78.9 %" in explicit.stdout
    assert "Assumed" in plugin("report", "savings", "--model", "deepseek-v4-flash").stdout
    assert "Assumed" in CliRunner().invoke(stepdown, ["report", "savings"]).stdout


def test_a_report_is_never_made_of_coarse_figures(traffic: KubeApi) -> None:
    """Statuses know no model and are minutes old: half a report would be taken for a whole one."""
    traffic.forbidden.add(("services/proxy", ""))
    for command in (("report", "month"), ("report", "savings")):
        result = plugin(*command)
        assert (result.exit_code, result.stdout) == (5, "")
        assert "stepdown-view-spend" in result.stderr


# What is wrong -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("explain", "caht"), 1, "there is no ModelRoute shop/caht; the nearest: shop/chat"),
        (("explain", "search"), 1, "there is no ModelRoute shop/search; the nearest: hunt/search"),
        (("explain", "zzz", "-n", "hunt"), 1, "the ModelRoutes of hunt are hunt/search; -n names another namespace"),
        (("explain", "zzz", "-n", "empty"), 1, "empty has no ModelRoute"),
        (("explain", "hunt/search", "-n", "shop"), 1, "leave out one of them"),
        (("explain", "chat:urgent"), 2, "is not a class of requests"),
        (("status", "-n", "shop", "-A"), 2, "write one of the two"),
        (("status", "--ledger", "x.db"), 2, "--ledger goes with a folder (-f)"),
        (("status", "-f", ".", "-n", "shop"), 2, "leave out one of them"),
        (("report", "month", "--ledger", "x.db", "-A"), 2, "leave out one of them"),
        (("report", "month", "--month", "11/2026"), 2, "write one such as 2026-11"),
        (("report", "savings", "--baseline", "GPT-4"), 5, "is of a version that does not tell it"),
        (("status", "--kubeconfig", "nowhere"), 5, "kubeconfig nowhere: there is no such file"),
        (("status", "--context", "prod"), 5, "prod"),
        (("explain", "chat", "--context", "away"), 5, "the cluster does not answer (list modelroutes"),
    ],
)
def test_what_is_wrong_is_one_sentence_that_says_what_to_do(arguments: tuple[str, ...], code: int, says: str) -> None:
    """A traceback, or an empty table, tells nobody whether the typo is theirs or the cluster's."""
    result = plugin(*arguments)
    assert (result.exit_code, result.stdout, "Traceback" in result.stderr) == (code, "", False), result.stderr
    assert says in " ".join(result.stderr.split()), result.stderr
    if code in (1, 5):
        assert len([line for line in result.stderr.splitlines() if line]) == 1 and result.stderr.startswith("error: ")


def test_a_cluster_without_the_kinds_or_without_rights_says_so(api: KubeApi) -> None:
    """The first thing that happens to a new user, and the second."""
    for command in (("status",), ("explain", "chat")):
        api.served = False
        missing = plugin(*command)
        assert missing.exit_code == 5 and "Stepdown's kinds are not in this cluster" in missing.stderr
        assert "helm install" in missing.stderr
        api.served, api.known = True, False
        stranger = plugin(*command)
        assert stranger.exit_code == 5 and "the cluster does not know you" in stranger.stderr
        api.known = True
        api.forbidden = {("modelroutes", ""), ("modelroutes", "shop")}
        forbidden = plugin(*command)
        assert forbidden.exit_code == 5 and "ClusterRole stepdown-view" in forbidden.stderr and "dana" in forbidden.stderr
        api.forbidden = set()


def test_no_cluster_at_all_says_what_to_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.setenv("HOME", str(tmp_path))
    result = CliRunner().invoke(stepdown, ["status"])
    assert result.exit_code == 5 and "Name a kubeconfig with --kubeconfig; or name a folder with -f." in result.stderr


# kubectl -------------------------------------------------------------------------------------------------------------------


def test_the_plugin_speaks_as_kubectl_stepdown() -> None:
    """Help that names another command cannot be followed."""
    text = plugin("explain", "--help").output
    assert text.startswith("Usage: kubectl stepdown explain [OPTIONS] ROUTE") and "--operator-namespace" in text
    assert plugin("run").exit_code == 2, "nothing that serves or writes"
    assert plugin("version").output.startswith("stepdown ")


def test_tab_after_kubectl_stepdown_knows_commands_options_and_routes(api: KubeApi, capsys: pytest.CaptureFixture[str]) -> None:
    """kubectl asks the way its own completion does: a candidate a line, then a number."""

    def offered(*words: str) -> list[str]:
        answer_kubectl(words)
        *lines, directive = capsys.readouterr().out.splitlines()
        assert directive in (":4", ":0")
        return [line.partition("\t")[0] for line in lines]

    assert offered("") == ["explain", "status", "report", "statement", "version"]
    assert offered("report", "m") == ["month"]
    assert "--baseline" in offered("report", "savings", "--b")
    assert offered("explain", "") == ["chat"]
    assert offered("explain", "-n", "hunt", "") == ["search"]
    assert offered("explain", "hunt/s") == ["hunt/search"]
    api.served = False
    assert offered("explain", "") == [], "Tab is no place for an error"


def test_an_operator_s_view_survives_the_wire() -> None:
    """The command and the operator may be of two versions: what is new is left out, what is missing has its default."""
    known = Overview(now_s=1.5, balances={"a": balance(5)}, accepted={"u": AcceptedSpec("u", 2, "{}")})
    assert msgspec.json.decode(msgspec.json.encode(known), type=Overview) == known
    raw = json.loads(msgspec.json.encode(replace(known, balances={})))
    del raw["accepted"]
    again = msgspec.json.decode(json.dumps({**raw, "news": 1}), type=Overview)
    assert again == replace(known, balances={}, accepted={})


def test_yaml_is_what_kubectl_would_print(api: KubeApi) -> None:
    live(api)
    assert yaml.safe_load(plugin("status", "-o", "yaml").stdout)["kind"] == "List"
