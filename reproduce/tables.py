"""Fill the tables of README.md, theory_answers.md and docs/ with what was measured.

    python -m reproduce.tables    a second; needs no data

A table stands between two markers, <!--name--> and <!--/name-->, which no renderer shows. Its
numbers come from the records of checkpoints/ and from figures/*.json.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import vae_helpers as vae
from base.files import ROOT
from reproduce import gallery, release, theory
from reproduce.common import CHECKPOINTS, read_json
from support import runs

TEXTS = (ROOT / "README.md", ROOT / "theory_answers.md", *sorted((ROOT / "docs").glob("*.md")))


class Table(NamedTuple):
    """What stands between two markers."""

    corner: str  # the title of the first column
    rows: dict[str, dict | list[dict]]  # title → numbers by key, or those of several seeds
    columns: dict[str, str]  # title → key and format, like "mse:.4f"
    turned: bool = False  # rows become columns


def render(table: Table) -> str:
    cells = {}
    for row, numbers in table.rows.items():
        seeds = numbers if isinstance(numbers, list) else [numbers]
        for column, which in table.columns.items():
            cells[row, column] = cell(seeds, which)
    lines = []
    if table.turned:
        for column in table.columns:
            lines.append({table.corner: column} | {row: cells[row, column] for row in table.rows})
    else:
        for row in table.rows:
            lines.append({table.corner: row} | {name: cells[row, name] for name in table.columns})
    return vae.markdown_table(lines)


def cell(seeds: list[dict], which: str) -> str:
    """One number, or the mean ± standard deviation over seeds; – for what is not there."""
    key, _, style = which.partition(":")
    values = [numbers.get(key) for numbers in seeds]
    if None in values:
        return "–"
    if len(set(values)) == 1:
        return format(values[0], style)
    return vae.mean_and_sd(values, digits=int(style.strip(",.f")))


def fill(text: str) -> str:
    """The text with every table between two markers written again. KeyError: no such table."""
    tables = results_tables() | models_tables() | theory_tables() | speed_tables()

    def between_markers(match: re.Match) -> str:
        start, name, end = match.groups()
        return f"{start}\n{render(tables[name])}\n{end}"

    return re.sub(r"(<!--(\w+)-->)\n.*?(<!--/\2-->)", between_markers, text, flags=re.DOTALL)


# ── README.md and docs/results.md ───────────────────────────────────────────────────────────────

TASK1 = {
    "**convolutional**": "cifar10_conv",
    "fully connected, same size": "cifar10_fc",
    "fully connected, three times the size": "cifar10_fc3x",
}
TITLES = {
    "cifar10_conv": "CIFAR-10, `plain`",
    "cifar10_fc": "CIFAR-10, fully connected",
    "cifar10_fc3x": "CIFAR-10, fully connected, three times the size",
    "cifar10_conv_sigma": "CIFAR-10, `plain`, calibrated σ",
    "cifar10_best": "CIFAR-10, `best`",
    "cifar10_grid": "CIFAR-10, `grid`",
    "celeba_conv": "CelebA, `plain`",
    "celeba_best": "CelebA, `best`",
    "celeba_grid": "CelebA, `grid`",
}
CIFAR = ("cifar10_conv", "cifar10_conv_sigma", "cifar10_best", "cifar10_grid")
FACES = ("celeba_conv", "celeba_best", "celeba_grid")
PARAMETERS = {"parameters": "parameters:,"}
LOSSES = {
    "reconstruction (nats)": "reconstruction_nats:,.1f",
    "KL (nats)": "kl_nats:,.1f",
    "total (nats)": "total_nats:,.1f",
    "MSE": "mse:.4f",
}
CODES = {"KL (nats)": "kl_nats:,.1f", "MSE": "mse:.4f", "bits/dim": "bits_per_dim:.2f"}
# What evaluate.py measures of sets of pictures: their distances, or where a face is found.
PICTURES = {
    "real images": "real",
    "reconstructions": "reconstructions",
    "N(0, I)": "samples_normal_prior",
    "one Gaussian": "samples_gaussian",
    "learned prior": "samples_learned_prior",
    "midpoints, linear": "midpoints_linear",
    "midpoints, spherical": "midpoints_spherical",
}
WAYS = {
    "as it learned": "samples_prior",
    **{f"guidance {w}": f"samples_guidance_{w}" for w in (1, 2, 3, 4)},
    **{f"temperature {t}": f"samples_temperature_{t}" for t in (0.9, 0.7, 0.5)},
}


def recorded(name: str) -> dict:
    """What a released model's training recorded: its test numbers, parameters and seconds."""
    _, record = vae.read_record(CHECKPOINTS / name)
    return record["test"] | {key: record[key] for key in ("parameters", "seconds")}


