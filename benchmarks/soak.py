"""Kills the smoke chain and trainings at random moments, starts them again, and compares bytes: `make soak`.

Each kill is a SIGKILL of one process: the command itself or, at random, DVC, a stage, its kernel or one of its workers.
The same command is started again, until the kills are used up; then it runs to its end. A command that ends in between
is compared as well, and starts anew in empty folders. Counted are processes that are still there `GRACE` seconds after
their command, files that differ from those of an undisturbed run, and commands that fail without having been hurt.

The result is written after every kill. A soak that was interrupted goes on with the kills that are left. A part without
kills (`--chain 0`) keeps its earlier result.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil
from tqdm import tqdm

from dvpo_lib.common.durable_files import folder_digests, write_durably

ROOT = Path(__file__).parents[1]
GRACE = 15  # seconds in which the processes of a killed command end
ROLES = {  # words of a command line: what the process is
    "ipykernel_launcher": "kernel",
    "resource_tracker": "tracker",
    "loky": "worker",
    "multiprocessing.spawn": "worker",
    "dvpo_lib run": "stage",
    "dvc.cli": "dvc",
}


@dataclass
class Work:
    """A command that is killed and started again until it has finished.

    Attributes:
        name: In the results.
        folder: The command's own folder, in which all of its processes work, but for the command itself.
        command: Its words.
        outputs: Folders below `folder` whose files are compared.
        inputs: A folder that `folder` starts as a copy of; None: an empty one.
        directory: Where the command itself starts; None: in `folder`.
    """

    name: str
    folder: Path
    command: list[str]
    outputs: tuple[str, ...]
    inputs: Path | None = None
    directory: Path | None = None

    def renew(self) -> None:
        """Empties the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.inputs is None:
            self.folder.mkdir(parents=True)
        else:
            shutil.copytree(self.inputs, self.folder)

    def start(self) -> subprocess.Popen:
        """Starts the command; what it prints goes to output.log beside the folder."""
        own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DVPO_STORE": str(self.folder / ".runs")}
        with open(self.folder.with_name(f"{self.folder.name}.log"), "ab") as log:
            place = dict(cwd=self.directory or self.folder, env=os.environ | own, stdout=log, stderr=log)
            return subprocess.Popen(self.command, **place, start_new_session=True)

    def files(self) -> dict[str, str]:
        """{path: SHA-256} of the outputs."""
        found = {out: folder_digests(self.folder / out) for out in self.outputs}
        return {f"{out}/{name}": digest for out, files in found.items() for name, digest in files.items()}

    def left_over(self) -> list[psutil.Process]:
        """Processes that still work in the folder `GRACE` seconds after the command has ended."""
        deadline = time.monotonic() + GRACE
        while found := [process for process in psutil.process_iter() if self._works_here(process)]:
            if time.monotonic() > deadline:
                return found
            time.sleep(0.2)
        return []

    def _works_here(self, process: psutil.Process) -> bool:
        try:
            here = Path(process.cwd()).is_relative_to(self.folder)
            return here and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


def role_of(process: psutil.Process) -> str:
    """What a process of a command is: "command", "dvc", "stage", "kernel", "worker" ..."""
    words = " ".join(process.cmdline())
    return next((role for word, role in ROLES.items() if word in words), "other")


def kill_one(process: subprocess.Popen, chance: random.Random) -> str | None:
    """Kills a process of a running command, the command itself in two cases of five.

    Returns:
        Its role; None if it had ended.
    """
    try:
        family = psutil.Process(process.pid).children(recursive=True)
        if not family or chance.random() < 0.4:
            process.kill()
            return "command"
        victim = chance.choice(family)
        role = role_of(victim)
        victim.kill()
        return role
    except psutil.Error:
        return None


def run_undisturbed(work: Work) -> tuple[dict[str, str], float]:
    """Runs a command to its end in an empty folder.

    Returns:
        {path: SHA-256} of its outputs, and the seconds that it took.

    Raises:
        RuntimeError: If it fails.
    """
    work.renew()
    started = time.monotonic()
    if code := work.start().wait():
        raise RuntimeError(f"{work.name}: the undisturbed run failed with exit code {code}; see {work.folder}.log")
    return work.files(), time.monotonic() - started


def soak_work(
    work: Work, kills: int, expected: dict[str, str], longest: float, result: dict, save=lambda: None
) -> dict:
    """Kills a command until it has been killed `kills` times, then lets it finish.

    Args:
        work: The command; its folder is as an earlier soak left it.
        kills: Number of kills, those in `result` included.
        expected: Outputs of an undisturbed run.
        longest: Seconds between two kills, at most.
        result: Counts so far; the new ones are added to them.
        save: Called after every kill.

    Returns:
        `result`: kills, killed (by role), compared (finished commands), different (files), left_over, failed.
    """
    for name, empty in {"kills": 0, "killed": {}, "compared": 0, "different": [], "left_over": 0, "failed": []}.items():
        result.setdefault(name, empty)
    if not work.folder.is_dir():
        work.renew()
    bar = tqdm(total=kills, initial=result["kills"], desc=f"{work.name}: kills", mininterval=0)
    process, hurt = work.start(), False
    while True:
        chance = random.Random(f"{work.name} {result['kills']} {result['compared']}")
        try:
            code = process.wait(chance.uniform(0, longest) if result["kills"] < kills else None)
        except subprocess.TimeoutExpired:
            if (role := kill_one(process, chance)) is not None:
                hurt = True
                result["kills"] += 1
                result["killed"] = dict(sorted((Counter(result["killed"]) + Counter([role])).items()))
                bar.update()
                save()
            if role != "command":
                continue  # the command may get over it
            code = process.wait()
        for remaining in work.left_over():
            result["left_over"] += 1
            print(f"left over: {' '.join(remaining.cmdline())[:200]}", file=sys.stderr)
            remaining.kill()
        if code == 0:
            found = work.files()
            different = sorted(name for name in expected | found if expected.get(name) != found.get(name))
            result["different"] += [name for name in different if name not in result["different"]]
            result["compared"] += 1
            if result["kills"] >= kills:
                break
            work.renew()
        elif not hurt:
            result["failed"].append(code)
            print(f"{work.name} failed with exit code {code}; see {work.folder}.log", file=sys.stderr)
            if result["kills"] >= kills:
                break
        process, hurt = work.start(), False
    bar.close()
    save()
    return result


