"""The learned prior of a vq_vae: a causal transformer over grids of codes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        attention = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
        h = h + self.out(attention.transpose(1, 2).flatten(2))
        return h + self.mlp(self.norm2(h))


class CodePrior(nn.Module):
    """p(codes | condition): a causal transformer that reads the grid row by row.

    At each place there are several codes, the first coarse, the others for what it left. The
    transformer says what comes at a place given all places before it; a small head for each
    codebook then says its code given the codes before it at the same place (Lee et al. 2022,
    section 3.2). Before the first place stands the condition.
    """

    LAYERS = 4

    def __init__(self, places: int, codebooks: int, codes: int, width: int, conditions: int = 0):
        super().__init__()
        self.tokens = nn.ModuleList([nn.Embedding(codes, width) for _ in range(codebooks)])
        self.places = nn.Parameter(torch.zeros(places, width))
        self.start = nn.Parameter(torch.zeros(width))
        self.condition = nn.Linear(conditions, width, bias=False) if conditions else None
        self.blocks = nn.ModuleList([Block(width) for _ in range(self.LAYERS)])
        self.norm = nn.LayerNorm(width)
        self.steps = nn.ModuleList([self._step(width) for _ in range(codebooks - 1)])
        self.heads = nn.ModuleList([nn.Linear(width, codes) for _ in range(codebooks)])
        for embedding in self.tokens:
            nn.init.normal_(embedding.weight, std=0.02)
        # A sum of many branches starts small (Radford et al. 2019, section 2.3).
        for block in self.blocks:
            for layer in (block.out, block.mlp[2]):
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * self.LAYERS))

    @staticmethod
    def _step(width: int) -> nn.Module:
        """From one code of a place to the next."""
        return nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def first_token(self, n: int, condition: Tensor | None) -> Tensor:
        """What stands before the first place: (n, 1, W). Of a condition, 0.5 says nothing."""
        start = self.start.expand(n, 1, -1)
        if self.condition is None or condition is None:
            return start
        return start + self.condition(2 * condition - 1)[:, None]

    def token(self, codes: Tensor) -> Tensor:
        """Codes (N, T, L) → (N, T, W)."""
        return sum(embed(codes[..., level]) for level, embed in enumerate(self.tokens))

    def after(self, h: Tensor, level: int, codes: Tensor) -> Tensor:
        """What is said of places (…, W), when their code of this level (…) is known, too."""
        h = h + self.tokens[level](codes)
        return h + self.steps[level](h)

    def read(self, before: Tensor, condition: Tensor | None = None) -> Tensor:
        """What is said of the first places and the next one: codes (N, T, L) → (N, T + 1, W)."""
        h = torch.cat([self.first_token(len(before), condition), self.token(before)], dim=1)
        h = h + self.places[: h.shape[1]]
        for block in self.blocks:
            h = block(h)
        return self.norm(h)

    def nats(self, codes: Tensor, condition: Tensor | None = None) -> Tensor:
        """-log p of grids of codes (N, T, L), condition (N, A) → (N,) nats."""
        n, places, _ = codes.shape
        h = self.read(codes[:, :-1], condition)
        total = torch.zeros(n, device=codes.device)
        for level, head in enumerate(self.heads):
            if level:
                h = self.after(h, level - 1, codes[..., level - 1])
            logits = head(h).flatten(0, 1).float()
            nats = F.cross_entropy(logits, codes[..., level].flatten(), reduction="none")
            total = total + nats.reshape(n, places).sum(1)
        return total

    @torch.no_grad()
    def sample(
        self,
        n: int,
        generator: torch.Generator,
        condition: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tensor:
        """n grids of codes, place after place: (n, T, L). What nats does, with a cache of keys."""
        empty = self.places.new_zeros(n, Block.HEADS, 0, self.places.shape[1] // Block.HEADS)
        caches = [[empty, empty] for _ in self.blocks]
        token = self.first_token(n, condition)
        grid = []
        for place in self.places:
            h = token + place
            for block, cache in zip(self.blocks, caches):
                h = block(h, cache)
            h = self.norm(h)
            codes = []
            for level, head in enumerate(self.heads):
                if level:
                    h = self.after(h, level - 1, codes[-1])
                logits = head(h)[:, 0].float() / temperature
                if top_k:
                    least = logits.topk(min(top_k, logits.shape[1])).values[:, -1:]
                    logits = logits.masked_fill(logits < least, -math.inf)
                codes.append(torch.multinomial(logits.softmax(1), 1, generator=generator))
            grid.append(torch.stack(codes, dim=2))
            token = self.token(grid[-1])
        return torch.cat(grid, dim=1)
