"""Greedy decoding for less than transformers' `generate` takes, where an architecture allows it: rows that have ended
leave, others take their place, and what is to be scored behind a prompt is read together with it."""

import inspect
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from rapidun.models.batching import batching, logits_of, nearness, two_prompts
from rapidun.models.training.forward import layout_of
from rapidun.stages.answers.reading import (
    Ask,
    Reading,
    asks_of,
    in_batches,
    longest_together,
    num_tokens,
    prompt_of,
    read,
)
from rapidun.stages.answers.running import Block, Running, base_of, block_of, bytes_a_token, empty_cache
from rapidun.stages.answers.score import Scores

UNBOUNDED = 1 << 62
# frequencies that depend on how long the longest row of a batch is
BY_LENGTH = ("dynamic", "longrope")
# rows that have ended leave once they are this part of all: what stays is copied
LEAVE = 1 / 8
# a part of what can be decoded at once is read at once: what has become free is soon taken
READ = 1 / 8


class Decoding(NamedTuple):
    """What can be decoded here."""

    # the most tokens of a row, new ones counted; 0 = `generate` has to do it
    longest: int
    # how many tokens' keys and values take the memory of one token's logits in float32, at least 1
    tokens_for_logits: int = 1


_known: dict[tuple[object, ...], Decoding] = {}


def decoding(model: Any, *, pad_token_id: int) -> Decoding:
    """Tried out once for each architecture: prompts of two lengths, one that joins and one that leaves, must have the
    logits of their whole texts.

    Left to `generate`: what keeps anything but keys and values, what depends on a row's neighbours.
    """
    base, first = base_of(model), next(model.parameters())
    kind = (type(model), type(base), base.config.to_json_string(), first.dtype, first.device.type, pad_token_id)
    key = (*kind, layout_of(model))
    if key not in _known:
        _known[key] = _try(model, pad_token_id)
    return _known[key]


def _try(model: Any, pad: int) -> Decoding:
    config = base_of(model).config
    usual = batching(model, pad_token_id=pad)
    can = usual.left and usual.right and usual.cache and not _by_length(config.to_dict())
    if not can or "cache" not in inspect.signature(base_of(model).forward).parameters:
        return Decoding(0)
    training = model.training
    model.eval()
    try:
        layers = DynamicCache(config=config).layers
        if not layers or any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
            return Decoding(0)
        windows = [layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)]
        with torch.no_grad():
            return Decoding(min(windows, default=UNBOUNDED), _tokens_for_logits(model, pad))
    except Exception:  # whatever the architecture's own code raises
        return Decoding(0)
    finally:
        model.train(training)


