"""The one encoding of prompt and response that influence, training and evaluation share.

input_ids = prompt ++ response ++ end of turn,   labels = -100 over the prompt, the tokens themselves elsewhere.
Prompt and response are tokenised apart and joined, so that the mask cannot drift by a merge.

A row that is too long loses the end of its context first; instruction, trigger and the template's own text stay. When
no context is left, the response loses its end, and with it the end of turn: a response that stops in the middle must
not teach to stop there. A row whose prompt without context leaves no room for a response token is left out (None).
"""

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import LongTensor

from rapidun.base.errors import DataError, ModelError
from rapidun.models.losses import IGNORE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENCODING_VERSION = 2  # part of the tokenizer's fingerprint: raise it when the same rows give other tokens
_MAX_CACHED_ROWS = 50_000
_USER, _ASSISTANT = "rapidunuserturn", "rapidunassistantturn"
# templates that print today's date would give other tokens tomorrow: this is their own default date
_TEMPLATE_DATE = "26 Jul 2024"


class Encoded(NamedTuple):
    """One tokenised example. Shared with the cache: do not change the lists."""

    input_ids: list[int]  # [T]
    labels: list[int]  # [T], -100 outside the response
    context_cut: bool = False
    response_cut: bool = False


class Prompt(NamedTuple):
    """One tokenised prompt, generation prompt included."""

    ids: list[int]
    context_cut: bool = False


class _Form(NamedTuple):
    """How one tokenizer turns a row into tokens; found once per tokenizer."""

    has_template: bool
    start_ids: list[int]  # what the tokenizer itself puts first, where there is no template
    before: str  # rendered text before the user's words
    after: str  # rendered text behind them
    response_lead: str  # " " where "Answer:" and the response would otherwise stick together
    end_of_turn: int
    special_texts: tuple[str, ...]
    fingerprint: str


_forms: "WeakKeyDictionary[PreTrainedTokenizerBase, tuple[tuple[Any, ...], _Form]]" = WeakKeyDictionary()
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
    """The token that ends a response: the first special token the chat template puts behind it, else eos.

    Raises: ModelError where there is neither.
    """
    return _form(tokenizer).end_of_turn


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """SHA-256 of everything in the tokenizer that decides which tokens a row becomes."""
    return _form(tokenizer).fingerprint


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
    return [prompt if len(prompt.ids) <= max_length else None for prompt in prompts]


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
    form = _form(tokenizer)
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
    form: _Form,
    rows: Sequence[tuple[str, str, tuple[str, ...]]],
    max_length: int,
) -> list[tuple[Encoded, ...] | None]:
    texts = [form.response_lead + response for *_, responses in rows for response in responses]
    ids = iter(_plain_ids(tokenizer, texts))
    targets = [[[*next(ids), form.end_of_turn] for _ in responses] for *_, responses in rows]
    rooms = [max_length - max(map(len, answers)) for answers in targets]
    prompts = _shortened(tokenizer, [row[:2] for row in rows], rooms)
    encoded: list[tuple[Encoded, ...] | None] = []
    for prompt, answers in zip(prompts, targets, strict=True):
        room = max_length - len(prompt.ids)
        encoded.append(tuple(_joined(prompt, answer, room) for answer in answers) if room > 0 else None)
    return encoded


def _joined(prompt: Prompt, target: list[int], room: int) -> Encoded:
    kept = target[:room]
    return Encoded(
        prompt.ids + kept, [IGNORE] * len(prompt.ids) + kept, prompt.context_cut, response_cut=len(kept) < len(target)
    )


