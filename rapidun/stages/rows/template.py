"""What a tokenizer's chat template prints around a question and its answer, read off rendered probes and checked.

    before  the user's words  middle  lead  the answer  behind

`before`, `middle` and `lead` are the prompt, whatever the generation prompt says: an empty block for thoughts, the
name of a channel, a newline. `lead` is white space that merges with the answer's first word: its token is the
answer's. The answer ends with what stands directly behind it.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from rapidun.base.errors import ModelError
from rapidun.stages.rows.bounded import TooMuch, bounded, check_template, too_much

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENCODING_VERSION = 3  # part of the tokenizer's fingerprint: raise it when the same rows give other tokens
# templates that print today's date would give other tokens tomorrow; this is the date that Llama's have by default
CLOCK = datetime(2024, 7, 26, tzinfo=UTC)
_DATE = "26 Jul 2024"
USER, ASSISTANT, PROBE = "rapidunuserturn", "rapidunassistantturn", "a"
_ROLES = ("user", "assistant")
# first words of answers, to see whether white space in front of them merges with them
_WORDS = (PROBE, "The", "7", "\u00c9t\u00e9", "\u4e2d", "(")
_MEND = "Set another chat_template in tokenizer_config.json (or chat_template.jinja) of the model's folder"


class Form(NamedTuple):
    """How one tokenizer turns a row into tokens; found once per tokenizer."""

    has_template: bool
    in_parts: bool  # the template wants a message's content as a list of parts
    start_ids: list[int]  # what the tokenizer itself puts first, where there is no template
    before: str
    middle: str
    lead: str
    behind: str
    end_text: str  # what of `behind` ends an answer; empty where only eos does
    end_ids: list[int]
    ends_with_token: bool  # whether the last of end_ids is a token of its own, not a piece of text
    context: str  # as much of what stands in front of an answer as decides its tokens
    head: list[int]  # the tokens of `context` in front of any answer
    probe_length: int  # the tokens of lead and PROBE behind it
    anchor: str  # plain text that does the same for an answer in which special tokens are plain text
    word_anchor: str  # the same for the user's words
    plain_texts: tuple[str, ...]  # tokens that are plain text where a row's own words hold them
    broken_texts: tuple[str, ...]  # those of them that are not special: only breaking them makes them plain text
    unknown_id: int | None  # what stands for words that the vocabulary lacks; None where every word can be spelt
    fingerprint: str


_forms: "WeakKeyDictionary[PreTrainedTokenizerBase, tuple[tuple[Any, ...], Form]]" = WeakKeyDictionary()


def form_of(tokenizer: "PreTrainedTokenizerBase") -> Form:
    """The form of a tokenizer.

    Raises: ModelError for a chat template that fails, drops or repeats the words it is given, or prints something else
        each time; for a tokenizer without an end token.
    """
    # a tokenizer can be given another template or more tokens after we have met it
    state = (tokenizer.chat_template, len(tokenizer), tokenizer.eos_token_id)
    known = _forms.get(tokenizer)
    if known is None or known[0] != state:
        known = (state, _find_form(tokenizer))
        _forms[tokenizer] = known
    return known[1]


def own_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens that stand in every row whatever it says (and a probe word's): what a model must know at least."""
    form = form_of(tokenizer)
    return [*form.start_ids, *tokens(tokenizer, [form.before + PROBE + form.middle])[0], *form.end_ids]


def prompt_text(tokenizer: "PreTrainedTokenizerBase", form: Form, words: str) -> str:
    """The prompt as the template prints it for the user's words."""
    text = _render(tokenizer, words, ASSISTANT, in_parts=form.in_parts)
    prompt, found, _ = text.rpartition(ASSISTANT)
    if not found:
        raise ModelError(
            f"chat template: need one that prints the answer to every question, got none for {words[:60]!r}. {_MEND}"
        )
    return prompt.removesuffix(form.lead)


def conversation_text(tokenizer: "PreTrainedTokenizerBase", form: Form, turns: Sequence[tuple[str, str]]) -> str:
    """The prompt as the template prints it behind turns of (role, words), the last of them the user's.

    Raises: ModelError where the template fails, or prints none of the words of some turn.
    """
    text = _render_messages(tokenizer, [*turns, ("assistant", ASSISTANT)], in_parts=form.in_parts)
    prompt, found, _ = text.rpartition(ASSISTANT)
    place = 0
    for role, words in turns:
        place = prompt.find(words.strip(), place)
        if not found or place < 0:
            raise ModelError(
                f"chat template: need one that prints every turn in its order, got none of the {role}'s "
                f"{words[:60]!r}. {_MEND}"
            )
    return prompt.removesuffix(form.lead)


