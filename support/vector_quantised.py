"""The vector-quantised VAE: a grid of codes from a codebook, priced by a learned prior.

Importing this file makes it known to Config and build_model.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vae_helpers as vae


class Codebook(nn.Module):
    """K vectors that stand for everything the encoder says.

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
    def update(self, z: Tensor, generator: torch.Generator | None) -> None:
        """Move the codes towards the encoder's outputs z (M, D) of one batch."""
        average = len(z) / len(self.codes)
        dead = self.counts < self.DEAD * average
        drawn = torch.randint(len(z), (int(dead.sum()),), generator=generator, device=z.device)
        self.codes[dead] = z[drawn]
        self.counts[dead] = 2 * self.DEAD * average  # without use it is dead again in 70 batches
        self.sums[dead] = self.codes[dead] * self.counts[dead, None]
        nearest = self.nearest(z)
        used = torch.bincount(nearest, minlength=len(self.codes)).to(z.dtype)
        self.counts.lerp_(used, 1 - self.DECAY)
        sums = torch.zeros_like(self.sums).index_add_(0, nearest, z)
        self.sums.lerp_(sums, 1 - self.DECAY)
        self.codes.copy_(self.sums / self.counts[:, None].clamp(min=1e-5))


class CodePrior(nn.Module):
    """p(codes): a small causal transformer that reads the grid row by row.

    Each code is given all before it. It takes the place of the PixelCNN of van den Oord et al.
    2017, section 3.3.
    """

    def __init__(self, codebook: int, places: int, width: int = 128, layers: int = 2):
        super().__init__()
        self.token = nn.Embedding(codebook + 1, width)  # the last one marks the start
        self.place = nn.Parameter(torch.zeros(places, width))
        blocks = [self._block(width) for _ in range(layers)]
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, codebook))

    @staticmethod
    def _block(width: int) -> nn.Module:
        return nn.TransformerEncoderLayer(
            width,
            nhead=4,
            dim_feedforward=4 * width,
            dropout=0.0,
            batch_first=True,
            norm_first=True,
        )

    @property
    def start(self) -> int:
        """The token before the first code."""
        return self.token.num_embeddings - 1

    def forward(self, before: Tensor) -> Tensor:
        """The first codes (N, T) → logits of every code up to the next: (N, T + 1, K)."""
        tokens = F.pad(before, (1, 0), value=self.start)
        h = self.token(tokens) + self.place[: tokens.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(h.shape[1], device=h.device)
        for block in self.blocks:
            h = block(h, src_mask=mask, is_causal=True)
        return self.head(h)

    def nats(self, indices: Tensor) -> Tensor:
        """-log p of grids of codes (N, h, w) → (N,) nats."""
        flat = indices.flatten(1)
        logits = self(flat[:, :-1])
        nats = F.cross_entropy(logits.flatten(0, 1), flat.flatten(), reduction="none")
        return nats.reshape(flat.shape).sum(1)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n grids, read row by row: (n, places).

        What forward does, one place at a time: each block keeps what it has seen.
        """
        device, width = self.place.device, self.place.shape[1]
        current = torch.full((n,), self.start, device=device)
        seen = [torch.zeros(n, 0, width, device=device) for _ in self.blocks]
        codes = []
        for place in self.place:
            h = (self.token(current) + place)[:, None]
            for i, block in enumerate(self.blocks):
                new = block.norm1(h)
                seen[i] = torch.cat([seen[i], new], dim=1)
                h = h + block.self_attn(new, seen[i], seen[i], need_weights=False)[0]
                h = h + block.linear2(block.activation(block.linear1(block.norm2(h))))
            p = self.head(h[:, 0]).softmax(1)
            current = torch.multinomial(p, 1, generator=generator)[:, 0]
            codes.append(current)
        return torch.stack(codes, dim=1)


def grid_side(config: vae.Config) -> int:
    """The side of the square of codes; a fully connected model has no grid of its own: 4x4."""
    return vae.grid_sizes(config)[-1] if config.arch == "conv" else 4


class VQVAE(vae.VAE):
    """The decoder sees the nearest of K codes at each place of a grid (van den Oord et al. 2017).

    D = latent_dim * h * w. mu is what the encoder says, z the codes in its place. The gradient
    passes z as if it were mu (straight through, section 3.2). The prior learns beside them, on
    codes that carry no gradient, so it never bends the code.
    """

    sampled = False
    discrete = True

    @classmethod
    def defaults(cls, config: vae.Config) -> dict[str, object]:
        halvings = round(math.log2(config.image_size / 8))  # its codes need a finer grid: 8x8
        return {"codebook": 512, "depth": max(1, halvings)}

    def __init__(self, config: vae.Config):
        if vae.processes()[1] > 1:
            raise vae.VAEError("A vq_vae trains in one process: start train.py without torchrun.")
        self.grid = (grid_side(config), grid_side(config))
        super().__init__(config)
        self.codebook = Codebook(config.codebook, config.latent_dim)
        self.prior = CodePrior(config.codebook, math.prod(self.grid))

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

    def look_up(self, indices: Tensor) -> Tensor:
        """Codes of (N, h, w) or (N, h * w) places → z (N, D)."""
        return self.codebook.codes[indices.flatten(1)].transpose(1, 2).flatten(1)

    def indices(self, z: Tensor) -> Tensor:
        """z (N, D) → the nearest code of each place, (N, h, w)."""
        return self.codebook.nearest(self.vectors(z)).reshape(len(z), *self.grid)

    def decode_codes(self, z: Tensor) -> Tensor:
        """Codes z (N, D) → x_raw (N, C, H, W)."""
        return self.decoder(z.reshape(len(z), -1, *self.grid)).float()

    def decode_raw(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """z (N, D), codes or anything between them → x_raw (N, C, H, W) of the nearest codes."""
        return self.decode_codes(self.look_up(self.indices(z)))

    def forward(
        self, x: Tensor, noise: torch.Generator | None = None, condition: Tensor | None = None
    ) -> vae.Output:
        mu, logvar = self.encode(x)
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 could change the nearest
            if self.training:
                self.codebook.update(self.vectors(mu.detach()), noise)
            indices = self.indices(mu.detach())
        z = mu + (self.look_up(indices) - mu).detach()
        return vae.Output(self.decode_codes(z), mu, logvar, z, indices)

    def code_nats(self, out: vae.Output) -> Tensor:
        """-log p(codes) of each image, (N,) nats; while the model trains, of every fourth image.

        On all of them the prior would cost more time than everything else.
        """
        return self.prior.nats(out.indices[::4] if self.training else out.indices)

    def penalty(self, out: vae.Output, noise: torch.Generator | None = None) -> Tensor:
        """The commitment, which keeps the encoder near the codes: ().

        Van den Oord et al. 2017, equation 3, with its weight of 0.25.
        """
        return 0.25 * (out.mu - out.z.detach()).square().sum(1).mean()

    def draw_codes(self, n: int, *, seed: int = 0, **region) -> Tensor:
        """n codes (n, D) of the prior that the model learned. Raises VAEError for a region."""
        if region:
            raise vae.VAEError(
                f"A vq_vae has no {', '.join(region)}: its codes come from its own prior."
            )
        generator = torch.Generator(self.device).manual_seed(seed)
        parts = []
        for first in range(0, n, vae.EVALUATION_BATCH):
            indices = self.prior.sample(min(vae.EVALUATION_BATCH, n - first), generator)
            parts.append(self.look_up(indices))
        return torch.cat(parts)

    def describe_codes(self, mu: Tensor) -> dict[str, float]:
        """How many codes occur in mu (N, D), and the exponential of their entropy."""
        used = torch.zeros(self.config.codebook, dtype=torch.long)
        for part in mu.split(vae.EVALUATION_BATCH):
            indices = self.indices(part.to(self.device)).flatten().cpu()
            used += indices.bincount(minlength=len(used))
        perplexity = torch.special.entr(used / used.sum()).sum().exp().item()
        return {"codes_used": int((used > 0).sum()), "perplexity": perplexity}


vae.MODELS["vq_vae"] = VQVAE