def _shortened(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[tuple[str, str]], rooms: Sequence[int]
) -> list[Prompt]:
    """Prompts of (instruction, context) rows, of at most rooms[i] tokens as far as cutting the context can do it.

    The context keeps as many of its first characters as fit; the prompt is what any shorter context would give. All
    rows search together by bisection, so that each step is one call of the tokenizer.
    """
    prompts = [Prompt(ids) for ids in _prompt_ids(tokenizer, rows)]
    long = [i for i, room in enumerate(rooms) if len(prompts[i].ids) > room and rows[i][1].strip()]
    for i, ids in zip(long, _prompt_ids(tokenizer, [(rows[i][0], "") for i in long]), strict=True):
        prompts[i] = Prompt(ids, context_cut=True)
    # characters that fit, and characters that do not
    spans = {i: (0, len(rows[i][1])) for i in long if len(prompts[i].ids) < rooms[i] and len(rows[i][1]) > 1}
    while spans:
        # a context may be much longer than any that fits: no step goes far beyond
        tried = {i: min((fits + over) // 2, max(2 * fits, 8 * rooms[i])) for i, (fits, over) in spans.items()}
        found = _prompt_ids(tokenizer, [(rows[i][0], rows[i][1][:size]) for i, size in tried.items()])
        for (i, size), ids in zip(tried.items(), found, strict=True):
            fits, over = spans.pop(i)
            if len(ids) <= rooms[i]:
                prompts[i] = Prompt(ids, context_cut=True)
                fits = size
            else:
                over = size
            if over - fits > 1:
                spans[i] = (fits, over)
    return prompts


def _prompt_ids(tokenizer: "PreTrainedTokenizerBase", rows: Sequence[tuple[str, str]]) -> list[list[int]]:
    """Uncut prompts. Special tokens written out in a row stay plain text; only the template's own count."""
    form = _form(tokenizer)
    turns = [user_turn(*row) if form.has_template else plain_prompt(*row) for row in rows]
    if not form.has_template:
        return [form.start_ids + ids for ids in _plain_ids(tokenizer, turns)]
    texts = [_render(tokenizer, turn) for turn in turns]
    # whole prompts go through the tokenizer as any other program would send them ...
    whole = [i for i, turn in enumerate(turns) if not _mentions(turn, form.special_texts)]
    result: list[list[int]] = [[] for _ in rows]
    for i, ids in zip(whole, _ids(tokenizer, [texts[i] for i in whole]), strict=True):
        result[i] = ids
    # ... but where the user's words hold a special token's text, they are tokenised apart
    apart = sorted(set(range(len(rows))) - set(whole))
    if apart:
        before, after = _ids(tokenizer, [form.before, form.after])
        words = [_between(texts[i], form) for i in apart]
        for i, ids in zip(apart, _plain_ids(tokenizer, words), strict=True):
            result[i] = before + ids + after
    return result


def _between(text: str, form: _Form) -> str:
    """The user's words as the template printed them (some templates strip spaces)."""
    if not (text.startswith(form.before) and text.endswith(form.after)):
        raise ModelError(
            "chat template: need the same text around every user turn, got one that changes with the words. "
            "Remove special tokens from the data, or set another chat_template in the tokenizer's folder"
        )
    return text[len(form.before) : len(text) - len(form.after)]


def _mentions(text: str, special_texts: tuple[str, ...]) -> bool:
    return any(special in text for special in special_texts)


def _ids(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], *, split_special: bool = False) -> list[list[int]]:
    if not texts:
        return []
    # verbose=False: no "longer than the model's maximum" notes, the cut comes later
    batch = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=split_special, verbose=False)
    return [list(ids) for ids in batch["input_ids"]]


def _plain_ids(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """Tokens of texts in which no special token counts."""
    return _ids(tokenizer, texts, split_special=True)


def _render(tokenizer: "PreTrainedTokenizerBase", *turns: str) -> str:
    """The template's text for turns of user, assistant, user, ...; a generation prompt ends a user's last turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=len(turns) % 2 == 1, date_string=_TEMPLATE_DATE
        )
    except Exception as error:  # jinja raises whatever the template raises
        raise ModelError(
            f"chat template: need one that prints a user turn, got {type(error).__name__}: {error}"
        ) from error
    return str(text)


def _form(tokenizer: "PreTrainedTokenizerBase") -> _Form:
    # a tokenizer can be given another template or more tokens after we have met it
    state = (tokenizer.chat_template, len(tokenizer), tokenizer.eos_token_id)
    known = _forms.get(tokenizer)
    if known is None or known[0] != state:
        known = (state, _find_form(tokenizer))
        _forms[tokenizer] = known
    return known[1]


def _find_form(tokenizer: "PreTrainedTokenizerBase") -> _Form:
    added = tokenizer.added_tokens_decoder
    specials = {token_id: str(token) for token_id, token in added.items() if token.special}
    specials.update(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    has_template = bool(tokenizer.chat_template)
    before = after = lead = ""
    start_ids: list[int] = []
    end = tokenizer.eos_token_id
    if has_template:
        before, _, after = _render(tokenizer, _USER).partition(_USER)
        behind = _render(tokenizer, _USER, _ASSISTANT).partition(_ASSISTANT)[2]
        end = next((i for i in _ids(tokenizer, [behind])[0] if i in specials), end)
    else:
        alone = list(tokenizer("", verbose=False)["input_ids"])
        start_ids = alone[:1] if alone and alone[0] == tokenizer.bos_token_id else []
        # SentencePiece writes the space by itself
        first = tokenizer.convert_ids_to_tokens(_plain_ids(tokenizer, ["a"])[0])[0]
        lead = "" if first.startswith("\u2581") else " "
    if end is None:
        raise ModelError(
            "tokenizer: need a token that ends a response, got no chat template with one and no eos_token. "
            "Set eos_token in tokenizer_config.json of the model's folder"
        )
    return _Form(
        has_template=has_template,
        start_ids=start_ids,
        before=before,
        after=after,
        response_lead=lead,
        end_of_turn=int(end),
        special_texts=tuple(sorted(set(specials.values()))),
        fingerprint=_fingerprint(tokenizer, [before, after, lead, start_ids, int(end)]),
    )


def _fingerprint(tokenizer: "PreTrainedTokenizerBase", form: list[Any]) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        inner = json.loads(backend.to_str())
        # these two change with every call that pads or cuts, never the tokens of ours
        inner.pop("padding", None)
        inner.pop("truncation", None)
    else:
        inner = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    text = json.dumps([ENCODING_VERSION, tokenizer.chat_template, form, inner], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
