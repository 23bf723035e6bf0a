"""Mathematics as MathML, which browsers show without a script."""

from __future__ import annotations

import re
import unicodedata

import latex2mathml.converter
import markupsafe
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath


class MathRenderer(IPythonRenderer):
    """Renders Markdown with MathML, which browsers show without a script."""

    def inline_math(self, body: str) -> str:
        return latex_to_mathml(body, "inline")

    def block_math(self, body: str) -> str:
        return latex_to_mathml(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        return latex_to_mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")


def render_markdown(source: str, attachments: dict | None = None) -> str:
    """Renders Markdown with MathML to HTML, unsanitised."""
    renderer = MathRenderer(escape=False, attachments=attachments or {}, exclude_anchor_links=True)
    return MarkdownWithMath(renderer=renderer).render(source)


def latex_to_mathml(latex: str, display: str) -> str:
    """Converts a LaTeX formula to MathML; if that fails, returns it as code.

    Args:
        latex: The formula, without dollar signs.
        display: "inline" or "block".
    """
    # latex2mathml knows only one of the environments for equations below each other.
    latex = re.sub(r"\\(begin|end)\{(aligned|split|gathered)\}", r"\\\1{align*}", latex.strip())
    try:
        mathml = latex2mathml.converter.convert(latex, display=display)
    except Exception:  # latex2mathml raises many undocumented kinds
        return f"<code>{markupsafe.escape(latex)}</code>"
    return re.sub(r'<(mi|mn) mathvariant="(script|bold|fraktur)">(\w)</\1>', _styled_letter, mathml)


def _styled_letter(match: re.Match) -> str:
    """Spells a script, bold or fraktur letter as its own character, because browsers ignore `mathvariant`."""
    tag, style, letter = match.groups()
    case = "DIGIT" if letter.isdigit() else "CAPITAL" if letter.isupper() else "SMALL"
    plain_name = unicodedata.name(letter).rpartition(" ")[2]
    for name in (f"MATHEMATICAL {style.upper()} {case} {plain_name}", f"{style.upper()} {case} {plain_name}"):
        try:
            return f"<{tag}>{unicodedata.lookup(name)}</{tag}>"
        except KeyError:  # older letters have names without "MATHEMATICAL"
            continue
    return match[0]