def keeps_words(form: Form, prompt: str, words: str) -> bool:
    """Whether a rendered prompt holds the user's words, all of them and in their order, and around them what stands
    around any; white space is folded."""
    if not (prompt.startswith(form.before) and prompt.endswith(form.middle)):
        return False
    return prompt[len(form.before) : len(prompt) - len(form.middle)].split() == words.split()


def words_of(form: Form, prompt: str) -> str:
    """The user's words in a prompt as the template printed them (some templates strip spaces)."""
    if not (prompt.startswith(form.before) and prompt.endswith(form.middle)):
        raise ModelError(
            "chat template: need the same text around every user turn, got one that changes with the words. "
            "Remove special tokens from the data, or set another chat_template in the tokenizer's folder"
        )
    return prompt[len(form.before) : len(prompt) - len(form.middle)]


def answer_text(tokenizer: "PreTrainedTokenizerBase", form: Form, answer: str) -> tuple[str, bool]:
    """An answer as the template prints it, and whether it drops or moves part of it (white space at its ends apart).

    An answer that is moved stays as it is written.
    """
    text = _render(tokenizer, USER, answer, in_parts=form.in_parts)
    head = form.before + USER + form.middle + form.lead
    whole = text.startswith(head) and text.endswith(form.behind) and len(text) > len(head) + len(form.behind)
    printed = text[len(head) : len(text) - len(form.behind)] if whole else ""
    if not printed.strip():
        return answer, True
    return printed, printed.strip() != answer.strip()


def tokens(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], *, split_special: bool = False
) -> list[list[int]]:
    """Tokens of texts in one call; with `split_special`, special tokens in them are plain text."""
    if not texts:
        return []
    # verbose=False: no "longer than the model's maximum" notes, the cut comes later
    batch = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=split_special, verbose=False)
    return [list(ids) for ids in batch["input_ids"]]


def plain_tokens(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], *, anchor: str, broken_texts: Sequence[str] = ()
) -> list[list[int]]:
    """Tokens of texts as they stand behind `anchor`; no special token and none of `broken_texts` counts in them."""
    pieces = [_broken(text, broken_texts) for text in texts]
    (head,) = tokens(tokenizer, [anchor], split_special=True) if anchor else ([],)
    flat = [anchor + piece for parts in pieces for piece in parts]
    alone = iter(tokens(tokenizer, [piece for parts in pieces for piece in parts], split_special=True))
    joined = iter(tokens(tokenizer, flat, split_special=True))
    result = []
    for parts in pieces:
        ids: list[int] = []
        for _ in parts:
            own, behind = next(alone), next(joined)
            # where the first letters merge with the anchor, the text stands alone
            ids += behind[len(head) :] if behind[: len(head)] == head else own
        result.append(ids)
    return result


def _broken(text: str, broken_texts: Sequence[str]) -> list[str]:
    """The text in pieces, so that no piece holds one of the tokens."""
    if not any(token in text for token in broken_texts):
        return [text]
    pattern = "|".join(re.escape(token) for token in sorted(broken_texts, key=len, reverse=True))
    cuts = [found.start() + 1 for found in re.finditer(pattern, text) if len(found.group()) > 1]
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def _clock_macro() -> str:
    """`strftime_now` for a template, by the fixed clock. A function cannot be handed over: what a template is given is
    made of plain JSON types."""
    codes = [f"%{flag}{code}" for flag in ("-", "") for code in "aAbBcCdDefFGgHhIjklmMnpPrRsStTuUVwWxXyYzZ%"]
    known = {code: CLOCK.strftime(code) for code in codes}
    fixed = json.dumps({code: text for code, text in known.items() if text != code})
    # the newline behind the macro goes with it, so that the template starts as it did
    return (
        f"{{% macro strftime_now(format) %}}{{% set fixed = namespace(text=format) %}}"
        f"{{% for code, text in {fixed}.items() %}}{{% set fixed.text = fixed.text.replace(code, text) %}}"
        f"{{% endfor %}}{{{{ fixed.text }}}}{{% endmacro %}}\n"
    )


def _render(tokenizer: "PreTrainedTokenizerBase", *turns: str, in_parts: bool) -> str:
    """The template's text for turns of user, assistant, user, ..., without a generation prompt, at a fixed time."""
    return _render_messages(tokenizer, [(_ROLES[i % 2], turn) for i, turn in enumerate(turns)], in_parts=in_parts)


