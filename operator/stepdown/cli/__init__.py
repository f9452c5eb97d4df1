"""The command line: `stepdown run | explain | status | report | validate | key | ledger | completion | version`.

Nothing is imported until a command is chosen, so that completion and `--help` answer at once. See docs/cli.md.
"""


def main() -> None:
    """The entry point of the `stepdown` command."""
    from stepdown.cli.app import stepdown

    stepdown(prog_name="stepdown")