def task1_records() -> dict[str, list[dict]]:
    """The numbers of the three seeds of each model of Task 1."""
    seeds = ("", "_seed1", "_seed2")
    return {title: [recorded(name + seed) for seed in seeds] for title, name in TASK1.items()}


def measured(name: str) -> dict:
    """What evaluate.py measured on a released model, all parts as one."""
    numbers = recorded(name)
    for part in read_json(f"checkpoints/{name}/metrics.json").values():
        if isinstance(part, dict):
            numbers |= part
    for method in vae.INTERPOLATIONS:
        if f"ppl_{method}" in numbers:  # a path length is the mean square of a speed
            speed = math.sqrt(numbers[f"ppl_{method}"])
            error = numbers[f"ppl_{method}_se"] / (2 * speed)
            numbers[f"speed_{method}"] = f"{speed:.1f} ± {error:.1f}"
    numbers["ffd_real"] = numbers.get("ffd_real_train")
    for unit in ("ffd", "found"):
        # A prior that is not learned is N(0, I) itself.
        kind = "normal" if f"{unit}_samples_gaussian" in numbers else "learned"
        for end in ("", "_se"):
            if f"{unit}_samples_prior{end}" in numbers:
                numbers[f"{unit}_samples_{kind}_prior{end}"] = numbers[f"{unit}_samples_prior{end}"]
    return numbers


def in_percent(numbers: dict, key: str) -> str | None:
    """A share with its standard error, like "97.0 ± 0.5%"; None where it was not measured."""
    if key not in numbers:
        return None
    error = f" ± {100 * numbers[f'{key}_se']:.1f}" if f"{key}_se" in numbers else ""
    return f"{100 * numbers[key]:.1f}{error}%"


def of_sets(names: tuple[str, ...], unit: str) -> Table:
    """What was measured of the pictures of these models, a column for each kind of picture."""
    rows = {}
    for name in names:
        numbers = measured(name)
        if unit != "ffd":
            for which in PICTURES.values():
                numbers[f"{unit}_{which}"] = in_percent(numbers, f"{unit}_{which}")
        rows[TITLES[name]] = numbers
    style = ":,.0f" if unit == "ffd" else ""
    return Table("model", rows, {title: f"{unit}_{key}{style}" for title, key in PICTURES.items()})


def of_ways(name: str, columns: dict[str, str]) -> Table:
    """What guidance and temperature do to samples, beside real images and reconstructions."""
    numbers = measured(name)
    sets = {"real images": "real", "reconstructions": "reconstructions"} | WAYS
    rows = {}
    for title, key in sets.items():
        rows[title] = {
            "distance": numbers.get(f"ffd_{key}"),
            "found": in_percent(numbers, f"found_{key}"),
            "recognised": in_percent(numbers, f"recognised_{key}"),
        }
    return Table("", rows, columns)


def of_ablation(corner: str, names: dict[str, dict], columns: dict[str, str]) -> Table:
    """The rows of these names that release.ablate has measured."""
    results = read_json("checkpoints/ablation.json")["results"]
    rows = {}
    for name in names:
        seeds = list(results.get(name, {}).values())
        if seeds:
            rows[name] = [numbers | {"seeds": len(seeds)} for numbers in seeds]
    return Table(corner, rows, {"seeds": "seeds", **PARAMETERS, **columns})


def results_tables() -> dict[str, Table]:
    task1 = task1_records()
    models = {}
    for name in CIFAR + FACES:
        models[TITLES[name]] = measured(name)
    return {
        "short_results": Table("model", task1, PARAMETERS | LOSSES),
        "results": Table("model", task1, PARAMETERS | LOSSES | {
            "excess over the floor (nats)": "excess_nats:,.1f",
            "active dimensions": "active_dims:,.0f",
            "training (s)": "seconds:,.0f",
        }),
        "quality": Table("model", models, PARAMETERS | {
            "training (s)": "seconds:,.0f",
            "KL, or rate (nats)": "kl_nats:,.1f",
            "bits/dim": "bits_per_dim:.2f",
            "MSE": "mse:.4f",
            "PSNR (dB)": "psnr_db:.1f",
            "SSIM": "ssim:.3f",
        }),
        "distances": of_sets(("cifar10_fc", "cifar10_fc3x", *CIFAR), "ffd"),
        "faces": of_sets(FACES, "found"),
        "guidance": of_ways("cifar10_grid", {
            "class recognised": "recognised", "distance": "distance:,.0f"
        }),
        "guidance_faces": of_ways("celeba_grid", {
            "attribute recognised": "recognised", "a face is found": "found"
        }),
        "paths": Table("model", models, {
            "speed, linear": "speed_linear",
            "unevenness, linear": "step_unevenness_linear:.3f",
            "speed, spherical": "speed_spherical",
            "unevenness, spherical": "step_unevenness_spherical:.3f",
        }),
        "ablation": of_ablation("change", release.CHANGES, CODES),
        "networks": of_ablation("model", release.NETWORKS, {
            "total (nats)": "total_nats:,.1f", "MSE": "mse:.4f"
        }),
        "codes": of_ablation("grid of codes", release.CODES, CODES),
    }  # fmt: skip