def _render_messages(tokenizer: "PreTrainedTokenizerBase", turns: Sequence[tuple[str, str]], *, in_parts: bool) -> str:
    """`_render` for turns of (role, words)."""
    messages = [
        {"role": role, "content": [{"type": "text", "text": words}] if in_parts else words} for role, words in turns
    ]
    try:
        template = tokenizer.get_chat_template()
        if "strftime_now" in template:
            template = _clock_macro() + template
        check_template(template)
        with bounded(letters=sum(len(words) for _, words in turns)):
            text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, date_string=_DATE)
    except TooMuch as error:
        raise too_much(error, _MEND) from error
    except Exception as error:  # jinja raises whatever the template raises
        raise ModelError(
            f"chat template: need one that prints a user turn and the answer to it, got {type(error).__name__}: "
            f"{error}. {_MEND}"
        ) from error
    return str(text)


def _probe(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, bool]:
    """The rendered pair of probe words, and whether it took content in parts."""
    first: ModelError | None = None
    for in_parts in (False, True):
        try:
            text = _render(tokenizer, USER, ASSISTANT, in_parts=in_parts)
        except ModelError as error:
            first = first or error
            continue
        if in_parts and "'type': 'text'" in text.lower():
            # a list as Python writes it down: this template takes texts, and changes them
            continue
        if text.count(ASSISTANT) == 1 and USER in text.partition(ASSISTANT)[0]:
            if any(_render(tokenizer, USER, ASSISTANT, in_parts=in_parts) != text for _ in range(4)):
                raise ModelError(
                    "chat template: need one that prints the same text for the same words, got another text each "
                    f"time. {_MEND}"
                )
            return text, in_parts
        counts = f"the question {text.count(USER)} times and the answer {text.count(ASSISTANT)} times"
        first = first or ModelError(
            f"chat template: need one that prints a question and, behind it, the answer once, got {counts} in "
            f"{text[:80]!r}. {_MEND}"
        )
    assert first is not None
    raise first


