"""Learned priors: a causal transformer reads codes one after the other, a grid row by row."""

from __future__ import annotations

import contextlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.nn.attention import SDPBackend, sdpa_kernel


class Dropout(nn.Module):
    """While training, a share of the numbers becomes 0, and the others make up for them.

    Unlike nn.Dropout it draws from the generator of the training, so that a run that was cut off
    goes on as if it had not been.
    """

    def __init__(self, share: float):
        super().__init__()
        self.share = share
        self.noise: torch.Generator | None = None

    def forward(self, h: Tensor) -> Tensor:
        if not (self.training and self.share):
            return h
        kept = torch.rand(h.shape, generator=self.noise, device=h.device) >= self.share
        return h * kept / (1 - self.share)


class Block(nn.Module):
    """A layer of a transformer: causal attention, then two linear layers (Vaswani et al. 2017).

    Both come after a normalisation (Radford et al. 2019).
    """

    HEADS = 4

    def __init__(self, width: int, drop: Dropout):
        super().__init__()
        self.drop = drop
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
        h = h + self.drop(self.out(attention.transpose(1, 2).flatten(2)))
        return h + self.drop(self.mlp(self.norm2(h)))


class CausalTransformer(nn.Module):
    """p(codes | condition), the product over places of p(code | codes before it, condition).

    A subclass says how a code enters (`token`), what it costs (`nats_at`) and how one is drawn
    (`draw`). Of a condition, 0.5 says nothing, and no condition is one that says nothing at all.
    """

    LAYERS = 4

    def __init__(self, places: int, width: int, conditions: int, dropout: float = 0.0):
        super().__init__()
        self.drop = Dropout(dropout)
        self.bos = nn.Parameter(torch.zeros(width))  # stands before the first place
        self.position_embedding = nn.Parameter(torch.randn(places, width) * 0.02)
        self.condition = nn.Linear(conditions, width, bias=False) if conditions else None
        self.blocks = nn.ModuleList([Block(width, self.drop) for _ in range(self.LAYERS)])
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
        """Codes of one place, given what is said of it, h (N, 1, W).

        With guidance the choices hold h_without, what the other walk says of it.
        """
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
        self,
        n: int,
        generator: torch.Generator,
        condition: Tensor | None = None,
        *,
        guidance: float = 0.0,
        without: Tensor | None = None,
        **choices,
    ) -> Tensor:
        """n grids of codes, place after place: (n, T) or (n, T, C).

        With guidance w above 0 the codes of each place are drawn in proportion to
        p(code | condition) * (p(code | condition) / p(code | without))^w: what the condition says,
        and `without` does not, counts more (Ho & Salimans 2022, "Classifier-Free Diffusion
        Guidance"; for densities Tschannen et al. 2024).
        """
        told = Walk(self, n, condition)
        not_told = Walk(self, n, without) if guidance else None
        token = self.bos.expand(n, 1, -1)
        grid = []
        for place in range(len(self.position_embedding)):
            h = told.step(place, token)
            if not_told:
                choices |= {"guidance": guidance, "h_without": not_told.step(place, token)}
            grid.append(self.draw(h, generator, **choices))
            token = self.token(grid[-1])
        return torch.cat(grid, dim=1)


class Walk:
    """One walk of a transformer over the places, which keeps the keys and values of those behind.

    It is told one condition, (n, A) or None, on the whole way.
    """

    def __init__(self, prior: CausalTransformer, n: int, condition: Tensor | None):
        self.prior = prior
        self.positions = prior.positions(n, condition)
        width = len(prior.bos)
        empty = prior.bos.new_zeros(n, Block.HEADS, 0, width // Block.HEADS)
        self.caches = [[empty, empty] for _ in prior.blocks]

    def step(self, place: int, token: Tensor) -> Tensor:
        """The token before a place, (n, 1, W) → what is said of that place, (n, 1, W)."""
        h = token + self.positions[:, place : place + 1]
        for block, cache in zip(self.prior.blocks, self.caches):
            h = block(h, cache)
        return self.prior.norm(h)


class CodePrior(CausalTransformer):
    """Of codes out of a codebook, (N, T): each place has a probability for every code."""

    def __init__(
        self, places: int, codes: int, width: int, conditions: int = 0, dropout: float = 0.0
    ):
        super().__init__(places, width, conditions, dropout)
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
        guidance: float = 0.0,
        h_without: Tensor | None = None,
    ) -> Tensor:
        logits = self.head(h)[:, 0].float()
        if guidance:
            without = self.head(h_without)[:, 0].float()
            logits = without + (1 + guidance) * (logits - without)
        logits = logits / temperature
        if top_k:
            least = logits.topk(min(top_k, logits.shape[1])).values[:, -1:]
            logits = logits.masked_fill(logits < least, -math.inf)
        return torch.multinomial(logits.softmax(1), 1, generator=generator)


class MixturePrior(CausalTransformer):
    """Of continuous codes, (N, T, C): each place has a mixture of Gaussians.

    Tschannen et al. 2024, "GIVT: Generative Infinite-Vocabulary Transformers".
    """

    COMPONENTS = 16
    CANDIDATES = 16  # of guidance

    def __init__(
        self, places: int, channels: int, width: int, conditions: int = 0, dropout: float = 0.0
    ):
        super().__init__(places, width, conditions, dropout)
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

    def draw(
        self,
        h: Tensor,
        generator: torch.Generator,
        temperature: float = 1.0,
        guidance: float = 0.0,
        h_without: Tensor | None = None,
    ) -> Tensor:
        """temperature: below 1 likely components come oftener, and codes are nearer to their means.

        The weights and each Gaussian are raised to the power 1 / temperature^2, which makes a
        Gaussian narrower by the factor temperature.

        The density that guidance asks for is no mixture. So CANDIDATES are drawn from the one that
        is, and one of them is kept, with a chance in proportion to (p / p without)^guidance.
        """
        mixture = self.mixture(h[:, 0])
        weights = (mixture.mixture_distribution.logits / temperature**2).softmax(1)
        candidates = self.CANDIDATES if guidance else 1
        component = torch.multinomial(weights, candidates, candidates > 1, generator=generator)
        normal = mixture.component_distribution.base_dist
        rows = torch.arange(len(h), device=h.device)[:, None]
        mean, scale = normal.mean[rows, component], normal.stddev[rows, component]
        noise = torch.randn(mean.shape, generator=generator, device=h.device)
        codes = mean + temperature * scale * noise  # (N, candidates, C)
        if not guidance:
            return codes
        first = codes.transpose(0, 1)  # as distributions of N places take them
        ratio = mixture.log_prob(first) - self.mixture(h_without[:, 0]).log_prob(first)
        chances = (guidance * ratio).softmax(0).T
        kept = torch.multinomial(chances, 1, generator=generator)
        return codes[rows, kept]
