"""An upstream's bill as a file: CSV or JSON, a line a model (and day), read whole or refused. `cli.reconcile` calls this.

    model,day,requests,input_tokens,output_tokens,amount,currency
    Qwen/Qwen3-32B,2026-11-03,1200,840000,96000,0.21,USD
    TOTAL,,,,,0.21,USD

    {"month": "2026-11", "currency": "USD", "total": "0.21", "lines": [{"model": "Qwen/Qwen3-32B", "amount": "0.21"}]}

Needed are model, amount and currency; the total is optional, and finds a file that was cut off between two lines. An amount is
exact to as many decimals as it has, to the cent at least: what it may have been rounded by is kept beside it (`slack_nusd`).
"""

import csv
import hashlib
import io
import json
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from stepdown.budget.months import day_text, month_span
from stepdown.model.money import nusd_to_usd

COLUMNS = ("model", "day", "requests", "input_tokens", "cached_input_tokens", "output_tokens", "amount", "currency")
NEEDED = ("model", "amount", "currency")
TOTAL = "total"
"""The model of the last line of a CSV that has the sum."""
MOST_BYTES = 16 * 1024 * 1024

_AMOUNT = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,18}))?", re.ASCII)
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()

_REPR = reprlib.Repr()
_REPR.maxstring = 80
_shown = _REPR.repr
"""What a file says, as messages show it: a file of something else has lines without an end."""


class InvoiceError(ValueError):
    """The file is no bill that could be settled by; says which line, what is there and what to write. Nothing was changed."""


def _empty(value: object) -> object:
    return None if value == "" else value


def _day_as_written(value: object) -> object:
    """A number would be a moment to pydantic."""
    if isinstance(value, str) and value.strip() and not _DAY.fullmatch(value.strip()):
        raise ValueError("this is no day")
    return _empty(value.strip()) if isinstance(value, str) else value if value is None else str(value)


Number = Annotated[Annotated[int, Field(ge=0, lt=2**60)] | None, BeforeValidator(_empty)]


class _Row(BaseModel):
    """One line as written."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, StringConstraints(min_length=1, max_length=256, strip_whitespace=True)]
    day: Annotated[date | None, BeforeValidator(_day_as_written)] = None
    requests: Number = None
    input_tokens: Number = None
    cached_input_tokens: Number = None
    output_tokens: Number = None
    amount: Annotated[str, BeforeValidator(lambda value: str(value).strip() if isinstance(value, str | int) else value)]
    currency: Annotated[str, StringConstraints(strip_whitespace=True)]


@dataclass(frozen=True, slots=True)
class InvoiceLine:
    """What a model cost, on a day or in the whole span."""

    where: str
    """`line 7`, or `lines[3]` of a JSON file."""
    model: str
    """As written."""
    day: int | None
    """UTC, since 1970; None: the file has no days."""
    nusd: int
    slack_nusd: int
    """By how much the amount may have been rounded."""
    requests: int | None = None


@dataclass(frozen=True, slots=True)
class Invoice:
    """One bill, read whole."""

    month: str
    digest: str
    """SHA-256 of the file: the same bill read twice is the same."""
    lines: tuple[InvoiceLine, ...]

    @property
    def total_nusd(self) -> int:
        return sum(each.nusd for each in self.lines)


@dataclass(frozen=True, slots=True)
class Billed:
    """What a bill says of one model of the ledger."""

    model: str
    nusd: int
    slack_nusd: int
    requests: int | None = None


def read_invoice(data: bytes, month: str) -> Invoice:
    """Raises InvoiceError."""
    if not data.strip():
        raise InvoiceError("the file is empty: fetch the bill again")
    if len(data) > MOST_BYTES:
        raise InvoiceError(
            f"the file has {len(data)} bytes, a bill at most {MOST_BYTES}: give one line a model, or a model and day"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvoiceError(f"the file is not UTF-8 (at byte {error.start}): save it as CSV or JSON in UTF-8") from None
    found, total = _json(text, month) if text.lstrip()[:1] in ("{", "[") else _csv(text)
    lines = _checked([(where, _row(where, row)) for where, row in found], month)
    if not lines:
        raise InvoiceError("the bill has no lines: a month that cost nothing has none to be settled")
    invoice = Invoice(month, hashlib.sha256(data).hexdigest(), lines)
    if total is not None:
        _compare(invoice, *total)
    return invoice


def billed(invoice: Invoice, canonical: Mapping[str, str]) -> tuple[Billed, ...]:
    """By the ledger's name of each model. `canonical`: for every model as written."""
    found: dict[str, Billed] = {}
    for line in invoice.lines:
        model = canonical[line.model]
        was = found.get(model, Billed(model, 0, 0, 0))
        counted = None if was.requests is None or line.requests is None else was.requests + line.requests
        found[model] = Billed(model, was.nusd + line.nusd, was.slack_nusd + line.slack_nusd, counted)
    return tuple(found[model] for model in sorted(found))


