"""Do pictures show what was asked for? Classes and attributes by a classifier, faces by a detector.

A distance of pooled features cannot tell: two photographs laid over each other have nearly the
features of one. What the two judges can do themselves stands beside every share, as that of real
images and of reconstructions.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

import vae_helpers as vae
from base.errors import first_line
from base.options import progress_bar
from image_data.splits import ImageData
from support import conditional, report
from support.features import FeatureNet, load_feature_net, logits_of

ASKED = 50  # samples for each attribute that is asked for on, and as many off
FACE_SIZE, FACE_BORDER = 192, 48  # pixels: what the detector is shown
DETECTOR = "haarcascade_frontalface_alt2.xml"


def judge(data: ImageData) -> FeatureNet | None:
    """The classifier that learned the labels of these images; None where none did."""
    net = load_feature_net(data.name)
    return net if net.labels == (data.class_names or data.label_names) else None


def share(hits: Tensor, name: str) -> dict[str, float]:
    """NAME and NAME_se: the share of hits (N,), and its standard error."""
    hits = hits.double()
    return {name: hits.mean().item(), f"{name}_se": vae.standard_error(hits)}


# ── Classes and attributes ──────────────────────────────────────────────────────────────────────


def is_named(net: FeatureNet, images: Tensor, classes: Tensor) -> Tensor:
    """Whether the classifier gives each image (N, C, H, W) its class (N,): (N,) bool."""
    return logits_of(net, images).argmax(1) == classes


def attribute_shares(net: FeatureNet, images: Tensor, labels: Tensor) -> Tensor:
    """Of the images with an attribute on, and with it off, the share in which it is seen so.

    Images (N, C, H, W) and labels (N, A) → (A, 2), first on; nan where there is no such image.
    """
    right = (logits_of(net, images) > 0) == labels.bool()
    on = labels.bool()
    shares = [(right & group).sum(0).double() / group.sum(0) for group in (on, ~on)]
    return torch.stack(shares, dim=1)


def asks(data: ImageData, seed: int = 0) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
    """(attribute, on or off) → ASKED labels that ask for just this, and those without it.

    See conditional.labels_of. What no training image shows cannot be asked for.
    """
    result = {}
    for number, name in enumerate(data.label_names):
        known = data.train.labels[:, number]
        for value, sign in ((1, ""), (0, "-")):
            if (known == value).any():
                asked = conditional.labels_of(data, sign + name, ASKED, seed=seed)
                result[number, value] = asked
    return result


def asked_shares(
    net: FeatureNet, model: vae.VAE, data: ImageData, *, seed: int = 0, **choices
) -> Tensor:
    """Of samples that were asked for one attribute, on or off, the share that shows it: (A, 2).

    As in attribute_shares; choices are those of vae.sample_images, for example guidance.
    """
    wanted = asks(data, seed)
    labels, without = (torch.cat(parts) for parts in zip(*wanted.values()))
    if choices:
        choices["without"] = without
    images = vae.sample_images(model, len(labels), labels, seed=seed, **choices)
    shares = torch.full((len(data.label_names), 2), torch.nan, dtype=torch.double)
    for (number, value), logits in zip(wanted, logits_of(net, images).split(ASKED)):
        seen = (logits[:, number] > 0) == bool(value)
        shares[number, 1 - value] = seen.double().mean()
    return shares


def asked_faces(
    model: vae.VAE,
    data: ImageData,
    name: str,
    n: int,
    *,
    shown: bool = True,
    seed: int = 0,
    **choices,
) -> Tensor:
    """n samples asked for with an attribute, or without it; their other attributes are equal.

    choices are those of vae.sample_images, for example guidance.
    """
    labels, without = conditional.labels_of(data, name, n)
    if not shown:
        labels[:, data.label_names.index(name)] = 0
    return vae.sample_images(model, n, labels, seed=seed, without=without, **choices)


def told_apart(net: FeatureNet, images: Tensor, shown: Tensor, number: int) -> float:
    """AUC of the classifier's answer for an attribute, of images that show it or not, (N,)."""
    return float(roc_auc_score(shown, logits_of(net, images)[:, number]))


