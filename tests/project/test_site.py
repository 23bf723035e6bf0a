"""The site: a page for each method, notebooks that lead on, and pages in Chromium where it and mkdocs are installed."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from dvpo_lib.chain.pages import latex_to_mathml
from dvpo_lib.rl.methods import METHODS
from website import content
from website.check import browser_problems, chromium_path, dead_links

REPORTS = ROOT / "reports"


def test_every_method_has_its_equation_use_settings_and_cost():
    texts = content.method_texts()
    assert set(texts) == {"", *METHODS}
    for name in METHODS:
        page = content.method_page(name, REPORTS)
        assert "**Use it**" in page and METHODS[name].source in page and "| `learning_rate` |" in page
        assert ("| `num_generations` |" in page) == METHODS[name].groups
        assert ("| `readout` |" in page) == name.startswith("dvpo")
        assert "## Cost" in page and "## Scores" in page
        for formula in re.findall(r"\$\$(.*?)\$\$|(?<!\$)\$([^$\n]+)\$(?!\$)", page, re.DOTALL):
            assert latex_to_mathml("".join(formula), "block").startswith("<math"), formula


def test_scores_and_costs_are_those_of_the_files():
    assert re.search(r"\| heavy-tailed spikes \| \d+\.\d \[\d+\.\d, \d+\.\d\] \|", content.score_text("dvpo", REPORTS))
    assert "not part of the run" in content.score_text("cql", REPORTS)
    assert "| default (0.14 M parameters) |" in content.cost_text("dvpo") and "make bench" in content.cost_text("dvpo")


def test_the_first_page_has_the_verdict_and_the_main_figure():
    page = content.start_page()
    assert "| claim | " in page and "DVPO is better than PPO" in page and "make repro" in page
    assert (ROOT / content.MAIN_FIGURE).is_file() and "<!--" not in page


def test_notebooks_lead_from_one_to_the_next(tmp_path):
    """As pages of a site: no dead link, each page once in the list at the side, in the order of the notebooks."""
    (tmp_path / "index.html").write_text(content.start_page())
    pages = dict(content.site_notebooks(REPORTS))
    for path, page in pages.items():
        (tmp_path / "notebooks" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "notebooks" / path).write_text(page, encoding="utf-8")
        assert "<script" not in page and 'src="http' not in page
    assert [problem for problem in dead_links(tmp_path) if problem.startswith("notebooks/")] == []
    titles = content.notebook_titles(REPORTS)
    assert list(titles) == list(pages) and next(iter(titles)).startswith("00_method")
    following = [re.search(r'rel="next" href="([^"]+)"', page) for page in pages.values()]
    assert [bool(link) for link in following] == [True] * (len(pages) - 1) + [False]


def test_dead_links_are_found(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html">1</a><a href="#x">2</a><a href="c.html#y">3</a><p id="z">')
    (tmp_path / "c.html").write_text('<a href="a.html#z">1</a><a href="https://example.org">2</a>')
    assert [problem.split(" leads")[0] for problem in dead_links(tmp_path)] == [
        "a.html: b.html",
        "a.html: #x",
        "a.html: c.html#y",
    ]


needs_browser = pytest.mark.skipif(
    chromium_path() is None or not importlib.util.find_spec("playwright") or not importlib.util.find_spec("mkdocs"),
    reason="needs Chromium and the extra `docs`; `make site-test` checks every page",
)


@needs_browser
def test_a_page_of_each_kind_passes_in_chromium(tmp_path):
    build = ["mkdocs", "build", "--quiet", "--strict", "-f", "website/mkdocs.yml", "-d", str(tmp_path)]
    subprocess.run([sys.executable, "-m", *build], cwd=ROOT, check=True)
    assert list(dead_links(tmp_path)) == []
    kinds = ("index", "methods/dvpo", "library/functional", "extending", "notebooks/03_dvpo_training/dvpo/notebook")
    assert list(browser_problems(tmp_path, [tmp_path / f"{name}.html" for name in kinds])) == []


@needs_browser
def test_the_browser_check_finds_what_is_wrong(tmp_path):
    (tmp_path / "bad.html").write_text(
        "<html lang=en><title>t</title><body style='margin:0'><p style='color:#bbb;background:#fff'>pale</p>"
        "<div style='width:900px'>wide</div><img alt='' src='http://127.0.0.1:9/x.png'><script>x()</script>"
    )
    problems = "\n".join(browser_problems(tmp_path, [tmp_path / "bad.html"]))
    for sign in (
        "color-contrast",
        "900 pixels wide in a window of 390",
        "request: http://127.0.0.1:9",
        "error: x is not defined",
    ):
        assert sign in problems
