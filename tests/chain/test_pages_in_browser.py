"""Pages in a real browser: hostile text of models and data is shown, and neither runs nor loads nor leads anywhere.

`make page-test` runs this; without Chromium it is skipped. One browser opens every page in a frame, waits, moves over
and clicks on everything, and then reports what the page holds; a server on loopback sees whatever a page loads.
"""

from __future__ import annotations

import functools
import html
import json
import re
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest
from nbformat import v4 as nb
from test_pages import HOSTILE

from dvpo_lib.chain.pages import PageLinks, clean_notebook, index_page, lay_out_page, page_body, render_page
from dvpo_lib.reporting.answer_tables import turn_by_turn
from dvpo_lib.reporting.figures.tokens import token_text
from dvpo_lib.reporting.prose import show_text
from dvpo_lib.reporting.tables import show_table
from dvpo_lib.tasks.dialogue_rules import END_OF_TURN

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

MARK = "parent.ran(document.title)"
LOADS = "//127.0.0.1:PORT/loaded"
PAYLOADS = [text.replace("x()", MARK).replace("//evil.example", LOADS) for text in HOSTILE.values()] + [
    f"<svg><animate onbegin={MARK} attributeName=x dur=1s>",
    f"<details open ontoggle={MARK}>d</details>",
    f"<input autofocus onfocus={MARK}>",
    f"<video><source onerror={MARK}></video>",
    f"<style>@import '{LOADS}'; body{{background:url({LOADS})}}</style>",
    f"<link rel=stylesheet href={LOADS}>",
    f"<img src={LOADS} srcset={LOADS}>",
    f"[click](javascript:{MARK})",
    f"![picture]({LOADS})",
    f"$\\href{{javascript:{MARK}}}{{x}}$",
    f"$x^{{<script>{MARK}</script>}}$",
    f"`</code><script>{MARK}</script>`",
    f"```\n</pre><script>{MARK}</script>\n```",
    f"--><script>{MARK}</script>",
    f"]]><script>{MARK}</script>",
    f"</title><script>{MARK}</script>",
    f"</textarea></noscript></template><script>{MARK}</script>",
    f"\x1b[31m<script>{MARK}</script>\x1b[0m",
    f"&lt;script&gt;{MARK}&lt;/script&gt;",
    f"\"'><script>{MARK}</script>",
    f"{{{{ 7*7 }}}}{{% raw %}}<script>{MARK}</script>",
]  # fmt: skip
DRIVER = """<!doctype html><meta charset="utf-8"><body><script>
const ran = []; window.ran = title => ran.push(title);
const names = NAMES, found = {};
async function look(name) {
  const frame = document.createElement('iframe');
  frame.src = name; frame.width = 1200; frame.height = 800;
  document.body.append(frame);
  await new Promise(done => { frame.onload = done; });
  await new Promise(done => setTimeout(done, 100));
  const page = frame.contentDocument, odd = [];
  page.addEventListener('click', event => {
    const link = event.target.closest('a');
    if (link && link.protocol !== 'javascript:') event.preventDefault();  // it would lead to another page
  }, true);
  for (const node of page.querySelectorAll('*')) {
    for (const {name, value} of node.attributes)
      if (name.startsWith('on') || /^\\s*(javascript|vbscript|data:text)/i.test(value)) odd.push(name + '=' + value);
    if (['IFRAME', 'OBJECT', 'EMBED', 'FORM', 'BASE'].includes(node.tagName)) odd.push(node.tagName);
    node.dispatchEvent(new MouseEvent('mouseover', {bubbles: true}));
    if (node.click) node.click();
  }
  await new Promise(done => setTimeout(done, 50));
  found[name] = {odd, text: page.body.innerText};
  frame.remove();
}
(async () => {
  for (const name of names) {
    const before = ran.length;
    try { await look(name); } catch (error) { found[name] = {odd: [String(error)], text: ''}; }
    found[name].ran = ran.length - before;
  }
  document.body.textContent = JSON.stringify(found);
})();
</script>"""


