"""Make what README.md and theory_answers.md show: figures/*.png, figures/numbers.json, and the numbers in both texts.

    python figures/make.py            needs the real data and checkpoints/; about five minutes on two CPU cores
    python figures/make.py --texts    only read the records of trainings and measurements again, and fill the texts

A number in a text is followed by a comment that names it, 1,828.6<!--conv.total_nats-->, which no renderer shows. This
script writes the number in front of the comment, with as many decimals as stand there; a test checks that none is stale.
"""
from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE), str(HERE.parent / "benchmarks")]
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

import evaluate  # noqa: E402
import gallery  # noqa: E402
import speed  # noqa: E402
import vae_helpers as vae  # noqa: E402

CHECKPOINTS = HERE.parent / "checkpoints"
TEXTS = (HERE.parent / "README.md", HERE.parent / "theory_answers.md", HERE / "gallery.md")
TAG = re.compile(r"(-?[\d,]*\d(?:\.(\d+))?)<!--([\w.\-]+)-->")
MODELS = {"conv": "cifar10_conv", "fc": "cifar10_fc", "fc3x": "cifar10_fc3x"}
MEASURED = {"CIFAR-10, the assignment's (BCE)": "cifar10_conv", "CIFAR-10, calibrated σ alone": "cifar10_conv_sigma", "CIFAR-10, `best`": "cifar10_best",
            "CelebA, squared error": "celeba_conv", "CelebA, `best`": "celeba_best"}
DISTANCES = {"real_train": "real (floor)", "reconstructions": "reconstructions", "samples_prior": "samples, prior", "samples_mixture": "samples, mixture",
             "midpoints_linear": "midpoints, linear", "midpoints_spherical": "midpoints, spherical"}
BETAS = {"0": "cifar10_conv_beta0", "0.1": "cifar10_conv_beta0.1", "1": "cifar10_conv", "4": "cifar10_conv_beta4"}


def fill(text: str, numbers: dict[str, float]) -> str:
    """Every tagged number in a text, written anew. Raises KeyError for a name that numbers.json does not hold."""
    return TAG.sub(lambda m: f"{numbers[m[3]]:,.{len(m[2] or '')}f}<!--{m[3]}-->", text)


def results_table() -> str:
    """README's table of Task 1, from the records in checkpoints/."""
    rows = []
    names = {"conv": "**convolutional**", "fc": "fully connected, same size", "fc3x": "fully connected, three times the size"}
    for model, folder in MODELS.items():
        records = [vae.read_record(CHECKPOINTS / f)[1] for f in (folder, f"{folder}_seed1", f"{folder}_seed2")]
        cell = lambda key, digits: vae.mean_and_sd([r["test"][key] for r in records], digits)   # noqa: E731
        rows.append({"model": names[model], "parameters": f"{records[0]['parameters']:,}", "reconstruction (nats)": cell("reconstruction_nats", 1),
                     "KL (nats)": cell("kl_nats", 1), "total (nats)": cell("total_nats", 1), "excess over the floor (nats)": cell("excess_nats", 1),
                     "MSE": cell("mse", 4), "active dimensions": cell("active_dims", 0), "training (s)": vae.mean_and_sd([r["seconds"] for r in records], 0)})
    return vae.markdown_table(rows)


def write_texts(numbers: dict[str, float]) -> None:
    for path in TEXTS:
        text = fill(path.read_text(), numbers)
        for name, table in TABLES.items():
            text = re.sub(rf"(<!--{name}-->\n).*?(<!--/{name}-->)", lambda m: m[1] + table() + "\n" + m[2], text, flags=re.S)
        path.write_text(text)


def metrics(name: str) -> dict:
    """What evaluate.py measured on released weights, seed 0."""
    return json.loads((CHECKPOINTS / name / "metrics.json").read_text())


def benchmark(name: str) -> dict:
    """What benchmarks/speed.py or memory.py measured last."""
    return json.loads((HERE.parent / "benchmarks" / f"{name}.json").read_text())


def quality_table() -> str:
    """README's table of what evaluate.py measures, a row for each of MEASURED."""
    rows = []
    for name, folder in MEASURED.items():
        m = metrics(folder)
        rows.append({"model": name, "parameters": f"{vae.read_record(CHECKPOINTS / folder)[1]['parameters']:,}", "KL (nats)": f"{m['test']['kl_nats']:.1f}",
                     "bits/dim": f"{m['likelihood']['bits_per_dim']:.2f}", "MSE": f"{m['pictures']['mse']:.4f}",
                     "PSNR (dB)": f"{m['pictures']['psnr_db']:.1f}", "SSIM": f"{m['pictures']['ssim']:.3f}",
                     **{title: f"{m['frechet'][f'ffd_{key}']:,.0f}" for key, title in DISTANCES.items()}})
    return vae.markdown_table(rows)


