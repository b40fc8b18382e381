"""Learned priors: a causal transformer reads codes one after the other, a grid row by row."""

from __future__ import annotations

import contextlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.nn.attention import SDPBackend, sdpa_kernel


class Block(nn.Module):
    """A layer of a transformer: causal attention, then two linear layers (Vaswani et al. 2017).

    Both come after a normalisation (Radford et al. 2019).
    """

    HEADS = 4

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, h: Tensor, cache: list[Tensor] | None = None) -> Tensor:
        """h (N, T, W) → the same shape; each place sees itself and those before it.

        cache: [keys, values] of the places before h, which is then one place, T = 1. Those of h
        are added to it.
        """
        parts = self.qkv(self.norm1(h)).unflatten(-1, (3, self.HEADS, -1))
        q, k, v = (part.transpose(1, 2) for part in parts.unbind(2))  # (N, heads, T, W / heads)
        if cache is not None:
            cache[:] = [torch.cat(pair, dim=2) for pair in zip(cache, (k, v))]
            k, v = cache
        # PyTorch's fused attention is slow in bfloat16 on a CPU.
        slow = q.device.type == "cpu" and q.dtype == torch.bfloat16
        with sdpa_kernel(SDPBackend.MATH) if slow else contextlib.nullcontext():
            attention = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
        h = h + self.out(attention.transpose(1, 2).flatten(2))
        return h + self.mlp(self.norm2(h))