def hostile_pages() -> dict[str, str]:
    """{file: page}: every page of the project that shows text, each with all payloads in each of its places."""
    table = pd.DataFrame({"prompt": PAYLOADS, "completion": PAYLOADS[::-1], "reward": 0.5})
    record = {"prompt": "dialogue hotel city paris ?", "answer": "city paris", "user": ["city paris"]}
    dialogue = turn_by_turn(record, f" {END_OF_TURN} ".join(PAYLOADS))
    assert dialogue["says"].str.contains("<script").any()
    figure = token_text([{"title": PAYLOADS[0], "tokens": PAYLOADS, "values": list(range(len(PAYLOADS)))}])
    assert figure.axes
    outputs = [
        nb.new_output("display_data", data={"text/html": show_table(table, " ".join(PAYLOADS)).to_html()}),
        nb.new_output("display_data", data={"text/html": show_table(dialogue, "dialogue").to_html()}),
        nb.new_output("display_data", data={"text/html": table.to_html()}),
        nb.new_output("display_data", data={"text/html": "".join(f"<td>{text}</td>" for text in PAYLOADS)}),
        nb.new_output("display_data", data={"text/markdown": show_text(*PAYLOADS).data}),
        nb.new_output("display_data", data={"text/latex": "".join(f"${text}$" for text in PAYLOADS)}),
        nb.new_output("display_data", data={"image/svg+xml": f"<svg onload='{MARK}'><script>{MARK}</script></svg>"}),
        nb.new_output("display_data", data={"application/javascript": MARK}),
        nb.new_output("display_data", data={"text/plain": "\n".join(PAYLOADS)}),
        nb.new_output("execute_result", data={"application/json": {"text": PAYLOADS}, "text/plain": "json"}),
        nb.new_output("error", ename=PAYLOADS[0], evalue=PAYLOADS[1], traceback=PAYLOADS),
        nb.new_output("stream", name="stdout", text="\n".join(PAYLOADS)),
    ]
    cells = [nb.new_markdown_cell("# Title\n\n" + text) for text in PAYLOADS]
    headings = "\n\n".join(f"## {text}" for text in PAYLOADS)
    cells += [nb.new_code_cell("\n".join(PAYLOADS), outputs=outputs), nb.new_markdown_cell(headings)]
    notebook = nb.new_notebook(cells=cells)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"c{number}"
    pages = {"notebook.html": render_page(clean_notebook(notebook), "".join(PAYLOADS))}
    pages |= {f"title{n}.html": render_page(nb.new_notebook(), text) for n, text in enumerate(PAYLOADS[:3])}
    texts = tuple(("x.html", text) for text in PAYLOADS)
    links = PageLinks(home=texts[0], previous=texts[1], following=texts[2], siblings=texts)
    pages["site.html"] = lay_out_page(page_body(pages["notebook.html"]), PAYLOADS[0], links)
    pages["index.html"] = index_page(PAYLOADS[0], "\n\n".join(PAYLOADS), {text: "x.html" for text in PAYLOADS})
    return pages


def browse(folder, pages: dict[str, str]) -> tuple[dict, list[str]]:
    """What a browser finds on each page, and the addresses that the pages have loaded."""
    loaded: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.path.lstrip("/") not in {*pages, "driver/", "favicon.ico"}:
                loaded.append(self.path)
            super().do_GET()

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    port = server.server_address[1]
    for name, page in pages.items():
        (folder / name).write_text(page.replace("PORT", str(port)), encoding="utf-8")
    (folder / "driver").mkdir()
    (folder / "driver" / "index.html").write_text(
        DRIVER.replace("NAMES", json.dumps([f"/{n}" for n in pages])), "utf-8"
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                   f"--user-data-dir={folder / 'profile'}", "--no-first-run", "--virtual-time-budget=60000",
                   "--dump-dom", f"http://127.0.0.1:{port}/driver/"]  # fmt: skip
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    finally:
        server.shutdown()
    body = html.unescape(re.search(r"<body>(\{.*\})</body>", shown, re.DOTALL)[1])
    return {name.lstrip("/"): found for name, found in json.loads(body).items()}, loaded


def test_hostile_text_is_shown_and_does_nothing(tmp_path):
    control = "<!doctype html><title>c</title><body>" + "".join(f"<p>{text}</p>" for text in PAYLOADS[:2])
    control += f"<img src={LOADS} onerror={MARK}><b onclick={MARK}>b</b>"
    pages = {"control.html": control, **hostile_pages()}
    found, loaded = browse(tmp_path, pages)
    assert set(found) == set(pages)
    control = found.pop("control.html")
    assert control["ran"] >= 3 and control["odd"], "an unprotected page must be seen to run"
    assert sorted(loaded) == ["/loaded", "/loaded/x.js"], "what the unprotected page loads, and nothing else"
    for name, page in found.items():
        assert (page["ran"], page["odd"]) == (0, []), name
    assert MARK in found["notebook.html"]["text"] and MARK in found["index.html"]["text"]