def recognised(
    net: FeatureNet, model: vae.VAE, data: ImageData, sets: dict[str, Tensor], *, seed: int = 0
) -> dict:
    """The share of real images, of reconstructions and of samples in which a label is seen.

    sets are those of metrics.picture_sets and report.draws. Samples count for a model that was
    given labels.
    """
    x_hat, labels = sets["reconstructions"], data.test.labels
    given = {"real": data.test.images[: len(x_hat)], "reconstructions": x_hat}
    if labels.ndim == 2:
        return {"images": len(x_hat)} | attributes_recognised(net, model, data, given, seed)
    if model.config.conditions:
        drawn = [name for name in sets if name.startswith("samples_")]
        given |= {name: sets[name] for name in drawn if name != "samples_normal_prior"}
    result = {"images": len(x_hat)}
    for name, images in given.items():
        result |= share(is_named(net, images, labels[: len(images)]), f"recognised_{name}")
    return result


def attributes_recognised(
    net: FeatureNet, model: vae.VAE, data: ImageData, given: dict[str, Tensor], seed: int
) -> dict:
    """The mean over all attributes, on and off, and the shares of each.

    Of the given images, which have the labels of the first test images; and of samples, drawn here,
    with one attribute asked for.
    """
    shares = {}
    for name, images in given.items():
        shares[name] = attribute_shares(net, images, data.test.labels[: len(images)])
    ways = {"samples_prior": {}} if model.config.conditions else {}
    if ways and model.learned_prior:
        ways |= {f"samples_{name.replace(' ', '_')}": way for name, way in report.GUIDED.items()}
    for name, way in progress_bar(ways.items(), desc="attributes"):
        shares[name] = asked_shares(net, model, data, seed=seed, **way)
    result: dict = {"asked": ASKED}
    result |= {f"recognised_{name}": value.nanmean().item() for name, value in shares.items()}
    each = {}
    for number, attribute in enumerate(data.label_names):
        each[attribute] = {name: value[number].tolist() for name, value in shares.items()}
    return result | {"attributes": each}


# ── Faces ───────────────────────────────────────────────────────────────────────────────────────


@lru_cache(maxsize=1)
def face_detector():
    """OpenCV's cascade of boosted features (Viola & Jones 2001) for faces seen from the front.

    Raises VAEError where OpenCV is missing, or is of a version that comes without it.
    """
    # Chosen before scikit-image's cascade, which agrees with it: four times as fast, and it finds
    # more of the real faces. OpenCV takes a moment to import, and only this needs it.
    try:
        import cv2

        detector = cv2.CascadeClassifier(cv2.data.haarcascades + DETECTOR)
        if detector.empty():
            raise OSError(f"there is no {DETECTOR} in OpenCV {cv2.__version__}")
    except (ImportError, AttributeError, OSError) as error:
        raise vae.VAEError(
            "Faces are found by OpenCV below version 5: pip install 'opencv-python-headless<5' "
            f"({first_line(error)})."
        ) from None
    return detector


def faces_found(images: Tensor) -> Tensor:
    """Whether a face is found in each image, (N, C, H, W), uint8 or float in [0, 1]: (N,) bool."""
    detector = face_detector()
    found = [len(detector.detectMultiScale(picture)) > 0 for picture in for_detector(images)]
    return torch.tensor(found)


def faces(real: Tensor, sets: dict[str, Tensor]) -> dict[str, float]:
    """In which share of real images (N, C, H, W), and of each set of pictures, a face is found."""
    result = {"images": len(real)} | share(faces_found(real), "found_real")
    for name, images in progress_bar(sets.items(), desc="faces"):
        result |= share(faces_found(images), f"found_{name}")
    return result


def for_detector(images: Tensor) -> Iterator:
    """Each image in grey, enlarged, with a border of its own edge: (H, W) uint8 arrays.

    The detector wants some room around a face, and faces of more pixels than ours.
    """
    border = [FACE_BORDER] * 4
    for part in images.split(100):
        grey = vae.as_unit(part).mean(1, keepdim=True)
        size = (FACE_SIZE, FACE_SIZE)
        large = F.interpolate(grey, size, mode="bicubic", antialias=True).clamp(0, 1)
        pixels = (F.pad(large, border, mode="replicate") * 255).round().byte()
        yield from pixels[:, 0].cpu().numpy()
