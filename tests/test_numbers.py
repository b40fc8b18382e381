"""The numbers that the texts quote, the tables and figures they show, and the released runs."""

import math
import re
from collections.abc import Iterable

import pytest
import torch
from conftest import ROOT

import vae_helpers as vae
from reproduce import gallery, release, tables, theory
from reproduce.common import read_json

TEXTS = [path.relative_to(ROOT).as_posix() for path in tables.TEXTS]
RELEASED = sorted(path.parent.name for path in (ROOT / "checkpoints").glob("*/model.json"))
# Results of others, which no command of ours can make again.
OTHERS = {
    "2.91": "NVAE, bits/dim: Vahdat & Kautz 2020",
    "2.87": "VDVAE, bits/dim: Child 2021",
    "106.7": "MNIST, test loss of PyTorch's example: pytorch/examples, pull request 1416",
}
# Also the version of Python, and sizes of files.
NOT_PROSE = re.compile(
    r"(?sm)```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$\n]*\$|<!--.*?-->|!?\[[^\]]*\]\([^)]*\)"
    r"|^\|.*?$|^## References.*|Python [\d.]+|[\d.]+ (?:MB|GB|MiB)"
)
# A version like 3.6.10 is no number.
NUMBER = re.compile(r"(?<![\w.,-])(?:\d[\d,]*\d|\d)(?:\.\d+)?(?!\w|\.\d)(?: nats|%)?")


def settings() -> list:
    """What every released model was trained with, and on how many images."""
    records = [vae.read_record(ROOT / "checkpoints" / name)[1] for name in RELEASED]
    return [[record["config"], record["data"]] for record in records]


def task1_differences() -> list[float]:
    """In nats: what both fully connected models lose, and how far the seeds of each lie apart."""
    seeds = tables.task1_records().values()
    totals = [torch.tensor([numbers["total_nats"] for numbers in model]) for model in seeds]
    conv, fc, fc3x = totals
    losses = [(fc.mean() - conv.mean()).item(), (fc3x.mean() - conv.mean()).item()]
    return losses + [(model.max() - model.min()).item() for model in totals]


def sources(text: str) -> list:
    """The measurements that a text may quote, beside what stands in its own tables."""
    task1 = [task1_differences(), tables.recorded("cifar10_conv"), tables.recorded("celeba_conv")]
    quality = [tables.measured(name) for name in tables.CIFAR + tables.FACES]
    plain, best = tables.recorded("cifar10_conv"), tables.recorded("cifar10_best")
    more_weights = best["parameters"] / plain["parameters"] - 1
    features = [read_json(f"checkpoints/features/{name}.json") for name in ("cifar10", "celeba")]
    answers, tried = read_json("figures/theory.json"), read_json("checkpoints/tried.json")
    learned = vae.read_record(ROOT / "checkpoints/cifar10_grid")[1]["history"][-1]
    # An index among the test images, or the training images, holds at most their logarithm.
    indices = [math.log(10_000), math.log(45_000)]
    of_text = {
        "README.md": [task1, features, quality],
        "docs/results.md": [task1, features, quality, more_weights, tried, learned],
        "docs/models.md": [gallery.measured(), tables.recorded("cifar10_grid")],
        "docs/speed.md": read_json("figures/speed.json"),
        "theory_answers.md": [answers, theory.USED],
        "docs/theory.md": [answers, indices, theory.HELD, theory.NEIGHBOURS],
    }  # fmt: skip
    bits_in_a_nat = 1 / math.log(2)
    return [settings(), bits_in_a_nat, of_text.get(text, [])]


def numbers_in(content) -> list[float]:
    """All numbers of nested lists and dictionaries."""
    if isinstance(content, (dict, list)):
        parts = content.values() if isinstance(content, dict) else content
        return sum(map(numbers_in, parts), [])
    return [content] if isinstance(content, (int, float)) else []


