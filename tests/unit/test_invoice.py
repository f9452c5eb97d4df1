"""An upstream's bill as a file. If one of these fails, half a bill, or somebody else's, releases money that was spent."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepdown.budget.invoice import Billed, InvoiceError, billed, read_invoice

MONTH = "2026-11"
HEAD = "model,day,requests,amount,currency\n"
GOOD = f"{HEAD}Qwen3-8B,2026-11-03,12,0.21,USD\nQwen3-8B,2026-11-04,3,1.005,USD\nGLM-5,2026-11-03,,3,usd\n"


def read(text: str) -> tuple[tuple[str, int, int, int | None], ...]:
    invoice = read_invoice(text.encode(), MONTH)
    return tuple((each.where, each.nusd, each.slack_nusd, each.requests) for each in invoice.lines)


def test_a_bill_as_a_spreadsheet_writes_it() -> None:
    """With a mark at its start, other line ends, and columns in an order of its own."""
    assert read(GOOD) == (
        ("line 2", 210_000_000, 5_000_000, 12),
        ("line 3", 1_005_000_000, 500_000, 3),
        ("line 4", 3_000_000_000, 5_000_000, None),
    )
    other = '﻿Currency,Model,Input Tokens,Amount\r\nUSD,"Qwen3-8B",5,0.0000000011\r\n\r\nUSD,TOTAL,,0.00\r\n'
    assert read(other) == (("line 2", 2, 0, None),), "rounded up: a nano-dollar is not given away"


def test_a_bill_as_a_program_writes_it() -> None:
    """Numbers or strings: no float comes near an amount."""
    lines = '[{"model": "a", "amount": 0.10}, {"model": "b", "amount": "0.21"}]'
    text = f'{{"month": "2026-11", "currency": "USD", "total": 0.31, "lines": {lines}}}'
    assert [each[1:3] for each in read(text)] == [(100_000_000, 5_000_000), (210_000_000, 5_000_000)]


def test_models_add_up_under_the_ledger_s_names() -> None:
    """A model has several ids, and a bill has it by day."""
    invoice = read_invoice(GOOD.encode(), MONTH)
    assert billed(invoice, {"Qwen3-8B": "Qwen3-8B", "GLM-5": "Qwen3-8B"}) == (
        Billed("Qwen3-8B", 4_215_000_000, 10_500_000, None),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty: fetch the bill again"),
        ("\n", "the file is empty"),
        ("%PDF", "line 1: the last line has no end"),
        ("\ufeff" + GOOD.replace(",", ";"), "line 1: columns are parted by ';': save the file with commas"),
        (GOOD.replace(",", "\t"), r"line 1: columns are parted by '\\t': save the file with commas"),
        ("Model,Amount (USD),Currency\na,1,USD\n", r"line 1: the column 'Amount \(USD\)' is not known"),
        (HEAD, "the bill has no lines"),
        ("model,amount\na,1\n", "line 1: the column 'currency' is missing"),
        (
            "model,amount,currency,project\na,1,USD,x\n",
            "line 1: the column 'project' is not known; the columns are model, day,",
        ),
        ("model,model,amount,currency\na,a,1,USD\n", "line 1: the column 'model' is there twice"),
        (GOOD + "Qwen3-14B,2026-11-03,1", "line 5: the last line has no end, so the file may be cut off"),
        (GOOD + "Qwen3-14B,2026-11-03,1\n", "line 5: it has 3 of 5 columns, so the file may be cut off"),
        (GOOD + '"Qwen3-14B,2026-11-03,1,2,USD\n', "line 5: this is no CSV"),
        (GOOD + "GLM-5,2026-10-31,1,2,USD\n", "line 5: 2026-10-31 is not in 2026-11"),
        (GOOD + "GLM-5,31/11/2026,1,2,USD\n", "line 5: day is '31/11/2026': this is no day; write a day such as"),
        (GOOD + "GLM-5,2026-11-05,1,2,EUR\n", "line 5: the currency is 'EUR', and the ledger is in USD"),
        (
            GOOD + "GLM-5,2026-11-05,1,-2.00,USD\n",
            "line 5: the amount is '-2.00': write a decimal in USD such as 12.34, .* after it. A credit",
        ),
        (GOOD + 'GLM-5,2026-11-05,1,"1,234.00",USD\n', "line 5: the amount is '1,234.00'"),
        (GOOD + "GLM-5,2026-11-05,1,1e3,USD\n", "line 5: the amount is '1e3'"),
        (GOOD + "GLM-5,2026-11-05,1,٣,USD\n", "line 5: the amount is '٣'"),
        (GOOD + "GLM-5,2026-11-05,1,,USD\n", "line 5: the amount is ''"),
        (GOOD + "GLM-5,2026-11-05,-1,1,USD\n", "line 5: requests is '-1'"),
        (GOOD + ",2026-11-05,1,1,USD\n", "line 5: model is ''"),
        (GOOD + "glm-5,2026-11-03,1,2,USD\n", "line 5: 'glm-5' on 2026-11-03 was in line 4 already"),
        (GOOD + "GLM-5,,1,2,USD\n", "line 5 has no day and line 2 has one"),
        (GOOD + "TOTAL,,,4.00,USD\n", r"line 5: the total is 4.00 and the lines add up to 4.215: a line is missing"),
        (GOOD + "TOTAL,,,4.22,EUR\n", "line 5: the currency is 'EUR'"),
        (GOOD + "TOTAL,,,4.22,USD\nGLM-5,2026-11-05,1,2,USD\n", "line 6: there is a line after the total of line 5"),
        ('{"month": "2026-11", "currency": "USD", "lines": [{"model": "a"', "line 1: this is no JSON"),
        ('{"month": "2026-10", "currency": "USD", "lines": []}', "the bill is of month '2026-10', and --month says 2026-11"),
        ('{"month": "2026-11", "currency": "USD", "lines": []}', "the bill has no lines"),
        (
            f'{{"month": "2026-11", "currency": "USD", "lines": [{{"model": "a", "amount": 1, "requests": {"9" * 5000}}}]}}',
            r"lines\[0\]: requests is '9{36,40}\.\.\.9{36,40}': ",
        ),
        ('{"month": "2026-11", "lines": [{"model": "a", "amount": "1"}]}', r"lines\[0\]: the currency is ''"),
        ('{"month": "2026-11", "currency": 5, "lines": [{"model": "a", "amount": "1"}]}', r"lines\[0\]: the currency is '5'"),
        ('{"month": "2026-11", "currency": "USD", "lines": [{"model": "a"}]}', r"lines\[0\]: amount is .*required"),
        ('{"month": "2026-11", "currency": "USD", "lines": [{"model": "a", "amount": NaN}]}', "NaN is no amount"),
        ('{"month": "2026-11", "currency": "USD", "lines": [{"model": "a", "amount": true}]}', r"lines\[0\]: "),
        (
            '{"month": "2026-11", "currency": "USD", "lines": [{"model": "a", "amount": 1, "amount": 2}]}',
            "'amount' is there twice",
        ),
        ('{"month": "2026-11", "currency": "USD", "lines": [7]}', r"lines\[0\] is no object"),
        ('{"month": "2026-11", "currency": "USD", "lines": [], "pages": 2}', "the field 'pages' is not known"),
        ("[1, 2]", "the file must be an object"),
        ("[" * 100_000, "nested too deeply|no JSON"),
    ],
)
def test_what_is_no_whole_bill_of_the_month_is_refused_by_its_line(text: str, message: str) -> None:
    """Whoever gets the message must know where to look and what to write."""
    with pytest.raises(InvoiceError, match=message):
        read_invoice(text.encode(), MONTH)


def test_what_is_no_text_is_refused() -> None:
    """A spreadsheet's own format, or a picture of a bill."""
    with pytest.raises(InvoiceError, match="not UTF-8"):
        read_invoice(b"PK\x03\x04\xff\xfe", MONTH)


@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
def test_nothing_but_a_refusal_comes_of_rubbish(text: str) -> None:
    """A traceback tells nobody what to do."""
    for each in (
        text,
        GOOD + text + "\n",
        json.dumps({"month": MONTH, "currency": "USD", "lines": [{"model": text, "amount": text}]}),
    ):
        with contextlib.suppress(InvoiceError):
            read_invoice(each.encode("utf-8", "surrogatepass"), MONTH)
