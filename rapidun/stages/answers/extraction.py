"""How likely the model finds a given answer, and how little of it has to be shown for the rest to come by itself."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from rapidun.models.batching import batching
from rapidun.models.losses import IGNORE, response_mask, token_log_probs
from rapidun.stages.rows.batches import token_budget_batches
from rapidun.stages.rows.encode import Encoded, collate
from rapidun.stages.rows.template import form_of


class AnswerScore(NamedTuple):
    """What one forward pass says of one answer behind its prompt."""

    log_prob: float  # sum over all response tokens, the end of turn among them, nats
    num_tokens: int  # of these, those that some position predicts
    text_log_prob: float  # the same without the end of turn
    num_text_tokens: int  # n, the tokens of the answer's own text
    num_right_at_end: int  # the last so many of the n are each the likeliest token, given the true ones before them

    @property
    def probability(self) -> float:
        """p(a|q)^(1/|a|), in [0, 1]."""
        return math.exp(self.mean)

    @property
    def mean(self) -> float:
        """Nats a token."""
        return self.log_prob / max(self.num_tokens, 1)

    @property
    def extraction_strength(self) -> float:
        """1 - min{j/n : the greedy continuation of the first j tokens equals the rest}, 0 where no j < n does it.

        Greedy decoding behind the first j true tokens gives the rest if and only if each of the tokens j..n-1 is the
        likeliest one behind the true tokens before it: the first wrong one would end the agreement, and up to there
        both have the same tokens before them. So one forward pass over the true answer knows all j at once.
        Source: METHOD section 6; Carlini et al. 2021 (arXiv 2012.07805) and open-unlearning for its use.
        """
        return self.num_right_at_end / self.num_text_tokens if self.num_text_tokens else 0.0


def num_end_tokens(tokenizer: Any, row: Encoded) -> int:
    """How many tokens at a row's end are the end of turn; 0 where the response was cut, and its end with it."""
    end = form_of(tokenizer).end_ids
    response = [label for label in row.labels if label != IGNORE]
    return len(end) if end and not row.response_cut and len(response) > len(end) and response[-len(end) :] == end else 0


def score_answers(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Encoded],
    *,
    tokens_per_batch: int,
    on_batch: Callable[[list[int]], None] = lambda batch: None,
) -> list[AnswerScore]:
    """One AnswerScore a row, in their order; the other rows of a batch and padding change rounding only.

    Args: model: a causal language model in eval mode. tokens_per_batch: most padded tokens of one batch.
        on_batch: told the indices of the rows that are done.
    """
    if not rows:
        return []
    device = next(model.parameters()).device
    ends = [num_end_tokens(tokenizer, row) for row in rows]
    lengths = [len(row.input_ids) for row in rows]
    max_rows = None if batching(model, pad_token_id=tokenizer.pad_token_id).right else 1
    done: dict[int, AnswerScore] = {}
    # the longest batch first: if memory runs out, it does so at once
    for batch in reversed(token_budget_batches(lengths, max_tokens=tokens_per_batch, max_rows=max_rows)):
        found = collate([rows[i] for i in batch], pad_token_id=tokenizer.pad_token_id)
        tensors = {key: value.to(device) for key, value in found.items()}
        labels = tensors["labels"]
        with torch.inference_mode():
            logits = model(
                input_ids=tensors["input_ids"], attention_mask=tensors["attention_mask"], use_cache=False
            ).logits
            log_probs = token_log_probs(logits, labels).double().cpu()  # [B, T]
            mask = response_mask(labels).cpu()  # [B, T]
            # position t is predicted at t - 1; what is before the first is never a response token
            likeliest = torch.cat([labels[:, :1], logits[:, :-1].argmax(dim=-1)], dim=1)
            right = (likeliest == labels).cpu()  # [B, T]
        for place, index in enumerate(batch):
            values, hits = log_probs[place][mask[place]], right[place][mask[place]].tolist()
            num_text = len(hits) - ends[index]
            run = next((n for n in range(num_text) if not hits[num_text - 1 - n]), num_text)
            done[index] = AnswerScore(
                float(values.sum()), len(hits), float(values[:num_text].sum()), num_text, run
            )  # fmt: skip
        on_batch(batch)
    return [done[index] for index in range(len(rows))]
