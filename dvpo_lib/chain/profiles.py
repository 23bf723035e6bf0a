"""Profiles: the chain at another size, in a copy of the project with outputs of its own.

profiles/NAME.yaml holds the settings that differ from params.yaml, merged mapping by mapping; a row of a table set to
null is dropped. The chain runs in a temporary copy of the working tree, deleted after success, or in a kept one
(`--workdir`), in which the same command resumes.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from dvpo_lib.chain.params import TABLES, load_params
from dvpo_lib.chain.stages import StageError, project_root
from dvpo_lib.common.durable_files import locked_file, write_durably
from dvpo_lib.common.processes import launched_environment
from dvpo_lib.common.settings_tree import cut_text, merge_trees, set_dotted
from dvpo_lib.common.settings_yaml import read_yaml, read_yaml_assignment

PROFILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
COPIED_FILES = ".synced"  # marks a copy: the list of files that came from the project


def add_profile_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `python -m dvpo_lib profile` to a parser."""
    parser.add_argument("name", metavar="NAME", help="the file profiles/NAME.yaml")
    parser.add_argument("targets", nargs="*", metavar="STAGE", help="stages such as train@dvpo (default: all)")
    parser.add_argument(
        "--workdir", type=Path, metavar="DIR", help="a copy to keep and to resume in (default: a temporary one)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting on top of the profile: dotted name, value in YAML; may be repeated",
    )
    parser.add_argument(
        "--export", type=Path, metavar="DIR", help="after success, copy pages, metrics and tables to this folder"
    )


def run_profile(chosen: argparse.Namespace) -> int:
    """Runs the chain with a profile.

    Args:
        chosen: Arguments parsed by `add_profile_arguments`.

    Returns:
        DVC's exit code.

    Raises:
        ConfigError: If a setting of the profile is wrong; nothing has run then.
        StageError: If the copy cannot be made there, or the export is too large.
    """
    root = project_root()
    if not PROFILE_NAME.fullmatch(chosen.name):
        raise StageError(f"{cut_text(chosen.name)}: a profile is named by letters, digits, hyphens and underscores")
    profile = root / "profiles" / f"{chosen.name}.yaml"
    changes = dict(read_yaml_assignment(text, "--set") for text in chosen.set)
    load_params(root / "params.yaml", overlaid=profile, changes=changes)
    workdir = (chosen.workdir or Path(tempfile.mkdtemp(prefix=f"dvpo-{chosen.name}-"))).resolve()
    check_workdir(root, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / COPIED_FILES).touch()  # first of all, so that an interrupted copy is known as one
    try:
        with locked_file(workdir / "work" / "profile.lock", wait=False):
            return _run_copy(root, workdir, profile, changes, chosen)
    except BlockingIOError as owner:
        raise StageError(f"another chain runs in {workdir} (process {owner}); wait for it, or stop it") from None


def _run_copy(root: Path, workdir: Path, profile: Path, changes: Mapping[str, Any], chosen: argparse.Namespace) -> int:
    sync_copy(root, workdir, profile, changes)
    environment = launched_environment(PYTHONPATH=str(workdir))
    if chosen.workdir:  # a kept copy shares the project's run store; a temporary one trains everything itself
        environment.setdefault("DVPO_STORE", str(root / ".runs"))
    else:
        environment["DVPO_STORE"] = str(workdir / ".runs")
    command = [sys.executable, "-m", "dvpo_lib", "repro", *chosen.targets]
    code = subprocess.run(command, cwd=workdir, env=environment).returncode
    if code:
        print(f"error: profile {chosen.name} did not finish; its copy is kept: {workdir}", file=sys.stderr)
        return code
    if chosen.export:
        from dvpo_lib.chain.exports import export_results, findings_of, insert_findings  # figures are slow to import

        export_results(workdir, root / chosen.export)
        insert_findings(root / "README.md", findings_of(root / chosen.export), chosen.name)
    if not chosen.workdir:
        shutil.rmtree(workdir)
    return 0


