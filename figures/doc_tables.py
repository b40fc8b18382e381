"""The tables of README.md, theory_answers.md and docs/, each made from the file that measured it.

A table stands in a text between two markers, <!--name--> and <!--/name-->, which no renderer shows.
`python figures/make.py --texts` writes all of them again; tests/test_numbers.py finds stale ones.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import vae_helpers as vae
from figures import gallery

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINTS = ROOT / "checkpoints"
TEXTS = (ROOT / "README.md", ROOT / "theory_answers.md", *sorted((ROOT / "docs").glob("*.md")))

# What the tables call the released models → their folders in checkpoints/.
TASK1 = {
    "**convolutional**": "cifar10_conv",
    "fully connected, same size": "cifar10_fc",
    "fully connected, three times the size": "cifar10_fc3x",
}
BETAS = {
    "β = 0": "cifar10_conv_beta0",
    "β = 0.1": "cifar10_conv_beta0.1",
    "β = 1": "cifar10_conv",
    "β = 4": "cifar10_conv_beta4",
}
AUTOENCODER_AND_VAE = {"autoencoder": "cifar10_fc_ae", "VAE": "cifar10_fc"}
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
    "CIFAR-10, `prior`": "cifar10_prior",
    "CelebA, squared error": "celeba_conv",
    "CelebA, `best`": "celeba_best",
    "CelebA, `prior`": "celeba_prior",
}


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
    }
    rows = []
    for title, folder in PRIOR.items():
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
        for method in vae.METHODS:
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
    columns = {title: OF_PICTURES[title] for title in ("reconstructions", "samples, prior")}
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
    loops = read_json("benchmarks/speed.json")["loops"]
    goal = f"to {loops['this project']['goal_nats']:,.0f} nats on validation images (s)"
    for loop in loops.values():
        loop["full_epoch_s"] = 45_000 / loop["images_per_s"]
    return table("loop", loops, {
        "images/s": "{images_per_s:,.0f}",
        "an epoch of 45,000 images (s)": "{full_epoch_s:,.0f}",
        "of the machine's matrix product, float32": "{share_of_float32_peak:.0%}",
        goal: "{s_to_goal:,.0f}",
    })  # fmt: skip


def sliders() -> str:
    titles = {
        "interpolation": "a walk between two images of CIFAR-10",
        "models": "the same images through four models",
        "region": "faces from a region",
        "dimensions": "the dimensions of a face",
        "floor": "for comparison: two ready pictures, nothing computed",
    }
    numbers = read_json("figures/widgets.json")
    rows = {title: numbers[name] for name, title in titles.items()}
    columns = {"moves": "{moves}", "median (ms)": "{median_ms:.0f}", "worst (ms)": "{worst_ms:.0f}"}
    return table("explorer", rows, columns)


def page() -> str:
    titles = {
        "first_picture": "the first picture, from the start of loading",
        "cifar10_beta": "β of CIFAR-10",
        "cifar10_position": "position between two images of CIFAR-10",
        "face_position": "position between two faces",
        "face_smile": "smile of a face",
    }
    numbers = read_json("figures/page.json")
    rows = {title: numbers[name] for name, title in titles.items()}
    columns = {"times": "{moves}", "median (ms)": "{median_ms:.0f}", "worst (ms)": "{worst_ms:.0f}"}
    return table("slider", rows, columns)


# ── theory_answers.md ───────────────────────────────────────────────────────────────────────────


def theory(question: str) -> dict:
    return read_json("figures/theory.json")[question]


def with_records(measured: dict[str, dict], folders: dict[str, str]) -> dict[str, dict]:
    """Numbers of theory.json by model, together with the test numbers of the same models."""
    return {name: read_record(folders[name])["test"] | values for name, values in measured.items()}


def kl_term() -> str:
    models = with_records(theory("q1"), BETAS)
    for numbers in models.values():
        numbers["mismatch_nats"] = numbers["kl_nats"] - numbers["index_nats"]
    return compare(models, {
        "reconstruction (nats)": "{reconstruction_nats:,.1f}",
        "KL (nats)": "{kl_nats:,.1f}",
        "… information about which of the 10,000 images it is": "{index_nats:.1f}",
        "… the rest: all codes against the prior": "{mismatch_nats:,.1f}",
        "total = negative ELBO (nats)": "{total_nats:,.1f}",
        "noise in the code, mean σ": "{sigma:.4f}",
        "MSE of decoded means": "{mse:.4f}",
        "MSE of decoded samples of q(z given x)": "{sample_mse:.4f}",
        "mean distance of a code from the origin (prior: 11.3)": "{code_norm:.1f}",
        "distance of the mean code from the origin (prior: 0)": "{mean_norm:.1f}",
        "variance of the codes, largest and smallest over all directions (prior: 1)":
            "{variance_max:.1f} and {variance_min:#.2g}",
        "KL between a Gaussian fitted to the codes and the prior (nats)": "{fit_kl_nats:.1f}",
        "draws of the prior inside a cloud of one of 45,000 training images":
            "{draws_in_clouds:.1%}",
    })  # fmt: skip


def gradients() -> str:
    rows = {}
    for name, numbers in theory("q2")["estimators"].items():
        rows[name] = {key: with_two_digits(value) for key, value in numbers.items()}
    columns = {"variance": "{variance}", "times the pathwise one": "{times_pathwise}"}
    return table("estimator", rows, columns)


def with_two_digits(value: float) -> str:
    """16 images give no more."""
    return f"{float(f'{value:.2g}'):,.0f}"


def fixed_codes() -> str:
    numbers = theory("q3")
    models = {name: numbers[name] for name in AUTOENCODER_AND_VAE}
    real = numbers["real images"]["contrast"]
    return compare(with_records(models, AUTOENCODER_AND_VAE), {
        "reconstruction (nats)": "{reconstruction_nats:,.1f}",
        "MSE of reconstructions": "{mse:.4f}",
        "distance of the mean code from the origin (prior: 0)": "{mean_norm:.1f}",
        "spread of the codes per dimension (prior: 1)": "{code_std:.2f}",
        "largest variance of the codes over all directions (prior: 1)": "{variance_max:.1f}",
        "directions, of 128, in which the codes have a variance above 0.01": "{directions}",
        f"contrast of samples from the prior (real images: {real:.3f})": "{prior_contrast:.3f}",
    })  # fmt: skip


def plane() -> str:
    return compare(theory("plane"), {
        "MSE of reconstructions": "{mse:.4f}",
        "distance of the mean code from the origin (prior: 0)": "{mean_norm:.1f}",
        "distance of the farthest code from the origin": "{farthest:.1f}",
        "codes in the square, which holds 99.5% of the prior": "{in_square:.1%}",
    })  # fmt: skip


def smooth_space() -> str:
    return compare(theory("q4"), {
        "width of the clouds, mean σ": "{sigma:.4f}",
        "usual distance of a sample from its mean": "{radius:.3g}",
        "distance from the origin: means": "{mu_norm:.1f}",
        "distance from the origin: samples": "{z_norm:.1f}",
        "change of the picture for a random step of length 1 (RMS), from means":
            "{step_from_mu:.4f}",
        "the same from samples": "{step_from_z:.4f}",
        "unevenness of the steps on a straight line": "{unevenness:.3f}",
        "contrast of the reconstructions": "{end_contrast:.3f}",
        "distance of the nearest cloud, $D_B$": "{nearest_cloud:,.1f}",
        "information about which of 45,000 images it is (at most 10.7 nats)": "{index_nats:.1f}",
    })  # fmt: skip


# ── Filling the texts ───────────────────────────────────────────────────────────────────────────

TABLES: dict[str, Callable[[], str]] = {
    "short_results": short_results,
    "results": results,
    "quality": quality,
    "short_quality": short_quality,
    "paths": paths,
    "prior": prior,
    "ablation": ablation,
    "networks": networks,
    "codes": codes,
    "fashion": fashion,
    "other_data": other_data,
    "attributes": attributes,
    "disentanglement": disentanglement,
    "faults": faults,
    "speed": speed,
    "sliders": sliders,
    "page": page,
    "kl_term": kl_term,
    "gradients": gradients,
    "fixed_codes": fixed_codes,
    "plane": plane,
    "smooth_space": smooth_space,
}


def fill(text: str) -> str:
    """The text with every table between two markers written again. KeyError: no such table."""

    def table(match: re.Match) -> str:
        start, name, end = match.groups()
        return f"{start}\n{TABLES[name]()}\n{end}"

    return re.sub(r"(<!--(\w+)-->)\n.*?(<!--/\2-->)", table, text, flags=re.DOTALL)


def fill_texts() -> None:
    for path in TEXTS:
        path.write_text(fill(path.read_text()))