def _tokens_for_logits(model: Any, pad: int) -> int:
    """See `Decoding`. Raises: ValueError where logits come out otherwise."""
    near = nearness(model)
    prompts = two_prompts(model, pad)
    texts = [(*prompt, *prompts[0][: len(prompts[0]) // 3]) for prompt in prompts]
    ends = [len(prompt) for prompt in prompts]
    # [T, V] each: what the last token of a text that is cut there is followed by
    truth = [logits_of(model, [list(text)])[0] for text in texts]
    asks = [Ask(text[:end]) for text, end in zip(texts, ends, strict=True)]
    cache = empty_cache(model)
    reading = read(model, asks, pad_token_id=pad, cache=cache)
    block = block_of(cache, reading.places, asks, [0, 1])
    size = bytes_a_token(block)
    both = Running(model, [block], room=0)
    waiting = {number: both.only([number]) for number in (0, 1)}

    def step(running: Running) -> None:
        """Read what comes next in each row's text."""
        places = [int(length) for length in running.lengths]
        tokens = [texts[number][place] for number, place in zip(running.numbers, places, strict=True)]
        found = running.step(torch.tensor(tokens, device=running.lengths.device))
        for number, place, logits in zip(running.numbers, places, found, strict=True):
            if not near(logits, truth[number][place]):
                raise ValueError("a step's logits are not those of the whole text")

    alone = Running(model, [waiting[0]], room=1)
    step(alone)
    both = Running(model, [alone.only([0]), waiting[1]], room=1)
    step(both)
    step(Running(model, [both.only([1])], room=1))
    return max(1, 4 * truth[0].shape[-1] // max(size, 1))


def _by_length(config: Any) -> bool:
    """Whether some rotary embedding in a configuration is one of BY_LENGTH."""
    if isinstance(config, dict):
        kinds = (config.get("rope_type"), config.get("type"))
        return any(kind in BY_LENGTH for kind in kinds) or any(map(_by_length, config.values()))
    return False


@torch.no_grad()
def decode_greedy(
    model: Any,
    prompts: Mapping[tuple[int, ...], int],
    *,
    ended: Callable[[list[int]], bool],
    max_new_tokens: int,
    tokens_read: int,
    tokens_kept: int,
    max_rows: int | None,
    pad_token_id: int,
    on_done: Callable[[list[int]], None],
    on_step: Callable[[list[int]], None],
    scores: Scores,
) -> dict[int, list[int]]:
    """The new tokens of each prompt, by its number, with what ends them. See `generate_greedy`.

    Args:
        prompts: each with its number. ended: whether new tokens end an answer with their last.
        tokens_read: in one pass, padding counted. tokens_kept: rows times the tokens that the longest may come to.
        on_done, on_step: told the numbers of those that have ended, and of those that got a token.
    """
    rows = _Rows(model, ended, max_new_tokens=max_new_tokens)

    def room_for(asks: Sequence[Ask]) -> bool:
        num = len(rows) + len(asks)
        longest = max(rows.longest, max(len(ask.prompt) for ask in asks) + max_new_tokens)
        return num * longest <= tokens_kept and num <= (max_rows or num)

    todo: deque[list[Ask]] = deque()
    most = longest_together(model)
    for packed in (True, False):
        some = {prompt: number for prompt, number in prompts.items() if (len(prompt) <= most) is packed}
        # responses are read with their prompts where both lie end to end
        behind = [row for row in scores.missing if packed and len(row[0]) <= most and prompt_of(row) in some]
        fits = partial(_fits, packed=packed, most=min(tokens_read, int(tokens_kept * READ)), room_for=room_for)
        todo += in_batches(asks_of(some, behind, shared=packed), fits)
    while todo or len(rows):
        if todo and (not len(rows) or room_for(todo[0])):
            asks = todo.popleft()
            cache = empty_cache(model)
            reading = read(model, asks, pad_token_id=pad_token_id, cache=cache)
            scores.add(reading.scores)
            on_step([ask.number for ask in asks if ask.number is not None])
            on_done(rows.begin(asks, reading, cache))
        else:
            on_step(rows.numbers)
            on_done(rows.step())
    return rows.new


def _fits(asks: list[Ask], *, packed: bool, most: int, room_for: Callable[[list[Ask]], bool]) -> bool:
    return num_tokens(asks, packed=packed) <= most and room_for(asks)


class _Rows:
    """What is being decoded, and what came of it."""

    def __init__(self, model: Any, ended: Callable[[list[int]], bool], *, max_new_tokens: int) -> None:
        self._model, self._ended, self._max = model, ended, max_new_tokens
        # number of a prompt -> its new tokens, what ends them among them
        self.new: dict[int, list[int]] = {}
        self._running: Running | None = None
        self._tokens = torch.empty(0, dtype=torch.long)
        self._places: list[int] = []  # of the rows that have not ended, among the running ones

    def __len__(self) -> int:
        return len(self._places)

    @property
    def numbers(self) -> list[int]:
        return [] if self._running is None else [self._running.numbers[place] for place in self._places]

    @property
    def longest(self) -> int:
        """Tokens that the longest one may come to."""
        if self._running is None:
            return 0
        lengths = self._running.lengths.tolist()
        return max(lengths[p] + self._steps(n) for p, n in zip(self._places, self.numbers, strict=True))

    def _steps(self, number: int) -> int:
        """How many a row still needs at most."""
        return self._max - len(self.new[number])

    def begin(self, asks: Sequence[Ask], reading: Reading, cache: DynamicCache) -> list[int]:
        """Take in rows with the first token of each; returns the numbers of those that have ended with it."""
        told = reading.tokens.tolist()
        numbers = [number for ask in asks if (number := ask.number) is not None]
        alive = [place for place, number in enumerate(numbers) if self._goes_on(number, told[place])]
        if alive:
            places, some = [reading.places[p] for p in alive], [asks[p] for p in alive]
            block = block_of(cache, places, some, [numbers[p] for p in alive])
            self._lay([*self._staying(), block], torch.cat([self._tokens[self._places], reading.tokens[alive]]))
        return [number for place, number in enumerate(numbers) if place not in set(alive)]

    def step(self) -> list[int]:
        """One more token for each row; returns the numbers of those that have ended with it."""
        assert self._running is not None
        before = self.numbers
        # the first of equal ones, as argmax, which takes five times as long in bfloat16 on a CPU
        self._tokens = self._running.step(self._tokens).max(dim=-1).indices
        told = self._tokens.tolist()
        self._places = [p for p, n in zip(self._places, before, strict=True) if self._goes_on(n, told[p])]
        ended = sorted(set(before) - set(self.numbers))
        if not self._places:
            self._running, self._tokens = None, self._tokens[:0]
        elif len(self._places) <= len(self._running) * (1 - LEAVE):
            self._lay(self._staying(), self._tokens[self._places])
        return ended

    def _goes_on(self, number: int, token: int) -> bool:
        new = self.new.setdefault(number, [])
        new.append(token)
        return len(new) < self._max and not self._ended(new)

    def _staying(self) -> list[Block]:
        return [] if self._running is None else [self._running.only(self._places)]

    def _lay(self, blocks: list[Block], tokens: Tensor) -> None:
        self._running = None  # its memory is the blocks' now
        room = max(self._steps(number) for block in blocks for number in block.numbers)
        self._running = Running(self._model, blocks, room=room)
        self._tokens, self._places = tokens[self._running.order], list(range(len(tokens)))
