"""The committed notebooks: run in one go without errors, and true to their own outputs."""

import json
import re
import sys
from types import SimpleNamespace

import nbformat
import pytest
from conftest import ROOT
from test_numbers import unsourced

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


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

    def test_every_number_quoted_as_seen_was_printed(self, path):
        seen = [cell.source.partition("**What we see.**")[2] for cell in cells(path, "markdown")]
        assert any(seen)
        assert unsourced("\n".join(seen), printed(path)) == []


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
