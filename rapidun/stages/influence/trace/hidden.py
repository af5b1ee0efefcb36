"""Hidden-state similarity of many rows to a few queries, batch after batch: only [N, Q] scores are kept."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rapidun.base.errors import ConfigError, ModelError
from rapidun.config.influence import Pooling
from rapidun.models.losses import response_mask
from rapidun.stages.influence.batches import RowBatch, make_batches
from rapidun.stages.influence.gradients.capture import frozen
from rapidun.stages.influence.repsim import POOLINGS
from rapidun.stages.rows.encode import Encoded, collate

Encode = Callable[[int, int], list[Encoded]]


class Reader(NamedTuple):
    """A model and how its hidden states are taken. max_rows: of a batch; 1 where padding changes a row."""

    model: nn.Module
    pad_token_id: int
    layer: int
    pooling: Pooling
    tokens_per_batch: int
    max_rows: int | None = None


@torch.no_grad()
def hidden_scores(
    reader: Reader,
    queries: Sequence[Encoded],
    query_names: Sequence[str],
    encode: Encode,
    names: Sequence[str],
    *,
    rows_at_once: int,
    on_rows: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.float32]:
    """Cosine of each row's pooled hidden state with each query's; [N, Q].

    Args:
        encode: the encoded rows from the first to before the second number, called for `rows_at_once` at a time.
        names: [N], for messages. on_rows: told (rows done, rows in all).
    Raises: ConfigError for a layer that the model lacks, ModelError for a hidden state that is not finite (names it).
    """
    num_rows = len(names)
    asked = torch.zeros(len(queries), 0)
    scores = np.zeros((num_rows, len(queries)), dtype=np.float32)
    with frozen(reader.model):
        for place, vectors in _pooled(reader, list(queries), list(query_names)):
            asked = asked if asked.shape[1] else vectors.new_zeros(len(queries), vectors.shape[1])
            asked[place] = vectors
        done = 0
        for start in range(0, num_rows, rows_at_once):
            stop = min(start + rows_at_once, num_rows)
            for place, vectors in _pooled(reader, encode(start, stop), list(names[start:stop])):
                scores[[start + row for row in place]] = (vectors @ asked.T).float().cpu().numpy()
                done += len(place)
                on_rows(done, num_rows)
    return scores


def _pooled(reader: Reader, encoded: list[Encoded], names: list[str]) -> Iterator[tuple[list[int], Tensor]]:
    """(rows, their pooled hidden states of length 1 [n, H]) of one padded batch after another."""
    device = next(reader.model.parameters()).device
    batches = make_batches(
        encoded,
        names,
        tokens_per_batch=reader.tokens_per_batch,
        pad_token_id=reader.pad_token_id,
        device=device,
        max_rows=reader.max_rows,
    )
    for batch in batches:
        pooled = POOLINGS[reader.pooling](
            _states(reader, batch), labels=batch.tensors["labels"], attention_mask=batch.tensors["attention_mask"]
        )
        norms = pooled.norm(dim=1, keepdim=True)
        bad = (~torch.isfinite(norms)).flatten().nonzero().flatten().tolist()
        if bad:
            raise ModelError(
                f"trace: need finite hidden states, got others for {names[batch.rows[bad[0]]]}. Pass --model-dtype "
                "float32, or mend the row or the model"
            )
        yield batch.rows, pooled / norms.clamp(min=torch.finfo(norms.dtype).tiny)


def _states(reader: Reader, batch: RowBatch) -> Tensor:
    """[B, T, H] float32 (float64 stays)."""
    found = reader.model(
        input_ids=batch.tensors["input_ids"],
        attention_mask=batch.tensors["attention_mask"],
        use_cache=False,
        output_hidden_states=True,
        **_few_logits(reader.model),
    ).hidden_states
    if not -len(found) <= reader.layer < len(found):
        raise ConfigError(
            f"trace: need {-len(found)} <= --layer < {len(found)} for this model, got {reader.layer}. Change --layer"
        )
    states: Tensor = found[reader.layer]
    return states if states.dtype == torch.float64 else states.float()


def _few_logits(model: Any) -> dict[str, int]:
    """No loss is wanted, and logits of all positions are most of a batch's memory; not every model can leave them."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(base.forward).parameters else {}


class Shares(NamedTuple):
    """A cosine of two pooled hidden states, split over the tokens of both rows: either side sums to `score`."""

    score: float
    query: list[float]  # [T_query]
    train: list[float]  # [T_train]


@torch.no_grad()
def token_shares(reader: Reader, query: Encoded, train: Encoded) -> Shares:
    """Which tokens make two rows alike: <h_q / |h_q|, h_t> / (n |h|) for each pooled token t, 0 for the others.

    The mean over tokens is linear, so that the shares sum to the cosine exactly.
    """
    device = next(reader.model.parameters()).device
    with frozen(reader.model):
        sides = []
        for row in (query, train):
            tensors = {k: v.to(device) for k, v in collate([row], pad_token_id=reader.pad_token_id).items()}
            states = _states(reader, RowBatch([0], tensors))[0].double()
            length = len(row.input_ids)
            mask = tensors["attention_mask"].bool()
            if reader.pooling is Pooling.response:
                mask = response_mask(tensors["labels"])
            elif reader.pooling is Pooling.last:
                mask = torch.arange(mask.shape[1], device=device)[None] == length - 1
            weights = mask[0].double() / mask.sum()
            sides.append((states[:length], weights[:length]))
    pooled = [states.T @ weights for states, weights in sides]
    norm = float(pooled[0].norm() * pooled[1].norm())
    factor = 1.0 / norm if norm > 0 else 0.0
    shares = [((states @ pooled[1 - side]) * weights * factor).tolist() for side, (states, weights) in enumerate(sides)]
    return Shares(float(pooled[0] @ pooled[1]) * factor, *shares)
