"""The three notebooks and the four answers as files for a browser, without network: make html.

python -m support.reading      writes runs/html/: four files, pictures and formulas inside
"""

from __future__ import annotations

import base64
import html
import mimetypes
import os
import re
import unicodedata
from pathlib import Path

import latex2mathml.converter
import nbformat
from nbconvert import HTMLExporter

from base.errors import run_script
from base.files import ROOT

OUT = Path("runs/html")
DOCUMENTS = [*sorted(ROOT.glob("notebooks/*.ipynb")), ROOT / "theory_answers.md"]
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", re.DOTALL)
LINK = re.compile(r"(?<!!)(\[[^\]]*\])\(([^)#\s:]+)(#[^)\s]*)?\)")
PICTURE = re.compile(r"(!\[[^\]]*\])\(([^)\s:]+)\)")
LETTER = re.compile(r'<mi mathvariant="(double-struck|script)">([A-Z])</mi>')
PLACEHOLDER = "FORMULA{}FORMULA"  # what stands for a formula while Markdown is read


def document(path: Path) -> nbformat.NotebookNode:
    """A notebook, or a Markdown file as a notebook with one cell."""
    if path.suffix == ".ipynb":
        return nbformat.read(path, as_version=4)
    cell = nbformat.v4.new_markdown_cell(path.read_text(encoding="utf-8"))
    return nbformat.v4.new_notebook(cells=[cell])


def as_mathml(formula: str, display: str) -> str:
    """LaTeX → what browsers draw by themselves; display is "block" or "inline"."""

    def letter(match: re.Match) -> str:
        # Browsers draw the letter 𝔼 where there is one, and no longer look at mathvariant.
        kind, capital = match.groups()
        name = f"{kind} capital {capital}".upper()
        try:
            return f"<mi>{unicodedata.lookup(f'MATHEMATICAL {name}')}</mi>"
        except KeyError:  # some are older than the others, like ℝ
            return f"<mi>{unicodedata.lookup(name)}</mi>"

    mathml = LETTER.sub(letter, latex2mathml.converter.convert(formula, display=display))
    return re.sub("<mi>(log|ln)</mi>", r"<mi>\1</mi><mspace width='0.17em'/>", mathml)


def without_formulas(text: str, formulas: list[str]) -> str:
    """The text with placeholders; what they stand for is appended to the formulas, as MathML."""

    def placeholder(match: re.Match) -> str:
        block, inline = match.groups()
        formulas.append(as_mathml(block, "block") if block else as_mathml(inline, "inline"))
        return PLACEHOLDER.format(len(formulas) - 1)

    parts = CODE.split(text)  # every second one is code
    parts[::2] = [FORMULA.sub(placeholder, part) for part in parts[::2]]
    return "".join(parts)


def with_links_from(text: str, folder: Path, out: Path) -> str:
    """Links to files, seen from `out` and not from `folder`; these documents link to each other."""

    def moved(match: re.Match) -> str:
        words, target, anchor = match.groups()
        path = (folder / target).resolve()
        if path in DOCUMENTS:
            return f"{words}({path.stem}.html{anchor or ''})"
        return f"{words}({Path(os.path.relpath(path, out)).as_posix()}{anchor or ''})"

    return LINK.sub(moved, text)


def with_pictures(text: str, folder: Path) -> str:
    """Pictures in files become part of the text."""

    def inside(match: re.Match) -> str:
        words, target = match.groups()
        kind, _ = mimetypes.guess_type(target)
        content = base64.b64encode((folder / target).read_bytes()).decode()
        return f"{words}(data:{kind};base64,{content})"

    return PICTURE.sub(inside, text)


def as_html(path: Path, out: Path) -> str:
    """One document as a page without a script or a picture from elsewhere."""
    notebook, formulas = document(path), []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = without_formulas(cell.source, formulas)
            text = with_links_from(text, path.parent, out)
            cell.source = with_pictures(text, path.parent)
    exporter = HTMLExporter(exclude_anchor_links=True)
    for url in ("mathjax_url", "require_js_url", "mermaid_js_url", "jquery_url"):
        if exporter.has_trait(url):
            setattr(exporter, url, "")
    resources = {"metadata": {"path": str(path.parent), "name": path.stem}}
    page, _ = exporter.from_notebook_node(notebook, resources=resources)
    page = re.sub(r"<script\b[^>]*>.*?</script>", "", page, flags=re.DOTALL)
    for number, formula in enumerate(formulas):
        page = page.replace(PLACEHOLDER.format(number), formula)
    title = html.escape(path.stem.replace("_", " "))
    return re.sub(r"<title>.*?</title>", f"<title>{title}</title>", page, flags=re.DOTALL)


def main() -> None:
    out = ROOT / OUT
    out.mkdir(parents=True, exist_ok=True)
    for path in DOCUMENTS:
        target = out / f"{path.stem}.html"
        target.write_text(as_html(path, out), encoding="utf-8")
        print(f"{OUT / target.name}: {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_script(main)
