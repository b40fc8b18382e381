"""Evaluate a run: a folder that train.py wrote → metrics.json, report.md and pictures.

    python evaluate.py --num_samples 10                     # the newest run
    python evaluate.py --run checkpoints/cifar10_best
    python evaluate.py --run checkpoints/cifar10_conv --num_samples 10000 --npz
    python evaluate.py --run checkpoints/celeba_grid --pictures me.jpg --crop 320,80,400

It takes some minutes on two CPU cores, half an hour with a learned prior. --quick leaves out what
takes long: IWAE, t-SNE, path lengths, disentanglement (of the drawn shapes), and how good samples
are: Fréchet distances, faces found, classes or attributes recognised.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import vae_helpers as vae
from image_data.image_files import read_pictures
from support import conditional, metrics, recognition, report, runs
from support.disentanglement import disentanglement


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # fmt: off
    p.add_argument("--run", metavar="DIR", type=Path,
                   help="the run folder to evaluate (default: the newest in runs/)")
    p.add_argument("--out", metavar="DIR", type=Path, help="where the results go (default: "
                   "DIR/evaluation, or runs/NAME-evaluation for released weights)")
    p.add_argument("--num_samples", metavar="N", type=int, default=64,
                   help="samples, reconstructions and interpolation midpoints (default 64)")
    p.add_argument("--labels", metavar="NAMES", help="what samples show, of a model that takes "
                   "labels: a class like cat, or attributes like Smiling,-Male (default what the "
                   "test images show)")
    p.add_argument("--guidance", metavar="W", type=float, help="how closely samples of a learned "
                   "prior follow their labels: 0 as it learned, 2 shows most of them clearly "
                   "(default 2 with --labels, else 0)")
    p.add_argument("--num_interpolations", metavar="N", type=int, default=10,
                   help="images in one interpolation (default 10)")
    p.add_argument("--num_frechet", metavar="N", type=int, default=10_000,
                   help="images in each set of a Fréchet distance, at most (default 10000)")
    p.add_argument("--fid", metavar="WEIGHTS", nargs="?", const="", help="measure the FID, too, "
                   "with Inception: needs the package torch-fidelity, which downloads the weights "
                   "(91 MB), or a file of them; hours on a CPU")
    p.add_argument("--data_dir", metavar="DIR", type=Path,
                   help="where the images are now, for a run on a folder of images")
    p.add_argument("--seed", metavar="N", type=int, default=0, help="seeds the samples (default 0)")
    p.add_argument("--quick", action="store_true",
                   help="only test losses, picture metrics, latent space and pictures")
    p.add_argument("--npz", action="store_true", help="also write samples, reconstructions and "
                   "midpoints as .npz (arr_0, uint8, N x H x W x C), as tools for FID read them")
    p.add_argument("--pictures", metavar="FILE", type=Path, nargs="+", help="only these pictures "
                   "of your own and their reconstructions, with the errors; needs no data set")
    p.add_argument("--crop", metavar="X,Y,SIDE", help="the square of each of the pictures that is "
                   "used, in its pixels from the top left, like that of a face (default: the "
                   "largest one in the middle)")
    # fmt: on
    return p


def joined_labels(argv: list[str]) -> list[str]:
    """The flags with --labels and its value in one word: "-Male" alone would look like a flag."""
    joined = list(argv)
    if "--labels" in joined[:-1]:
        place = joined.index("--labels")
        joined[place : place + 2] = [f"--labels={joined[place + 1]}"]
    return joined


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The flags. Raises VAEError when one cannot be meant."""
    args = parser().parse_args(joined_labels(sys.argv[1:] if argv is None else argv))
    least = dict.fromkeys(("num_samples", "num_frechet"), 1)
    least |= {"num_interpolations": 2, "seed": 0}
    for name, low in least.items():
        value = getattr(args, name)
        if not low <= value < 2**32:
            raise vae.VAEError(
                f"--{name} must be a whole number from {low} to {2**32 - 1:,}, not {value}."
            )
    beside = [name for name in ("guidance", "fid", "quick", "npz") if getattr(args, name)]
    if args.pictures and beside:
        raise vae.VAEError(f"--{beside[0]} has no meaning beside --pictures: leave it out.")
    if args.crop and not args.pictures:
        raise vae.VAEError("--crop is for --pictures FILE.")
    if args.crop:
        args.crop = square_of(args.crop)
    if args.guidance is not None and not 0 <= args.guidance < math.inf:
        raise vae.VAEError(f"--guidance must be a number from 0 on, not {args.guidance}.")
    if args.fid is not None and args.quick:
        raise vae.VAEError("--quick leaves out what takes long, like --fid: give one of the two.")
    return args


