"""Builds wheel and sdist, installs them into new environments and uses them there: `make package-test`.

Needs the package index and a few minutes; `tests/project/test_packaging.py` holds the cheap checks.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
POLICY = """
from dvpo_lib.models.policy import PolicySettings, build_policy
from dvpo_lib.tasks.families import TaskSettings, build_tokenizer
tokenizer = build_tokenizer(TaskSettings())
build_policy(tokenizer, PolicySettings(hidden_size=32, num_hidden_layers=1), 0).save_pretrained("data/base")
tokenizer.save_pretrained("data/base")
"""


def run(*command: str | Path, cwd: Path, code: int = 0) -> str:
    """Runs a command and returns what it printed; ends the check if its exit code is another."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode != code:
        sys.exit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def check(condition: bool, what: str) -> None:
    """Prints what holds; ends the check if it does not."""
    if not condition:
        sys.exit(f"package-test: not so: {what}")
    print(f"package-test: {what}", flush=True)


def new_environment(folder: Path) -> Path:
    """Makes a virtual environment and returns its folder of commands."""
    venv.create(folder, with_pip=True)
    return folder / "bin"


def build(work: Path) -> Path:
    """Builds the sdist, and from it the wheel; checks what they hold. Returns the wheel."""
    tools = new_environment(work / "tools")
    run(tools / "pip", "install", "--quiet", "build", "twine", cwd=work)
    run(tools / "python", "-m", "build", "--outdir", work / "dist", ROOT, cwd=work)
    wheel, sdist = next((work / "dist").glob("*.whl")), next((work / "dist").glob("*.tar.gz"))
    run(tools / "python", "-m", "twine", "check", "--strict", wheel, sdist, cwd=work)
    inside = zipfile.ZipFile(wheel)
    names = set(inside.namelist())
    check(
        {"dvpo_lib/chain/pages/page.html.j2", "dvpo_lib/chain/pages/page.css"} <= names, "the wheel has its templates"
    )
    check({name.split("/")[0].split("-")[0] for name in names} == {"dvpo_lib"}, "the wheel holds the library alone")
    metadata = inside.read(next(name for name in names if name.endswith("METADATA"))).decode()
    links = re.findall(r"\]\(([^)]*)\)", metadata)
    check(bool(links) and all(link.startswith("http") for link in links), "links of the description lead to addresses")
    check(any(name.endswith("licenses/LICENSE") for name in names), "the licence is in the wheel")
    source = {name.partition("/")[2] for name in tarfile.open(sdist).getnames()}
    needed = {"README.md", "dvc.yaml", "Makefile", "docs/methods.md", "notebooks/05_report.ipynb", "tests/conftest.py"}
    check(needed <= source, "the sdist holds the whole project")
    return wheel


def main() -> None:
    """Builds, installs and uses the package."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        wheel = build(work)
        version = wheel.name.split("-")[1]
        user = new_environment(work / "user")
        install = [user / "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
        run(*install, wheel, cwd=work)
        listed = run(user / "pip", "list", cwd=work).lower()
        check(not any(name in listed for name in ("jupyterlab", "dvc", "papermill")), "the trainer needs no notebooks")
        told = run(user / "dvpo", "repro", cwd=work, code=1)
        check("pip install 'dvpo-lib[pipeline]'" in told, "a command without the extra says how to install it")
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        program = re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1]
        told = run(
            user / "python", "-c", f"{POLICY}\n{program}\nimport dvpo_lib; print(dvpo_lib.__version__)", cwd=work
        )
        check(f"\n{version}\n" in told, "the program of README.md trains, and the version is that of the wheel")
        run(*install, f"{wheel}[pipeline]", cwd=work)
        check(run(user / "dvpo", "--version", cwd=work).strip() == f"dvpo_lib {version}", "dvpo --version")
        told = run(user / "dvpo", "check", cwd=work, code=1)
        check(told.startswith("error: ") and told.count("\n") == 1, "outside of a project, a command says so in a line")


if __name__ == "__main__":
    main()
