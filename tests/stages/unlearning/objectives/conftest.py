"""A random batch with padding, a one-token response and a row without any, vocabulary 11, in float64."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

VOCABULARY = 11
LABELS = torch.tensor(
    [
        [-100, -100, 3, 4, 5, -100, -100],
        [-100, -100, -100, 7, -100, -100, -100],
        [-100, 1, 2, 10, 0, 9, 8],
        [-100, -100, -100, -100, -100, -100, -100],
        [-100, -100, -100, 2, 2, -100, -100],
    ]
)
CLEAN_LABELS = torch.tensor(
    [
        [-100, -100, 8, -100, -100],
        [-100, -100, -100, 1, 2],
        [-100, 4, 4, 4, 4],
        [-100, -100, -100, 6, -100],
        [-100, -100, -100, 0, 10],
    ]
)


class Batch(NamedTuple):
    logits: Tensor
    labels: Tensor
    ref_logits: Tensor
    clean_logits: Tensor
    clean_labels: Tensor
    clean_ref_logits: Tensor
    hidden: Tensor
    ref_hidden: Tensor

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The keyword arguments of forget_terms."""
        return {name: value for name, value in self._asdict().items() if name not in ("logits", "labels")}


def make_batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return 2.0 * torch.randn(*shape, generator=generator, dtype=torch.float64)

    b, t, s = len(LABELS), LABELS.shape[1], CLEAN_LABELS.shape[1]
    return Batch(
        logits=drawn(b, t, VOCABULARY),
        labels=LABELS.clone(),
        ref_logits=drawn(b, t, VOCABULARY),
        clean_logits=drawn(b, s, VOCABULARY),
        clean_labels=CLEAN_LABELS.clone(),
        clean_ref_logits=drawn(b, s, VOCABULARY),
        hidden=drawn(b, t, 4),
        ref_hidden=drawn(b, t, 4),
    )


@pytest.fixture
def batch() -> Batch:
    return make_batch(1)
