"""Checks of the built site: links without a browser; contrast, width, console and network in headless Chromium.

python -m website.check work/site      # all pages; `make site-test`
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

WIDTHS = (390, 1280)  # pixels
THEMES = ("light", "dark")
RULES = ["color-contrast", "image-alt", "link-name", "document-title", "html-has-lang", "scrollable-region-focusable"]


def chromium_path() -> str | None:
    """The browser: $CHROMIUM, or the system's."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


class _Anchors(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.base = ""

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids |= {found[key] for key in ("id", "name") if found.get(key)}
        address = found.get("href") or found.get("src")
        if tag != "base" and address:
            self.links.append(address)


def read_page(path: Path) -> _Anchors:
    """Links and ids of a page."""
    page = _Anchors()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def dead_links(site: Path) -> Iterator[str]:
    """Names every link of the site's pages to a file or an anchor that does not exist."""
    pages = {path.resolve(): read_page(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            if not target.is_file():
                yield f"{path.relative_to(site.resolve())}: {link} leads to no file"
            elif anchor and target in pages and anchor not in pages[target].ids and anchor != "__comments":
                yield f"{path.relative_to(site.resolve())}: {link} leads to no place of the page"


def browser_problems(site: Path, pages: Iterable[Path]) -> Iterator[str]:
    """Opens pages from disk at each width and theme and names what is wrong: errors, requests, overflow, contrast."""
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    axe, pages = Axe(), list(pages)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=["--no-sandbox"])
        for theme in THEMES:
            context = browser.new_context(color_scheme=theme, bypass_csp=True, reduced_motion="reduce")
            for path in pages:
                tab, name = context.new_page(), f"{path.relative_to(site)} ({theme})"
                problems: list[str] = []
                tab.on("pageerror", lambda error, found=problems: found.append(f"error: {error}"))
                tab.on("console", lambda m, found=problems: m.type == "error" and found.append(f"console: {m.text}"))
                tab.on(
                    "request",
                    lambda r, found=problems: (
                        r.url.split(":")[0] not in ("file", "data", "about", "blob")
                        and found.append(f"request: {r.url}")
                    ),
                )
                for width in WIDTHS:
                    tab.set_viewport_size({"width": width, "height": 900})
                    tab.goto(path.resolve().as_uri())
                    reached = tab.evaluate("document.documentElement.scrollWidth")
                    if reached > width:
                        problems.append(f"{reached} pixels wide in a window of {width}")
                found = axe.run(tab, options={"runOnly": {"type": "rule", "values": RULES}}).response
                for violation in found["violations"]:
                    node = violation["nodes"][0]
                    text = f"{violation['id']}, {len(violation['nodes'])} times: {node['html'][:160]}"
                    problems.append(" ".join(f"{text} {node['failureSummary'][:300]}".split()))
                yield from (f"{name}: {problem}" for problem in problems)
                tab.close()
            context.close()
        browser.close()


def main(site: Path) -> int:
    """Checks every page and prints what is wrong."""
    if chromium_path() is None:
        print("error: no Chromium; install your system's package, or set CHROMIUM to its path", file=sys.stderr)
        return 2
    pages, count = sorted(site.rglob("*.html")), 0
    for problem in itertools.chain(dead_links(site), browser_problems(site, pages)):
        count += 1
        print(problem, flush=True)
    print(f"{len(pages)} pages at {len(WIDTHS)} widths in {len(THEMES)} themes: {count} problems")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
