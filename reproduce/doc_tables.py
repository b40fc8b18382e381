"""The tables of README.md and docs/, each made from the file that measured it.

Those of theory_answers.md stand in theory_tables.py. figures/make.py writes all into the texts.
"""

from __future__ import annotations

import json
import math

import vae_helpers as vae
from base.files import ROOT
from reproduce import gallery

CHECKPOINTS = ROOT / "checkpoints"

# What the tables call the released models → their folders in checkpoints/.
TASK1 = {
    "**convolutional**": "cifar10_conv",
    "fully connected, same size": "cifar10_fc",
    "fully connected, three times the size": "cifar10_fc3x",
}
QUALITY = {
    "CIFAR-10, the assignment's (BCE)": "cifar10_conv",
    "CIFAR-10, calibrated σ alone": "cifar10_conv_sigma",
    "CIFAR-10, `best`": "cifar10_best",
    "CelebA, squared error": "celeba_conv",
    "CelebA, `best`": "celeba_best",
}
DISTANCES = {
    "real (floor)": "ffd_real_train",
    "reconstructions": "ffd_reconstructions",
    "samples, prior": "ffd_samples_prior",
    "samples, mixture": "ffd_samples_mixture",
    "midpoints, linear": "ffd_midpoints_linear",
    "midpoints, spherical": "ffd_midpoints_spherical",
}


# What is given up for a prior that is learned, and what is gained.
PRIOR = {
    "CIFAR-10, the assignment's (BCE)": "cifar10_conv",
    "CIFAR-10, `best`": "cifar10_best",
    "CIFAR-10, `grid`": "cifar10_grid",
    "CelebA, squared error": "celeba_conv",
    "CelebA, `best`": "celeba_best",
    "CelebA, `grid`": "celeba_grid",
}
GRID_ALONE = {"CelebA, `grid`, no code of the whole image": "celeba_grid_alone"}


def read_json(path: str):
    """A file of the project, like "figures/theory.json"."""
    return json.loads((ROOT / path).read_text())


def read_record(name: str) -> dict:
    """What a released model's training recorded."""
    return vae.read_record(CHECKPOINTS / name)[1]


def read_metrics(name: str) -> dict:
    """What evaluate.py measured on released weights."""
    return read_json(f"checkpoints/{name}/metrics.json")


def table(first: str, rows: dict[str, dict], columns: dict[str, str]) -> str:
    """A row for each name. columns: title → how to write a cell, as in "{mse:.4f}"."""
    lines = []
    for name, numbers in rows.items():
        cells = {title: cell.format(**numbers) for title, cell in columns.items()}
        lines.append({first: name} | cells)
    return vae.markdown_table(lines)


def compare(models: dict[str, dict], rows: dict[str, str]) -> str:
    """A column for each model. rows: title → how to write its cells."""
    lines = []
    for title, cell in rows.items():
        cells = {name: cell.format(**numbers) for name, numbers in models.items()}
        lines.append({"": title} | cells)
    return vae.markdown_table(lines)


def over_seeds(results: list[dict], columns: dict[str, tuple[str, int]]) -> dict[str, str]:
    """Cells "mean ± standard deviation". columns: title → key and digits."""
    cells = {}
    for title, (key, digits) in columns.items():
        cells[title] = vae.mean_and_sd([result[key] for result in results], digits)
    return cells


# ── docs/results.md ─────────────────────────────────────────────────────────────────────────────


def task1_records() -> dict[str, list[dict]]:
    """The records of the three seeds of each model of Task 1."""
    records = {}
    for title, folder in TASK1.items():
        names = (folder, f"{folder}_seed1", f"{folder}_seed2")
        records[title] = [read_record(name) for name in names]
    return records


def task1_table(columns: dict[str, tuple[str, int]]) -> str:
    rows = []
    for title, records in task1_records().items():
        results = [record["test"] | {"seconds": record["seconds"]} for record in records]
        row = {"model": title, "parameters": f"{records[0]['parameters']:,}"}
        rows.append(row | over_seeds(results, columns))
    return vae.markdown_table(rows)


SHORT = {
    "reconstruction (nats)": ("reconstruction_nats", 1),
    "KL (nats)": ("kl_nats", 1),
    "total (nats)": ("total_nats", 1),
    "MSE": ("mse", 4),
}


def short_results() -> str:
    """The table of README.md."""
    return task1_table(SHORT)


def results() -> str:
    return task1_table(SHORT | {
        "excess over the floor (nats)": ("excess_nats", 1),
        "active dimensions": ("active_dims", 0),
        "training (s)": ("seconds", 0),
    })  # fmt: skip