class CausalTransformer(nn.Module):
    """p(codes | condition), the product over places of p(code | codes before it, condition).

    A subclass says how a code enters (`token`), what it costs (`nats_at`) and how one is drawn
    (`draw`). Of a condition, 0.5 says nothing, and no condition is one that says nothing at all.
    """

    LAYERS = 4

    def __init__(self, places: int, width: int, conditions: int):
        super().__init__()
        self.bos = nn.Parameter(torch.zeros(width))  # stands before the first place
        self.position_embedding = nn.Parameter(torch.randn(places, width) * 0.02)
        self.condition = nn.Linear(conditions, width, bias=False) if conditions else None
        self.blocks = nn.ModuleList([Block(width) for _ in range(self.LAYERS)])
        self.norm = nn.LayerNorm(width)
        # A sum of many branches starts small (Radford et al. 2019, section 2.3).
        for block in self.blocks:
            for layer in (block.out, block.mlp[2]):
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * self.LAYERS))

    def token(self, codes: Tensor) -> Tensor:
        """Codes of T places → (N, T, W)."""
        raise NotImplementedError

    def nats_at(self, h: Tensor, codes: Tensor) -> Tensor:
        """-log p of each code, given what is said of its place, h (N, T, W): → (N, T) nats."""
        raise NotImplementedError

    def draw(self, h: Tensor, generator: torch.Generator, **choices) -> Tensor:
        """Codes of one place, given what is said of it, h (N, 1, W)."""
        raise NotImplementedError

    def positions(self, n: int, condition: Tensor | None) -> Tensor:
        """What every place is told beside the codes: where it is, and the condition, (n, T, W)."""
        positions = self.position_embedding.expand(n, -1, -1)
        if self.condition is None or condition is None:
            return positions
        return positions + self.condition(2 * condition - 1)[:, None]

    def forward(self, codes: Tensor, condition: Tensor | None = None) -> Tensor:
        """Codes (N, T) or (N, T, C) → what those before a place say of it, (N, T, W)."""
        bos = self.bos.expand(len(codes), 1, -1)
        before = torch.cat([bos, self.token(codes[:, :-1])], dim=1)
        h = before + self.positions(len(codes), condition)
        for block in self.blocks:
            h = block(h)
        return self.norm(h)

    def nats(self, codes: Tensor, condition: Tensor | None = None) -> Tensor:
        """-log p of grids of codes, (N, T) or (N, T, C), and condition (N, A) → (N,) nats."""
        return self.nats_at(self(codes, condition), codes).sum(1)

    @torch.no_grad()
    def sample(
        self, n: int, generator: torch.Generator, condition: Tensor | None = None, **choices
    ) -> Tensor:
        """n grids of codes, place after place, with a cache of keys: (n, T) or (n, T, C)."""
        width = len(self.bos)
        empty = self.bos.new_zeros(n, Block.HEADS, 0, width // Block.HEADS)
        caches = [[empty, empty] for _ in self.blocks]
        token = self.bos.expand(n, 1, -1)
        grid = []
        for position in self.positions(n, condition).split(1, dim=1):
            h = token + position
            for block, cache in zip(self.blocks, caches):
                h = block(h, cache)
            grid.append(self.draw(self.norm(h), generator, **choices))
            token = self.token(grid[-1])
        return torch.cat(grid, dim=1)


class CodePrior(CausalTransformer):
    """Of codes out of a codebook, (N, T): each place has a probability for every code."""

    def __init__(self, places: int, codes: int, width: int, conditions: int = 0):
        super().__init__(places, width, conditions)
        self.tokens = nn.Embedding(codes, width)
        self.head = nn.Linear(width, codes)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def token(self, codes: Tensor) -> Tensor:
        return self.tokens(codes)

    def nats_at(self, h: Tensor, codes: Tensor) -> Tensor:
        logits = self.head(h).float().transpose(1, 2)
        return F.cross_entropy(logits, codes, reduction="none")

    def draw(
        self,
        h: Tensor,
        generator: torch.Generator,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tensor:
        logits = self.head(h)[:, 0].float() / temperature
        if top_k:
            least = logits.topk(min(top_k, logits.shape[1])).values[:, -1:]
            logits = logits.masked_fill(logits < least, -math.inf)
        return torch.multinomial(logits.softmax(1), 1, generator=generator)


class MixturePrior(CausalTransformer):
    """Of continuous codes, (N, T, C): each place has a mixture of Gaussians.

    Tschannen et al. 2024, "GIVT: Generative Infinite-Vocabulary Transformers".
    """

    COMPONENTS = 16

    def __init__(self, places: int, channels: int, width: int, conditions: int = 0):
        super().__init__(places, width, conditions)
        self.channels = channels
        self.embed = nn.Linear(channels, width)
        self.head = nn.Linear(width, self.COMPONENTS * (1 + 2 * channels))
        nn.init.normal_(self.head.weight, std=0.01)
        with torch.no_grad():  # components that differ from the first step on
            self.head.bias.normal_(std=0.5)

    def token(self, codes: Tensor) -> Tensor:
        return self.embed(codes)

    def mixture(self, h: Tensor) -> MixtureSameFamily:
        """What is said of places, h (N, T, W) → a distribution of their codes."""
        weights, means, log_scales = (
            self.head(h)
            .float()
            .unflatten(-1, (self.COMPONENTS, -1))
            .split([1, self.channels, self.channels], dim=-1)
        )
        # A scale of e^-7 or e^3 never fits a code whose variance is near 1: it is a runaway.
        normal = Normal(means, log_scales.clamp(-7, 3).exp(), validate_args=False)
        weights = Categorical(logits=weights[..., 0], validate_args=False)
        return MixtureSameFamily(weights, Independent(normal, 1), validate_args=False)

    def nats_at(self, h: Tensor, codes: Tensor) -> Tensor:
        return -self.mixture(h).log_prob(codes.float())

    def draw(self, h: Tensor, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        """temperature: below 1 likely components come oftener, and codes are nearer to their means.

        The weights and each Gaussian are raised to the power 1 / temperature^2, which makes a
        Gaussian narrower by the factor temperature.
        """
        mixture = self.mixture(h[:, 0])
        weights = (mixture.mixture_distribution.logits / temperature**2).softmax(1)
        component = torch.multinomial(weights, 1, generator=generator)[:, 0]
        normal = mixture.component_distribution.base_dist
        rows = torch.arange(len(h), device=h.device)
        mean, scale = normal.mean[rows, component], normal.stddev[rows, component]
        noise = torch.randn(mean.shape, generator=generator, device=h.device)
        return (mean + temperature * scale * noise)[:, None]
