"""The numbers that the texts quote, the tables and figures they show, and the released runs."""

import math
import re
from collections.abc import Iterable

import pytest
import torch
from conftest import ROOT
from torch import Tensor

import vae_helpers as vae
from reproduce import doc_tables, gallery, make, theory

TEXTS = [path.relative_to(ROOT).as_posix() for path in make.TEXTS]
RELEASED = sorted(path.parent.name for path in (ROOT / "checkpoints").glob("*/model.json"))
# fmt: off
CONSTANTS = {
    "0.001", "0.1", "11.3", "100", "128", "256", "500", "512", "1,800",  # settings and sizes
    "200", "1,000", "5,000", "8,500", "10,000", "30,000", "45,000", "55,000", "70,000",  # images
    "105", "240", "2.87", "2.91", "4.5",  # results of others
    "10%", "39%", "95%", "170", "1.4",  # shares; MB, GB of downloads
    "2.9", "3.6", "3.10", "7.7",  # versions
    # Measured with code that is gone: torch.compile, and the memory of a large data set.
    "1,108", "1,232", "2,261", "2,352", "2,387", "2,806", "200,000", "2.3", "2.8", "3.8",
}
# fmt: on
NOT_PROSE = re.compile(
    r"(?sm)```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$\n]*\$|<!--.*?-->|!?\[[^\]]*\]\([^)]*\)"
    r"|^\|.*?$|^## References.*"
)
NUMBER = re.compile(r"(?<![\w.,-])(?:\d[\d,]*\d|\d)(?:\.\d+)?(?!\w)(?: nats|%)?")


def task1_totals() -> list[Tensor]:
    """Reconstruction + KL of three seeds: convolutional, fully connected, and the large one."""
    seeds = doc_tables.task1_records().values()
    return [torch.tensor([r["test"]["total_nats"] for r in records]) for records in seeds]


def sources(text: str) -> list:
    """The measurements that a text may quote, beside what stands in its own tables."""
    conv, fc, fc3x = task1_totals()
    task1 = [(other.mean() - conv.mean()).item() for other in (fc, fc3x)]
    task1 += [(seeds.max() - seeds.min()).item() for seeds in (conv, fc, fc3x)]
    quality = [doc_tables.read_metrics(name) for name in doc_tables.QUALITY.values()]
    bounds = [[metrics["likelihood"], metrics["frechet"]] for metrics in quality]
    tests = [doc_tables.read_record(name)["test"] for name in ("cifar10_conv", "celeba_conv")]
    answers = doc_tables.read_json("figures/theory.json")
    # An index among the test images, or the training images, holds at most their logarithm.
    indices = [math.log(10_000), math.log(45_000)]
    folder = "checkpoints/features"
    features = [doc_tables.read_json(f"{folder}/{name}.json") for name in ("cifar10", "celeba")]
    return {
        "README.md": [task1, tests],
        "docs/results.md": [task1, tests, features, bounds],
        "docs/models.md": [gallery.measured()],
        "docs/speed.md": [doc_tables.read_json("figures/speed.json")],
        "theory_answers.md": [answers, indices],
    }.get(text, [])


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
        if len(quoted) < 3 or number in CONSTANTS or re.fullmatch(r"(19|20)\d\d", quoted):
            continue
        digits = len(number.rstrip("%").partition(".")[2])
        kind = "%" if "%" in number else "f"
        if number not in shown | {f"{value:,.{digits}{kind}}" for value in known}:
            missing.append(quoted)
    return missing


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_quotes_what_was_measured_and_shows_what_is_there(text):
    content = (ROOT / text).read_text()
    tables = "\n".join(re.findall(r"^\|.*", content, re.MULTILINE))
    assert unsourced(content, tables, numbers_in(sources(text))) == []
    assert make.fill(content) == content, "python -m reproduce.make --texts fills the tables"
    for target in re.findall(r"\]\((?!https:)([^)#]+)[^)]*\)", content):
        assert ((ROOT / text).parent / target).exists(), target
    # GitHub refuses some macros, and Markdown eats a backslash before punctuation.
    assert not re.search(r"\\(operatorname|mbox|phantom|[,;:!{}\\ ])", content)


def test_information_about_the_index_goes_from_nothing_to_all():
    logvar = torch.zeros(50, 4)
    far = 100 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    assert theory.index_information(far, logvar, n=50) == pytest.approx(math.log(50))
    assert theory.index_information(torch.zeros(50, 4), logvar, n=50) == pytest.approx(0)


def test_a_cloud_holds_95_percent_of_its_samples():
    z = 3 + 2 * vae.sample_latents(2000, 8, seed=1)
    far, own = torch.full((1, 8), 30.0), torch.full((1, 8), 3.0)
    logvar = torch.full((1, 8), math.log(4))
    assert theory.share_in_clouds(z, far, logvar) == 0
    clouds = torch.cat([far, own]), logvar.expand(2, 8)
    assert theory.share_in_clouds(z, *clouds) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_run_is_complete_and_loads(name):
    config, record = vae.read_record(ROOT / "checkpoints" / name)
    assert len(record["history"]) == config.all_epochs
    assert {"data", "test", "seconds", "hardware"} <= set(record)
    if (ROOT / "checkpoints" / name / "model.safetensors").exists():
        model, _ = vae.load_checkpoint(ROOT / "checkpoints" / name)
        assert vae.count_parameters(model) == record["parameters"]
        assert torch.isfinite(vae.sample_images(model, 2)).all()
        half, full = record["test_half_precision"], record["test"]
        assert abs(half["total_nats"] - full["total_nats"]) < 0.5