def ablation() -> dict:
    return json.loads((CHECKPOINTS / "ablation.json").read_text())


def ablation_table() -> str:
    """README's ablation table, from checkpoints/ablation.json: mean ± standard deviation of the seeds."""
    rows = []
    found = ablation()
    for name, seeds in ((name, found["results"].get(name)) for name in found["variants"]):
        if not seeds:
            continue
        cell = lambda key, digits: vae.mean_and_sd([r[key] for r in seeds.values()], digits)   # noqa: E731
        rows.append({"change": name, "seeds": len(seeds), "parameters": f"{next(iter(seeds.values()))['parameters']:,}", "KL (nats)": cell("kl_nats", 1),
                     "MSE": cell("mse", 4), "bits/dim": cell("bits_per_dim", 2), **{title: cell(f"ffd_{key}", 0) for key, title in DISTANCES.items() if key != "real_train"}})
    return vae.markdown_table(rows)


def faults_table() -> str:
    """README's table of what was done to runs and files, from what tests/faults.py measured."""
    rows = json.loads((HERE / "faults.json").read_text())
    total = {"kind": "together"} | {key: sum(row[key] for row in rows) for key in ("tried", "survived", "lost")}
    return vae.markdown_table([{"fault": row["kind"], **{key: f"{row[key]:,}" for key in ("tried", "survived", "lost")}} for row in (*rows, total)])


TABLES = {"results": results_table, "quality": quality_table, "ablation": ablation_table, "faults": faults_table, "speed": lambda: speed.table(benchmark("speed")),
          **gallery.TABLES}   # what the texts call them


def recorded() -> dict[str, float]:
    """Numbers that training wrote into checkpoints/: MODEL.KEY is the mean over three seeds, beta_B.KEY is seed 0."""
    numbers = {}
    for model, folder in MODELS.items():
        records = [vae.read_record(CHECKPOINTS / f)[1] for f in (folder, f"{folder}_seed1", f"{folder}_seed2")]
        numbers[f"{model}.parameters"] = records[0]["parameters"]
        numbers[f"{model}.seconds"] = float(np.mean([r["seconds"] for r in records]))
        for key in records[0]["test"]:
            values = [r["test"][key] for r in records]
            numbers |= {f"{model}.{key}": float(np.mean(values)), f"{model}.{key}.sd": float(np.std(values, ddof=1)), f"{model}.{key}.range": max(values) - min(values)}
    ranges = [numbers[f"{model}.total_nats.range"] for model in MODELS]
    numbers["seeds.largest_range"] = max(ranges)
    for model in ("fc", "fc3x"):
        numbers[f"{model}.gap_nats"] = numbers[f"{model}.total_nats"] - numbers["conv.total_nats"]
    for name, folder in ({f"beta_{beta}": folder for beta, folder in BETAS.items()} | {"fc0": MODELS["fc"]}).items():   # seed 0 alone
        numbers |= {f"{name}.{k}": v for k, v in vae.read_record(CHECKPOINTS / folder)[1]["test"].items()}
    for name in ("celeba_conv", "cifar10_fc_ae"):
        record = vae.read_record(CHECKPOINTS / name)[1]
        numbers |= {f"{name}.{k}": v for k, v in record["test"].items()} | {f"{name}.seconds": record["seconds"]}
    for name in MEASURED.values():   # metrics.NAME.PART.KEY
        numbers |= {f"metrics.{name}.{part}.{k}": v for part, values in metrics(name).items() if isinstance(values, dict)
                    for k, v in values.items() if isinstance(v, (int, float))}
    for name, seeds in ablation()["results"].items():   # ablation.NAME.KEY: mean over the seeds
        numbers |= {f"ablation.{re.sub(r'[^a-z0-9]+', '_', name)}.{k}": float(np.mean([r[k] for r in seeds.values()]))
                    for k, v in next(iter(seeds.values())).items() if isinstance(v, (int, float))}
    for name, values in gallery.measured().items():   # gallery.NAME.KEY
        numbers |= {f"gallery.{name}.{k}": v for k, v in values.items() if isinstance(v, (int, float))}
        numbers |= {f"gallery.{name}.{k}_percent": 100 * v for k, v in values.items() if k.startswith("recognised")}
    numbers["gallery.minutes"] = json.loads((HERE / "gallery_time.json").read_text())["minutes"]
    numbers |= {f"{name}.{k}": v for name in ("speed", "memory") for k, v in benchmark(name).items() if isinstance(v, (int, float))}
    numbers |= {f"speed.gemm.{k}": v / 1e9 for k, v in benchmark("speed")["gemm_flops"].items()}
    for name, values in json.loads((HERE / "widgets.json").read_text()).items():   # widgets.NAME.KEY
        numbers |= {f"widgets.{name}.{k}": v for k, v in values.items()} if isinstance(values, dict) else {}
    features = json.loads((CHECKPOINTS / "features" / "features.json").read_text())
    return numbers | {f"features.{k}": v for k, v in features.items() if isinstance(v, (int, float))}


