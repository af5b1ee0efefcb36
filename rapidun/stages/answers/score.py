"""Log-probability of given responses under the model, in length-bucketed batches."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from rapidun.models.batching import batching
from rapidun.models.losses import IGNORE, response_mask, token_log_probs
from rapidun.stages.rows.batches import token_budget_batches
from rapidun.stages.rows.encode import Encoded, collate


class ResponseScore(NamedTuple):
    """What the model gives one response after its prompt."""

    log_prob: float  # S_i, the sum over the response tokens, nats
    num_tokens: int  # n_i, response tokens that some position predicts

    @property
    def mean(self) -> float:
        """S_i / n_i, nats a token; 0 where there is no token."""
        return self.log_prob / max(self.num_tokens, 1)


def comparable(one: ResponseScore, other: ResponseScore) -> bool:
    """Whether one of two responses can be called the likelier: tokens of both count, and no score is NaN.

    A response may be impossible (-inf); two that are cannot be told apart.
    """
    means = (one.mean, other.mean)
    is_number = one.num_tokens > 0 and other.num_tokens > 0 and not any(map(math.isnan, means))
    return is_number and max(means) > -math.inf


def score_responses(
    model: Any,
    rows: Sequence[Encoded],
    *,
    pad_token_id: int,
    tokens_per_batch: int,
    on_batch: Callable[[list[int]], None] = lambda batch: None,
) -> list[ResponseScore]:
    """S_i and n_i of each row, in the order of the rows.

    Rows with the same tokens and the same response are computed once.

    Args:
        model: a causal language model in eval mode; rows: encoded examples.
        tokens_per_batch: most padded tokens of one batch. on_batch: told the indices of the rows that are done.
    """
    first: dict[tuple[tuple[int, ...], int], int] = {}
    same = [first.setdefault((tuple(row.input_ids), num_prompt_tokens(row)), index) for index, row in enumerate(rows)]
    distinct = sorted(set(same))
    done: dict[int, ResponseScore] = {}
    device = next(model.parameters()).device
    lengths = [len(rows[index].input_ids) for index in distinct]
    max_rows = None if not rows or batching(model, pad_token_id=pad_token_id).right else 1
    # the longest batch first: if memory runs out, it does so at once
    for places in reversed(token_budget_batches(lengths, max_tokens=tokens_per_batch, max_rows=max_rows)):
        batch = [distinct[place] for place in places]
        tensors = {
            key: value.to(device) for key, value in collate([rows[i] for i in batch], pad_token_id=pad_token_id).items()
        }
        labels = tensors["labels"]
        with torch.inference_mode():
            logits = model(
                input_ids=tensors["input_ids"], attention_mask=tensors["attention_mask"], use_cache=False
            ).logits
            # summed in float64, so that the zeros of the padding cannot change the rounding
            sums = token_log_probs(logits, labels).double().sum(dim=1).tolist()  # [B, T] -> [B]
            counts = response_mask(labels).sum(dim=1).tolist()
        for index, log_prob, num_tokens in zip(batch, sums, counts, strict=True):
            done[index] = ResponseScore(log_prob, num_tokens)
        on_batch(batch)
    return [done[index] for index in same]


def num_prompt_tokens(row: Encoded) -> int:
    """How many tokens stand before the response."""
    return next((place for place, label in enumerate(row.labels) if label != IGNORE), len(row.labels))
