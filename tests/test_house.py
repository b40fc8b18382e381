"""The rules of the house: six floors, each uses only floors below, and a story told in order."""

import ast
import re

import pytest
from conftest import ROOT

FLOORS = [
    ["base"],
    ["image_data"],
    ["vae_helpers"],
    ["support"],
    ["train", "evaluate"],
    ["reproduce"],
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
PYTHON = sorted(ROOT.glob("*.py")) + sorted(ROOT.glob("*/*.py"))
FILES = [p for p in PYTHON if p.relative_to(ROOT).parts[0].removesuffix(".py") in FLOOR_OF]


def floor(path):
    return FLOOR_OF[path.relative_to(ROOT).parts[0].removesuffix(".py")]


def imported(tree):
    """The top-level packages that a module imports, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module.split(".")[0]


def test_every_file_of_code_stands_on_a_floor():
    """Products and tests beside them: no code in figures/, checkpoints/ or docs/."""
    folders = {path.relative_to(ROOT).parts[0] for path in ROOT.glob("*/**/*.py")}
    ours = {folder for folder in folders if not folder.startswith(".")}
    assert ours - {"tests", "runs", "data"} == {"base", "image_data", "support", "reproduce"}
    assert len(FILES) > 30


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_imports_only_from_its_floor_and_those_below(path):
    text = path.read_text(encoding="utf-8")
    above = [name for name in imported(ast.parse(text)) if FLOOR_OF.get(name, 0) > floor(path)]
    assert above == []
    assert "sys.path" not in text


def sections():
    """Name of each section of vae_helpers.py → its top-level statements."""
    text = (ROOT / "vae_helpers.py").read_text(encoding="utf-8")
    lines = text.splitlines()
    heads = {}
    for number, line in enumerate(lines, 1):
        if banner := re.fullmatch(r"# ║ (\w[\w ]*?) +║", line):
            heads[number] = banner[1]
    result = {name: [] for name in heads.values()}
    for node in ast.parse(text).body:
        before = [name for number, name in heads.items() if number < node.lineno]
        if before:
            result[before[-1]].append(node)
    return result


def defined(nodes):
    names = set()
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            if isinstance(target, ast.Name):
                names.add(target.id)
    return names


def test_no_section_of_the_story_uses_a_name_of_a_later_one():
    """Annotations count, too. The docstring lists the sections in this order."""
    docstring = ast.get_docstring(ast.parse((ROOT / "vae_helpers.py").read_text(encoding="utf-8")))
    told = sections()
    listed = re.findall(
        r"^    (\w[\w ]*?)  +\S", docstring.partition("Conventions")[0], re.MULTILINE
    )
    assert list(told) == listed
    later = set()
    for name, nodes in reversed(told.items()):
        used = {n.id for node in nodes for n in ast.walk(node) if isinstance(n, ast.Name)}
        assert used & later == set(), name
        later |= defined(nodes)
    assert {"Config", "VAE", "fit", "train_epoch", "kl_nats", "plot_grid"} <= later


def test_a_training_step_stands_in_one_function_of_the_story():
    """Forward, losses, zero_grad, backward and step."""
    [epoch] = [
        node for node in sections()["Training"] if getattr(node, "name", "") == "train_epoch"
    ]
    source = ast.unparse(epoch)
    order = ["shuffled_batches(", "to_input(", "state.network(", "reconstruction_nats(",
             "rate_nats(", "zero_grad(", ".backward()", "optimiser.step()", "schedule.step()",
             "all_reduce("]  # fmt: skip
    places = [source.find(word) for word in order]
    assert -1 not in places and places == sorted(places)