def gradient_variance(model: vae.VAE, images: torch.Tensor, draws: int = 4000) -> dict[str, float]:
    """Two unbiased estimators of d/dmu E_q[reconstruction], from single samples; variances summed over mu, mean over images.

    Pathwise: differentiate through z = mu + sigma * eps (Kingma & Welling 2014, section 2.4).
    Score function: reconstruction * d log q(z|x) / dmu = reconstruction * (z - mu) / sigma^2 (Williams 1992), also with
    the mean reconstruction subtracted as a baseline.
    """
    variances = {"pathwise": [], "score": [], "score_with_baseline": []}
    agreement = []
    for image in images:
        x = vae.to_input(image[None].to(model.device), model.config)
        with torch.no_grad():
            mu, logvar = model.encode(x)
        sigma = (0.5 * logvar).exp()
        eps = torch.randn(draws, mu.shape[1], generator=torch.Generator().manual_seed(0)).to(model.device)
        values, paths = [], []
        for part in eps.split(500):
            z = (mu + sigma * part).requires_grad_()
            value = vae.reconstruction_nats(model.decoder(z), x.expand(len(part), -1, -1, -1), model.config.likelihood)
            paths.append(torch.autograd.grad(value.sum(), z)[0])   # dz/dmu = 1
            values.append(value.detach())
        value, score = torch.cat(values)[:, None], eps / sigma
        estimates = {"pathwise": torch.cat(paths), "score": value * score, "score_with_baseline": (value - value.mean()) * score}
        for name, e in estimates.items():
            variances[name].append(e.var(0).sum().item())
        agreement.append(torch.nn.functional.cosine_similarity(estimates["pathwise"].mean(0), estimates["score_with_baseline"].mean(0), dim=0).item())
    mean = {name: float(np.mean(v)) for name, v in variances.items()}
    return {f"gradient.{name}_variance": v for name, v in mean.items()} | {
        "gradient.score_ratio": mean["score"] / mean["pathwise"], "gradient.baseline_ratio": mean["score_with_baseline"] / mean["pathwise"],
        "gradient.agreement": float(np.mean(agreement)), "gradient.draws": draws, "gradient.images": len(images)}