def quality() -> str:
    rows = {}
    for title, folder in QUALITY.items():
        rows[title] = read_metrics(folder) | {"parameters": read_record(folder)["parameters"]}
    columns = {
        "parameters": "{parameters:,}",
        "KL (nats)": "{test[kl_nats]:.1f}",
        "bits/dim": "{likelihood[bits_per_dim]:.2f}",
        "MSE": "{pictures[mse]:.4f}",
        "PSNR (dB)": "{pictures[psnr_db]:.1f}",
        "SSIM": "{pictures[ssim]:.3f}",
    }
    for title, key in DISTANCES.items():
        columns[title] = f"{{frechet[{key}]:,.0f}}"
    return table("model", rows, columns)


def prior() -> str:
    """Fixed and learned priors; – for what a model does not have."""
    columns = {
        "real (floor)": "ffd_real_train",
        "reconstructions": "ffd_reconstructions",
        "samples of N(0, I)": "ffd_samples_normal_prior",
        "of a mixture of ten Gaussians": "ffd_samples_mixture",
        "of the learned prior": "ffd_samples_prior",
        "at temperature 0.9": "ffd_samples_temperature_0.9",
        "at 0.8": "ffd_samples_temperature_0.8",
        "at 0.5": "ffd_samples_temperature_0.5",
    }
    rows = []
    for title, folder in (PRIOR | GRID_ALONE).items():
        numbers, record = read_metrics(folder), read_record(folder)
        distances = dict(numbers["frechet"])
        if "ffd_samples_normal_prior" not in distances:  # its prior is N(0, I)
            distances["ffd_samples_normal_prior"] = distances.pop("ffd_samples_prior")
        row = {"model": title, "parameters": f"{record['parameters']:,}"}
        row["training (s)"] = f"{record['seconds']:,.0f}"
        row["price of the code (nats)"] = f"{numbers['test']['kl_nats']:,.1f}"
        row["bits/dim"] = f"{numbers['likelihood']['bits_per_dim']:.2f}"
        row["MSE"] = f"{numbers['pictures']['mse']:.4f}"
        for name, key in columns.items():
            row[name] = f"{distances[key]:,.0f}" if key in distances else "–"
        rows.append(row)
    return vae.markdown_table(rows)


def paths() -> str:
    """How fast features change between two test images: the root of the path length."""
    rows = []
    for title, folder in QUALITY.items():
        numbers, row = read_metrics(folder)["smoothness"], {"model": title}
        for method in vae.INTERPOLATIONS:
            speed = math.sqrt(numbers[f"ppl_{method}"])
            error = numbers[f"ppl_{method}_se"] / (2 * speed)
            row[f"speed, {method}"] = f"{speed:.1f} ± {error:.1f}"
            row[f"unevenness, {method}"] = f"{numbers[f'step_unevenness_{method}']:.3f}"
        rows.append(row)
    return vae.markdown_table(rows)


def short_quality() -> str:
    """The table of README.md: samples of the model's own prior, fixed or learned."""
    rows = {title: read_metrics(folder) for title, folder in PRIOR.items()}
    return table("model", rows, {
        "MSE": "{pictures[mse]:.4f}",
        "bits/dim": "{likelihood[bits_per_dim]:.2f}",
        "distance of reconstructions": "{frechet[ffd_reconstructions]:,.0f}",
        "distance of samples": "{frechet[ffd_samples_prior]:,.0f}",
    })  # fmt: skip


def of_ablation(kind: str, first: str, columns: dict[str, tuple[str, int]]) -> str:
    """The rows of one kind that checkpoints/ablation.py has measured."""
    measured = read_json("checkpoints/ablation.json")
    rows = []
    for name in measured["kinds"][kind]:
        if name not in measured["results"]:
            continue
        seeds = list(measured["results"][name].values())
        row = {first: name, "seeds": str(len(seeds))}
        row["parameters"] = f"{seeds[0]['parameters']:,}"
        rows.append(row | over_seeds(seeds, columns))
    return vae.markdown_table(rows)


OF_CODES = {"KL (nats)": ("kl_nats", 1), "MSE": ("mse", 4), "bits/dim": ("bits_per_dim", 2)}
OF_PICTURES = {title: (key, 0) for title, key in DISTANCES.items() if "real" not in title}


def ablation() -> str:
    """Without samples of the mixture, which were drawn with another sampler than today's."""
    columns = OF_CODES | OF_PICTURES
    del columns["samples, mixture"]
    return of_ablation("changes", "change", columns)


def networks() -> str:
    columns = {"total (nats)": ("total_nats", 1), "MSE": ("mse", 4)}
    columns |= {title: OF_PICTURES[title] for title in ("reconstructions", "samples, prior")}
    return of_ablation("networks", "model", columns)


def codes() -> str:
    """Without samples: these models have no prior yet."""
    columns = OF_CODES | {"reconstructions": OF_PICTURES["reconstructions"]}
    return of_ablation("codes", "grid of codes", columns)


# ── docs/models.md ──────────────────────────────────────────────────────────────────────────────


