"""The vector-quantised VAE: a grid of codes from a codebook, and a prior that is learned.

Importing this file makes the model known to Config and build_model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import vae_helpers as vae
from base.hardware import all_reduce, of_first_process
from support.code_priors import CodePrior
from support.grid_vae import GridVAE


class Codebook(nn.Module):
    """K vectors; the nearest one stands for what the encoder says.

    Each moves to the mean of what it stood for lately: exponential moving averages in place of a
    gradient (van den Oord et al. 2017, appendix A.1). A code that is hardly used is set to an
    output of the encoder (Dhariwal et al. 2020, section 3.1), which also sets the first codes.
    """

    DECAY = 0.99
    DEAD = 0.1  # a code is dead when it is used less than a tenth of the average

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.register_buffer("codes", torch.zeros(size, dim))
        # Moving averages of how often a code is used in a batch, and of the sum of its vectors.
        self.register_buffer("counts", torch.zeros(size))
        self.register_buffer("sums", torch.zeros(size, dim))

    def nearest(self, z: Tensor) -> Tensor:
        """Vectors (M, D) → the indices of their nearest codes, (M,)."""
        return torch.addmm(self.codes.square().sum(1), z, self.codes.T, alpha=-2).argmin(1)

    @torch.no_grad()
    def revive(self, z: Tensor, generator: torch.Generator | None) -> None:
        """Set the dead codes to vectors of z (M, D), drawn at random."""
        average = all_reduce(torch.tensor(len(z))).item() / len(self.codes)
        dead = self.counts < self.DEAD * average
        drawn = torch.randint(len(z), (int(dead.sum()),), generator=generator, device=z.device)
        self.codes[dead] = of_first_process(z[drawn])
        self.counts[dead] = 2 * self.DEAD * average  # without use it is dead again in 70 batches
        self.sums[dead] = self.codes[dead] * self.counts[dead, None]

    @torch.no_grad()
    def move(self, z: Tensor, nearest: Tensor) -> None:
        """Move the codes towards the vectors z (M, D) that they stand for."""
        used = all_reduce(torch.bincount(nearest, minlength=len(self.codes)).to(z.dtype))
        self.counts.lerp_(used, 1 - self.DECAY)
        sums = torch.zeros_like(self.sums).index_add_(0, nearest, z)
        self.sums.lerp_(all_reduce(sums), 1 - self.DECAY)
        self.codes.copy_(self.sums / self.counts[:, None].clamp(min=1e-5))


class VQVAE(GridVAE):
    """The decoder sees the nearest code at each place of a grid (van den Oord et al. 2017).

    D = latent_dim * h * w. mu is what the encoder says, z the codes in its place. The gradient
    passes z as if it were mu (straight through, section 3.2).
    """

    sampled = False
    discrete = True
    exact_weights = ("codebook.",)  # rounding could make another code the nearest

    @classmethod
    def defaults(cls, config: vae.Config) -> dict[str, object]:
        return super().defaults(config) | {"codebook": 512, "global_dim": None}

    def __init__(self, config: vae.Config):
        super().__init__(config)
        self.codebook = Codebook(config.codebook, config.latent_dim)

    def make_prior(self) -> CodePrior:
        c = self.config
        places = math.prod(self.grid)
        return CodePrior(places, c.codebook, c.prior_width, c.conditions, c.prior_dropout)

    def make_encoder(self) -> nn.Module:
        """x (N, C, H, W) → (N, latent_dim, h, w): one vector for each place of the grid."""
        return self.grid_encoder(self.config.latent_dim)

    def encode(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (N, C, H, W) → what the encoder says, (N, D), and logvar = -inf, (N, 1): a point."""
        mu = self.encoder(x).flatten(1).float()
        return mu, mu.new_full((len(mu), 1), -math.inf)

    def indices(self, z: Tensor) -> Tensor:
        """z (N, D) → the nearest code of each place, (N, h * w)."""
        return self.codebook.nearest(self.tokens(z).flatten(0, 1)).reshape(len(z), -1)

    def codes_to_z(self, codes: Tensor) -> Tensor:
        """Indices (N, h * w) → z (N, D)."""
        return self.flat(self.codebook.codes[codes])

    def decode_raw(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """z (N, D), codes or anything between them → x_raw (N, C, H, W) of the nearest codes."""
        return super().decode_raw(self.codes_to_z(self.indices(z)))

    def forward(
        self, x: Tensor, noise: torch.Generator | None = None, condition: Tensor | None = None
    ) -> vae.Output:
        self.prior.drop.noise = noise
        mu, logvar = self.encode(x)
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 could change the nearest
            learns = self.training and self.stage != "prior"
            vectors = self.tokens(mu.detach()).flatten(0, 1)
            if learns:
                self.codebook.revive(vectors, noise)
            nearest = self.codebook.nearest(vectors)
            indices = nearest.reshape(len(x), -1)
            codes = self.codes_to_z(indices)
            if learns:
                self.codebook.move(vectors, nearest)
        z = mu + (codes - mu).detach()
        x_raw = super().decode_raw(z) if self.decoder_learns or not self.training else None
        return vae.Output(x_raw, mu, logvar, z, self.drop_condition(condition, noise), indices)

    def rate_nats(self, out: vae.Output) -> Tensor:
        """-log p(codes) of each image, (N,) nats; before the prior learns all codes are alike."""
        if self.stage != "prior":
            nats = math.prod(self.grid) * math.log(self.config.codebook)
            return out.mu.new_full((len(out.mu),), nats)
        return self.prior_nats(out.indices, out.condition)

    def log_prior(self, z: Tensor) -> Tensor:
        """log p of the codes nearest to z (N, D), without a condition: → (N,) nats."""
        return -self.prior_nats(self.indices(z), None)

    def penalty(self, out: vae.Output, noise: torch.Generator | None = None) -> Tensor:
        """The commitment, which keeps the encoder near the codes: ().

        Van den Oord et al. 2017, equation 3, with its weight of 0.25.
        """
        return 0.25 * (out.mu - out.z.detach()).square().sum(1).mean()

    def describe_codes(self, mu: Tensor) -> dict[str, float]:
        """How many codes occur in mu (N, D), and the exponential of their entropy."""
        used = torch.zeros(self.config.codebook)
        for part in mu.split(vae.EVALUATION_BATCH):
            indices = self.indices(part.to(self.device)).flatten().cpu()
            used += indices.bincount(minlength=self.config.codebook)
        entropy = torch.special.entr(used / used.sum()).sum()
        return {"codes_used": int((used > 0).sum()), "perplexity": entropy.exp().item()}


vae.MODELS["vq_vae"] = VQVAE
