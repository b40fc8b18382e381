"""Models with the networks of a VAE and another loss: β-VAE, autoencoder, InfoVAE, WAE.

Each says in a few lines what it does differently from vae_helpers.VAE; fit and evaluate treat all
alike. Importing this file makes them known to Config and build_model.

These models minimise reconstruction + beta * KL(q(z|x) || N(0, I)) + mmd * MMD(q(z), N(0, I)).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import vae_helpers as vae


def mmd(a: Tensor, b: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of two samples (N, D), (M, D) → (), unbiased.

    Gretton et al. 2012, equation 3; it can be below 0. Kernel C / (C + ||z - z'||^2) with C = 2 D:
    the inverse multiquadratic for a prior N(0, I) (Tolstikhin et al. 2018, section 4).
    """
    scale = 2 * a.shape[1]

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        # Not torch.cdist, whose gradient older versions lack on MPS.
        squared = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
        return scale / (scale + squared.clamp(min=0))

    def within(x: Tensor) -> Tensor:
        return (kernel(x, x).sum() - len(x)) / (len(x) * (len(x) - 1))

    return within(a) + within(b) - 2 * kernel(a, b).mean()


class BetaVAE(vae.VAE):
    """The same model with a heavier KL, 4 when beta is not given (Higgins et al. 2017)."""

    @classmethod
    def defaults(cls, config: vae.Config) -> dict[str, object]:
        return {"beta": 4.0}


class AE(vae.VAE):
    """A plain autoencoder: the code is a point, which costs nothing."""

    sampled = False
    has_rate = False

    @classmethod
    def defaults(cls, config: vae.Config) -> dict[str, object]:
        return {"beta": 0.0}

    def __init__(self, config: vae.Config):
        super().__init__(config)
        # The weights are drawn as a VAE's, so that both start alike; then the logvar is dropped.
        self.encoder[-1] = self.encoder[-1].mu

    def encode(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (N, C, H, W) → mu (N, D), and logvar = -inf, (N, 1): a point."""
        mu = self.encoder(x).float()
        return mu, mu.new_full((len(mu), 1), -math.inf)


class MMDPenalty:
    """The penalty of InfoVAE and WAE: the aggregate posterior is drawn to the prior as a whole."""

    def penalty(self, out: vae.Output, noise: torch.Generator | None = None) -> Tensor:
        """config.mmd * MMD of the batch's codes against draws of N(0, I), by `noise`: ()."""
        if not self.config.mmd:
            return out.z.new_zeros(())
        prior = torch.randn(out.z.shape, generator=noise, device=out.z.device)
        return self.config.mmd * mmd(out.z, prior)


class InfoVAE(MMDPenalty, vae.VAE):
    """MMD in place of the KL (Zhao et al. 2019).

    The paper writes beta = 1 - alpha and mmd = alpha + lambda - 1; alpha = 1 here, its MMD-VAE.
    lambda = 1000 is our choice: small beside the reconstruction once q(z) is near the prior,
    strong while it is not.
    """

    @classmethod
    def defaults(cls, config: vae.Config) -> dict[str, object]:
        return {"beta": 0.0, "mmd": 1000.0}


class WAE(MMDPenalty, AE):
    """A deterministic code with the MMD (Tolstikhin et al. 2018, section 4: 10, 100 on CelebA)."""

    @classmethod
    def defaults(cls, config: vae.Config) -> dict[str, object]:
        weight = 100.0 if config.dataset == "celeba" else 10.0
        return {"beta": 0.0, "mmd": weight, "likelihood": "squared_error"}


vae.MODELS.update(beta_vae=BetaVAE, ae=AE, info_vae=InfoVAE, wae=WAE)