TRAINING = """\
import sys
from dvpo_lib.experiments.run_store import execute_specs
from dvpo_lib.experiments.specs.training import TrainingSpec
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.noise.sources import NoiseSettings
from dvpo_lib.rl.training_settings import TrainingSettings
from dvpo_lib.tasks.evaluation import EvaluationSettings
critic = CriticSettings(heads=2, quantiles=16)
rest = "math", 0, EvaluationSettings(prompts=4, k=1), None, "base", "suites"
training = TrainingSettings(generation_batch_size=16)
spec = TrainingSpec("dvpo", "none", "dvpo", training, int(sys.argv[1]), critic, NoiseSettings(), *rest)
execute_specs([spec], 1, None)
"""


def make_world(folder: Path) -> None:
    """Writes a small base policy (base/) and small suites (suites/) to a folder."""
    from dvpo_lib.models.policy import PolicySettings, build_policy
    from dvpo_lib.tasks.chains import ChainSettings
    from dvpo_lib.tasks.dialogue import DialogueSettings
    from dvpo_lib.tasks.families import TaskSettings, build_suites, build_tokenizer
    from dvpo_lib.tasks.suites import save_suites

    small = ChainSettings(demonstrations=1, train=20, test=4)
    tasks = TaskSettings(math=small, science=small, dialogue=DialogueSettings(demonstrations=1, train=20, test=4))
    save_suites(build_suites(tasks), folder / "suites")
    tokenizer = build_tokenizer(tasks)
    build_policy(tokenizer, PolicySettings(hidden_size=16, num_hidden_layers=1), 0).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")


def training_work(folder: Path, world: Path, iterations: int) -> Work:
    """One training of the run store, with a checkpoint every 20 iterations."""
    command = [sys.executable, "-c", TRAINING, str(iterations)]
    return Work("trainings", folder, command, (".runs",), world)


def chain_work(folder: Path, stages: list[str]) -> Work:
    """The smoke chain, or some of its stages, in a copy of the project with a run store of its own."""
    command = [sys.executable, "-m", "dvpo_lib", "profile", "smoke", *stages, "--workdir", str(folder)]
    return Work("chain", folder, command, ("data", "results"), directory=ROOT)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chain", type=int, default=50, help="kills of the smoke chain (default 50)")
    parser.add_argument("--stages", nargs="+", default=[], metavar="STAGE", help="of the chain (default: all)")
    parser.add_argument("--trainings", type=int, default=50, help="kills of trainings (default 50)")
    parser.add_argument("--iterations", type=int, default=200, help="of a training (default 200)")
    parser.add_argument("--share", type=float, default=0.4, help="of an undisturbed run between two kills, at most")
    parser.add_argument("--workdir", type=Path, default=ROOT / "work" / "soak", help="scratch (default work/soak)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "soak.json", help="the result")
    chosen = parser.parse_args(arguments)
    workdir = chosen.workdir.resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    if not (workdir / "world" / "base" / "tokenizer.json").is_file():
        make_world(workdir / "world")
    makers = {
        "chain": (chosen.chain, lambda folder: chain_work(folder, chosen.stages)),
        "trainings": (chosen.trainings, lambda folder: training_work(folder, workdir / "world", chosen.iterations)),
    }
    progress = workdir / "progress.json"
    found = json.loads(progress.read_text(encoding="utf-8")) if progress.is_file() else {}
    earlier = (
        json.loads(chosen.out.read_text(encoding="utf-8")) if chosen.out.is_file() else {}
    )  # a part that is left out now stays
    for name, (kills, make) in makers.items():
        if not kills:
            continue
        own = found.setdefault(name, {})
        if "expected" not in own:
            print(f"{name}: an undisturbed run ...", file=sys.stderr)
            own["expected"], own["seconds"] = run_undisturbed(make(workdir / f"{name}-undisturbed"))
            write_durably(progress, json.dumps(found))
        result = own.setdefault("result", {"stages": chosen.stages or "all"} if name == "chain" else {})

        def save() -> None:
            write_durably(progress, json.dumps(found))
            shown = {part: {**v["result"], "files": len(v["expected"])} for part, v in found.items() if "result" in v}
            write_durably(chosen.out, json.dumps(earlier | shown, indent=1, sort_keys=True) + "\n")

        soak_work(make(workdir / f"{name}-killed"), kills, own["expected"], own["seconds"] * chosen.share, result, save)
        print(f"{name}: {json.dumps(result)}", file=sys.stderr)
    if not any(part["result"]["failed"] for part in found.values()):  # else their output is of interest
        shutil.rmtree(workdir)


if __name__ == "__main__":
    main()