def check_workdir(root: Path, workdir: Path) -> None:
    """Refuses a folder in which a copy would overwrite other files, or itself be copied.

    Raises:
        StageError: If the folder holds or is the project, lies in it outside work/, or has files of another origin.
    """
    if root.is_relative_to(workdir) or (workdir.is_relative_to(root) and root / "work" not in workdir.parents):
        raise StageError(f"--workdir {workdir}: a copy may lie in the project only below work/, and may not hold it")
    if workdir.exists() and not workdir.is_dir():
        raise StageError(f"--workdir {workdir} is no folder")
    if workdir.is_dir() and any(workdir.iterdir()) and not (workdir / COPIED_FILES).is_file():
        raise StageError(f"--workdir {workdir} holds other files: name a new folder, or one that a profile has filled")


def sync_copy(root: Path, workdir: Path, profile: Path, changes: Mapping[str, Any] | None = None) -> None:
    """Brings a copy of the project up to date and writes its params.yaml.

    Args:
        root: The project's root.
        workdir: The copy; made if missing. Files that are gone from the project are deleted, outputs stay.
        profile: The file merged into params.yaml.
        changes: Settings by dotted name on top of the profile.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    files = list_project_files(root)
    record = workdir / COPIED_FILES
    record.touch()
    for gone in set(record.read_text(encoding="utf-8").split("\n")) - {*files, ""}:
        (workdir / gone).unlink(missing_ok=True)
    for file in files:
        source, target = root / file, workdir / file
        if not (target.is_file() and target.read_bytes() == source.read_bytes()):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    write_durably(record, "\n".join(files))
    params = merge_trees(read_yaml(root / "params.yaml"), read_yaml(profile), tables=TABLES)
    set_dotted(params, changes or {})
    for section, name in (("real", "dir"), ("policy", "name_or_path")):  # git ignores these files: the copy has none
        place = (params.get(section) or {}).get(name)
        if place and (root / place).exists():
            params[section][name] = str(root / place)
    with open(workdir / "params.yaml", "w", encoding="utf-8") as file:
        YAML().dump(params, file)
    allow_no_git(workdir, is_copy=True)


def allow_no_git(root: Path, is_copy: bool = False) -> None:
    """Tells DVC that a project lies in no git repository, such as an unpacked archive or a copy of a profile."""
    from configobj import ConfigObj

    if is_copy or not any((folder / ".git").exists() for folder in (root, *root.parents)):
        config = ConfigObj(str(root / ".dvc" / "config.local"), encoding="utf-8")
        if config.get("core", {}).get("no_scm") != "true":
            config.setdefault("core", {})["no_scm"] = "true"
            config.write()


def list_project_files(root: Path) -> list[str]:
    """Lists the files that git tracks or would track, except dvc.lock and params.yaml, which a copy has of its own."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=root, capture_output=True, check=True)
        files = {os.fsdecode(name) for name in listed.stdout.split(b"\0")}
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository of git
        files = set(_unignored_files(root))
    return sorted(file for file in files - {"dvc.lock", "params.yaml", ""} if (root / file).is_file())


def _unignored_files(root: Path) -> Iterator[str]:
    """The files that .gitignore of the root does not name, without those of DVC's cache."""
    from pathspec import GitIgnoreSpec

    lines = [".git", ".dvc/config.local", ".dvc/tmp/", ".dvc/cache/"]
    ignored = GitIgnoreSpec.from_lines(lines + (root / ".gitignore").read_text(encoding="utf-8").splitlines())
    for parent, folders, names in os.walk(root):
        place = Path(parent).relative_to(root)
        folders[:] = [name for name in folders if not ignored.match_file(f"{(place / name).as_posix()}/")]
        yield from (path for name in names if not ignored.match_file(path := (place / name).as_posix()))