# Reading --------------------------------------------------------------------------------------------------------------

Raw = list[tuple[str, Mapping[str, Any]]]
Total = tuple[str, str] | None
"""Where it stands, and the amount."""


def _csv(text: str) -> tuple[Raw, Total]:
    if not text.endswith(("\n", "\r")):
        raise InvoiceError(
            f"line {text.count(chr(10)) + 1}: the last line has no end, so the file may be cut off: fetch it again, or end it"
            " with a new line if it is whole"
        )
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = _columns(next(reader, []))
        found: Raw = []
        total: Total = None
        for cells in reader:
            where = f"line {reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if total is not None:
                raise InvoiceError(f"{where}: there is a line after the total of {total[0]}: it must be the last")
            if len(cells) != len(columns):
                raise InvoiceError(
                    f"{where}: it has {len(cells)} of {len(columns)} columns, so the file may be cut off: fetch it again"
                )
            row = dict(zip(columns, cells, strict=True))
            if row["model"].strip().lower() == TOTAL:
                _currency(where, row["currency"])
                total = (where, row["amount"].strip())
            else:
                found.append((where, row))
    except csv.Error as error:
        raise InvoiceError(
            f"line {reader.line_num}: this is no CSV ({error}), so the file may be cut off: fetch it again"
        ) from None
    return found, total


def _columns(written: Sequence[str]) -> list[str]:
    """By their own names, however a spreadsheet writes them."""
    columns = [each.strip().lower().replace(" ", "_").replace("-", "_") for each in written]
    if len(columns) == 1 and (mark := next((each for each in ";\t|" if each in written[0]), "")):
        raise InvoiceError(f"line 1: columns are parted by {mark!r}: save the file with commas between them")
    for name, as_written in zip(columns, written, strict=True):
        if name not in COLUMNS:
            raise InvoiceError(
                f"line 1: the column {_shown(as_written)} is not known; the columns are {', '.join(COLUMNS)}: remove or rename"
                " it"
            )
        if columns.count(name) > 1:
            raise InvoiceError(f"line 1: the column {name!r} is there twice: remove one of the two")
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        raise InvoiceError(f"line 1: the column {missing[0]!r} is missing; needed are {', '.join(NEEDED)}: add it")
    return columns