def square_of(text: str) -> tuple[int, int, int]:
    """ "320,80,400" → x, y and side. Raises VAEError for anything else."""
    numbers = text.split(",")
    if len(numbers) == 3 and all(number.strip().isdecimal() for number in numbers):
        x, y, side = map(int, numbers)
        if side:
            return x, y, side
    raise vae.VAEError(f"--crop must be three whole numbers X,Y,SIDE, like 320,80,400, not {text}.")


def show_pictures(folder: Path, args: argparse.Namespace) -> dict:
    """Reconstruct pictures of the user's own; returns what pictures.json holds."""
    model, record = runs.load_run(folder)
    config = model.config
    images = read_pictures(args.pictures, config.image_size, config.channels, args.crop)
    labels = None
    if model.conditional:
        names = record.get("data", {}).get("conditions", ())
        labels = conditional.labels_from_names(args.labels, names, len(images), config)
    mu, _ = vae.encode_images(model, images, labels)
    x_hat = vae.decode_images(model, mu, labels)
    errors = (x_hat - vae.as_unit(images)).square().flatten(1).mean(1).tolist()
    args.out = args.out or default_out(folder)
    args.out.mkdir(parents=True, exist_ok=True)
    names = [f"{path.stem[:14]}\nMSE {error:.4f}" for path, error in zip(args.pictures, errors)]
    title = f"Own pictures through {folder.name}"
    written = report.draw_pictures(names, images, x_hat, title, args.out)
    rows = [{"picture": str(path), "mse": error} for path, error in zip(args.pictures, errors)]
    test = record.get("test", {}).get("mse")
    results = {"run": str(folder), "pictures": rows, "mse_of_test_images": test}
    vae.write_json(args.out / "pictures.json", results)
    for row in rows:
        print(f"{row['picture']}: MSE {row['mse']:.4f}")
    if test is not None:
        print(f"for comparison, test images of the run: MSE {test:.4f}")
    print(f"written to {args.out}: {', '.join([*written, 'pictures.json'])}")
    return results


def load(folder: Path, data_dir: Path | None) -> tuple[vae.VAE, dict, vae.ImageData]:
    """The model and the record of a run, and the data it was trained on as they are now."""
    model, record = runs.load_run(folder)
    config = model.config
    data = vae.load_dataset(
        config.dataset,
        image_size=config.image_size,
        data_dir=data_dir or config.data_dir,
        max_images=config.max_images,
    )
    if config.conditions:
        names = list(conditional.condition_names(data))
        trained_with = record.get("data", {}).get("conditions", names)
        if names != trained_with:
            raise vae.VAEError(
                f"The model was trained with the labels {', '.join(trained_with)}, and these "
                f"images have {', '.join(names)}: give the folder that it was trained on with "
                "--data_dir."
            )
    return model, record, data


def default_out(folder: Path) -> Path:
    """evaluation/ in the run; results do not belong among the released weights."""
    if runs.RELEASED in folder.resolve().parents:
        return runs.runs_root() / f"{folder.name}-evaluation"
    return folder / "evaluation"


def draw(
    model: vae.VAE, data: vae.ImageData, mu: Tensor, x_hat: Tensor, args: argparse.Namespace
) -> None:
    """Pictures of the test images' codes mu (N, D), of their reconstructions, and of samples."""
    n, out, labels = args.num_samples, args.out, data.test.labels
    if len(x_hat) < n:
        print(f"{data.title}: {len(x_hat):,} test images, as many reconstructions, not {n:,}")
    conditions, guided = labels[torch.arange(n) % len(labels)], {}
    if args.guidance:
        guided["guidance"] = args.guidance
    if args.labels:
        if not model.config.conditions:
            raise vae.VAEError("--labels is for models that were trained with labels.")
        conditions, without = conditional.labels_of(data, args.labels, n, seed=args.seed)
        if model.learned_prior:
            guidance = 2.0 if args.guidance is None else args.guidance
            guided = {"guidance": guidance, "without": without}
    samples = vae.sample_images(model, n, conditions, seed=args.seed, **guided)
    report.draw_images(model, data, x_hat[:n], samples, args.num_interpolations, out)
    report.draw_maps(model, data, mu, args.quick, out)
    if model.learned_prior:
        report.draw_draws(model, data, conditions, args.seed, out)
    else:
        report.draw_traversals(model, data, args.seed, out)
    if model.conditional:
        report.draw_conditions(model, data, args.seed, out)
    if args.npz:
        # Two codes at least, so that there is something between them.
        middle = metrics.midpoints(mu[: max(n, 2)], n=n)
        save_npz(samples, out / "samples.npz")
        save_npz(x_hat[:n], out / "reconstructions.npz")
        save_npz(vae.decode_images(model, middle, conditions), out / "midpoints.npz")


def save_npz(images: Tensor, path: Path) -> None:
    """Float images (N, C, H, W) in [0, 1] → arr_0, uint8 (N, H, W, C)."""
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1)
    np.savez_compressed(path, pixels.numpy())


