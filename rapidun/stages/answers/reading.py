"""Prompts and responses read by the model, each prompt once: what scores are sums of, and what decoding begins with."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rapidun.models.losses import IGNORE
from rapidun.models.training.forward import forward_parts, layout_of

# the tokens of a row, and how many of them stand before the response
Row = tuple[tuple[int, ...], int]


class ResponseScore(NamedTuple):
    """What the model gives one response after its prompt."""

    log_prob: float  # S_i, the sum over the response tokens, nats
    num_tokens: int  # n_i, response tokens that some position predicts

    @property
    def mean(self) -> float:
        """S_i / n_i, nats a token; 0 where there is no token."""
        return self.log_prob / max(self.num_tokens, 1)


class Ask(NamedTuple):
    """A prompt, and the responses to it that are to be scored; with none it is only to be continued."""

    prompt: tuple[int, ...]
    rows: tuple[Row, ...] = ()
    # which of the prompts to be continued this is; None = none of them
    number: int | None = None

    @property
    def size(self) -> int:
        """Tokens, the prompt counted once."""
        return len(self.prompt) + sum(len(ids) - len(self.prompt) for ids, _ in self.rows)


class Reading(NamedTuple):
    """What the model says of A asks."""

    scores: dict[Row, ResponseScore]
    tokens: Tensor  # [A] int64, the likeliest first token after each prompt
    # where each prompt's keys and values lie in the cache's [B, H, T, D]: row, first place
    places: list[tuple[int, int]]


def asks_of(prompts: Mapping[tuple[int, ...], int], rows: Iterable[Row], *, shared: bool) -> list[Ask]:
    """What is to be read, in an order that depends on nothing but the tokens: long ones first, to be continued first.

    If memory runs out, it does so at once.

    Args:
        prompts: to be continued, each with its number. rows: to be scored, all different.
        shared: a prompt and all responses to it make one ask; else each row, and each prompt, is an ask of its own.
    """
    behind: dict[tuple[int, ...], list[Row]] = {}
    for row in sorted(rows):
        behind.setdefault(prompt_of(row), []).append(row)
    if shared:
        asks = [Ask(prompt, tuple(behind.get(prompt, ())), prompts.get(prompt)) for prompt in {**prompts, **behind}]
    else:
        asks = [Ask(prompt, number=number) for prompt, number in prompts.items()]
        asks += [Ask(prompt, (row,)) for prompt, found in behind.items() for row in found]

    def order(ask: Ask) -> tuple[Any, ...]:
        # rows that are decoded together should begin alike
        length = ask.size if ask.number is None else len(ask.prompt)
        return (ask.number is None, -length, -ask.size, ask.prompt, ask.rows)

    return sorted(asks, key=order)


def prompt_of(row: Row) -> tuple[int, ...]:
    """The tokens in front of the first response token that some position predicts."""
    ids, num_prompt = row
    return ids[: max(num_prompt, 1)]


def longest_together(model: Any) -> int:
    """The most tokens that a row may have to be read end to end with others, its prompt shared; 0 = rows are padded."""
    return layout_of(model).longest


def in_batches(asks: Sequence[Ask], fits: Callable[[list[Ask]], bool]) -> list[list[Ask]]:
    """Asks in their order, as many together as fit; one that does not fit goes alone."""
    found: list[list[Ask]] = []
    for ask in asks:
        if found and fits([*found[-1], ask]):
            found[-1].append(ask)
        else:
            found.append([ask])
    return found


def num_tokens(asks: Sequence[Ask], *, packed: bool) -> int:
    """What a pass over asks computes, padding counted: unless packed, each has one row."""
    sizes = [ask.size for ask in asks]
    return sum(sizes) if packed else len(sizes) * max(sizes)


@torch.no_grad()
def read(model: Any, asks: Sequence[Ask], *, pad_token_id: int, cache: Any = None) -> Reading:
    """One pass over asks; the output head runs at response tokens and at the ends of prompts only.

    S_i is summed in float64, the softmax is taken in float32 (float64 stays float64).

    Args: cache: an empty one, to keep keys and values in (`forward_packed`).
    """
    rows: list[tuple[tuple[int, ...], int, int]] = []  # tokens, how many are real, the first that is predicted
    heads: list[int] = []
    begins = [0]
    for ask in asks:
        heads.append(len(rows))
        # what is predicted behind a prompt that has no response is asked for with a token that nothing sees
        rows += [(ids, len(ids), len(ask.prompt)) for ids, _ in ask.rows] or [
            ((*ask.prompt, 0), len(ask.prompt), len(ask.prompt))
        ]
        begins.append(begins[-1] + ask.size)
    width = max(len(ids) for ids, *_ in rows)
    device = next(model.parameters()).device
    inputs = {
        "input_ids": [[*ids, *[pad_token_id] * (width - len(ids))] for ids, *_ in rows],
        "attention_mask": [[1] * real + [0] * (width - real) for _, real, _ in rows],
        "labels": [
            [IGNORE] * first + list(ids[first:]) + [IGNORE] * (width - len(ids)) for ids, _, first in rows
        ],
    }  # fmt: skip
    ends = torch.tensor(heads, device=device)
    sums = torch.zeros(len(rows), dtype=torch.float64, device=device)
    tokens = torch.zeros_like(ends)
    seen = -1
    for part in forward_parts(model, {name: torch.tensor(v, device=device) for name, v in inputs.items()}, cache=cache):
        if any(ask.rows for ask in asks):
            sums += part.sums(part.log_probs().double())
        # the first token of each of these rows is in here, unless it was in an earlier part
        first = torch.searchsorted(part.rows, ends)
        here = (ends > seen) & (first < len(part.rows))
        tokens[here] = part.logits[first[here]].argmax(dim=-1)
        seen = int(part.rows[-1])
    scores: dict[Row, ResponseScore] = {}
    for ask, head in zip(asks, heads, strict=True):
        for place, row in enumerate(ask.rows, start=head):
            scores[row] = ResponseScore(float(sums[place]), len(row[0]) - rows[place][2])
    padded = cache is None or len(cache.layers[0].keys) == len(rows)
    places = [(head, 0) if padded else (0, begin) for head, begin in zip(heads, begins, strict=False)]
    return Reading(scores, tokens, places)
