"""Entry point of `python -m dvpo_lib` and of the command `dvpo`."""

import os
import select
import sys


def command_line() -> int:
    """Runs one command; if a package of the extra `pipeline` is missing, says how to install it."""
    try:
        code = _run_command()
    except SystemExit as stop:  # of the parser
        code = stop.code
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        code = 1
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "dvpo_lib"):
            raise
        print(
            f"error: the package {missing} is missing; commands need the extra: pip install 'dvpo-lib[pipeline]'",
            file=sys.stderr,
        )
        code = 1
    if _reader_has_gone():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its end
        return code or 1
    return code


def _reader_has_gone() -> bool:
    """Whether the output is a pipe that nobody reads any more, as in `... | head`."""
    try:
        waiting = select.poll()
        waiting.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in waiting.poll(0))
    except OSError:  # not a file of the system
        return False


def _run_command() -> int:
    from dvpo_lib.experiments.launch.commands import LAUNCH_COMMANDS, run_launch_command

    if sys.argv[1:2] and sys.argv[1] in LAUNCH_COMMANDS:
        return run_launch_command(sys.argv[1:])
    from dvpo_lib.chain.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(command_line())
