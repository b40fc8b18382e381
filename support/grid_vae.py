"""The VAE with a grid of codes and a learned prior.

It trains in two stages. In the first, encoder and decoder learn as in any VAE, with N(0, I) as the
prior; in the second they stand still, and a transformer learns which codes occur together. With
beta = 1 both minimise the same bound, -log p(x|z) - log p(z) + log q(z|x).

Importing this file makes the model known to Config and build_model.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

import vae_helpers as vae
from support import family
from support.learned_prior import CausalTransformer, MixturePrior


class GridVAE(family.Conditional, vae.VAE):
    """Each place of a grid has its own code of latent_dim numbers: D = latent_dim * h * w.

    An image of 64x64 pixels has a grid of 8x8 places. That keeps what is where, so that
    reconstructions are sharp; N(0, I) does not know which codes fit side by side, and the prior
    that learns it takes its place (Tschannen et al. 2024; two stages as in Rombach et al. 2022).
    """

    learned_prior = True

    # Of the second stage: many small steps teach the prior more than few large ones.
    PRIOR_BATCH = 32
    PRIOR_LR = 1.5e-3  # the peak of its one cycle

    @classmethod
    def defaults(cls, config: vae.Config) -> dict[str, object]:
        halvings = round(math.log2(config.image_size / 8))
        return {
            "prior_epochs": config.epochs,
            "prior_width": 192,
            "patience": 5,
            "depth": max(1, halvings),
        }

    @classmethod
    def choices_for(cls, data: vae.ImageData) -> dict[str, object]:
        names = data.class_names or data.label_names
        return {"conditions": len(names)} if len(names) > 1 else {}

    def __init__(self, config: vae.Config):
        if vae.processes()[1] > 1:
            raise vae.VAEError(
                f"A {config.model} trains in one process: start train.py without torchrun."
            )
        # A fully connected model has no grid of its own.
        side = vae.grid_sizes(config)[-1] if config.arch == "conv" else 4
        self.grid = (side, side)
        super().__init__(config)
        self.prior = self.make_prior()
        self.stage = len(self.stages()) - 1  # a finished model is in its last stage

    def make_prior(self) -> CausalTransformer:
        c = self.config
        return MixturePrior(math.prod(self.grid), c.latent_dim, c.prior_width, c.conditions)

    def make_encoder(self) -> nn.Module:
        """x (N, C, H, W) → mu and logvar of each place, (N, 2 * latent_dim, h, w)."""
        return self.grid_encoder(2 * self.config.latent_dim)

    def grid_encoder(self, outputs: int) -> nn.Module:
        """x (N, C, H, W) → (N, outputs, h, w)."""
        c = self.config
        if c.arch == "conv":
            down = vae.conv_down(c, c.channels)
            return nn.Sequential(*down, nn.Conv2d(vae.feature_channels(c), outputs, kernel_size=1))
        sizes = [c.channels * c.image_size**2, *vae.hidden_sizes(c)]
        return nn.Sequential(
            nn.Flatten(),
            *vae.linear_layers(sizes),
            nn.Linear(sizes[-1], outputs * math.prod(self.grid)),
            nn.Unflatten(1, (outputs, *self.grid)),
        )

    def make_decoder(self) -> nn.Module:
        """(N, latent_dim, h, w) → x_raw (N, C, H, W)."""
        c = self.config
        if c.arch == "fc":
            return nn.Sequential(nn.Flatten(), *vae.fc_decoder(c, self.latent_size))
        features = vae.feature_channels(c)
        return nn.Sequential(
            nn.Conv2d(c.latent_dim, features, kernel_size=3, padding=1),
            *vae.activation(features, c.norm),
            *vae.conv_up(c),
        )

    @property
    def latent_size(self) -> int:
        return self.config.latent_dim * math.prod(self.grid)

    def by_place(self, z: Tensor) -> Tensor:
        """(N, D) → the code of each place, (N, h * w, latent_dim)."""
        return z.unflatten(1, (self.config.latent_dim, -1)).transpose(1, 2)

    def flat(self, codes: Tensor) -> Tensor:
        """(N, h * w, latent_dim) → (N, D): undoes by_place."""
        return codes.transpose(1, 2).flatten(1)

    def encode(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (N, C, H, W) → mu, logvar, each (N, D). The condition is for the prior alone."""
        mu, logvar = self.encoder(x).float().flatten(2).chunk(2, dim=1)
        return mu.flatten(1), logvar.flatten(1)

    def decode_raw(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """z (N, D) → x_raw (N, C, H, W)."""
        return self.decoder(z.unflatten(1, (-1, *self.grid))).float()

    # ── Two stages ──

    def stages(self) -> list[vae.Config]:
        """Encoder and decoder with the config itself, then the prior."""
        if not self.config.prior_epochs:
            return [self.config]
        prior = dataclasses.replace(
            self.config,
            epochs=self.config.prior_epochs,
            batch_size=self.PRIOR_BATCH,
            lr=self.PRIOR_LR,
            schedule="one_cycle",
            ema=0.999,
            kl_warmup=0,
        )
        return [self.config, prior]

    def begin_stage(self, number: int) -> None:
        """In each stage one part learns, and the other stands still."""
        self.stage = number
        for part in (self.encoder, self.decoder):
            part.requires_grad_(number == 0)
        self.prior.requires_grad_(number == 1)

    def train(self, mode: bool = True) -> GridVAE:
        """What stands still does not count batches either."""
        super().train(mode)
        if self.stage == 1:
            self.encoder.eval()
            self.decoder.eval()
        return self

    def forward(
        self, x: Tensor, noise: torch.Generator | None = None, condition: Tensor | None = None
    ) -> vae.Output:
        out = super().forward(x, noise)
        return out._replace(condition=self.known(condition, noise))

    def known(self, condition: Tensor | None, noise: torch.Generator | None) -> Tensor | None:
        """What the prior is told of an image: a part while it learns, else nothing.

        So the price of a code is that of an image without labels, and can be compared.
        """
        learns = self.training and self.stage == 1
        return hide(condition, noise) if learns and condition is not None else None

    def code_nats(self, out: vae.Output) -> Tensor:
        """-log p(z) + log q(z|x), (N,) nats: its mean over z in the first stage, the KL to N(0, I).

        In the second, -log p(z) of the one z that was drawn.
        """
        if self.stage == 0:
            return vae.kl_nats(out.mu, out.logvar)
        entropy = 0.5 * (out.logvar + math.log(2 * math.pi * math.e)).sum(1)
        return self.prior_nats(self.by_place(out.z), out.condition) - entropy

    def prior_nats(self, codes: Tensor, condition: Tensor | None) -> Tensor:
        """-log p(codes | condition) of the learned prior: → (N,) nats."""
        dtype = vae.precision(self.device)
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            return self.prior.nats(codes, condition)

    # ── Samples ──

    def draw_codes(
        self,
        n: int,
        *,
        condition: Tensor | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int | None = None,
        **region,
    ) -> Tensor:
        """n codes (n, D) of the prior that the model learned.

        condition    (n, A), what the images shall show; None where that is left open
        temperature  below 1 the codes that are likely become likelier
        top_k        (vq_vae) only the k likeliest codes of each place are drawn

        Raises VAEError for a region of the space, for no temperature above 0, and for no top_k.
        """
        if region:
            raise vae.VAEError(
                f"A {self.config.model} has no {', '.join(region)}: its codes come from its own "
                "prior."
            )
        if not 0 < temperature < math.inf or (top_k is not None and top_k < 1):
            raise vae.VAEError(
                f"temperature must be above 0 and top_k at least 1, not {temperature} and {top_k}."
            )
        choices = {"temperature": temperature}
        if top_k is not None:
            if not self.discrete:
                raise vae.VAEError("top_k is for model vq_vae: other codes cannot be counted.")
            choices["top_k"] = top_k
        generator = torch.Generator(self.device).manual_seed(seed)
        parts = []
        for first in range(0, n, vae.EVALUATION_BATCH):
            last = min(n, first + vae.EVALUATION_BATCH)
            given = None if condition is None else condition[first:last].to(self.device)
            codes = self.prior.sample(last - first, generator, given, **choices)
            parts.append(self.codes_to_z(codes))
        return torch.cat(parts)

    def codes_to_z(self, codes: Tensor) -> Tensor:
        """What the prior draws, (N, h * w, latent_dim) → z (N, D)."""
        return self.flat(codes)


def hide(condition: Tensor, noise: torch.Generator | None) -> Tensor:
    """Each entry of a condition (N, A) may become 0.5, which says nothing.

    Of each image another share is hidden, between none and all. So the prior learns to draw with
    any part of a condition, and without one.
    """
    share = torch.rand(len(condition), 1, generator=noise, device=condition.device)
    draws = torch.rand(condition.shape, generator=noise, device=condition.device)
    return torch.where(draws < share, 0.5, condition)


vae.MODELS["grid_vae"] = GridVAE
