"""Entry point of `python -m dvpo_lib` and of the command `dvpo`."""

import os
import sys


def command_line() -> int:
    """Runs one command; if a package of the extra `pipeline` is missing, says how to install it."""
    try:
        try:
            return _run_command()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has gone: `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains once more at its end
        return 1
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "dvpo_lib"):
            raise
        print(
            f"error: the package {missing} is missing; commands need the extra: pip install 'dvpo-lib[pipeline]'",
            file=sys.stderr,
        )
        return 1


def _run_command() -> int:
    from dvpo_lib.experiments.launch.commands import LAUNCH_COMMANDS, run_launch_command

    if sys.argv[1:2] and sys.argv[1] in LAUNCH_COMMANDS:
        return run_launch_command(sys.argv[1:])
    from dvpo_lib.chain.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(command_line())