# ── docs/models.md ──────────────────────────────────────────────────────────────────────────────


def of_gallery(entries: dict[str, gallery.Entry]) -> dict[str, dict]:
    """The numbers of these models; a code without a rate has none."""
    rows = {}
    for name, entry in entries.items():
        numbers = gallery.measured()[name]
        used = numbers.get("active_dims", numbers.get("codes_used"))
        rows[entry.title] = numbers | {"rate": numbers["kl_nats"] or None, "used": used}
    return rows


def models_tables() -> dict[str, Table]:
    columns = PARAMETERS | {
        "reconstruction (nats)": "reconstruction_nats:,.1f",
        "KL, or rate of the codes (nats)": "rate:,.1f",
        "MSE": "mse:.4f",
        "active dimensions, or codes used": "used",
        "training (s)": "seconds:,.0f",
    }
    betas = {}
    for name, entry in gallery.OVER_BETA.items():
        betas[f"{entry.settings['beta']:g}"] = gallery.measured()[name]
    return {
        "fashion": Table("model", of_gallery(gallery.FASHION), columns),
        "other_data": Table("model", of_gallery(gallery.OTHER_DATA), columns),
        "disentanglement": Table("β", betas, {
            "reconstruction (nats)": "reconstruction_nats:,.1f",
            "KL (nats)": "kl_nats:.1f",
            "active dimensions": "active_dims",
            "MIG": "disentanglement_mig:.2f",
            "DCI disentanglement": "disentanglement_dci_disentanglement:.2f",
            "DCI completeness": "disentanglement_dci_completeness:.2f",
            "DCI informativeness": "disentanglement_dci_informativeness:.2f",
            "FactorVAE score": "disentanglement_factor_vae_score:.2f",
        }),
    }  # fmt: skip


# ── theory_answers.md ───────────────────────────────────────────────────────────────────────────


def rounded(value: float, digits: int) -> str:
    """With so many digits that count, the others zeros: 12,345 → 12,000."""
    return f"{float(f'{value:.{digits}g}'):,.15g}"


def of_theory(answer: dict[str, dict], models: dict[str, str]) -> dict[str, dict]:
    """What was measured on released models, together with the test numbers of their records."""
    return {name: recorded(models[name]) | answer[name] for name in models if name in answer}


def theory_tables() -> dict[str, Table]:
    answers = read_json("figures/theory.json")
    return (
        kl_tables(answers["q1"])
        | gradient_tables(answers["q2"])
        | code_tables(answers["q3"], answers["plane"])
        | smooth_tables(answers["q4"])
    )


def kl_tables(q1: dict) -> dict[str, Table]:
    models = of_theory(q1, theory.BETAS)
    for numbers in models.values():
        low, high = numbers["variance_min"], numbers["variance_max"]
        numbers["variances"] = f"{high:.1f} and {low:#.2g}"
        numbers["mismatch_nats"] = numbers["kl_nats"] - numbers["index_nats"]
    return {
        "kl_term": Table("", models, {
            "reconstruction (nats) ↓": "reconstruction_nats:,.1f",
            "KL (nats)": "kl_nats:,.1f",
            "their sum, the negative ELBO (nats) ↓": "total_nats:,.1f",
            "noise in the code, mean σ": "sigma:.4f",
            "distance of the mean code from the origin (prior: 0)": "mean_norm:.1f",
            "KL between a Gaussian fitted to the codes and the prior (nats) ↓": "fit_kl_nats:.1f",
        }, turned=True),
        "kl_more": Table("", models, {
            "squared error of reconstructions ↓": "mse:.4f",
            "squared error of decoded samples of q(z given x)": "sample_mse:.4f",
            "mean distance of a code from the origin (prior: 11.3)": "code_norm:.1f",
            "variance of the codes, largest and smallest over all directions (prior: 1)":
                "variances",
            "KL (nats)": "kl_nats:,.1f",
            "… information about which of the 10,000 images it is": "index_nats:.1f",
            "… the rest: all codes against the prior": "mismatch_nats:,.1f",
            "draws of the prior inside the posterior of a training image":
                "draws_in_posteriors:.1%",
            "codes of test images inside one": "test_codes_in_posteriors:.1%",
        }, turned=True),
    }  # fmt: skip