def _json(text: str, month: str) -> tuple[Raw, Total]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for name, _ in pairs:
            if sum(other == name for other, _ in pairs) > 1:
                raise InvoiceError(f"the name {name!r} is there twice in one object")
        return dict(pairs)

    def never(constant: str) -> object:
        raise InvoiceError(f"{constant} is no amount: write a decimal such as 12.34")

    try:  # A number's own digits say how exact it is, hence no float; and one of thousands of digits is no number to Python.
        found = json.loads(text, parse_float=str, parse_int=str, parse_constant=never, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise InvoiceError(
            f"line {error.lineno}: this is no JSON ({error.msg}), so the file may be cut off: fetch it again"
        ) from None
    except RecursionError:
        raise InvoiceError("the JSON is nested too deeply: see docs/cli.md for what a bill looks like") from None
    if not isinstance(found, dict) or not isinstance(found.get("lines"), list):
        raise InvoiceError('the file must be an object with "month", "currency" and "lines", a list: see docs/cli.md')
    unknown = found.keys() - {"month", "currency", "total", "lines"}
    if unknown:
        raise InvoiceError(f"the field {min(unknown)!r} is not known; the fields are month, currency, total and lines")
    if found.get("month") != month:
        raise InvoiceError(
            f"the bill is of month {found.get('month')!r}, and --month says {month}: give the bill of that month"
        )
    rows: Raw = []
    for index, row in enumerate(found["lines"]):
        if not isinstance(row, dict):
            raise InvoiceError(
                f'lines[{index}] is no object: write one such as {{"model": "Qwen/Qwen3-32B", "amount": "0.21"}}'
            )
        rows.append((f"lines[{index}]", {"currency": found.get("currency", ""), **row}))
    total = found.get("total")
    return rows, None if total is None else ("total", str(total))


def _row(where: str, row: Mapping[str, Any]) -> _Row:
    try:
        return _Row.model_validate(dict(row))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        seen = first.get("input")
        why = first["msg"].lower().removeprefix("value error, ")
        raise InvoiceError(f"{where}: {field} is {_shown(seen)}: {why}{_example(field)}") from None


def _example(field: str) -> str:
    examples = {
        "day": "a day such as 2026-11-03",
        "amount": "a decimal such as 12.34",
        "model": "a model's name or id",
        "currency": "USD",
    }
    return f"; write {examples.get(field, 'a whole number')}" if field in COLUMNS else f"; the fields are {', '.join(COLUMNS)}"


def _checked(rows: Iterable[tuple[str, _Row]], month: str) -> tuple[InvoiceLine, ...]:
    first, last = month_span(month)
    seen: dict[tuple[str, int | None], str] = {}
    dated: tuple[bool, str] | None = None
    lines = []
    for where, row in rows:
        _currency(where, row.currency)
        nusd, slack_nusd = _amount(where, row.amount)
        day = None if row.day is None else row.day.toordinal() - _EPOCH_ORDINAL
        if day is not None and not first <= day <= last:
            raise InvoiceError(f"{where}: {day_text(day)} is not in {month}: give the bill of that month")
        if dated is None:
            dated = (day is not None, where)
        elif dated[0] != (day is not None):
            has, lacks = (where, dated[1]) if day is not None else (dated[1], where)
            raise InvoiceError(f"{lacks} has no day and {has} has one: give all lines a day, or none")
        before = seen.setdefault((row.model.lower(), day), where)
        if before != where:
            on = f" on {day_text(day)}" if day is not None else ""
            raise InvoiceError(f"{where}: {row.model!r}{on} was in {before} already: the bill has it twice, or add the two up")
        lines.append(InvoiceLine(where, row.model, day, nusd, slack_nusd, row.requests))
    return tuple(lines)


def _currency(where: str, currency: str) -> None:
    if currency.strip().upper() != "USD":
        raise InvoiceError(f"{where}: the currency is {_shown(currency)}, and the ledger is in USD: give the bill in USD")


def _amount(where: str, amount: str) -> tuple[int, int]:
    """In nUSD, rounded up, and by how much it may have been rounded before."""
    found = _AMOUNT.fullmatch(amount)
    if found is None:
        negative = ". A credit is no cost of a model: leave its line out and settle it apart" if amount.startswith("-") else ""
        raise InvoiceError(
            f"{where}: the amount is {_shown(amount)}: write a decimal in USD such as 12.34, at most 9 digits before the point"
            f" and 18 after it{negative}"
        )
    digits = found[2] or ""
    finest = 10**18
    exact = int(found[1]) * finest + int(digits.ljust(18, "0"))
    return -(-exact // 10**9), 10 ** (9 - max(2, len(digits))) // 2 if len(digits) < 9 else 0


def _compare(invoice: Invoice, where: str, amount: str) -> None:
    total_nusd, slack_nusd = _amount(where, amount)
    slack_nusd += sum(each.slack_nusd for each in invoice.lines) + len(invoice.lines)
    if abs(total_nusd - invoice.total_nusd) > slack_nusd:
        raise InvoiceError(
            f"{where}: the total is {amount} and the lines add up to {nusd_to_usd(invoice.total_nusd)}: a line is missing or"
            " was changed, fetch the file again"
        )
