"""The committed notebooks: run in one go without errors, and true to their own outputs."""

import json
import re
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DECIMAL = r"(?<![\w.,])-?\d[\d,]*\.\d+"  # 1,828.6  0.0107
THOUSANDS = r"(?<![\w.,-])\d{1,3}(?:,\d{3})+"  # 45,000
LONG = r"(?<![\w.,-])\d{3,}(?![\w.])"  # 754
NUMBER = re.compile(f"{DECIMAL}|{THOUSANDS}|{LONG}")


def cells(path, kind):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == kind]


def outputs(path):
    return [output for cell in cells(path, "code") for output in cell.outputs]


def printed(path):
    """All text that the notebook's cells printed or returned."""
    texts = []
    for output in outputs(path):
        data = output.get("data", {})
        texts += [output.get("text", ""), data.get("text/markdown", ""), data.get("text/plain", "")]
    return "\n".join(texts)


def stale_numbers(markdown, sources):
    """Numbers after the first '**Seen.**' of a cell that stand in no source, nor their rounding."""
    known = set(NUMBER.findall(sources))
    known |= {f"{float(number.replace(',', '')):.0f}" for number in known}
    quoted = NUMBER.findall(markdown.partition("**Seen.**")[2])
    return [number for number in quoted if number not in known]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name[:5])
class TestEach:
    def test_is_valid_and_has_no_widget_state_that_github_refuses(self, path):
        nbformat.validate(nbformat.read(path, 4))
        assert "widgets" not in json.loads(path.read_text())["metadata"]
        assert "widget-view" not in path.read_text()

    def test_its_badge_opens_the_repository_that_citation_cff_names(self, path):
        """Once CITATION.cff has a line `repository-code: https://github.com/OWNER/REPO`."""
        citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
        named = re.search(
            r"^repository-code:.*github\.com/([\w.-]+/[\w-]+(?:\.(?!git\b)[\w-]+)*)",
            citation,
            re.MULTILINE,
        )
        first = cells(path, "markdown")[0].source
        if not named:
            assert "colab.research.google.com" not in first, "CITATION.cff names no repository"
            return
        colab = "https://colab.research.google.com"
        address = f"{colab}/github/{named[1]}/blob/main/notebooks/{path.name}"
        badge = f"[![Open in Colab]({colab}/assets/colab-badge.svg)]({address})"
        assert badge in first, f"Paste below the title of {path.name}: {badge}"

    def test_ran_from_top_to_bottom_in_one_go_without_error_or_warning(self, path):
        counts = [cell.execution_count for cell in cells(path, "code")]
        assert counts == list(range(1, len(counts) + 1))
        for output in outputs(path):
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.get("text")
            assert "Warning" not in output.get("text", "")

    def test_was_run_on_real_images(self, path):
        assert "synthetic" not in printed(path)

    def test_is_a_student_s_half_hour_in_cells_that_can_be_read_aloud(self, path):
        markdown = sum(len(cell.source.split()) for cell in cells(path, "markdown"))
        lengths = []
        for cell in cells(path, "code"):
            lengths.append(sum(bool(line.strip()) for line in cell.source.splitlines()))
        assert markdown <= 2500
        assert statistics.median(lengths) <= 10 and max(lengths) <= 40

    def test_every_number_quoted_as_seen_was_printed(self, path):
        seen = [c.source for c in cells(path, "markdown") if "**Seen.**" in c.source]
        assert len(seen) >= 5
        assert [stale_numbers(text, printed(path)) for text in seen] == [[]] * len(seen)


def test_the_check_for_stale_numbers_finds_one():
    text = "Expect 7.5. **Seen.** It is 1,828.6 and 0.25."
    assert stale_numbers(text, "printed 1,828.6 and 0.2500") == ["0.25"]
    assert stale_numbers("**Seen.** From 999 to 111.", "printed 754 and 111.4") == ["999"]


def test_the_set_up_cell_is_the_same_everywhere_and_enables_widgets_on_colab_only(monkeypatch):
    (source,) = {cells(path, "code")[0].source for path in NOTEBOOKS}
    enabled = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    exec(source, {})
    assert enabled == []
    output = SimpleNamespace(enable_custom_widget_manager=lambda: enabled.append(True))
    monkeypatch.setitem(sys.modules, "google", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace(output=output))
    exec(source, {})
    assert enabled == [True]


def test_the_set_up_cell_says_what_to_do_when_the_module_is_missing(tmp_path, monkeypatch):
    """In the line that the traceback shows."""
    source = cells(NOTEBOOKS[0], "code")[0].source
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if Path(p or ".").resolve() != ROOT])
    monkeypatch.delitem(sys.modules, "vae_helpers")
    with pytest.raises(ModuleNotFoundError) as caught:
        exec(source, {})
    line = source.splitlines()[caught.traceback[-1].lineno]
    assert "the whole repository: clone it" in line


def test_the_code_that_a_notebook_shows_is_the_code_that_is_used():
    source, shown = (ROOT / "vae_helpers.py").read_text(), []
    for output in outputs(NOTEBOOKS[0]):
        text = output.get("data", {}).get("text/markdown", "")
        if text.startswith("```python"):
            shown += re.split(r"\n+(?=def |class )", text.removeprefix("```python\n").strip("`\n"))
    assert len(shown) >= 10
    assert [text for text in shown if text.strip() not in source] == []


def test_enough_cells_are_marked_for_nbval_to_compare():
    marked = 0
    for path in NOTEBOOKS:
        marked += sum("# NBVAL_CHECK_OUTPUT" in cell.source for cell in cells(path, "code"))
    assert marked >= 6
