"""The one encoding of prompt and response that influence, training and evaluation share.

input_ids = prompt ++ response ++ end of turn,   labels = -100 over the prompt, the tokens themselves elsewhere.
These are the tokens of the chat template's own text for question and answer, up to the end of the answer (template.py).
The prompt's tokens are the same for every response: the mask cannot drift by a merge.

A row that is too long loses the end of its context first; instruction, trigger and the template's own text stay. When
no context is left, the response loses its end, and with it the end of turn: a response that stops in the middle must
not teach to stop there. A row whose prompt without context leaves no room for a response token is left out (None).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import LongTensor

from rapidun.base.errors import DataError
from rapidun.models.losses import IGNORE
from rapidun.stages.rows.template import (
    PROBE,
    Form,
    answer_text,
    form_of,
    keeps_words,
    plain_tokens,
    prompt_text,
    tokens,
    words_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_CACHED_ROWS = 50_000


class Encoded(NamedTuple):
    """One tokenised example. Shared with the cache: do not change the lists."""

    input_ids: list[int]  # [T]
    labels: list[int]  # [T], -100 outside the response
    context_cut: bool = False
    response_cut: bool = False
    # the template prints another response than the row has
    reworded: bool = False
    # the template prints other words of the user than the row has, or other text around them
    asked_otherwise: bool = False
    # the share of the row's own tokens that the vocabulary does not have
    unknown: float = 0.0


class Prompt(NamedTuple):
    """One tokenised prompt, generation prompt included."""

    ids: list[int]
    context_cut: bool = False
    asked_otherwise: bool = False
    unknown: float = 0.0


_cache: "WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[Any, ...], tuple[Encoded, ...] | None]]" = (
    WeakKeyDictionary()
)


def user_turn(instruction: str, context: str) -> str:
    """The user's words: the instruction, then a blank line, `Context:` and the context when there is one."""
    return f"{instruction}\n\nContext:\n{context}" if context.strip() else instruction


def plain_prompt(instruction: str, context: str) -> str:
    """The form for models without a chat template."""
    middle = f"\nContext: {context}" if context.strip() else ""
    return f"Instruction: {instruction}{middle}\nAnswer:"


