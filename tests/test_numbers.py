"""README.md and theory_answers.md quote numbers that figures/make.py wrote; checkpoints/ holds what was promised."""
import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

import vae_helpers as vae

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("make", ROOT / "figures" / "make.py")
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)
NUMBERS = json.loads((ROOT / "figures" / "numbers.json").read_text())
RELEASED = sorted(p.parent for p in (ROOT / "checkpoints").glob("*/model.json"))


@pytest.mark.parametrize("path", make.TEXTS, ids=lambda p: p.name)
def test_no_tagged_number_is_stale(path):
    text = path.read_text()
    assert len(make.TAG.findall(text)) >= 5
    assert make.fill(text, NUMBERS) == text


def test_fill_keeps_decimals_and_fails_on_unknown_names():
    assert make.fill("x 9.99<!--a.b--> y", {"a.b": 1234.567}) == "x 1,234.57<!--a.b--> y"
    with pytest.raises(KeyError):
        make.fill("1<!--missing-->", {})


@pytest.mark.parametrize("name", make.TABLES)
def test_the_texts_hold_the_tables_that_the_files_give(name):
    table = make.TABLES[name]()
    assert len(table.splitlines()) > 3 and any(f"<!--{name}-->\n{table}\n<!--/{name}-->" in path.read_text() for path in make.TEXTS)


@pytest.mark.parametrize("folder", make.MEASURED.values())
def test_measured_weights_have_all_measures_with_units_in_the_keys(folder):
    metrics = make.metrics(folder)
    assert metrics["command"] == f"python evaluate.py --run checkpoints/{folder}"
    assert {"test", "pictures", "latent_space", "likelihood", "smoothness", "frechet", "memorisation"} <= set(metrics)
    assert metrics["frechet"]["images"] == (1000 if folder.startswith("celeba") else 10_000)
    assert metrics["test"] == vae.read_record(ROOT / "checkpoints" / folder)[1]["test_half_precision"]
    assert metrics["frechet"]["ffd_real_train"] < 0.2 * metrics["frechet"]["ffd_reconstructions"]


def test_the_best_weights_reach_their_row_of_the_ablation_table():
    """The table was measured in full precision, the released weights are in half."""
    row, metrics = make.ablation()["results"]["best"]["0"], make.metrics("cifar10_best")
    for key, value in metrics["frechet"].items():
        if key.startswith("ffd_") and key in row:
            assert value == pytest.approx(row[key], rel=0.03), key
    assert metrics["pictures"]["mse"] == pytest.approx(row["mse"], rel=0.01)
    assert dict(make.ablation()["variants"]["best"]) == vae.PRESETS["best"]


def test_the_preset_best_is_better_than_the_assignments_in_every_column():
    plain, best = make.metrics("cifar10_conv"), make.metrics("cifar10_best")
    for key in make.DISTANCES:
        if key != "real_train":
            assert best["frechet"][f"ffd_{key}"] < 0.6 * plain["frechet"][f"ffd_{key}"]
    assert best["likelihood"]["bits_per_dim"] < plain["likelihood"]["bits_per_dim"]


def test_numbers_that_training_recorded_are_the_ones_in_checkpoints():
    recorded = make.recorded()
    assert {k: NUMBERS[k] for k in recorded} == recorded


def test_every_figure_that_a_text_shows_is_there():
    for path in make.TEXTS:
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", path.read_text()):
            assert (path.parent / target).is_file(), f"{path.name} shows {target}"


def test_released_weights_are_small():
    assert sum(p.stat().st_size for p in (ROOT / "checkpoints").rglob("*.safetensors")) < 45e6


@pytest.mark.parametrize("folder", RELEASED, ids=lambda p: p.name)
def test_released_run_is_complete_and_loads(folder):
    config, record = vae.read_record(folder)
    assert len(record["history"]) == config.epochs
    assert {"data", "test", "seconds", "hardware"} <= set(record)
    if (folder / "model.safetensors").exists():
        model, _ = vae.load_checkpoint(folder)
        assert vae.count_parameters(model) == record["parameters"]
        assert torch.isfinite(vae.sample_images(model, 2)).all()
        assert abs(record["test_half_precision"]["total_nats"] - record["test"]["total_nats"]) < 0.5


def test_the_convolutional_model_reaches_its_target_and_beats_both_fully_connected_ones():
    totals = {m: [vae.read_record(ROOT / "checkpoints" / f)[1]["test"]["total_nats"] for f in (n, f"{n}_seed1", f"{n}_seed2")]
              for m, n in make.MODELS.items()}
    assert max(totals["conv"]) <= 1830
    assert min(totals["fc"] + totals["fc3x"]) > max(totals["conv"]) + 20


@pytest.mark.parametrize("path", make.TEXTS, ids=lambda p: p.name)
def test_formulas_use_no_macro_that_github_refuses(path):
    """GitHub refuses some macros, and Markdown eats a backslash before punctuation."""
    formulas = re.findall(r"\$\$.*?\$\$|\$[^$\n]+\$", path.read_text(), flags=re.S)
    assert not [f for f in formulas if re.search(r"\\(operatorname|mbox|phantom|[,;:!{}\\ ])", f)]
