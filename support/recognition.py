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


def asks(data: ImageData, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Labels that ask for one attribute after the other, ASKED times on, then off: (2 A ASKED, A).

    Twice: the second without what is asked for, see conditional.labels_of.
    """
    parts = []
    for name in data.label_names:
        for text in (name, f"-{name}"):
            parts.append(conditional.labels_of(data, text, ASKED, seed=seed))
    labels, without = zip(*parts)
    return torch.cat(labels), torch.cat(without)


def asked_attribute_shares(net: FeatureNet, images: Tensor) -> Tensor:
    """Of images that were asked for by `asks`, the share that shows it: (A, 2), first on."""
    seen = (logits_of(net, images) > 0).unflatten(0, (-1, 2, ASKED))  # (A, 2, ASKED, A)
    asked = seen.diagonal(dim1=0, dim2=3).double().mean(1)  # (2, A)
    return torch.stack([asked[0], 1 - asked[1]], dim=1)


def recognised(
    net: FeatureNet, model: vae.VAE, data: ImageData, sets: dict[str, Tensor], *, seed: int = 0
) -> dict:
    """The share of real images, of reconstructions and of samples in which a label is seen.

    sets are those of metrics.picture_sets and report.draws; samples count for a model that was
    given labels. Of classes one share with its standard error. Of attributes the mean over all of
    them, on and off, and those of each; their samples are drawn anew, with one attribute asked for.
    """
    real, labels = data.test.images[: len(sets["reconstructions"])], data.test.labels
    labels = labels[: len(real)]
    given = {"real": real, "reconstructions": sets["reconstructions"]}
    samples = [name for name in sets if name.startswith("samples_") and model.config.conditions]
    if labels.ndim == 1:
        result = {"images": len(real)}
        for name, images in (given | {name: sets[name] for name in samples}).items():
            result |= share(is_named(net, images, labels), f"recognised_{name}")
        return result
    shares = {name: attribute_shares(net, images, labels) for name, images in given.items()}
    wanted, without = asks(data, seed)
    ways = {"samples_prior": {}}
    if model.learned_prior:
        ways |= {f"samples_{name.replace(' ', '_')}": way for name, way in report.GUIDED.items()}
    for name, way in progress_bar(ways.items() if model.config.conditions else (), desc="asked"):
        choices = way | {"without": without} if way else {}
        images = vae.sample_images(model, len(wanted), wanted, seed=seed, **choices)
        shares[name] = asked_attribute_shares(net, images)
    result = {"images": len(real), "asked": ASKED}
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
