"""`stepdown run`: a policy at work on this machine. All that it does is in `stepdown.local.run`; here are its options."""

import re
from pathlib import Path
from typing import Literal

import click

from stepdown.cli.errors import AddressInUse, CommandError, LedgerUnusable
from stepdown.cli.output import folder_option, proxy_option
from stepdown.cli.place import DEFAULT_FILE, VARIABLE, LedgerPlace


class Address(click.ParamType[tuple[str, int]]):
    """`127.0.0.1:8080`, `[::1]:8080`; port 0 takes any free one."""

    name = "address"

    def convert(
        self, value: str | tuple[str, int], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]\s]+)):(\d{1,5})", value)
        if not found or int(found[3]) > 65535:
            self.fail(f"{value!r} is not an address; write HOST:PORT such as 127.0.0.1:8080", param, ctx)
        return found[1] or found[2], int(found[3])


@click.command()
@folder_option
@click.option(
    "--listen", type=Address(), default="127.0.0.1:8080", show_default=True, metavar="HOST:PORT", help="Where to serve."
)
@click.option(
    "--ledger",
    "ledger_place",
    type=LedgerPlace(),
    envvar=VARIABLE,
    default=DEFAULT_FILE,
    show_default=True,
    metavar="FILE|URL",
    help="The spend ledger; made on the first start. Or postgresql://USER@HOST/DATABASE.",
)
@proxy_option
@click.option("--upstream", metavar="URL", help="Send every request there instead of to the RoutingProxy's baseURL.")
@click.option("--workers", type=click.IntRange(1, 64), help="Serve with so many proxy processes.")
@click.option("--log-format", type=click.Choice(["logfmt", "json"]), default="logfmt", show_default=True, help="Of stderr.")
def run(
    roots: tuple[str, ...],
    listen: tuple[str, int],
    ledger_place: str | Path,
    proxy: str | None,
    upstream: str | None,
    workers: int | None,
    log_format: Literal["logfmt", "json"],
) -> None:
    """Serve the routes of a folder: one process, an OpenAI-compatible endpoint, and a ledger that holds the budgets.

    \b
    export UPSTREAM_API_KEY=…
    stepdown run -f manifests/samples/
    """
    from stepdown.ledger.errors import LedgerError
    from stepdown.local.documents import FolderMissing
    from stepdown.local.engine import NothingValid
    from stepdown.local.run import CannotListen, CannotServe, Options, serve
    from stepdown.local.world import NoSuchProxy

    if upstream is not None and not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", upstream):
        raise click.BadParameter(
            f"{upstream!r} is not a base URL; write one such as https://global-apis.com/v1", param_hint="--upstream"
        )
    options = Options(
        roots=roots,
        host=listen[0],
        port=listen[1],
        ledger=ledger_place,
        proxy=proxy or "",
        upstream=(upstream or "").rstrip("/"),
        workers=workers or 0,
        log_format=log_format,
    )
    try:
        code = serve(options)
    except (FolderMissing, NoSuchProxy) as error:
        raise click.UsageError(str(error)) from None
    except (NothingValid, CannotServe) as error:
        raise CommandError(str(error)) from None
    except LedgerError as error:
        raise LedgerUnusable(str(error)) from None
    except CannotListen as error:
        raise AddressInUse(str(error)) from None
    raise SystemExit(code)