def model_table(entries: dict[str, gallery.Entry]) -> str:
    """A row for each of these models of the gallery; – for a code without a price."""
    rows = {}
    for name, entry in entries.items():
        numbers = gallery.measured()[name]
        price = f"{numbers['kl_nats']:,.1f}" if numbers["kl_nats"] else "–"
        used = numbers.get("active_dims", numbers.get("codes_used"))
        rows[entry.title] = numbers | {"price": price, "used": used}
    return table("model", rows, {
        "parameters": "{parameters:,}",
        "reconstruction (nats)": "{reconstruction_nats:,.1f}",
        "KL, or price of the codes (nats)": "{price}",
        "MSE": "{mse:.4f}",
        "active dimensions, or codes used": "{used}",
        "distance: reconstructions": "{ffd_reconstructions:,.0f}",
        "distance: samples": "{ffd_samples:,.0f}",
        "training (s)": "{seconds:,.0f}",
    })  # fmt: skip


def fashion() -> str:
    return model_table(gallery.FASHION)


def other_data() -> str:
    return model_table(gallery.OTHER_DATA)


def attributes() -> str:
    """How often a forest sees each attribute in reconstructions with it switched off and on."""
    small, large = gallery.measured()["celeba_cvae"], gallery.measured()["celeba_cvae128"]
    rows = {}
    for name in gallery.ATTRIBUTES:
        rows[name.replace("_", " ")] = {
            "real test faces, right": small[f"recognised_test_{name}"],
            "seen when off, latent size 16": small[f"recognised_off_{name}"],
            "seen when on, latent size 16": small[f"recognised_on_{name}"],
            "seen when off, latent size 128": large[f"recognised_off_{name}"],
            "seen when on, latent size 128": large[f"recognised_on_{name}"],
        }
    columns = {title: f"{{{title}:.0%}}" for title in rows["Smiling"]}
    return table("attribute", rows, columns)


def disentanglement() -> str:
    rows = {}
    for name, entry in gallery.OVER_BETA.items():
        rows[f"{entry.settings['beta']:g}"] = gallery.measured()[name]
    return table("β", rows, {
        "reconstruction (nats)": "{reconstruction_nats:,.1f}",
        "KL (nats)": "{kl_nats:.1f}",
        "active dimensions": "{active_dims}",
        "MIG": "{disentanglement_mig:.2f}",
        "DCI disentanglement": "{disentanglement_dci_disentanglement:.2f}",
        "DCI completeness": "{disentanglement_dci_completeness:.2f}",
        "DCI informativeness": "{disentanglement_dci_informativeness:.2f}",
        "FactorVAE score": "{disentanglement_factor_vae_score:.2f}",
    })  # fmt: skip


# ── docs/reliability.md and docs/speed.md ───────────────────────────────────────────────────────


def faults() -> str:
    """What tests/faults.py did, and the sums."""
    counts = ("tried", "survived", "lost")
    kinds = read_json("figures/faults.json")
    rows = {kind["kind"]: kind for kind in kinds}
    rows["together"] = {key: sum(kind[key] for kind in kinds) for key in counts}
    return table("fault", rows, {key: f"{{{key}:,}}" for key in counts})


def speed() -> str:
    loops = read_json("figures/speed.json")["loops"]
    goal = f"to {loops['this project']['goal_nats']:,.0f} nats on validation images (s)"
    for loop in loops.values():
        loop["full_epoch_s"] = 45_000 / loop["images_per_s"]
    return table("loop", loops, {
        "images/s": "{images_per_s:,.0f}",
        "an epoch of 45,000 images (s)": "{full_epoch_s:,.0f}",
        "of the machine's matrix product, float32": "{share_of_float32_peak:.0%}",
        goal: "{s_to_goal:,.0f}",
    })  # fmt: skip


def waits(first: str, rows: dict[str, dict], count: str) -> str:
    """How long the picture takes to follow."""
    return table(first, rows, {
        count: "{moves}",
        "median (ms)": "{median_ms:.0f}",
        "worst (ms)": "{worst_ms:.0f}",
    })  # fmt: skip


def sliders() -> str:
    numbers = read_json("figures/widgets.json")
    return waits("explorer", {
        "a walk between two images of CIFAR-10": numbers["interpolation"],
        "the same images through four models": numbers["models"],
        "faces from a region": numbers["region"],
        "the dimensions of a face": numbers["dimensions"],
        "for comparison: two ready pictures, nothing computed": numbers["floor"],
    }, "moves")  # fmt: skip


def page() -> str:
    numbers = read_json("figures/page.json")
    return waits("slider", {
        "the first picture, from the start of loading": numbers["first_picture"],
        "β of CIFAR-10": numbers["cifar10_beta"],
        "position between two images of CIFAR-10": numbers["cifar10_position"],
        "position between two faces": numbers["face_position"],
        "smile of a face": numbers["face_smile"],
    }, "times")  # fmt: skip


MAKERS = (
    short_results, results, quality, short_quality, paths, prior, ablation, networks, codes,
    fashion, other_data, attributes, disentanglement, faults, speed, sliders, page,
)  # fmt: skip
TABLES = {make.__name__: make for make in MAKERS}
