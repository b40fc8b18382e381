"""The documents as HTML files: nothing from elsewhere, formulas drawn by browsers, true links."""

import re
import xml.etree.ElementTree as ET

import pytest
from conftest import ROOT

from support import reading


@pytest.mark.parametrize("path", reading.DOCUMENTS, ids=lambda path: path.stem)
def test_a_document_needs_nothing_but_a_browser(path):
    page = reading.as_html(path, ROOT / reading.OUT)
    assert "<script" not in page and "FORMULA" not in page
    for address in re.findall(r'src="([^"]{1,30})|@import|url\(([^)]{1,30})', page):
        assert all(not part or part.startswith("data:") for part in address), address
    assert page.count("data:image/") >= 3
    links = re.findall(r'href="([^"#]+)', page)
    for target in links:
        if not target.startswith("http"):
            place = (ROOT / reading.OUT / target).resolve()
            assert place.exists() or place.parent == ROOT / reading.OUT, target
    text = re.sub(r"<pre.*?</pre>|<code.*?</code>|<style.*?</style>", "", page, flags=re.DOTALL)
    assert not re.search(r"\\(mathbb|frac|mathcal|sigma|mu)\b", text)


def test_formulas_become_mathml_and_code_stays():
    formulas = []
    text = r"A $\mathbb E[x]$ and `$HOME` and" + "\n$$\n\\mathcal N(0,\\tfrac12)\n$$\n"
    result = reading.without_formulas(text, formulas)
    assert result == "A FORMULA0FORMULA and `$HOME` and\nFORMULA1FORMULA\n"
    inline, block = (ET.fromstring(formula) for formula in formulas)
    assert "𝔼" in "".join(inline.itertext()) and inline.get("display") == "inline"
    assert "𝒩" in "".join(block.itertext()) and block.get("display") == "block"


def test_links_between_the_documents_stay_among_the_files_and_others_find_their_way():
    text = "[a](Task2_Latent_Interpolation.ipynb#x) [b](../docs/results.md) [c](https://a.b/c)"
    moved = reading.with_links_from(text, ROOT / "notebooks", ROOT / reading.OUT)
    assert moved == (
        "[a](Task2_Latent_Interpolation.html#x) [b](../../docs/results.md) [c](https://a.b/c)"
    )
