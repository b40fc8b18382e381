"""The committed notebooks: valid, run in one go without errors, alike in their set-up, and true to their own outputs."""
import json
import re
import sys
from types import SimpleNamespace

import nbformat
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "figures"))
import pages

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"(?<![\w.,])-?\d[\d,]*\.\d+|(?<![\w.,-])\d{1,3}(?:,\d{3})+|(?<![\w.,-])\d{3,}(?![\w.])")   # 1,828.6  0.0107  45,000  754


def cells(path, kind):
    return [c for c in nbformat.read(path, 4).cells if c.cell_type == kind]


def printed(path):
    """All text that the notebook's cells printed or returned."""
    outputs = [o for c in cells(path, "code") for o in c.outputs]
    return "\n".join(o.get("text", "") + o.get("data", {}).get("text/markdown", "") + o.get("data", {}).get("text/plain", "") for o in outputs)


def stale_numbers(markdown: str, sources: str) -> list[str]:
    """Numbers that a markdown cell quotes from its first '**Seen.**' on, and that stand in none of the sources, nor their rounding.

    Whole numbers of less than three digits are left out: they may be read off a plot, or count images.
    """
    known = set(NUMBER.findall(sources))
    known |= {f"{float(n.replace(',', '')):.0f}" for n in known}
    return [n for n in NUMBER.findall(markdown.partition("**Seen.**")[2]) if n not in known]


def test_there_are_three_notebooks():
    assert [p.name[:5] for p in NOTEBOOKS] == ["Task1", "Task2", "Task3"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name[:5])
class TestEach:
    def test_is_valid_and_has_no_widget_state_that_github_refuses(self, path):
        nbformat.validate(nbformat.read(path, 4))
        raw = json.loads(path.read_text())
        assert "widgets" not in raw["metadata"]
        assert "widget-view" not in path.read_text()

    def test_ran_from_top_to_bottom_in_one_go(self, path):
        counts = [c.execution_count for c in cells(path, "code")]
        assert counts == list(range(1, len(counts) + 1))

    def test_shows_no_error_and_no_warning(self, path):
        for cell in cells(path, "code"):
            for output in cell.outputs:
                assert output.output_type != "error"
                assert output.get("name") != "stderr", output.get("text")
                assert "Warning" not in output.get("text", "")

    def test_was_run_on_real_images(self, path):
        assert "synthetic" not in printed(path)

    def test_explains_more_than_it_runs(self, path):
        words = {kind: sum(len(c.source.split()) for c in cells(path, kind)) for kind in ("markdown", "code")}
        assert words["markdown"] > words["code"]

    def test_every_number_quoted_as_seen_was_printed(self, path):
        texts = [c.source for c in cells(path, "markdown") if "**Seen.**" in c.source]
        assert len(texts) >= 5
        assert [n for text in texts for n in stale_numbers(text, printed(path))] == []

    def test_as_a_page_it_holds_all_images_and_formulas_and_loads_nothing(self, path):
        page, _ = pages.Pages().from_filename(path)
        assert not re.search(r"<script|<link|src=[\"']?(https?:)?//|@import|url\([\"']?(https?:)?//", page)
        shown = [o for c in cells(path, "code") for o in c.outputs if "image/png" in o.get("data", {})]
        formulas = "\n".join(re.sub(r"`[^`]*`", "", c.source) for c in cells(path, "markdown")).replace("$$", "$").count("$") // 2
        assert page.count("data:image/png;base64,") >= len(shown) > 5
        assert page.count("<math ") == formulas > 10 and "$" not in re.sub(r"(?s)<style.*?</style>|<pre.*?</pre>", "", page)


def test_the_check_for_stale_numbers_finds_one():
    assert stale_numbers("Expect 7.5. **Seen.** It is 1,828.6 and 0.25.", "printed 1,828.6 and 0.2500") == ["0.25"]
    assert stale_numbers("**Seen.** From 999 to 111.", "printed 754 and 111.4") == ["999"]


def test_set_up_cell_is_the_same_everywhere_and_short():
    setups = {cells(path, "code")[0].source for path in NOTEBOOKS}
    assert len(setups) == 1
    assert len(setups.pop().splitlines()) <= 12


def test_set_up_cell_enables_widgets_on_colab_and_only_there(monkeypatch):
    enabled = []
    output = SimpleNamespace(enable_custom_widget_manager=lambda: enabled.append(True))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    exec(cells(NOTEBOOKS[0], "code")[0].source, {})
    assert enabled == []
    for name, module in {"google": SimpleNamespace(), "google.colab": SimpleNamespace(output=output)}.items():
        monkeypatch.setitem(sys.modules, name, module)
    exec(cells(NOTEBOOKS[0], "code")[0].source, {})
    assert enabled == [True]


def test_enough_cells_are_marked_for_nbval_to_compare():
    marked = [c for path in NOTEBOOKS for c in cells(path, "code") if "# NBVAL_CHECK_OUTPUT" in c.source]
    assert len(marked) >= 6


def test_set_up_cell_says_what_to_do_when_the_module_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="clone the whole repository"):
        exec(cells(NOTEBOOKS[0], "code")[0].source, {})