def unsourced(prose: str, shown: str, measured: Iterable[float] = ()) -> list[str]:
    """Numbers in prose that neither stand in what is shown, nor round a number of it, or measured.

    Whole numbers of one or two digits count only with a unit, nats or %.
    """
    shown = {number.removesuffix(" nats") for number in NUMBER.findall(shown)}
    known = [*measured, *(float(number.rstrip("%").replace(",", "")) for number in shown)]
    missing = []
    for quoted in NUMBER.findall(NOT_PROSE.sub(" ", prose)):
        number = quoted.removesuffix(" nats")
        if len(quoted) < 3 or number in OTHERS or re.fullmatch(r"(19|20)\d\d", quoted):
            continue
        digits = len(number.rstrip("%").partition(".")[2])
        kind = "%" if "%" in number else "f"
        if number not in shown | {f"{value:,.{digits}{kind}}" for value in known}:
            missing.append(quoted)
    return missing


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_quotes_what_was_measured_and_shows_what_is_there(text):
    content = (ROOT / text).read_text()
    rows = "\n".join(re.findall(r"^\|.*", content, re.MULTILINE))
    assert unsourced(content, rows, numbers_in(sources(text))) == []
    assert tables.fill(content) == content, "python -m reproduce.tables fills the tables"
    for target in re.findall(r"\]\((?!https:)([^)#]+)[^)]*\)", content):
        assert ((ROOT / text).parent / target).exists(), target
    # GitHub refuses some macros, and Markdown eats a backslash before punctuation.
    assert not re.search(r"\\(operatorname|mbox|phantom|[,;:!{}\\ ])", content)


def test_information_about_the_index_goes_from_nothing_to_all():
    logvar = torch.zeros(50, 4)
    far = 100 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    assert theory.index_information(far, logvar, n=50) == pytest.approx(math.log(50))
    assert theory.index_information(torch.zeros(50, 4), logvar, n=50) == pytest.approx(0)


def test_a_posterior_holds_95_percent_of_its_samples():
    z = 3 + 2 * vae.sample_latents(2000, 8, seed=1)
    far, own = torch.full((1, 8), 30.0), torch.full((1, 8), 3.0)
    logvar = torch.full((1, 8), math.log(4))
    assert theory.share_in_posteriors(z, far, logvar) == 0
    both = torch.cat([far, own]), logvar.expand(2, 8)
    assert theory.share_in_posteriors(z, *both) == pytest.approx(0.95, abs=0.02)


def data_set(name: str, size: int, labels: tuple[str, ...]) -> vae.ImageData:
    """One image in each split, with the labels of a data set."""
    part = vae.Split(torch.zeros(1, 3, size, size).byte(), torch.zeros(1).long())
    return vae.ImageData(name, name, part, part, part, labels)


def test_what_is_released_is_what_the_notebooks_ask_for():
    """Else they would train for hours where weights are there."""
    sets = {
        "cifar10": data_set("cifar10", 32, tuple("0123456789")),
        "celeba": data_set("celeba", 64, tuple(map(str, range(40)))),
        "shapes": vae.load_dataset("shapes"),
    }
    configs = release.released_configs(sets)
    assert sorted(configs) == RELEASED
    for name, config in configs.items():
        assert vae.read_record(ROOT / "checkpoints" / name)[0] == config, name


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_run_is_complete_and_loads(name):
    config, record = vae.read_record(ROOT / "checkpoints" / name)
    assert len(record["history"]) == config.epochs + (config.prior_epochs or 0)
    assert {"data", "test", "seconds", "hardware"} <= set(record)
    if (ROOT / "checkpoints" / name / "model.safetensors").exists():
        model, _ = vae.load_checkpoint(ROOT / "checkpoints" / name)
        assert vae.count_parameters(model) == record["parameters"]
        assert torch.isfinite(vae.sample_images(model, 2)).all()
        half, full = record["test_half_precision"], record["test"]
        assert abs(half["total_nats"] - full["total_nats"]) < 0.5
