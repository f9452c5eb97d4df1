"""`stepdown validate -f DIR`: every mistake at once, each with the line to mend, and an exit code for CI."""

import click

from stepdown.cli.errors import CommandError
from stepdown.cli.output import Format, folder_option, output_option, print_machine, proxy_option


@click.command()
@folder_option
@proxy_option
@output_option
def validate(roots: tuple[str, ...], proxy: str | None, output: Format) -> None:
    """Name every mistake in a folder; exit with 1 if there is one."""
    from stepdown.cli.folder import read_folder
    from stepdown.local.banner import nothing_valid
    from stepdown.local.check import planned
    from stepdown.plan.plan import make_plan
    from stepdown.plan.world import LedgerView
    from stepdown.sync.clock import now_s

    gathered = read_folder(roots, proxy or "", strict=False)
    found = list(planned(make_plan(gathered.world, LedgerView(), now_s()), gathered.places))
    problems = [*gathered.problems, *(each for each in found if not each.note)]
    notes = [*gathered.notes, *(each for each in found if each.note)]
    if output != "table":
        rows = [
            {"file": each.file, "line": each.line, "document": each.document, "message": each.message, "note": each.note}
            for each in (*problems, *notes)
        ]
        print_machine({"valid": not problems, "objects": gathered.objects, "findings": rows}, output)
    else:
        for problem in problems:
            click.echo(str(problem))
        for note in notes:
            click.echo(f"{note} (note)")
    if not problems and not gathered.objects:
        raise CommandError(nothing_valid(roots, []))
    if problems:
        raise CommandError(
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''} found; {_objects(gathered.objects)} could be read"
        )
    if output == "table":
        click.echo(f"{_objects(gathered.objects)}: all valid.")


def _objects(number: int) -> str:
    return f"{number} object{'' if number == 1 else 's'}"
