"""The vector-quantised VAE: a grid of codes from codebooks, and a prior that is learned.

It trains in two stages. In the first, encoder, codebooks and decoder learn to copy images; in the
second they stand still, and a transformer learns which codes occur together. What is minimised is
the same bound in both, -log p(x|z) - log p(z).

Importing this file makes the model known to Config and build_model.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

import vae_helpers as vae
from support import family
from support.code_prior import CodePrior


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
        average = len(z) / len(self.codes)
        dead = self.counts < self.DEAD * average
        drawn = torch.randint(len(z), (int(dead.sum()),), generator=generator, device=z.device)
        self.codes[dead] = z[drawn]
        self.counts[dead] = 2 * self.DEAD * average  # without use it is dead again in 70 batches
        self.sums[dead] = self.codes[dead] * self.counts[dead, None]

    @torch.no_grad()
    def move(self, z: Tensor, nearest: Tensor) -> None:
        """Move the codes towards the vectors z (M, D) that they stand for."""
        used = torch.bincount(nearest, minlength=len(self.codes)).to(z.dtype)
        self.counts.lerp_(used, 1 - self.DECAY)
        sums = torch.zeros_like(self.sums).index_add_(0, nearest, z)
        self.sums.lerp_(sums, 1 - self.DECAY)
        self.codes.copy_(self.sums / self.counts[:, None].clamp(min=1e-5))


def grid_side(config: vae.Config) -> int:
    """The side of the square of codes; a fully connected model has no grid of its own: 4x4."""
    return vae.grid_sizes(config)[-1] if config.arch == "conv" else 4


class VQVAE(family.Conditional, vae.VAE):
    """The decoder sees the nearest codes at each place of a grid (van den Oord et al. 2017).

    D = latent_dim * h * w. mu is what the encoder says, z the codes in its place. A second
    codebook stands for what the first one left, and so on; z is the sum (Lee et al. 2022, section
    3.1). The gradient passes z as if it were mu (straight through, van den Oord, section 3.2).
    """

    sampled = False
    discrete = True

    # Of the second stage: many small steps teach the prior more than few large ones.
    PRIOR_BATCH = 32
    PRIOR_LR = 1e-3  # the peak of its one cycle

    @classmethod
    def defaults(cls, config: vae.Config) -> dict[str, object]:
        halvings = round(math.log2(config.image_size / 8))  # its codes need a finer grid: 8x8
        return {
            "codebook": 256,
            "codebooks": 4,
            "prior_epochs": config.epochs,
            "prior_width": 192,
            "depth": max(1, halvings),
        }

    @classmethod
    def choices_for(cls, data: vae.ImageData) -> dict[str, object]:
        names = data.class_names or data.label_names
        return {"conditions": len(names)} if len(names) > 1 else {}

    def __init__(self, config: vae.Config):
        if vae.processes()[1] > 1:
            raise vae.VAEError("A vq_vae trains in one process: start train.py without torchrun.")
        self.grid = (grid_side(config), grid_side(config))
        super().__init__(config)
        books = [Codebook(config.codebook, config.latent_dim) for _ in range(config.codebooks)]
        self.codebooks = nn.ModuleList(books)
        self.prior = CodePrior(
            math.prod(self.grid),
            config.codebooks,
            config.codebook,
            config.prior_width,
            config.conditions or 0,
        )
        self.stage = 0

    def stages(self) -> list[vae.Config]:
        """The codes with the config itself, then the prior."""
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

    def train(self, mode: bool = True) -> VQVAE:
        """What stands still does not count batches either."""
        super().train(mode)
        if self.stage == 1:
            self.encoder.eval()
            self.decoder.eval()
        return self

    def make_encoder(self) -> nn.Module:
        """x (N, C, H, W) → (N, latent_dim, h, w): one vector for each place of the grid."""
        c = self.config
        if c.arch == "conv":
            features = vae.feature_channels(c)
            down = vae.conv_down(c, c.channels)
            return nn.Sequential(*down, nn.Conv2d(features, c.latent_dim, kernel_size=1))
        sizes = [c.channels * c.image_size**2, *vae.hidden_sizes(c)]
        return nn.Sequential(
            nn.Flatten(),
            *vae.linear_layers(sizes),
            nn.Linear(sizes[-1], self.latent_size),
            nn.Unflatten(1, (c.latent_dim, *self.grid)),
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

    def encode(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (N, C, H, W) → what the encoder says, (N, D), and logvar = -inf, (N, 1): a point."""
        mu = self.encoder(x).flatten(1).float()
        return mu, mu.new_full((len(mu), 1), -math.inf)

    def vectors(self, z: Tensor) -> Tensor:
        """(N, D) → one vector for each place, (N * h * w, latent_dim)."""
        return z.reshape(len(z), self.config.latent_dim, -1).transpose(1, 2).flatten(0, 1)

    def quantise(
        self, vectors: Tensor, *, learn: bool = False, noise: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Vectors (M, latent_dim) → the sum of their codes, of the same shape, and indices (M, L).

        learn: the codebooks follow, and noise draws what dead codes become.
        """
        left, indices = vectors, []
        for codebook in self.codebooks:
            if learn:
                codebook.revive(left, noise)
            nearest = codebook.nearest(left)
            codes = codebook.codes[nearest]
            if learn:
                codebook.move(left, nearest)
            left = left - codes
            indices.append(nearest)
        return vectors - left, torch.stack(indices, dim=1)

    def flat(self, vectors: Tensor) -> Tensor:
        """One vector for each place, (N * h * w, latent_dim) → (N, D): undoes vectors."""
        places = math.prod(self.grid)
        return vectors.unflatten(0, (-1, places)).transpose(1, 2).flatten(1)

    def look_up(self, indices: Tensor) -> Tensor:
        """Codes (N, h, w, L) or (N, h * w, L) → z (N, D)."""
        rows = indices.reshape(-1, len(self.codebooks))
        codes = [book.codes[rows[:, level]] for level, book in enumerate(self.codebooks)]
        return self.flat(sum(codes))

    def indices(self, z: Tensor) -> Tensor:
        """z (N, D) → the nearest codes of each place, (N, h, w, L)."""
        return self.quantise(self.vectors(z))[1].reshape(len(z), *self.grid, -1)

    def decode_codes(self, z: Tensor) -> Tensor:
        """Codes z (N, D) → x_raw (N, C, H, W)."""
        return self.decoder(z.reshape(len(z), -1, *self.grid)).float()

    def decode_raw(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """z (N, D), codes or anything between them → x_raw (N, C, H, W) of the nearest codes."""
        return self.decode_codes(self.flat(self.quantise(self.vectors(z))[0]))

    def forward(
        self, x: Tensor, noise: torch.Generator | None = None, condition: Tensor | None = None
    ) -> vae.Output:
        mu, logvar = self.encode(x)
        learn = self.training and self.stage == 0
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 could change the nearest
            vectors = self.vectors(mu.detach())
            codes, indices = self.quantise(vectors, learn=learn, noise=noise)
        z = mu + (self.flat(codes) - mu).detach()
        if self.training and self.stage == 1 and condition is not None:
            condition = hide(condition, noise)
        indices = indices.reshape(len(x), *self.grid, -1)
        return vae.Output(self.decode_codes(z), mu, logvar, z, indices, condition)

    def code_nats(self, out: vae.Output) -> Tensor:
        """-log p(codes, condition) of each image, (N,) nats; 0 while the codes themselves learn.

        A condition costs at most log 2 for each class or attribute, so that the sum is a bound on
        p(x), as it is without one.
        """
        if self.training and self.stage == 0:
            return torch.zeros(len(out.mu), device=out.mu.device)
        price = 0.0 if out.condition is None else out.condition.shape[1] * math.log(2)
        dtype = vae.precision(self.device)
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            nats = self.prior.nats(out.indices.flatten(1, 2), out.condition)
        return nats + price

    def penalty(self, out: vae.Output, noise: torch.Generator | None = None) -> Tensor:
        """The commitment, which keeps the encoder near the codes: ().

        Van den Oord et al. 2017, equation 3, with its weight of 0.25.
        """
        return 0.25 * (out.mu - out.z.detach()).square().sum(1).mean()

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
        temperature  below 1 the likely codes become likelier
        top_k        only the k likeliest codes of each place are drawn

        Raises VAEError for a region of the space, for no temperature above 0, and for no top_k.
        """
        if region:
            raise vae.VAEError(
                f"A vq_vae has no {', '.join(region)}: its codes come from its own prior."
            )
        if not 0 < temperature < math.inf or (top_k is not None and top_k < 1):
            raise vae.VAEError(
                f"temperature must be above 0 and top_k at least 1, not {temperature} and {top_k}."
            )
        generator = torch.Generator(self.device).manual_seed(seed)
        parts = []
        for first in range(0, n, vae.EVALUATION_BATCH):
            last = min(n, first + vae.EVALUATION_BATCH)
            given = None if condition is None else condition[first:last].to(self.device)
            indices = self.prior.sample(last - first, generator, given, temperature, top_k)
            parts.append(self.look_up(indices))
        return torch.cat(parts)

    def describe_codes(self, mu: Tensor) -> dict[str, float]:
        """How many codes occur in mu (N, D), and the exponential of their entropy.

        The second is the mean over the codebooks.
        """
        used = torch.zeros(len(self.codebooks), self.config.codebook)
        for part in mu.split(vae.EVALUATION_BATCH):
            indices = self.indices(part.to(self.device)).flatten(0, 2).cpu()
            for level, column in enumerate(indices.T):
                used[level] += column.bincount(minlength=self.config.codebook)
        entropy = torch.special.entr(used / used.sum(1, keepdim=True)).sum(1)
        return {"codes_used": int((used > 0).sum()), "perplexity": entropy.exp().mean().item()}


def hide(condition: Tensor, noise: torch.Generator | None) -> Tensor:
    """Each entry of a condition (N, A) may become 0.5, which says nothing.

    Of each image another share is hidden, between none and all. So the prior learns to draw with
    any part of a condition, and without one.
    """
    share = torch.rand(len(condition), 1, generator=noise, device=condition.device)
    draws = torch.rand(condition.shape, generator=noise, device=condition.device)
    return torch.where(draws < share, 0.5, condition)


vae.MODELS["vq_vae"] = VQVAE
