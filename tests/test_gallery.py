"""figures/gallery.py with tiny models on painted images: it trains, measures, draws, and its tables say what gallery.json holds."""
from __future__ import annotations

import json
import sys

import pytest
import torch
from conftest import ROOT
from test_family import quarters

import vae_helpers as vae

sys.path.insert(0, str(ROOT / "figures"))
import gallery  # noqa: E402

TINY = {"width": 4, "depth": 1, "latent_dim": 2, "epochs": 1}


@pytest.fixture
def painted(monkeypatch, tmp_path):
    """All of Fashion-MNIST's entries on four classes of 8x8 images, written to tmp_path."""
    data = vae.ImageData("folder", "quarters", quarters(300, 0), quarters(30, 1), quarters(60, 2), tuple("abcd"))
    monkeypatch.setattr(vae, "load_dataset", lambda name, **_: data)
    monkeypatch.setattr(gallery, "ENTRIES", {n: (d, t, {k: v for k, v in c.items() if k in ("arch", "model")} | TINY)
                                             for n, (d, t, c) in gallery.ENTRIES.items()})
    monkeypatch.setattr(gallery, "HERE", tmp_path)
    return tmp_path


def test_every_model_is_trained_measured_and_drawn(painted, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gallery.py", "--jobs", "1", "--only", *gallery.FAMILY])
    gallery.main()
    numbers = json.loads((painted / "gallery.json").read_text())
    assert list(numbers) == gallery.FAMILY and {"gallery.png", "gallery_classes.png"} <= {p.name for p in painted.iterdir()}
    assert numbers["cvae"]["recognised_test"] > 0.9
    assert all(n["ffd_reconstructions"] > 0 and n["ffd_samples"] > 0 and n["frechet_images"] == 60 for n in numbers.values())
    table = gallery.model_table(gallery.FAMILY).splitlines()
    assert len(table) == 2 + len(gallery.FAMILY)
    assert table[2 + gallery.FAMILY.index("ae")].split(" | ")[3] == "–", "an autoencoder's code has no price"


def test_one_model_alone_leaves_the_others_numbers(painted, monkeypatch):
    (painted / "gallery.json").write_text(json.dumps({"vae": {"mse": 1}, "ae": {"mse": 2, "parameters": 3}}))
    monkeypatch.setattr(sys, "argv", ["gallery.py", "--jobs", "1", "--only", "vae"])
    gallery.main()
    numbers = json.loads((painted / "gallery.json").read_text())
    assert numbers["ae"] == {"mse": 2, "parameters": 3} and numbers["vae"]["images"] == 60
    monkeypatch.setattr(sys, "argv", ["gallery.py", "--only", "gan"])
    with pytest.raises(vae.VAEError, match="--only knows no gan; choose from fc_vae"):
        gallery.main()


def test_the_latent_size_has_its_figures(painted, monkeypatch):
    monkeypatch.setattr(gallery, "ENTRIES", {n: (d, t, c | {"latent_dim": int(n.removeprefix("latent"))}) if n in gallery.OVER_LATENT_SIZE else (d, t, c)
                                             for n, (d, t, c) in gallery.ENTRIES.items()})
    monkeypatch.setattr(sys, "argv", ["gallery.py", "--jobs", "1", "--only", *gallery.OVER_LATENT_SIZE])
    gallery.main()
    assert {"gallery_latent_size.png", "gallery_plane.png"} <= {p.name for p in painted.iterdir()}
    assert gallery.disentanglement_table() == ""


def test_a_switched_attribute_is_found_in_what_a_conditional_model_draws():
    """Each attribute lights one quarter of the image."""
    def faces(n, seed):
        has = torch.rand(n, 4, generator=torch.Generator().manual_seed(seed)) < 0.5
        image = has.reshape(n, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3) * 200
        return vae.Split(image.expand(-1, 3, -1, -1).to(torch.uint8).contiguous(), has)
    data = vae.ImageData("celeba", "lit quarters", faces(300, 0), faces(30, 1), faces(100, 2), gallery.ATTRIBUTES)
    config = vae.config_for(data, model="cvae", latent_dim=1, width=8, depth=1, epochs=20, batch_size=20, lr=0.01)
    model = vae.build_model(config)
    vae.fit(model, data, config, progress=False)
    found = gallery.attribute_recognition(model, data)
    for name in gallery.ATTRIBUTES:
        assert found[f"recognised_test_{name}"] == 1 and found[f"recognised_on_{name}"] > 0.8 and found[f"recognised_off_{name}"] < 0.2
