"""The three notebooks as HTML pages that load nothing from anywhere: images inside, formulas as MathML, no scripts.

    python figures/pages.py    (or: make html) writes runs/html/
"""
from __future__ import annotations

import html
import re
from pathlib import Path

import latex2mathml.converter
from jinja2 import DictLoader, pass_context
from nbconvert import HTMLExporter

ROOT = Path(__file__).resolve().parent.parent
PAGE = """{%- extends 'lab/index.html.j2' -%}
{% block html_head_js %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block html_head_css %}<style>   /* long lines are wrapped between words, not cut */
.jp-Notebook .highlight pre, .jp-Notebook .jp-OutputArea-output pre { white-space: pre-wrap; word-break: normal; overflow-wrap: anywhere }
</style>{% endblock %}"""


class Pages(HTMLExporter):
    def __init__(self, **settings):
        super().__init__(embed_images=True, extra_loaders=[DictLoader({"page.html.j2": PAGE})], template_file="page.html.j2", **settings)

    @pass_context
    def markdown2html(self, context, source: str) -> str:
        return re.sub(r"\$\$(.+?)\$\$|\$(.+?)\$", as_mathml, super().markdown2html(context, source), flags=re.DOTALL)


def as_mathml(formula: re.Match) -> str:
    block, inline = formula.groups()
    return latex2mathml.converter.convert(html.unescape(block or inline), display="block" if block else "inline")


def main() -> None:
    folder = ROOT / "runs" / "html"
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        page = folder / f"{path.stem}.html"
        page.write_text(Pages().from_filename(path)[0], encoding="utf-8")
        print(page)


if __name__ == "__main__":
    main()
