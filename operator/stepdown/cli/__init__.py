"""The command line: `stepdown run | explain | status | report | validate | key | ledger | operator | completion | version`, and
of it `kubectl stepdown explain | status | report | version`.

Nothing is imported until a command is chosen, so that completion and `--help` answer at once. See docs/cli.md.
"""


def main() -> None:
    """The entry point of the `stepdown` command."""
    from stepdown.cli.app import stepdown

    stepdown(prog_name="stepdown")


def plugin() -> None:
    """The entry point of `kubectl-stepdown`, which kubectl runs for `kubectl stepdown`."""
    from stepdown.cli.app import kubectl_stepdown

    kubectl_stepdown(prog_name="kubectl stepdown", complete_var="_KUBECTL_STEPDOWN_COMPLETE")


def plugin_completion() -> None:
    """The entry point of `kubectl_complete-stepdown`, which kubectl asks when Tab is pressed after `kubectl stepdown`."""
    import sys

    from stepdown.cli.completion import answer_kubectl

    answer_kubectl(sys.argv[1:])
