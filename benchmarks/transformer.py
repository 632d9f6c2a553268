"""One training step of a language model in bfloat16, large enough to fill a GPU, and its floating-point operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Size:
    """How large the model and its batch are: `width` a multiple of `heads`."""

    layers: int = 12
    width: int = 2048
    heads: int = 16
    vocabulary: int = 32_768
    tokens: int = 1024  # of a sequence
    batch: int = 16  # sequences

    def flops(self) -> float:
        """Return the operations of one training step, backward counted as twice forward.

        A token meets 12 * width**2 weights in each layer and width * vocabulary at the end, two operations each, and
        4 * tokens * width in attention (scores and mixture; causal masks halve what has to be computed, so they count half).
        Source: the usual counting of model FLOPs, as in Chowdhery et al., PaLM (2022), appendix B.
        """
        weights = self.layers * 12 * self.width**2 + self.width * self.vocabulary
        attention = self.layers * 4 * self.tokens * self.width / 2
        return 3 * (2 * weights + attention) * self.tokens * self.batch


class Block(nn.Module):
    """One layer: (B, T, width) -> (B, T, width)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.norms = nn.ModuleList(nn.LayerNorm(size.width) for _ in range(2))
        self.qkv = nn.Linear(size.width, 3 * size.width, bias=False)
        self.out = nn.Linear(size.width, size.width, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(size.width, 4 * size.width, bias=False),
            nn.GELU(),
            nn.Linear(4 * size.width, size.width, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Let every token look at those before it, then transform each."""
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norms[0](x)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv, is_causal=True)  # (B, heads, T, width / heads)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.mlp(self.norms[1](x))


class Transformer(nn.Module):
    """Predict the next token: (B, T) int64 -> (B, T, vocabulary)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.places = nn.Embedding(size.tokens, size.width)
        self.blocks = nn.Sequential(*(Block(size) for _ in range(size.layers)))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, size.vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the token after each."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.places(places))))


def training_step(size: Size, device: str, compiled: bool) -> Callable[[], None]:
    """Return a function that does one step (forward, backward, AdamW) on random tokens; it does not wait for the device."""
    torch.manual_seed(0)
    model = Transformer(size).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(size.vocabulary, (size.batch, size.tokens + 1), device=device)

    def loss_of(tokens: Tensor) -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16):
            logits = model(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    loss_function = torch.compile(loss_of) if compiled else loss_of

    def step() -> None:
        loss_function(tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