def nearest_cloud(clouds: tuple[torch.Tensor, torch.Tensor], others: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Bhattacharyya distance from each N(mu, sigma^2) to the nearest of the others, median in nats; of both mu, logvar (N, D)."""
    (mu, logvar), (means, logvars), nearest = clouds, others, []
    for m, v in zip(mu, logvar):
        mean_variance = (logvars.exp() + v.exp()) / 2
        distance = ((means - m).square() / mean_variance).sum(1) / 8 + (mean_variance.log() - (logvars + v) / 2).sum(1) / 2
        nearest.append(distance.min().item())
    return float(np.median(nearest))


def geometry(model: vae.VAE, data: vae.ImageData) -> dict[str, float]:
    """Where the codes of the test images lie; what lies between 500 pairs of them, and at draws of N(0, I)."""
    q = vae.aggregate_posterior(model, data.test.images)
    path = vae.interpolate_latents(q.mu[:500], q.mu[500:1000], 21)
    decoded = vae.decode_images(model, path)
    prior = vae.sample_latents(1000, model.config.latent_dim, seed=0)
    mu, step = q.mu[:1000], vae.sample_latents(1000, model.config.latent_dim, radius=1, seed=2)
    change = (vae.decode_images(model, mu + step) - vae.decode_images(model, mu)).square().flatten(1).mean(1).sqrt()
    clouds = [vae.encode_images(model, images) for images in (data.test.images, data.train.images)]
    by_itself = 0.5 * (q.mean.square() + q.std.square() - 1 - q.std.square().clamp(min=1e-12).log())   # a Gaussian in each dimension against N(0, 1)
    return {"nearest_cloud": nearest_cloud([t[:200] for t in clouds[0]], clouds[1]), "code_norm": q.norms.mean().item(), "code_std": q.std.mean().item(),
            "sigma": (0.5 * clouds[0][1]).exp().mean().item(), "by_dimension_kl_nats": by_itself.sum().item(),
            "unevenness": vae.step_unevenness(decoded).mean().item(), "middle_contrast": vae.contrast(decoded[10]).mean().item(),
            "end_contrast": vae.contrast(decoded[[0, -1]]).mean().item(),
            "unit_step": change.mean().item(), "prior_contrast": vae.contrast(vae.decode_images(model, prior)).mean().item()}


def save(figure: plt.Figure, name: str) -> None:
    figure.savefig(HERE / name, dpi=110)
    plt.close(figure)


def main() -> None:
    if sys.argv[1:] == ["--texts"]:
        numbers = json.loads((HERE / "numbers.json").read_text()) | recorded()
        vae.write_json(HERE / "numbers.json", numbers)
        return write_texts(numbers)
    cifar, faces = vae.load_dataset("cifar10"), vae.load_dataset("celeba")
    load = lambda name: vae.load_checkpoint(CHECKPOINTS / name)[0]   # noqa: E731
    numbers, test = recorded(), cifar.test.images
    numbers["real.contrast"] = vae.contrast(test.float() / 255).mean().item()

    # README: what you get
    save(vae.plot_reconstructions({name: load(folder) for name, folder in zip(("convolutional", "fc, same size", "fc, 3x"), MODELS.values())},
                                  test[:12], f"Task 1 · test images and reconstructions: {cifar.title}"), "task1_reconstructions.png")
    mended = {"BCE": "cifar10_conv", "calibrated σ": "cifar10_conv_sigma", "best": "cifar10_best"}
    save(vae.plot_reconstructions({name: load(folder) for name, folder in mended.items()}, test[:12],
                                  f"Two losses, three models, one latent size: {cifar.title}"), "quality_reconstructions.png")
    conv, a, b = load("cifar10_conv"), test[12], test[37]
    strips = {m: vae.interpolate_images(conv, a, b, 10, m) for m in ("linear", "spherical")} | {"pixel cross-fade": vae.cross_fade(a, b, 10)}
    save(vae.display_interpolated_images(strips, (a, b), f"Task 2 · between two test images: {cifar.title}"), "task2_interpolation.png")
    celeba = load("celeba_conv")
    save(vae.plot_rows({f"‖z‖ = {r:g}": vae.sample_images(celeba, 10, radius=r, seed=0) for r in (2, 6, 11.3, 16, 24, 40)},
                       f"Task 3 · shells of growing radius: {faces.title}"), "task3_shells.png")

    # theory_answers.md
    models = {f"β = {beta}": load(folder) for beta, folder in BETAS.items()}
    z = vae.sample_latents(12, conv.config.latent_dim, seed=0)
    save(vae.plot_samples({k: models[k] for k in ("β = 0", "β = 1")}, z, f"Q1 · the same 12 draws of N(0, I); trained on {cifar.title}"), "theory_q1_samples.png")
    numbers |= gradient_variance(conv, test[:16])
    fig, ax = plt.subplots(figsize=(7.5, 2.6), layout="constrained")
    points = {"pathwise (reparameterised)": "pathwise", "score function, with baseline": "score_with_baseline", "score function": "score"}
    variances = [numbers[f"gradient.{k}_variance"] for k in points.values()]
    ax.plot(variances, list(points), "o")   # bars would have no length on a logarithmic axis
    for name, variance in zip(points, variances):
        ax.annotate(f"{variance:,.0f}", (variance, name), (0, 7), textcoords="offset points", ha="center")
    ax.margins(0.15, 0.3)
    ax.grid(axis="x", alpha=0.3)
    ax.set(xscale="log", xlabel="variance of a one-sample estimate of the gradient", title="Q2 · two unbiased estimators of one gradient")
    save(fig, "theory_q2_gradient_variance.png")
    fc, fc_ae = load("cifar10_fc"), load("cifar10_fc_ae")
    save(vae.plot_samples({"autoencoder": fc_ae, "VAE": fc}, z, f"Q3 · the same 12 draws of N(0, I); trained on {cifar.title}"), "theory_q3_samples.png")
    for name, model in {**{f"beta_{b}": m for b, m in zip(BETAS, models.values())}, "fc0": fc, "fc_ae": fc_ae}.items():
        numbers |= {f"{name}.{k}": v for k, v in (geometry(model, cifar) | evaluate.gaussian_gap(vae.sample_codes(model, test))).items()}
    numbers |= {f"beta_{b}.nearest_overlap": math.exp(-numbers[f"beta_{b}.nearest_cloud"]) for b in BETAS}
    paths = {name: vae.interpolate_images(m, a, b, 10) for name, m in models.items()}
    save(vae.display_interpolated_images(paths, (a, b), f"Q4 · linear interpolation over β: {cifar.title}"), "theory_q4_interpolation.png")

    vae.write_json(HERE / "numbers.json", numbers)
    write_texts(numbers)
    print(f"{len(numbers)} numbers and {len(list(HERE.glob('*.png')))} figures in {HERE.name}/; texts filled")


if __name__ == "__main__":
    vae.run_script(main)