def _find_form(tokenizer: "PreTrainedTokenizerBase") -> Form:
    added = {token_id: str(token) for token_id, token in tokenizer.added_tokens_decoder.items()}
    special = {token_id: added[token_id] for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    special.update(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    added.update(special)
    # runs of blanks are tokens of their own in some vocabularies
    marks = {text: token_id for token_id, text in added.items() if text.strip()}
    has_template = bool(tokenizer.chat_template)
    before = behind = end_text = ""
    middle, lead, in_parts = "\nAnswer:", " ", False
    start_ids: list[int] = []
    if has_template:
        text, in_parts = _probe(tokenizer)
        question, _, behind = text.partition(ASSISTANT)
        before, _, middle = question.rpartition(USER)
        middle, lead = _split_lead(tokenizer, middle, marks)
        end_text = _end_text(tokenizer, behind, marks, in_parts=in_parts)
    else:
        alone = list(tokenizer("", verbose=False)["input_ids"])
        start_ids = alone[:1] if alone and alone[0] == tokenizer.bos_token_id else []
    context = _last_part(middle, marks)
    head, probe_length = _head(tokenizer, context, lead) or (tokens(tokenizer, [context])[0], 0)
    end_ids = _end_ids(tokenizer, context + lead, end_text)
    if not end_ids:
        raise ModelError(
            "tokenizer: need a token that ends a response, got no chat template with one and no eos_token. "
            "Set eos_token in tokenizer_config.json of the model's folder"
        )
    ends_with_token = end_ids[-1] in added or end_ids[-1] == tokenizer.eos_token_id
    # what the template itself prints in these places cannot be part of a row's words
    own = {mark for mark in marks if mark in before or mark in end_text} - set(special.values())
    anchors = [_anchor(tokenizer, _last_part(place, marks), gap) for place, gap in ((middle, lead), (before, ""))]
    return Form(
        has_template=has_template,
        in_parts=in_parts,
        start_ids=start_ids,
        before=before,
        middle=middle,
        lead=lead,
        behind=behind,
        end_text=end_text,
        end_ids=end_ids,
        ends_with_token=ends_with_token,
        context=context,
        head=head,
        probe_length=probe_length,
        anchor=anchors[0],
        word_anchor=anchors[1],
        plain_texts=tuple(sorted({*special.values(), *own})),
        broken_texts=tuple(sorted(own)),
        unknown_id=_unknown_id(tokenizer),
        fingerprint=_fingerprint(
            tokenizer, [in_parts, start_ids, before, middle, lead, end_text, end_ids, context, head, *anchors]
        ),
    )


def _unknown_id(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        ends = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
        return None if tokenizer.unk_token_id in ends else tokenizer.unk_token_id
    model = json.loads(backend.to_str())["model"]
    if model.get("byte_fallback"):
        return None
    # a Unigram model has its number, the others its text
    number, text = model.get("unk_id"), model.get("unk_token")
    return number if isinstance(number, int) else backend.token_to_id(text) if text else None


def _end_text(tokenizer: "PreTrainedTokenizerBase", behind: str, marks: dict[str, int], *, in_parts: bool) -> str:
    """What ends an answer: all up to the first added token behind it, else the text that closes it whatever follows.

    Where nothing is printed behind an answer (GLM-4), the token that opens the next turn ends it. Empty where only
    white space stands behind it: then the tokenizer's eos does.
    """
    if end := _up_to_mark(behind, marks):
        return end
    try:
        text = _render(tokenizer, USER, ASSISTANT, USER, in_parts=in_parts)
    except ModelError:
        return ""
    gap = text.partition(ASSISTANT)[2].rpartition(USER)[0]
    # what stands there whoever speaks next, its first line: the next turn's own beginning is not the end of this one
    shared = behind[: _num_shared([behind, gap])]
    if shared.strip():
        return shared[: len(shared) - len(shared.lstrip())] + shared.strip().split("\n")[0].rstrip()
    end = _up_to_mark(gap, marks)
    mark = end.strip()
    # a template that begins each turn anew does not end one with it
    is_bos = marks.get(mark) == tokenizer.bos_token_id and mark != tokenizer.eos_token
    return end if mark in marks and not is_bos else ""


def _up_to_mark(text: str, marks: dict[str, int]) -> str:
    places = [(text.find(mark), -len(mark)) for mark in marks if mark in text]
    if not places:
        return ""
    start, negative_length = min(places)
    return text[: start - negative_length]


def _end_ids(tokenizer: "PreTrainedTokenizerBase", context: str, end_text: str) -> list[int]:
    if not end_text:
        return [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    without, ended = tokens(tokenizer, [context + "a", context + "a" + end_text])
    if ended[: len(without)] == without:
        return ended[len(without) :]
    return tokens(tokenizer, [end_text])[0]


def _last_part(text: str, marks: dict[str, int]) -> str:
    """The text from its last added token on: what stands in front of that does not change the tokens behind it."""
    starts = [(text.rfind(mark), len(mark)) for mark in marks if mark in text]
    return text[max(starts)[0] :] if starts else text


def _split_lead(tokenizer: "PreTrainedTokenizerBase", middle: str, marks: dict[str, int]) -> tuple[str, str]:
    """The middle without blanks, or other white space, at its end that merge with an answer's first word; and those."""
    for kept in (middle.rstrip(" "), middle.rstrip()):
        lead = middle[len(kept) :]
        if _head(tokenizer, _last_part(kept, marks), lead) is not None:
            return kept, lead
    return middle, ""


def _head(tokenizer: "PreTrainedTokenizerBase", context: str, lead: str) -> tuple[list[int], int] | None:
    """The tokens of `context` in front of any word, and how many lead and PROBE have behind it; None where they depend
    on the word."""
    head, *joined = tokens(tokenizer, [context, *(context + lead + word for word in _WORDS)])
    if any(ids[: len(head)] != head for ids in joined):
        # white space may be cut otherwise in front of words than at the end of a text, but always alike
        head = joined[0][: _num_shared(joined)]
        rest = tokenizer.batch_decode([ids[len(head) :] for ids in joined])
        if rest != [lead + word for word in _WORDS]:
            return None
    return head, len(joined[0]) - len(head)


def _num_shared(sequences: Sequence[Sequence[Any]]) -> int:
    """The number of first items that all have in common."""
    shared = takewhile(lambda items: len(set(items)) == 1, zip(*sequences, strict=False))
    return sum(1 for _ in shared)


def _anchor(tokenizer: "PreTrainedTokenizerBase", context: str, lead: str) -> str:
    """Plain text behind which words get the tokens that they have behind `context`; empty where they stand alone."""
    found = _head(tokenizer, context, lead)
    if found is None:
        return ""
    joined = tokens(tokenizer, [context + lead + word for word in _WORDS])
    wanted = [ids[len(found[0]) :] for ids in joined]
    for anchor in (context, "", "\n", ":", "a\n"):
        if plain_tokens(tokenizer, [lead + word for word in _WORDS], anchor=anchor) == wanted:
            return anchor
    return ""


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