def gradient_tables(q2: dict) -> dict[str, Table]:
    rows = {}
    for name, numbers in q2["estimators"].items():
        # 16 images give no more than two digits.
        rows[name] = {key: rounded(value, 2) for key, value in numbers.items()}
    columns = {"variance ↓": "variance", "times the pathwise one": "times_pathwise"}
    return {"gradients": Table("estimator", rows, columns)}


def code_tables(q3: dict, plane: dict) -> dict[str, Table]:
    return {
        "fixed_codes": Table("", of_theory(q3, theory.AUTOENCODER_AND_VAE), {
            "squared error of reconstructions ↓": "mse:.4f",
            "distance of the mean code from the origin (prior: 0)": "mean_norm:.1f",
            "largest variance of the codes over all directions (prior: 1)": "variance_max:.1f",
            "directions, of 128, that hold 99% of the variance of the codes": "directions",
        }, turned=True),
        "plane": Table("", plane, {
            "squared error of reconstructions ↓": "mse:.4f",
            "distance of the mean code from the origin (prior: 0)": "mean_norm:.1f",
            "distance of the farthest code from the origin": "farthest:.1f",
            "codes in the square, which holds 99.5% of the prior": "in_square:.1%",
        }, turned=True),
    }  # fmt: skip


def smooth_tables(q4: dict) -> dict[str, Table]:
    seeds, overlaps = {}, {}
    for name, numbers in q4.items():
        seeds[name] = numbers["steps"]
        nearest = numbers["overlaps"]["nearest_posterior"]
        overlaps[name] = numbers["overlaps"] | {"nearest_posterior": rounded(nearest, 3)}
    return {
        "smooth_space": Table("", seeds, {
            "noise in the code, mean σ": "sigma:.2f",
            "mean distance between two means μ": "distance:.1f",
            "change of a random step in all dimensions": "relative_change:.2f",
            "change of a random step in the used dimensions": "relative_change_used:.2f",
            "unevenness of the steps on a straight line": "unevenness:.3f",
            "contrast of reconstructions": "end_contrast:.3f",
        }, turned=True),
        "smooth_more": Table("", seeds, {
            "usual distance of a sample from its mean": "radius:.1f",
            "used dimensions, of 128": "used:.0f",
            "change for a tenth of a difference of means / a tenth of the change for all of it":
                "slope_along_codes:.2f",
            "saturated pixels in reconstructions": "saturated_reconstructions:.3f",
            "saturated pixels after a random step": "saturated_after:.3f",
        }, turned=True),
        "overlaps": Table("", overlaps, {
            "distance of the nearest posterior, $D_B$": "nearest_posterior",
            "information about which of 45,000 images it is (at most 10.7 nats)": "index_nats:.1f",
        }, turned=True),
    }  # fmt: skip


# ── docs/reliability.md and docs/speed.md ───────────────────────────────────────────────────────

WAITS = {"median (ms)": "median_ms:.0f", "worst (ms)": "worst_ms:.0f"}


def waits(name: str) -> dict[str, dict]:
    return read_json(f"figures/{name}.json")["waits"]


def speed_tables() -> dict[str, Table]:
    kinds = read_json("figures/faults.json")
    counts = ("tried", "survived", "lost")
    faults = {kind["kind"]: kind for kind in kinds}
    faults["together"] = {key: sum(kind[key] for kind in kinds) for key in counts}
    loops = read_json("figures/speed.json")["loops"]
    for loop in loops.values():
        loop["epoch_s"] = 45_000 / loop["images_per_s"]
    goal = f"to {loops['this project']['goal_nats']:,.0f} nats on validation images (s)"
    return {
        "faults": Table("fault", faults, {key: f"{key}:," for key in counts}),
        "speed": Table("loop", loops, {
            "images/s": "images_per_s:,.0f",
            "an epoch of 45,000 images (s)": "epoch_s:,.0f",
            "of the machine's matrix product, float32": "share_of_float32_peak:.0%",
            goal: "s_to_goal:,.0f",
        }),
        "sliders": Table("explorer", waits("widgets"), {"moves": "moves"} | WAITS),
        "page": Table("what is moved", waits("page"), {"times": "moves"} | WAITS),
        "page_training": Table("engine", read_json("figures/page.json")["training"], {
            "images a second": "images_per_s:,.0f",
            "frames a second meanwhile": "frames_per_s:.0f",
        }),
    }  # fmt: skip


# ── The command ─────────────────────────────────────────────────────────────────────────────────


def main() -> None:
    for path in TEXTS:
        path.write_text(fill(path.read_text()))


if __name__ == "__main__":
    runs.run_script(main)
