"""Where a ledger is, as commands are told: a file, or the address of a PostgreSQL database.

A password on a command line is seen by whoever lists processes, and stays in the shell's history: it is refused there. In the
environment it may be, as STEPDOWN_LEDGER with the whole address or as libpq's PGPASSWORD and PGPASSFILE; or it lies in a file,
which STEPDOWN_LEDGER_PASSWORD_FILE names.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import click
from click.core import ParameterSource

DEFAULT_FILE = "stepdown.db"
VARIABLE, PASSWORD_VARIABLE = "STEPDOWN_LEDGER", "STEPDOWN_LEDGER_PASSWORD_FILE"
SCHEMES = ("postgresql", "postgres")
_PASSWORD_FILE = "passwordfile"


class LedgerPlace(click.ParamType["str | Path"]):
    """A path, or `postgresql://USER@HOST/DATABASE`."""

    name = "ledger"

    def convert(self, value: "str | Path", param: click.Parameter | None, ctx: click.Context | None) -> "str | Path":
        if isinstance(value, Path):
            return value
        scheme, separator, _ = value.partition("://")
        if not separator:
            if not value or Path(value).is_dir():
                self.fail(f"{value!r} is a folder: name the ledger's file, or postgresql://USER@HOST/DATABASE", param, ctx)
            return Path(value)
        if scheme not in SCHEMES:
            self.fail(f"a ledger at {scheme}:// is not supported: name a file, or postgresql://USER@HOST/DATABASE", param, ctx)
        if _has_password(value) and _is_on_the_command_line(param, ctx):
            self.fail(
                "a password on the command line is seen by whoever lists processes. Put the whole address into "
                f"{VARIABLE}, or the password into PGPASSWORD, or name a file of it in {PASSWORD_VARIABLE}",
                param,
                ctx,
            )
        if shown(value) == value and shown(os.environ.get(VARIABLE, "")) == value:
            value = os.environ[VARIABLE]  # As messages name it: it is the one whose password is in the environment.
        return with_password_file(value, os.environ.get(PASSWORD_VARIABLE, ""))


def with_password_file(place: "str | Path", file: str) -> "str | Path":
    """The address, with the file that has its password, where it has neither yet."""
    if isinstance(place, Path) or not file or _has_password(place) or _PASSWORD_FILE in _query(place):
        return place
    return f"{place}{'&' if '?' in place else '?'}{_PASSWORD_FILE}={quote(file, safe='/')}"


def argument(name: str = "ledger_place") -> "Callable[[Any], Any]":
    """`[LEDGER]` of a command that asks or changes one."""
    return click.argument(name, metavar="[LEDGER]", type=LedgerPlace(), envvar=VARIABLE, default=DEFAULT_FILE)


def shown(place: "str | Path") -> str:
    """For people: without a password."""
    if isinstance(place, Path):
        return str(place)
    if "://" not in place:
        return place
    parts = urlsplit(place)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{f'{parts.username}@' if parts.username else ''}{host}{parts.path}"


def _has_password(url: str) -> bool:
    return bool(urlsplit(url).password) or "password" in _query(url)


def _query(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query))


def _is_on_the_command_line(param: click.Parameter | None, ctx: click.Context | None) -> bool:
    if param is None or ctx is None or param.name is None:
        return False
    return ctx.get_parameter_source(param.name) is ParameterSource.COMMANDLINE
