"""Real input: files read and brought, splits, label noise, the study from end to end on a few made-up problems."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import socket
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, stage_command
from safetensors.numpy import load_file
from sklearn.metrics import roc_auc_score

from dvpo_lib.chain.cli import main
from dvpo_lib.chain.params import load_params
from dvpo_lib.common.settings_tree import ConfigError
from dvpo_lib.experiments.import_graph import reachable_files
from dvpo_lib.experiments.real import download, files, pretraining
from dvpo_lib.experiments.real.settings import RealSettings
from dvpo_lib.experiments.real.solutions import data, report, study
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.reporting import figures
from dvpo_lib.reporting.prediction_quality import weighted_auc
from dvpo_lib.reporting.statistics import cluster_bootstrap

HERE = Path(os.environ.get("DVPO_REAL_DATA", ROOT.parent / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not all((HERE / name).is_file() for name in files.GSM8K_FILES),
    reason="the real data is not here: set DVPO_REAL_DATA to a folder that holds gsm8k/",
)


def problems(count: int) -> dict[str, list[dict]]:
    """Made-up files: sums, each solved by all generators, the better ones more often right."""
    rng = np.random.default_rng(0)
    sums = [(int(a), int(b)) for a, b in rng.integers(1, 99, (2 * count, 2))]
    worked = [
        {
            "question": f"Ann has {a} plums and buys {b}. How many now?",
            "answer": f"{a}+{b}=<<{a}+{b}={a + b}>>\n#### {a + b}",
        }
        for a, b in sums
    ]
    solved = []
    for (a, b), record in zip(sums[:count], worked[:count]):
        row = {"question": record["question"], "ground_truth": f"A: {a + b}"}
        for k, name in enumerate(data.GENERATORS):
            right = bool(rng.random() < 0.3 + 0.15 * k)
            row[name] = {"solution": f"{a}+{b}={a + b + (not right)}\nA: {a + b + (not right)}", "is_correct": right}
        solved.append(row)
    return {files.TRAIN_FILE: worked[count:], files.TEST_FILE: worked[:count], files.SOLUTIONS_FILE: solved}


def write(folder: Path, files: dict[str, list[dict]]) -> Path:
    for name, records in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "real", problems(6))


# ---- reading ----


def test_solutions_and_worked_problems_are_read(folder):
    solutions = data.read_solutions(folder / files.SOLUTIONS_FILE)
    assert len(solutions) == 24 and solutions["problem"].nunique() == 6 and set(solutions["correct"]) == {0.0, 1.0}
    assert solutions["prompt"][0].endswith("How many now?\n") and "\nA: " in solutions["completion"][0]
    worked = data.read_worked_problems(folder / files.TRAIN_FILE)
    assert worked["completion"].str.contains("\nA: ").all() and not worked["completion"].str.contains("####").any()


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        (files.TRAIN_FILE, '{"question": "q"', "not valid JSON"),
        (files.TRAIN_FILE, "", "not valid JSON"),
        (files.TRAIN_FILE, "[1]", "a record is expected, not '[1]'"),
        (files.TRAIN_FILE, '{"question": "q"}', "the field `answer` is missing"),
        (files.TEST_FILE, '{"question": "q", "answer": 3}', "`answer` should be a text that is not empty, not 3"),
        (files.TEST_FILE, '{"question": " ", "answer": "3"}', "`question` should be a text that is not empty"),
        (files.TEST_FILE, b'{"question": "\xff", "answer": "3"}', "not valid UTF-8"),
        (files.SOLUTIONS_FILE, '{"question": "q", "ground_truth": "g"}', "the field `6b_finetuning` is missing"),
        (files.SOLUTIONS_FILE, "~solution", "175b_finetuning: the field `solution` is missing"),
        (files.SOLUTIONS_FILE, "~is_correct", "175b_finetuning: `is_correct` should be true or false, not None"),
        (files.SOLUTIONS_FILE, "~~", "175b_finetuning: a record is expected, not 'wrong'"),
    ],
)
def test_a_malformed_record_is_named_by_file_and_line(folder, name, line, message):
    lines = (folder / name).read_bytes().split(b"\n")
    if str(line).startswith("~"):  # spoils a good record
        record = json.loads(lines[1])
        record["175b_finetuning"].pop(line[1:], None)
        line = json.dumps(record | ({"175b_finetuning": "wrong"} if line == "~~" else {}))
    lines[1] = line if isinstance(line, bytes) else line.encode()
    (folder / name).write_bytes(b"\n".join(lines))
    critics = {"scalar": CriticSettings(kind="scalar")}
    with pytest.raises(ValueError) as caught:
        study.run_solution_study(RealSettings(dir=str(folder)), critics, 0, progress=None)
    assert str(caught.value).startswith(f"{name}:2: {message}") and "\n" not in str(caught.value)


def test_missing_and_empty_files_are_named(folder):
    (folder / files.TRAIN_FILE).write_text("")
    with pytest.raises(ValueError, match="gsm8k/train.jsonl: the file is empty"):
        data.read_worked_problems(folder / files.TRAIN_FILE)
    with pytest.raises(ValueError, match="gsm8k/train.jsonl: no such file; `make real-data`"):
        data.read_worked_problems(folder / "absent.jsonl")


def params_with(folder: Path, dir_: str) -> Path:
    text = (ROOT / "params.yaml").read_text().replace("dir: null", f"dir: {dir_}")
    (folder / "params.yaml").write_text(text)
    return folder / "params.yaml"


def test_a_missing_folder_stops_everything_at_the_start(tmp_path, folder):
    """Named by file, line and key; a relative folder counts from params.yaml."""
    line = 1 + (ROOT / "params.yaml").read_text().splitlines().index(
        next(text for text in (ROOT / "params.yaml").read_text().splitlines() if text.startswith("  dir: null"))
    )
    path = params_with(tmp_path, "nowhere")
    for tracked in (None, ["real"]):
        with pytest.raises(ConfigError) as caught:
            load_params(path, tracked)
        assert str(caught.value) == (
            f"params.yaml:{line}: real.dir: there is no folder nowhere; `make real-data` "
            "downloads the files into data/real"
        )
    load_params(path, ["seed"])  # a stage that does not read it does not mind
    assert load_params(params_with(tmp_path, "real"), ["real"]).real.dir == "real"
    (folder / files.TEST_FILE).unlink()
    with pytest.raises(ConfigError, match=f"params.yaml:{line}: real.dir: real holds no file gsm8k/test.jsonl"):
        load_params(path, ["real"])


def test_repro_says_so_in_one_line(project):
    params_with(project, "nowhere")
    done = stage_command("repro", cwd=project)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: params.yaml:") and "real.dir: there is no folder" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_profiles_copy_finds_the_folder_of_the_project(tmp_path, folder, monkeypatch):
    from dvpo_lib.chain import profiles as profile

    path = params_with(tmp_path, "real")
    (tmp_path / "small.yaml").write_text("seeds: 1\n")
    (tmp_path / "copy" / ".dvc").mkdir(parents=True)
    monkeypatch.setattr(profile, "list_project_files", lambda root: [])
    profile.sync_copy(path.parent, tmp_path / "copy", tmp_path / "small.yaml")
    assert load_params(tmp_path / "copy" / "params.yaml", ["real"]).real.dir == str(folder)


# ---- downloading ----


@pytest.fixture
def server(folder):
    """(address, requests) of a loopback server over the made-up files."""
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_GET(self):  # noqa: N802
            requests.append(self.path)
            if "cut" not in self.path:
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"only the beginning")

    handler = functools.partial(Handler, directory=str(folder / "gsm8k"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", requests
        running.shutdown()


@pytest.fixture
def hashes(folder):
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files.GSM8K_FILES}


def kept(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_present_files_are_not_downloaded_again(server, hashes, folder, tmp_path):
    address, requests = server
    target = tmp_path / "brought"
    assert set(download.download_files(target, address, hashes, progress=False).values()) == {"downloaded"}
    assert all((target / name).read_bytes() == (folder / name).read_bytes() for name in files.GSM8K_FILES)
    assert kept(target) == set(files.GSM8K_FILES) and len(requests) == 3
    assert set(download.download_files(target, address + "/", hashes, progress=False).values()) == {"present"}
    (target / files.TEST_FILE).write_text("spoilt")
    assert download.download_files(target, address, hashes, progress=False)[files.TEST_FILE] == "downloaded"
    assert len(requests) == 4, "what is there and right is not brought again"


def test_an_interrupted_download_resumes(server, hashes, folder, tmp_path, monkeypatch):
    address, requests = server
    fetch = download.fetch_address

    def interrupted(*arguments):
        if len(requests) == 1:
            arguments[1].write_bytes(b"half of a file")
            raise KeyboardInterrupt
        return fetch(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(download, "fetch_address", interrupted)
        download.download_files(tmp_path / "brought", address, hashes, progress=False)
    assert kept(tmp_path / "brought") == {files.TRAIN_FILE}
    done = download.download_files(tmp_path / "brought", address, hashes, progress=False)
    assert list(done.values()) == ["present", "downloaded", "downloaded"]


def test_a_failed_download_leaves_no_file_and_names_the_reason(server, hashes, tmp_path):
    address, _ = server
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{closed.getsockname()[1]}"
    cases = [
        (address, hashes | {files.TRAIN_FILE: "0" * 64}, "/train.jsonl: this is another file than the published one"),
        (f"{address}/nowhere", hashes, "nowhere/train.jsonl: the server says 404"),
        (f"{address}/cut", hashes, "the connection broke off after 18 of 1000 bytes"),
        (refused, hashes, "cannot be reached: .*refused"),
        ("no address", hashes, "cannot be reached: unknown url type"),
    ]
    for source, expected, message in cases:
        with pytest.raises(download.DownloadError, match=message) as caught:
            download.download_files(tmp_path / "brought", source, expected, progress=False)
        assert "\n" not in str(caught.value) and kept(tmp_path / "brought") == set()
    (tmp_path / "file").write_text("")
    with pytest.raises(download.DownloadError, match="cannot be written to"):
        download.download_files(tmp_path / "file", address, hashes, progress=False)


def test_command_line(server, folder, tmp_path, capsys):
    assert main(["download", str(tmp_path / "brought"), "--source", server[0]]) == 1  # made-up files: another hash
    assert "error: http" in capsys.readouterr().err and not kept(tmp_path / "brought")
    assert main(["check", "--data", str(folder)]) == 0
    assert "6 problems, each solved by:\n  6b_finetuning: " in capsys.readouterr().out
    (folder / files.TRAIN_FILE).write_text("{}\n")
    assert main(["check", "--data", str(folder)]) == 1
    assert capsys.readouterr().err == "error: gsm8k/train.jsonl:1: the field `question` is missing\n"
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert "download " in shown and "params.yaml" in shown
    assert set(download.GSM8K_SHA256) == set(files.GSM8K_FILES)


# ---- splits, noise, texts ----


def test_solutions_of_a_problem_stay_together():
    solutions = pd.DataFrame({"problem": np.repeat(np.arange(2000), 2)})
    solutions["prompt"] = [f"problem {i}" for i in solutions["problem"]]
    training, held = data.split_by_problem(solutions, 0.3)
    assert not set(training["prompt"]) & set(held["prompt"]) and len(training) + len(held) == 4000
    assert 0.27 < len(held) / 4000 < 0.33
    more = data.split_by_problem(solutions, 0.5)[1]
    assert set(held["prompt"]) <= set(more["prompt"])  # by hash: a larger share keeps the smaller one
    with pytest.raises(ValueError, match="real.held_out = 1e-09 leaves none of 2000 problems"):
        data.split_by_problem(solutions, 1e-9)


def test_labels_are_flipped_at_the_rate_and_flips_are_nested():
    labels = np.tile([0.0, 1.0], 5000)
    changed = {rate: data.flip_labels(labels, rate, 3) != labels for rate in (0.0, 0.2, 0.4)}
    assert not changed[0.0].any() and not (changed[0.2] & ~changed[0.4]).any()
    assert abs(changed[0.2].mean() - 0.2) < 0.02 and abs(changed[0.4].mean() - 0.4) < 0.02
    assert (data.flip_labels(labels, 0.2, 3) != data.flip_labels(labels, 0.2, 4)).any()


@pytest.fixture(scope="module")
def tokenizer():
    return pretraining.byte_level_tokenizer([f"Ann has {i} plums\nA: {i}" for i in range(50)], 300)


def test_tokenizer_encodes_any_text(tokenizer):
    for text in ("Ann has 7 plums\nA: 7", "½ of “it” 🙂", "<<1+1=2>>"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer) <= 300 and tokenizer.padding_side == "left"


def test_long_texts_are_truncated_at_a_token(tokenizer):
    table = pd.DataFrame({"prompt": ["Ann has 3 plums and 8 pears", "x"], "completion": ["A: 3", "plums " * 40]})
    short, count = data.truncate_texts(table, tokenizer, 4)
    lengths = [len(tokenizer(text).input_ids) for column in short[["prompt", "completion"]] for text in short[column]]
    assert max(lengths) <= 4 and count == 2
    assert table["prompt"][0].endswith(short["prompt"][0]) and table["completion"][1].startswith(short["completion"][1])
    assert data.truncate_texts(table, tokenizer, 400)[1] == 0


def test_packing_keeps_the_text(tokenizer):
    table = pd.DataFrame({"prompt": [f"{i}?\n" for i in range(30)], "completion": "A: 1"})
    tokens = pretraining.pack_texts(table, tokenizer, length=16)
    assert tokens.input_ids.shape[1] == 17 and tokens.mask.shape[1] == 16 and bool(tokens.attention_mask.all())
    assert tokenizer.decode(tokens.input_ids.flatten()).startswith("0?\nA: 1<eos>1?\nA: 1<eos>")


# ---- statistics ----


def test_weighted_auc_is_scikit_learns():
    rng = np.random.default_rng(0)
    outcome, score = rng.random(200) < 0.4, rng.integers(0, 12, 200) / 12  # with ties
    weights = rng.integers(0, 4, (20, 200)).astype(float)
    expected = [roc_auc_score(outcome, score, sample_weight=row) for row in weights]
    assert weighted_auc(score, outcome, weights) == pytest.approx(expected, abs=1e-12)
    assert np.isnan(weighted_auc(score, np.ones(200), weights)).all()


def test_cluster_bootstrap_is_the_simple_loop():
    rng = np.random.default_rng(1)
    clusters = np.repeat([f"p{i}" for i in range(40)], 4)
    values = np.repeat(rng.normal(0, 1, 40), 4) + rng.normal(0, 0.1, 160)
    found = cluster_bootstrap(lambda w: (w @ values) / w.sum(1), clusters, resamples=4000)
    groups = [values[clusters == c] for c in dict.fromkeys(clusters)]
    loop = [np.concatenate([groups[i] for i in rng.integers(0, 40, 40)]).mean() for _ in range(4000)]
    assert found.point == pytest.approx(values.mean()) and found.n == 40
    assert (found.low, found.high) == pytest.approx(np.quantile(loop, [0.025, 0.975]), abs=0.04)
    alone = cluster_bootstrap(lambda w: (w @ values) / w.sum(1), np.arange(160))
    assert found.high - found.low > 1.6 * (alone.high - alone.low)  # four records of a cluster are not four
    assert np.isnan(cluster_bootstrap(lambda w: (w @ values) / w.sum(1), np.zeros(160)).low)
    with pytest.raises(ValueError, match="no records"):
        cluster_bootstrap(lambda w: w, [])


# ---- the study ----

SMALL = dict(vocabulary=300, hidden_size=16, num_hidden_layers=1, max_tokens=40, noise_rates=(0.0, 0.4), held_out=0.5)
CRITICS = {"scalar": CriticSettings(kind="scalar"), "quantile": CriticSettings(heads=2, quantiles=8)}


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """The same study in two places: other folders, other stores."""
    done = []
    for place in ("a", "b"):
        folder = write(tmp_path_factory.mktemp(place) / "real", problems(24))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DVPO_STORE", str(folder.parent / "store"))
            settings = RealSettings(dir=str(folder), **SMALL)
            done.append(study.run_solution_study(settings, CRITICS, 0, workers=1, progress=None, resamples=100))
    return done


def test_results_do_not_depend_on_the_place_of_the_data(twice):
    a, b = ([s.backbone.parent, *s.folders.values()] for s in twice)
    assert [f.name for f in a] == [f.name for f in b], "the store's keys must not depend on a path"
    for one, other in zip(a, b):
        names = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
        assert names == sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file())
        for name in names:
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    pd.testing.assert_frame_equal(twice[0].scores, twice[1].scores)


def test_noise_touches_training_labels_only(twice):
    done = twice[0]
    labels = {key: pd.read_csv(folder / "labels.csv") for key, folder in done.folders.items()}
    assert (labels["scalar", 0.0, 0]["correct"] == labels["scalar", 0.0, 0]["received"]).all()
    noisy = labels["quantile", 0.4, 0]
    assert 0.2 < (noisy["correct"] != noisy["received"]).mean() < 0.6
    assert noisy.equals(labels["scalar", 0.4, 0]), "both critics learn from the same labels"
    assert noisy["correct"].tolist() == done.training["correct"].tolist()
    assert not set(done.training["prompt"]) & set(done.held["prompt"])
    solved = problems(24)[files.SOLUTIONS_FILE]
    truth = {(r["question"] + "\n", g): r[g]["is_correct"] for r in solved for g in data.GENERATORS}
    assert all(truth[r.prompt, r.generator] == r.correct for r in done.held.itertuples())


def test_scores_are_those_of_the_stored_predictions(twice):
    done = twice[0]
    table = done.scores.set_index(["critic", "noise", "at", "metric"])["value"]
    places = load_file(done.folders["quantile", 0.4, 0] / "held_out.safetensors")["quantiles"]
    assert places.shape == (len(done.held), 3, 8)
    outcome, last = done.held["correct"], places[:, 2].mean(1)
    assert table["quantile", 0.4, "last", "auc"] == pytest.approx(roc_auc_score(outcome, last))
    assert table["quantile", 0.4, "last", "brier"] == pytest.approx(np.mean((last - outcome) ** 2), rel=1e-5)
    within = [roc_auc_score(own["correct"], last[own.index]) for _, own in done.held.groupby("generator")]
    assert table["quantile", 0.4, "last", "auc_within"] == pytest.approx(np.mean(within))
    assert table["constant", 0.0, "any", "auc"] == 0.5 and table["generator", 0.0, "any", "auc_within"] == 0.5
    assert ("scalar", 0.0, "last", "cover80") not in table.index
    middle = done.scores.dropna(subset=["low"])
    assert (middle["low"] <= middle["value"]).all() and (middle["value"] <= middle["high"]).all()


def test_differences_are_paired(twice):
    done = twice[0]
    scores = done.scores.set_index(["critic", "noise", "at", "metric"])["value"]
    for r in done.differences.itertuples():
        if r.contrast == "quantile - scalar":
            expected = scores["quantile", r.noise, r.at, r.metric] - scores["scalar", r.noise, r.at, r.metric]
        else:
            name = r.contrast.partition(":")[0]
            expected = scores[name, r.noise, "last", r.metric] - scores[name, r.noise, "first", r.metric]
        assert r.value == pytest.approx(expected)
    assert len(done.differences) == 2 * 3 * (3 + 2)


def test_run_keys_ignore_figures_scores_and_downloads():
    used = reachable_files(["dvpo_lib.experiments.real.solutions.specs"], ROOT)
    assert {
        "dvpo_lib/experiments/real/solutions/data.py",
        "dvpo_lib/models/critic.py",
        "dvpo_lib/models/policy.py",
    } <= used
    assert not [f for f in used if "/reporting/" in f or "/chain/" in f or "download" in f or "study" in f]


def test_report_and_figures_of_a_study(twice, tmp_path):
    done = twice[0]
    text = report.solution_findings(done)
    assert "Who wrote it?" in text and "nan" not in text and str(len(set(done.held["problem"]))) in text
    assert "were cut" in report.solution_data_findings(done)
    table = report.solution_score_table(done)
    assert len(table) == 2 * 4 and table["critic"].tolist()[:2] == ["scalar critic", "quantile critic"]
    assert report.generator_table(done)["generator"].tolist() == list(data.GENERATORS)
    assert set(report.solution_metrics(done)["real"]) == {"scalar", "quantile", "constant", "generator"}
    assert report.solution_metrics(None) == {} and "make real-data" in report.NO_SOLUTIONS
    pair = study.right_and_wrong_solution(done.held)
    assert set(pair["correct"]) == {0.0, 1.0} and pair["problem"].nunique() == 1
    read = study.values_along_solutions(done, "quantile", 0.4, 0, pair)
    assert [len(r["tokens"]) == len(r["quantiles"]) for r in read] == [True, True]
    figures.save_figure(figures.auc_against_noise(done.scores), tmp_path / "a.png")
    figures.save_figure(figures.value_over_text(read, 0.4), tmp_path / "b.png")
    shown = [*done.files.columns, *done.files.astype(str).to_numpy().flatten(), text]
    assert not any(str(tmp_path.parent) in t or "/a/" in t for t in shown), "results never name a path"


def test_no_study_without_a_folder():
    assert study.run_solution_study(RealSettings(), CRITICS, 0) is None


@needs_data
def test_the_published_files_are_what_the_code_expects():
    for name, expected in download.GSM8K_SHA256.items():
        assert files.sha256_of(HERE / name) == expected
    solutions = data.read_solutions(HERE / files.SOLUTIONS_FILE)
    assert len(solutions) == 4 * 1319 and len(data.read_worked_problems(HERE / files.TRAIN_FILE)) == 7473
    share = solutions.groupby("generator", sort=False)["correct"].mean()
    assert share.round(3).tolist() == [0.217, 0.390, 0.347, 0.563]
    training, held = data.split_by_problem(solutions, 0.3)
    assert not set(training["prompt"]) & set(held["prompt"]) and 0.25 < len(held) / len(solutions) < 0.35
    assert not set(solutions["prompt"]) & set(data.read_worked_problems(HERE / files.TRAIN_FILE)["prompt"]), (
        "nothing leaks"
    )
