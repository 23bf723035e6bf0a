"""Entry point of `python -m dvpo_lib` and of the command `dvpo`."""

import sys


def command_line() -> int:
    """Runs one command; if a package of the extra `pipeline` is missing, says how to install it."""
    from dvpo_lib.experiments.launch.commands import LAUNCH_COMMANDS, run_launch_command

    if sys.argv[1:2] and sys.argv[1] in LAUNCH_COMMANDS:
        return run_launch_command(sys.argv[1:])
    try:
        from dvpo_lib.chain.cli import main as run_command

        return run_command()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "dvpo_lib"):
            raise
        print(
            f"error: the package {missing} is missing; commands need the extra: pip install 'dvpo-lib[pipeline]'",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(command_line())
