"""The VAE with a grid of codes and a learned prior.

Encoder and decoder learn first, as in any VAE, with N(0, I) as the prior (see stages); then
they stand still, and a transformer learns which codes occur together. With beta = 1 both minimise
the same bound, -log p(x|z) - log p(z) + log q(z|x).

Importing this file makes the model known to Config and build_model.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vae_helpers as vae
from support import conditional
from support.code_priors import Block, CausalTransformer, MixturePrior


class GridVAE(conditional.Conditional, vae.VAE):
    """Each place of a grid has its own code of latent_dim numbers: D = latent_dim * h * w.

    An image of 64x64 pixels has a grid of 8x8 places. That keeps what is where, so that
    reconstructions are sharp; N(0, I) does not know which codes fit side by side, and the prior
    that learns it takes its place (Tschannen et al. 2024; two stages as in Rombach et al. 2022).

    With config.global_dim = G, z begins with G numbers that say what the whole image is like, and
    D = G + latent_dim * h * w. They learn first, alone; the grid then adds what they leave out.
    The prior draws them first, so that places far apart fit each other: two levels of codes, as
    in Razavi et al. 2019, "Generating Diverse High-Fidelity Images with VQ-VAE-2".
    """

    learned_prior = True

    # Of the last stage: many small steps teach the prior more than few large ones.
    PRIOR_BATCH = 32
    PRIOR_LR = 1.5e-3  # the peak of its one cycle

    @classmethod
    def defaults(cls, config: vae.Config) -> dict[str, object]:
        prior_epochs = config.epochs if config.prior_epochs is None else config.prior_epochs
        defaults = {"prior_epochs": prior_epochs, "prior_width": 192}
        if prior_epochs:
            defaults["patience"] = 5
        if config.arch == "conv":
            defaults["depth"] = max(1, round(math.log2(config.image_size / 8)))
            if config.image_size >= 64:
                # About as many as the one vector of a plain VAE, and so many times latent_dim.
                defaults["global_dim"] = 128 // config.latent_dim * config.latent_dim
        return defaults

    @classmethod
    def choices_for(cls, data: vae.ImageData) -> dict[str, object]:
        names = data.class_names or data.label_names
        return {"conditions": len(names)} if len(names) > 1 else {}

    @classmethod
    def check(cls, config: vae.Config) -> None:
        super().check(config)
        if config.prior_width % Block.HEADS:
            raise vae.VAEError(f"prior_width must be a multiple of {Block.HEADS}.")
        if config.global_dim and config.global_dim % config.latent_dim:
            raise vae.VAEError(f"global_dim must be a multiple of latent_dim, {config.latent_dim}.")

    def __init__(self, config: vae.Config):
        # A fully connected model has no grid of its own.
        side = vae.grid_sizes(config)[-1] if config.arch == "conv" else 4
        self.grid = (side, side)
        self.global_dim = config.global_dim or 0
        super().__init__(config)
        if self.global_dim:
            self.make_global()
        self.prior = self.make_prior()
        self.stage = list(self.stages(config))[-1]  # a finished model is in its last stage

    def make_prior(self) -> CausalTransformer:
        c = self.config
        tokens = self.latent_size // c.latent_dim
        return MixturePrior(tokens, c.latent_dim, c.prior_width, c.conditions, c.prior_dropout)

    def make_global(self) -> None:
        """What reads the code of the whole image from the smallest feature maps, and writes it."""
        c, side, features = self.config, self.grid[0], vae.feature_channels(self.config)
        self.global_encoder = nn.Sequential(
            nn.Conv2d(features, features, kernel_size=3, stride=2, padding=1),
            *vae.activation(features, c.norm),
            *[vae.Residual(features, c.norm) for _ in range(c.residual)],
            nn.Flatten(),
            nn.Linear(features * math.ceil(side / 2) ** 2, 2 * self.global_dim),
        )
        self.global_decoder = nn.Sequential(
            nn.Linear(self.global_dim, features * side**2), nn.Unflatten(1, (features, side, side))
        )

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
        return self.global_dim + self.config.latent_dim * math.prod(self.grid)

    def split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) → codes of the whole image, (N, G), and of each place, (N, h * w, latent_dim)."""
        whole, places = z[:, : self.global_dim], z[:, self.global_dim :]
        return whole, places.unflatten(1, (self.config.latent_dim, -1)).transpose(1, 2)

    def tokens(self, z: Tensor) -> Tensor:
        """(N, D) → the sequence that the prior reads, (N, T, latent_dim).

        First the code of the whole image, latent_dim numbers at a time, then that of each place.
        """
        whole, places = self.split(z)
        return torch.cat([whole.unflatten(1, (-1, self.config.latent_dim)), places], dim=1)

    def flat(self, tokens: Tensor) -> Tensor:
        """(N, T, latent_dim) → (N, D): undoes tokens."""
        first = self.global_dim // self.config.latent_dim
        whole, places = tokens[:, :first], tokens[:, first:]
        return torch.cat([whole.flatten(1), places.transpose(1, 2).flatten(1)], dim=1)

    def encode(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (N, C, H, W) → mu, logvar, each (N, D). The condition is for the prior alone."""
        features = self.encoder[:-1](x)
        mu, logvar = self.encoder[-1](features).float().flatten(2).chunk(2, dim=1)
        mu, logvar = mu.flatten(1), logvar.flatten(1)
        if self.global_dim:
            global_mu, global_logvar = self.global_encoder(features).float().chunk(2, dim=1)
            mu = torch.cat([global_mu, mu], dim=1)
            logvar = torch.cat([global_logvar, logvar], dim=1)
        return mu, logvar

    def decode_raw(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """z (N, D) → x_raw (N, C, H, W)."""
        whole, places = self.split(z)
        features = self.decoder[0](places.transpose(1, 2).unflatten(2, self.grid))
        if self.global_dim:
            features = features + self.global_decoder(whole)
        return self.decoder[1:](features).float()

    # ── Stages ──

    @classmethod
    def stages(cls, config: vae.Config) -> dict[str, vae.Config]:
        """Name → config of each stage of training. The last one may end early, see patience.

        global   encoder and decoder with the code of the whole image, if there is one; those of
                 the places are 0 (a third of config.epochs)
        places   encoder and decoder with every code
        prior    which codes occur together
        """
        c, to_the_end = config, dataclasses.replace(config, patience=0)
        first = c.epochs // 3 if c.global_dim else 0
        stages = {}
        if first:
            stages["global"] = dataclasses.replace(to_the_end, epochs=first)
        before_prior = to_the_end if c.prior_epochs else c
        stages["places"] = dataclasses.replace(before_prior, epochs=c.epochs - first)
        if c.prior_epochs:
            stages["prior"] = dataclasses.replace(
                c,
                epochs=c.prior_epochs,
                batch_size=cls.PRIOR_BATCH,
                lr=cls.PRIOR_LR,
                schedule="one_cycle",
                ema=0.999,
                kl_warmup=0,
            )
        return stages

    def begin_stage(self, name: str) -> None:
        """While the prior learns, all else stands still, and the other way round."""
        self.stage = name
        self.requires_grad_(self.stage != "prior")
        self.prior.requires_grad_(self.stage == "prior")

    def train(self, mode: bool = True) -> GridVAE:
        """What stands still does not count batches either."""
        super().train(mode)
        if self.stage == "prior":
            for part in self.children():
                part.train(mode and part is self.prior)
        return self

    def forward(
        self, x: Tensor, noise: torch.Generator | None = None, condition: Tensor | None = None
    ) -> vae.Output:
        self.prior.drop.noise = noise
        mu, logvar = self.encode(x)
        z = vae.reparameterize(mu, logvar, noise)
        if self.stage == "global":
            z = F.pad(z[:, : self.global_dim], (0, self.latent_size - self.global_dim))
        runs_decoder = self.decoder_learns or not self.training
        x_raw = self.decode_raw(z) if runs_decoder else None
        return vae.Output(x_raw, mu, logvar, z, self.drop_condition(condition, noise))

    def drop_condition(
        self, condition: Tensor | None, noise: torch.Generator | None
    ) -> Tensor | None:
        """What the prior is told of images: a part of the condition (N, A) while it learns.

        Each entry may become 0.5, which says nothing. Of each image another share is dropped,
        between none and all, so that the prior learns to draw with any part of a condition, and
        without one. When it does not learn it is told nothing: the rate is that of an image without
        labels, and can be compared.
        """
        if condition is None or not (self.training and self.stage == "prior"):
            return None
        share = torch.rand(len(condition), 1, generator=noise, device=condition.device)
        draws = torch.rand(condition.shape, generator=noise, device=condition.device)
        return torch.where(draws < share, 0.5, condition)

    def reconstruction_nats(
        self, out: vae.Output, x: Tensor, sigma: Tensor | float | None = None
    ) -> Tensor:
        """0 where nothing was decoded, because only the prior learns."""
        if out.x_raw is None:
            return x.new_zeros(len(x))
        return super().reconstruction_nats(out, x, sigma)

    def rate_nats(self, out: vae.Output) -> Tensor:
        """-log p(z) + log q(z|x), (N,) nats: while encoder and decoder learn, the KL to N(0, I).

        With the learned prior, log p(z) is that of the one z that was drawn.
        """
        if self.stage == "global":
            return vae.kl_nats(out.mu[:, : self.global_dim], out.logvar[:, : self.global_dim])
        if self.stage == "places":
            return vae.kl_nats(out.mu, out.logvar)
        entropy = 0.5 * (out.logvar + math.log(2 * math.pi * math.e)).sum(1)
        return self.prior_nats(self.tokens(out.z), out.condition) - entropy

    def prior_nats(self, codes: Tensor, condition: Tensor | None) -> Tensor:
        """-log p(codes | condition) of the learned prior: → (N,) nats."""
        with vae.autocast(self.device):
            return self.prior.nats(codes, condition)

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z) of codes (N, D) by the learned prior, without a condition: → (N,) nats."""
        return -self.prior_nats(self.tokens(z), None)

    # ── Samples ──

    def draw_codes(
        self,
        n: int,
        *,
        condition: Tensor | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int | None = None,
        guidance: float = 0.0,
        without: Tensor | None = None,
        **region,
    ) -> Tensor:
        """n codes (n, D) of the prior that the model learned.

        condition    (n, A), what the images shall show; None where that is left open
        temperature  below 1 the codes that are likely become likelier
        top_k        (vq_vae) only the k likeliest codes of each place are drawn
        guidance     above 0 what the condition says counts more: see CausalTransformer.sample
        without      (n, A), what guidance does not push: the condition without what was asked for;
                     None is a condition that says nothing

        Raises VAEError for a region of the space, for a temperature that is not above 0, for no
        top_k, and for guidance below 0 or without a condition.
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
        if not 0 <= guidance < math.inf:
            raise vae.VAEError(f"guidance must be 0 or more, not {guidance}.")
        if guidance and condition is None:
            raise vae.VAEError(
                "guidance needs a model whose prior learned with labels, and the labels that are "
                "asked for."
            )
        without = self.condition(without)
        choices = {"temperature": temperature, "guidance": guidance}
        if top_k is not None:
            if not self.discrete:
                raise vae.VAEError("top_k is for model vq_vae: other codes cannot be counted.")
            choices["top_k"] = top_k
        generator = torch.Generator(self.device).manual_seed(seed)
        parts = []
        for first in range(0, n, vae.EVALUATION_BATCH):
            last = min(n, first + vae.EVALUATION_BATCH)
            for name, all_of_them in (("condition", condition), ("without", without)):
                if all_of_them is not None:
                    choices[name] = all_of_them[first:last].to(self.device)
            codes = self.prior.sample(last - first, generator, **choices)
            parts.append(self.codes_to_z(codes))
        return torch.cat(parts)

    def codes_to_z(self, codes: Tensor) -> Tensor:
        """What the prior draws, (N, T, latent_dim) → z (N, D)."""
        return self.flat(codes)


vae.MODELS["grid_vae"] = GridVAE


def fit_stages(
    model: vae.VAE, data: vae.ImageData, *, start: tuple[list[dict], dict] | None = None, **options
) -> list[dict]:
    """Train a model stage after stage, each by one call of vae.fit; returns the whole history.

    start and the other options are those of vae.fit. A run that was cut off goes on in the stage of
    its last row.
    """
    history, saved = start or ([], None)
    stages = model.stages(model.config)
    names = list(stages)
    if history:
        names = names[names.index(history[-1].get("stage")) :]
    for name in names:
        model.begin_stage(name)
        history = vae.fit(model, data, stages[name], stage=name, start=(history, saved), **options)
        saved = None
    return history


def all_epochs(config: vae.Config) -> int:
    """Of all stages together."""
    return sum(stage.epochs for stage in vae.MODELS[config.model].stages(config).values())
