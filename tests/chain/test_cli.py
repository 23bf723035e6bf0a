"""The command line: help that names every command, and examples that can be run as they stand."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

from dvpo_lib.chain import cli
from dvpo_lib.chain.cli import COMMANDS, EXAMPLES, build_parser, main


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"\n    {command} " in shown for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_describes_it_and_gives_examples(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and f"usage: python -m dvpo_lib {command}" in shown
    assert shown.index("\n\n") < shown.index("options:") < shown.index("examples:")
    for example in EXAMPLES[command].split("\n"):
        words = shlex.split(example)
        assert words[:4] == ["python", "-m", "dvpo_lib", command] and example in shown
        assert build_parser().parse_args(words[3:]).command == command


def test_commands_of_the_chain_import_neither_trainer_nor_figures():
    """Each stage starts this program: seconds of imports would be paid for by every stage."""
    heavy = {"transformers.trainer", "matplotlib", "seaborn", "scipy.stats"}
    program = f"import sys; from dvpo_lib.chain.cli import main; main(['check']); print([*{heavy} & set(sys.modules)])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_goes_away_is_no_error():
    """As in `python -m dvpo_lib check | head -1`, however the output is buffered."""
    for buffered in ("", "1"):
        command, pipe = [sys.executable, "-m", "dvpo_lib", "check"], subprocess.PIPE
        environment = os.environ | {"PYTHONUNBUFFERED": buffered}
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe) as own:
            own.stdout.close()
            assert own.stderr.read() == b"" and own.wait() == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "COMMAND"), (["rapro"], "invalid choice: 'rapro'"), (["run"], "STAGE"), (["tune", "--methods", "x"], "'x'")],
)
def test_a_wrong_command_is_refused_with_its_usage(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    shown = capsys.readouterr().err
    assert stop.value.code == 2 and message in shown and shown.startswith("usage: python -m dvpo_lib")


def test_outside_a_project_the_error_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["check"]) == 1
    shown = capsys.readouterr().err
    assert (
        shown.startswith("error: ") and "no dvc.yaml with a params.yaml beside it" in shown and shown.count("\n") == 1
    )


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("x", "expected KEY=VALUE"),
        ("=1", "expected KEY=VALUE"),
        ("x=[1", "-p x:1: not valid YAML"),
        ("x=" + "[" * 3000, "nested deeper than 30 levels"),
        ("x=2024-01-31", "-p x:1: a date is no setting"),
        ("x=*a", "aliases are not supported"),
        ("x=" + "9" * 5000, "too many digits"),
        ("x=\0", "not valid YAML"),
        ("y" * 10_000, "expected KEY=VALUE"),
    ],
    ids=range(9),
)
def test_a_broken_parameter_is_one_short_error(argument, message, monkeypatch, capsys):
    monkeypatch.setattr(cli, "run_stage", lambda *_: pytest.fail("the stage ran"))
    assert main(["run", "critics", "-p", argument]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert message in line and len(line) < 350


def test_parameters_are_yaml_1_2(monkeypatch):
    found = {}
    monkeypatch.setattr(cli, "run_stage", lambda stage, parameters: found.update(parameters))
    assert main(["run", "critics", "-p", "x=1e-4", "-p", "y=[a, 'b=c', null]", "-p", "z=k=v"]) == 0
    assert found == {"x": 1e-4, "y": ["a", "b=c", None], "z": "k=v"}


def test_a_full_disk_is_one_line_and_other_errors_of_the_system_are_not_hidden(monkeypatch, capsys):
    def fail(*_):
        raise OSError(number, "No space left on device", "work/run/critics/notebook.ipynb")

    monkeypatch.setattr(cli, "run_stage", fail)
    number = errno.ENOSPC
    assert main(["run", "critics"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: [Errno 28] No space left on device: 'work/run/critics/notebook.ipynb'; the same command"
    )
    number = errno.EIO
    with pytest.raises(OSError):
        main(["run", "critics"])
