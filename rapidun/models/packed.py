"""The response tokens of a batch laid end to end: what every loss is computed from, prompts and padding left out."""

from typing import NamedTuple

import torch
from torch import Tensor

from rapidun.models.losses import PackedCrossEntropy, response_mask


class Packed(NamedTuple):
    """The N response tokens of B rows, row by row, each with what was predicted at the position before it."""

    logits: Tensor  # [N, V]
    targets: Tensor  # [N] int64
    rows: Tensor  # [N] int64, ascending: which of the B rows a token belongs to
    num_rows: int  # B; a row may have no token
    hidden: Tensor | None = None  # [N, D] of one layer, at the same positions as the logits, where asked for

    @property
    def counts(self) -> Tensor:
        """[B] int64, n_i."""
        return torch.bincount(self.rows, minlength=self.num_rows)

    def log_probs(self) -> Tensor:
        """[N] nats, log p(y_t | x, y_<t); the softmax in float32 (float64 stays float64)."""
        return -PackedCrossEntropy.apply(self.logits, self.targets)

    def sums(self, values: Tensor) -> Tensor:
        """[N] -> [B]: over each row's tokens."""
        return torch.zeros(self.num_rows, dtype=values.dtype, device=values.device).index_add(0, self.rows, values)

    def means(self, values: Tensor) -> Tensor:
        """[N] -> [B]: over each row's tokens, 0 for a row without any."""
        return self.sums(values) / self.counts.clamp(min=1)

    def of(self, chosen: Tensor) -> "Packed":
        """The chosen rows, [B] bool, numbered anew."""
        kept = chosen[self.rows]
        number = chosen.cumsum(0) - 1
        hidden = None if self.hidden is None else self.hidden[kept]
        return Packed(
            self.logits[kept], self.targets[kept], number[self.rows[kept]], int(chosen.sum()), hidden
        )  # fmt: skip

    def between(self, first: int, last: int) -> "Packed":
        """Rows first to last - 1, numbered anew; nothing is copied."""
        start, end = torch.searchsorted(self.rows, self.rows.new_tensor([first, last])).tolist()
        hidden = None if self.hidden is None else self.hidden[start:end]
        rows = self.rows[start:end] - first
        return Packed(self.logits[start:end], self.targets[start:end], rows, last - first, hidden)


def pack(logits: Tensor, labels: Tensor, hidden: Tensor | None = None) -> Packed:
    """Take the response tokens out of [B, T, V] logits (and [B, T, D] hidden states) by their [B, T] labels."""
    rows, columns = response_mask(labels).nonzero(as_tuple=True)
    states = None if hidden is None else hidden[rows, columns - 1]
    return Packed(logits[rows, columns - 1], labels[rows, columns], rows, len(labels), states)


def cross_entropy(tokens: Packed, log_probs: Tensor | None = None, token_weights: Tensor | None = None) -> Tensor:
    """l_i = mean over the response tokens of -log p; [B] nats a token.

    Args: token_weights: [N], each token's part of the sum multiplied by it; the sum is still divided by n_i.
    """
    values = tokens.log_probs() if log_probs is None else log_probs
    return -tokens.means(values if token_weights is None else values * token_weights)
