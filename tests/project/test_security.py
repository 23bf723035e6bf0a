"""Security: nothing in the library runs code from data, names stay in their folders, servers stay on loopback."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

from dvpo_lib.chain.cli import main
from dvpo_lib.chain.params import SECTIONS, load_params
from dvpo_lib.chain.stages import open_stage
from dvpo_lib.common.settings_tree import ConfigError

# ---- code ----

UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "jsonpickle", "yaml"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
UNSAFE_METHODS = {
    "system", "popen", "mktemp", "read_pickle", "to_pickle", "unsafe_load", "load_module", "run_path", "run_module",
    "_create_unverified_context",
}  # fmt: skip
UNSAFE_VALUES = {("shell", True), ("trust_remote_code", True), ("allow_pickle", True), ("weights_only", False),
                 ("verify", False), ("typ", "unsafe")}  # fmt: skip


def unsafe_places(source: str) -> list[str]:
    """What in a source could run code from data, switch a check off, or reach a network, as "line: what"."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names if alias.name.split(".")[0] in UNSAFE_MODULES]
            names += [alias.name for alias in node.names if alias.name.startswith(("urllib.request", "requests"))]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module] if node.module.split(".")[0] in UNSAFE_MODULES else []
            names += [node.module] if node.module.startswith(("urllib.request", "requests")) else []
        elif isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            keywords = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            if isinstance(node.func, ast.Name) and called in UNSAFE_CALLS or called in UNSAFE_METHODS:
                names.append(called)
            owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
            if (owner, called) == ("torch", "load") and keywords.get("weights_only") is not True:
                names.append("torch.load")
            if (owner, called) == ("joblib", "load"):
                names.append("joblib.load")
            names += [f"{k}={v}" for k, v in keywords.items() if (k, v) in UNSAFE_VALUES]
        elif isinstance(node, (ast.AnnAssign, ast.Assign)) and isinstance(node.value, ast.Constant):
            targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
            names = [t.id for t in targets if isinstance(t, ast.Name) and (t.id, node.value.value) in UNSAFE_VALUES]
        elif isinstance(node, ast.Dict):
            pairs = [(getattr(k, "value", None), getattr(v, "value", None)) for k, v in zip(node.keys, node.values)]
            names = [f"{k}={v}" for k, v in pairs if isinstance(k, str) and (k, v) in UNSAFE_VALUES]
        found += [f"{node.lineno}: {name}" for name in names]
    return found


def sources():
    """{place: source} of all code that is run outside tests: the library, benchmarks and cells of notebooks."""
    files = [*(ROOT / "dvpo_lib").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    found = {str(file.relative_to(ROOT)): file.read_text("utf-8") for file in files}
    for file in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(file.read_text("utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        found[file.name] = "\n".join(re.sub(r"^\s*%.*", "", text, flags=re.MULTILINE) for text in code)
    return found


def test_no_code_runs_what_data_says():
    found = {place: unsafe_places(source) for place, source in sources().items()}
    allowed = {"dvpo_lib/experiments/real/download.py": "urllib.request"}  # checks the hash of what it downloads
    for place, name in allowed.items():
        assert [what for what in found[place] if what.endswith(name)]
        found[place] = [what for what in found[place] if not what.endswith(name)]
    assert {place: what for place, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import loads",
        "import yaml; yaml.load('x')",
        "eval('1')",
        "exec(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "pd.read_pickle(path)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "class Settings:\n    trust_remote_code: bool = True",
        "f(**{'trust_remote_code': True})",
        "YAML(typ='unsafe')",
        "requests.get(address, verify=False)",
        "import urllib.request",
        "joblib.load(path)",
    ],
)
def test_unsafe_code_would_be_found(source):
    assert unsafe_places(source)


def test_safe_code_is_no_finding():
    assert (
        unsafe_places("model.eval(); torch.load(p, weights_only=True); YAML(typ='safe').load(t); re.compile(p)") == []
    )


# ---- names ----

OUTSIDE = ["../x", "../../x", "/etc/x", "a/b", "a\\b", "..", ".", "", "~", "C:x", "a\x00b", "-rf", "x;id", "$HOME"]
TABLES = [name for name, section in SECTIONS.items() if section.table]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_in_params_leaves_its_folder(tmp_path, name):
    rows = [(table, f"{table}:\n  {json.dumps(name)}: {{}}\n") for table in TABLES]
    for section, text in [*rows, ("families", f"families: [{json.dumps(name)}]\n")]:
        (tmp_path / "params.yaml").write_text(text, "utf-8")
        with pytest.raises(ConfigError, match=rf"^params.yaml:\d+: ({section}|not valid YAML)"):
            load_params(tmp_path / "params.yaml", [section])


@pytest.mark.parametrize("old, new", [("[none, spikes]", "[../x]"), ("ppo: {critic: scalar}", "ppo: {critic: ../x}")])
def test_a_name_refers_to_a_row(tmp_path, old, new):
    text = (ROOT / "params.yaml").read_text("utf-8")
    (tmp_path / "params.yaml").write_text(text.replace(old, new), "utf-8")
    with pytest.raises(ConfigError, match=r"`\.\./x` is no row of"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("name", ["../params", "/etc/passwd", "..", "sub/x", ""])
def test_a_profile_is_a_file_of_its_folder(project, capsys, name):
    (project / "profiles" / "sub").mkdir(parents=True)
    (project / "profiles" / "sub" / "x.yaml").write_text("seeds: 1\n")
    assert main(["profile", name]) == 1
    assert "a profile is named by" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["results/tiny/tables/../../../x", "results/tiny/../tiny2", "/x", "../x"])
def test_a_notebook_writes_nowhere_but_in_its_outputs(project, name):
    with pytest.raises(ConfigError, match="declares no output"):
        open_stage("tiny").path(name)


# ---- servers and downloads ----


def test_jupyterlab_listens_on_loopback_and_keeps_its_token():
    shown = subprocess.run(["make", "-n", "lab"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    command = next(line for line in shown.splitlines() if "jupyter lab" in line)
    assert "--ServerApp.ip=127.0.0.1" in command
    assert not re.search(r"token|password|allow_origin|allow.remote|allow.root|disable_check_xsrf", command)


def test_all_downloads_have_hashes():
    from dvpo_lib.experiments.real import download

    tables = [value for name, value in vars(download).items() if name.endswith("_SHA256")]
    assert len(tables) == 3
    for table in tables:
        assert table and all(re.fullmatch("[0-9a-f]{64}", digest) for digest in table.values())
        for name in table:
            assert not Path(name).is_absolute() and ".." not in Path(name).parts