def measure(
    model: vae.VAE,
    data: vae.ImageData,
    x_hat: Tensor,
    args: argparse.Namespace,
    inception: metrics.Inception | None,
) -> dict[str, dict]:
    """All numbers, part by part. x_hat (N, C, H, W) are the reconstructions of the test images."""
    images, seed = data.test.images, args.seed
    pictures = {"images": len(images), **metrics.picture_metrics(x_hat, images)}
    parts = {"test": vae.evaluate(model, *data.test, seed=seed), "pictures": pictures}
    # What follows from a prior N(0, I) does not hold for a grid of codes with a learned one.
    if not model.learned_prior:
        parts["latent_space"] = report.latent_space(model, data, seed)
    if args.quick:
        return parts
    if model.has_rate:
        parts["likelihood"] = report.likelihood(model, data, seed)
    net = metrics.load_feature_net(data.name)
    if len(images) >= 2 and not model.learned_prior:
        parts["smoothness"] = report.smoothness(model, data, net, seed)
    if data.name == "shapes" and not (model.learned_prior or model.conditional):
        parts["disentanglement"] = disentanglement(model, seed)
    compared = min(args.num_frechet, len(images), len(data.train.images))
    judge = recognition.judge(data)
    networks = {"fid": inception} if inception else {}
    if data.name != "celeba":  # for faces the detector agrees better with the eye
        networks["ffd"] = net
    if networks and compared < report.LEAST_FRECHET:
        networks = {}
        print(
            f"Fréchet distances are left out: they need {report.LEAST_FRECHET:,} training and test "
            f"images, and there are {compared:,}."
        )
    if not (networks or judge or data.name == "celeba"):
        return parts
    sets = metrics.picture_sets(model, data, compared, seed=seed)
    if model.learned_prior:
        for name, images_drawn in report.draws(model, data.test.labels[:compared], seed).items():
            sets[f"samples_{name.replace(' ', '_')}"] = images_drawn
    if "samples_gaussian" in sets:
        shown = sets["samples_gaussian"][: min(args.num_samples, report.SHOWN)]
        report.enlarged_grid(shown, min(len(shown), 8)).save(args.out / "samples_gaussian.png")
    if data.name == "celeba":
        parts["faces"] = recognition.faces(images[:compared], sets)
    if judge:
        parts["recognised"] = recognition.recognised(judge, model, data, sets, seed=seed)
    sets = {"real_train": data.train.images[:compared]} | sets
    for unit, network in networks.items():
        distances = metrics.distances(network, images[:compared], sets, unit)
        parts["frechet"] = {"images": compared} | parts.get("frechet", {}) | distances
    return parts


def main(argv: list[str] | None = None) -> dict:
    """Load, draw, measure, write; returns what metrics.json holds.

    Raises VAEError on a user's mistake.
    """
    args = parsed(argv)
    # Made first, so that missing weights are known before the long part.
    inception = None if args.fid is None else metrics.Inception(args.fid or None)
    began = time.perf_counter()
    folder = args.run or runs.newest_run()
    if args.pictures:
        return show_pictures(folder, args)
    model, record, data = load(folder, args.data_dir)
    trained_on = record.get("data", {})
    same_data = trained_on.get("fingerprint") == data.fingerprint
    if not same_data:
        print(
            "Note: these are not exactly the images of the training run: some of the test images "
            "may have been trained on."
        )
    args.out = args.out or default_out(folder)
    args.out.mkdir(parents=True, exist_ok=True)

    mu, _ = vae.encode_images(model, *data.test)
    x_hat = vae.decode_images(model, mu, data.test.labels)
    draw(model, data, mu, x_hat, args)
    if "history" in record:
        name = f"{model.config.arch} {model.config.model}"
        figure = vae.plot_history({name: record["history"]}, data.title)
        report.save_figure(figure, args.out / "losses.png")

    flags = sys.argv[1:] if argv is None else argv
    results = {
        "command": " ".join(["python evaluate.py", *flags]),
        "run": str(folder),
        "trained_on": trained_on.get("title"),
        "measured_on": data.title,
        "same_data": same_data,
        "seed": args.seed,
        "hardware": runs.hardware(),
    }
    results |= measure(model, data, x_hat, args, inception)
    warning = report.collapse_warning(results["test"], model.config)
    if warning:
        results["warning"] = warning
    results["seconds"] = round(time.perf_counter() - began, 1)
    results = report.without_nan(results)
    vae.write_json(args.out / "metrics.json", results)
    text = report.as_markdown(results)
    (args.out / "report.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"written to {args.out}: {', '.join(sorted(p.name for p in args.out.iterdir()))}")
    return results


if __name__ == "__main__":
    runs.run_script(main)