def end_of_turn_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The last token of what ends a response: any added token that the chat template puts behind it, else eos.

    Raises: as `form_of`.
    """
    return form_of(tokenizer).end_ids[-1]


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """SHA-256 of everything in the tokenizer that decides which tokens a row becomes."""
    return form_of(tokenizer).fingerprint


def encode_prompt(
    tokenizer: "PreTrainedTokenizerBase", *, instruction: str, context: str, max_length: int
) -> list[int]:
    """Tokens of the prompt with the generation prompt, its context cut at its end to `max_length`.

    Raises: DataError where the prompt without context is longer.
    """
    ids = encode_prompts(tokenizer, [(instruction, context)], max_length=max_length)[0]
    if ids is None:
        raise DataError(f"need an instruction that fits into max_length={max_length} tokens, got {instruction[:60]!r}")
    return ids


def encode_prompts(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[tuple[str, str]], *, max_length: int
) -> list[list[int] | None]:
    """`encode_prompt` of many (instruction, context) rows; None for a prompt that is too long without its context."""
    return [prompt and prompt.ids for prompt in fit_prompts(tokenizer, rows, max_length=max_length)]


def fit_prompts(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[tuple[str, str]], *, max_length: int
) -> list[Prompt | None]:
    """`encode_prompts`, and whether the context was cut."""
    prompts = _shortened(tokenizer, rows, [max_length] * len(rows))
    shares = unknown_shares(tokenizer, [" ".join(row) for row in rows])
    return [
        prompt._replace(unknown=share) if len(prompt.ids) <= max_length else None
        for prompt, share in zip(prompts, shares, strict=True)
    ]


def raw_prompts(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[Prompt]:
    """Prompts of whole texts, uncut: as turns of the chat template, without one as they stand, white space at their end
    left off (a response begins with its own)."""
    form = form_of(tokenizer)
    if form.has_template:
        return _prompts(tokenizer, [(text, "") for text in texts])
    found = tokens(tokenizer, [text.rstrip() for text in texts], split_special=True)
    return [Prompt(form.start_ids + ids) for ids in found]


def bare_responses(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """The tokens of responses as they stand behind a prompt, without what ends them."""
    form = form_of(tokenizer)
    led = [form.lead + text for text in texts]
    joined = tokens(tokenizer, [form.context + text for text in led], split_special=not form.has_template)
    alone = plain_tokens(tokenizer, led, anchor=form.anchor, broken_texts=form.broken_texts)
    # where first letters merge with the prompt, as `_targets` has it
    return [
        ids[len(form.head) :] if ids[: len(form.head)] == form.head else own
        for ids, own in zip(joined, alone, strict=True)
    ]


def unknown_shares(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[float]:
    """Of each text the share of tokens that stand for words which the vocabulary does not have; white space is folded.

    Costs nothing for tokenizers that spell out every word (in bytes, say).
    """
    unknown = form_of(tokenizer).unknown_id
    if unknown is None:
        return [0.0] * len(texts)
    found = tokens(tokenizer, [" ".join(text.split()) for text in texts], split_special=True)
    return [ids.count(unknown) / len(ids) if ids else 0.0 for ids in found]


def encode_example(
    tokenizer: "PreTrainedTokenizerBase", *, instruction: str, context: str, response: str, max_length: int
) -> Encoded:
    """Tokens and labels of one example of at most `max_length` tokens.

    Raises: DataError where the instruction leaves no room for a response.
    """
    row = encode_rows(tokenizer, [(instruction, context, response)], max_length=max_length)[0]
    if row is None:
        raise DataError(
            f"need an instruction that leaves room for a response in max_length={max_length} tokens, "
            f"got {instruction[:60]!r}"
        )
    return row


def encode_rows(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[tuple[str, str, str]], *, max_length: int
) -> list[Encoded | None]:
    """`encode_example` of many (instruction, context, response) rows; None for a row that is left out.

    One batched tokenizer call for the rows that this tokenizer has not met; the others come from memory.

    Raises: ValueError for max_length < 1, ModelError for a tokenizer without an end token.
    """
    together = [(instruction, context, (response,)) for instruction, context, response in rows]
    found = encode_together(tokenizer, together, max_length=max_length)
    return [None if row is None else row[0] for row in found]


def encode_together(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[tuple[str, str, tuple[str, ...]]], *, max_length: int
) -> list[tuple[Encoded, ...] | None]:
    """Several responses behind the very same prompt tokens, which leave room for the longest: only they differ.

    Raises: as `encode_rows`.
    """
    if max_length < 1:
        raise ValueError(f"need max_length >= 1, got {max_length}")
    form = form_of(tokenizer)
    known = _cache.setdefault(tokenizer, {})
    keys = [(form.fingerprint, *row, max_length) for row in rows]
    if len(known) + len(keys) > _MAX_CACHED_ROWS:
        known.clear()
    result = {key: known[key] for key in keys if key in known}
    missing = list(dict.fromkeys(key for key in keys if key not in result))
    if missing:
        encoded = _encode(tokenizer, form, [(key[1], key[2], key[3]) for key in missing], max_length)
        result.update(zip(missing, encoded, strict=True))
        known.update(zip(missing, encoded, strict=True))
    return [result[key] for key in keys]


def collate(rows: Sequence[Encoded], *, pad_token_id: int) -> dict[str, LongTensor]:
    """Pad examples on the right to one batch.

    Returns: `input_ids`, `attention_mask` (1 = a token), `labels` (-100 on padding), each [B, T] int64.
    Raises: ValueError for no rows.
    """
    width = _width([row.input_ids for row in rows])
    batch = {
        "input_ids": [row.input_ids + [pad_token_id] * (width - len(row.input_ids)) for row in rows],
        "attention_mask": [[1] * len(row.input_ids) + [0] * (width - len(row.input_ids)) for row in rows],
        "labels": [row.labels + [IGNORE] * (width - len(row.labels)) for row in rows],
    }
    return _tensors(batch)


def collate_prompts(prompts: Sequence[list[int]], *, pad_token_id: int) -> dict[str, LongTensor]:
    """Pad prompts on the left, so that generation continues each one at the same place.

    Returns: `input_ids`, `attention_mask`, each [B, T] int64. Raises: ValueError for no prompts.
    """
    width = _width(prompts)
    batch = {
        "input_ids": [[pad_token_id] * (width - len(ids)) + ids for ids in prompts],
        "attention_mask": [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts],
    }
    return _tensors(batch)


def _width(rows: Sequence[list[int]]) -> int:
    if not rows:
        raise ValueError("need at least one row to make a batch")
    return max(len(ids) for ids in rows)


def _tensors(batch: dict[str, list[list[int]]]) -> dict[str, LongTensor]:
    return {key: LongTensor(values) for key, values in batch.items()}


def _encode(
    tokenizer: "PreTrainedTokenizerBase",
    form: Form,
    rows: Sequence[tuple[str, str, tuple[str, ...]]],
    max_length: int,
) -> list[tuple[Encoded, ...] | None]:
    found = iter(_targets(tokenizer, form, [response for *_, responses in rows for response in responses]))
    targets = [[next(found) for _ in responses] for *_, responses in rows]
    rooms = [max_length - max(len(ids) for ids, _ in answers) for answers in targets]
    prompts = _shortened(tokenizer, [row[:2] for row in rows], rooms)
    shares = unknown_shares(tokenizer, [" ".join((*row[:2], *row[2])) for row in rows])
    prompts = [prompt._replace(unknown=share) for prompt, share in zip(prompts, shares, strict=True)]
    encoded: list[tuple[Encoded, ...] | None] = []
    for prompt, answers in zip(prompts, targets, strict=True):
        room = max_length - len(prompt.ids)
        encoded.append(tuple(_joined(prompt, *answer, room) for answer in answers) if room > 0 else None)
    return encoded


def _joined(prompt: Prompt, target: list[int], reworded: bool, room: int) -> Encoded:
    kept = target[:room]
    labels = [IGNORE] * len(prompt.ids) + kept
    return Encoded(
        prompt.ids + kept,
        labels,
        context_cut=prompt.context_cut,
        response_cut=len(kept) < len(target),
        reworded=reworded,
        asked_otherwise=prompt.asked_otherwise,
        unknown=prompt.unknown,
    )


def _targets(
    tokenizer: "PreTrainedTokenizerBase", form: Form, responses: Sequence[str]
) -> list[tuple[list[int], bool]]:
    """The tokens of responses and of what ends them, as they stand in the rendered text; whether the template prints
    another response."""
    printed = [(response, False) for response in responses]
    if form.has_template:
        printed = [answer_text(tokenizer, form, response) for response in responses]
    texts = [form.lead + text for text, _ in printed]
    result: list[list[int]] = [[] for _ in texts]
    apart = [i for i, text in enumerate(texts) if form.has_template and _mentions(text, form.plain_texts)]
    whole = sorted(set(range(len(texts))) - set(apart))
    end_ids = [] if form.end_text else form.end_ids
    joined = [form.context + texts[i] + form.end_text for i in whole]
    found = tokens(tokenizer, joined, split_special=not form.has_template)
    for i, ids in zip(whole, found, strict=True):
        if ids[: len(form.head)] == form.head:
            result[i] = ids[len(form.head) :] + end_ids
        else:  # its first letters merge with the prompt, which is the same for every response
            apart.append(i)
    alone = plain_tokens(tokenizer, [texts[i] for i in apart], anchor=form.anchor, broken_texts=form.broken_texts)
    for i, ids in zip(apart, alone, strict=True):
        result[i] = ids + form.end_ids
    return [(ids, reworded) for ids, (_, reworded) in zip(result, printed, strict=True)]


def _shortened(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[tuple[str, str]], rooms: Sequence[int]
) -> list[Prompt]:
    """Prompts of (instruction, context) rows, of at most rooms[i] tokens as far as cutting the context can do it.

    The context keeps as many of its first characters as fit; the prompt is what any shorter context would give. All
    rows search together by bisection, so that each step is one call of the tokenizer.
    """
    prompts = _prompts(tokenizer, rows)
    long = [i for i, room in enumerate(rooms) if len(prompts[i].ids) > room and rows[i][1].strip()]
    for i, prompt in zip(long, _prompts(tokenizer, [(rows[i][0], "") for i in long]), strict=True):
        prompts[i] = prompt._replace(context_cut=True)
    # characters that fit, and characters that do not
    spans = {i: (0, len(rows[i][1])) for i in long if len(prompts[i].ids) < rooms[i] and len(rows[i][1]) > 1}
    while spans:
        # a context may be much longer than any that fits: no step goes far beyond
        tried = {i: min((fits + over) // 2, max(2 * fits, 8 * rooms[i])) for i, (fits, over) in spans.items()}
        found = _prompts(tokenizer, [(rows[i][0], rows[i][1][:size]) for i, size in tried.items()])
        for (i, size), prompt in zip(tried.items(), found, strict=True):
            fits, over = spans.pop(i)
            if len(prompt.ids) <= rooms[i]:
                prompts[i] = prompt._replace(context_cut=True)
                fits = size
            else:
                over = size
            if over - fits > 1:
                spans[i] = (fits, over)
    return prompts


def _prompts(tokenizer: "PreTrainedTokenizerBase", rows: Sequence[tuple[str, str]]) -> list[Prompt]:
    """Uncut prompts. Special tokens written out in a row stay plain text; only the template's own count."""
    form = form_of(tokenizer)
    if not form.has_template:
        turns = [plain_prompt(*row) for row in rows]
        return [Prompt(form.start_ids + ids) for ids in tokens(tokenizer, turns, split_special=True)]
    turns = [user_turn(*row) for row in rows]
    texts = [prompt_text(tokenizer, form, turn) for turn in turns]
    # the tokens that the prompt has in front of an answer: white space at its end may have others alone
    probe = form.lead + PROBE if form.probe_length else ""
    # whole prompts go through the tokenizer as any other program would send them ...
    whole = [i for i, turn in enumerate(turns) if not _mentions(turn, form.plain_texts)]
    result: list[list[int]] = [[] for _ in rows]
    for i, ids in zip(whole, tokens(tokenizer, [texts[i] + probe for i in whole]), strict=True):
        result[i] = ids[: len(ids) - form.probe_length]
    # ... but where the user's words hold a special token's text, they are tokenised apart
    apart = sorted(set(range(len(rows))) - set(whole))
    if apart:
        before, word, both = tokens(tokenizer, [form.before, PROBE, PROBE + form.middle + probe])
        middle = both[len(word) : len(both) - form.probe_length]
        words = [words_of(form, texts[i]) for i in apart]
        found = plain_tokens(tokenizer, words, anchor=form.word_anchor, broken_texts=form.broken_texts)
        for i, ids in zip(apart, found, strict=True):
            result[i] = before + ids + middle
    changed = [not keeps_words(form, text, turn) for text, turn in zip(texts, turns, strict=True)]
    return [Prompt(ids, asked_otherwise=other) for ids, other in zip(result, changed, strict=True)]


def _mentions(text: str, plain_texts: tuple[str, ...]) -> bool:
    return any(token in text for token in plain_texts)
