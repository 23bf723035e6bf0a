"""Hooks of mkdocs: generated pages, mathematics as MathML, notebooks beside the documentation."""

from __future__ import annotations

import html
import re
from pathlib import Path

from mkdocs.structure.files import File

from dvpo_lib.chain.pages import latex_to_mathml
from dvpo_lib.reporting.names import display_name
from dvpo_lib.rl.methods import METHODS
from website import content

MATHEMATICS = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)]*)?\)")


def on_config(config):
    """Adds the generated pages and the notebooks to the navigation."""
    config.theme.static_templates.discard("404.html")  # it works on a server alone
    folder = content.run_folder()
    methods = [{"Overview": "methods/index.md"}, *({display_name(name): f"methods/{name}.md"} for name in METHODS)]
    notebooks = [{title: f"notebooks/{path}"} for path, title in content.notebook_titles(folder).items()]
    library = [{"Public names": "library/index.md"}, *({p: f"library/{p}.md"} for p in content.PACKAGES)]
    project = [{"Contributing": "contributing.md"}, {"Changes": "changelog.md"}]
    config.nav += [{"Methods": methods}, {"Notebooks": notebooks}, {"Library": library}, {"Project": project}]
    return config


def on_files(files, config):
    """Adds the generated pages."""
    folder, root = content.run_folder(), content.ROOT
    files.remove(files.get_file_from_path("methods.md"))  # the generated pages hold its sections
    pages = {
        "index.md": content.start_page(),
        "methods/index.md": content.methods_index(),
        **{f"methods/{name}.md": content.method_page(name, folder) for name in METHODS},
        "library/index.md": content.library_index(),
        **{f"library/{package}.md": content.package_page(package) for package in content.PACKAGES},
        "contributing.md": (root / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        "changelog.md": (root / "CHANGELOG.md").read_text(encoding="utf-8"),
        "assets/site.css": (root / "website/assets/site.css").read_text(encoding="utf-8"),
        "assets/iframe-worker.js": (root / "website/assets/iframe-worker.js").read_text(encoding="utf-8"),
    }
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    figure = (root / content.MAIN_FIGURE).read_bytes()
    files.append(File.generated(config, "assets/main_figure.png", content=figure))
    return files


def on_page_markdown(markdown, page, config, files):
    """Keeps links inside the site; of links into the repository only the text stays."""

    def kept(found: re.Match) -> str:
        picture, text, target, anchor = found.groups()
        path = (Path(page.file.src_uri).parent / target).as_posix()
        path = re.sub(r"[^/]+/\.\./", "", path)
        if target == "methods.md" or path == "methods.md":
            return f"[{text}]({'../' * page.file.src_uri.count('/')}methods/index.md)"
        if path.startswith("notebooks/") or files.get_file_from_path(path):
            return found[0]
        return "" if picture else text

    return LINK.sub(kept, markdown)


def on_page_content(page_html, page, config, files):
    """Shows mathematics without a script."""

    def converted(found: re.Match) -> str:
        return latex_to_mathml(html.unescape(found[3]), "inline" if found[2] == "(" else "block")

    return MATHEMATICS.sub(converted, page_html)


def on_post_build(config):
    """Writes the notebooks' pages."""
    for path, page in content.site_notebooks(content.run_folder()):
        file = Path(config.site_dir) / "notebooks" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page, encoding="utf-8")
