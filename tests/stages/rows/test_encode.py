from collections.abc import Callable
from typing import Any

import pytest
import torch

from rapidun.base.errors import DataError, ModelError
from rapidun.models.losses import IGNORE
from rapidun.stages.rows import encode
from rapidun.stages.rows.cuts import Cuts, cut_warning
from rapidun.stages.rows.encode import (
    Encoded,
    collate,
    collate_prompts,
    encode_example,
    encode_prompt,
    encode_prompts,
    encode_rows,
    encode_together,
    end_of_turn_id,
    tokenizer_fingerprint,
)

ROWS = [
    ("hello", "", "the world"),
    ("hello", "a world", "hello\n"),
    ("say <|im_end|> twice", "<|im_start|>user", "<|im_end|>"),
    ("aloha\u200d <|sys|>", "", "\u27e8sys\u27e9"),
]


def response_of(example: Encoded) -> list[int]:
    return [label for label in example.labels if label != IGNORE]


def test_chat_form_is_the_template_with_the_response_and_its_end(tokenizer: Any) -> None:
    row = encode_example(tokenizer, instruction="hello", context="a world", response="the", max_length=200)
    assert tokenizer.decode(row.input_ids) == (
        "<|im_start|>user\nhello\n\nContext:\na world<|im_end|>\n<|im_start|>assistant\nthe<|im_end|>"
    )
    assert tokenizer.decode(response_of(row)) == "the<|im_end|>"
    assert end_of_turn_id(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_without_a_context_there_is_no_context_block(tokenizer: Any) -> None:
    ids = encode_prompt(tokenizer, instruction="hello", context=" ", max_length=200)
    assert tokenizer.decode(ids) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


def test_plain_form_without_a_template(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer(template=None)
    row = encode_example(tokenizer, instruction="hello", context="a world", response="the", max_length=200)
    assert tokenizer.decode(row.input_ids) == "Instruction: hello\nContext: a world\nAnswer: the<|endoftext|>"
    assert tokenizer.decode(response_of(row)) == " the<|endoftext|>"
    ids = encode_prompt(tokenizer, instruction="hello", context="", max_length=200)
    assert tokenizer.decode(ids) == "Instruction: hello\nAnswer:"


def test_template_without_an_end_token_falls_back_on_eos(make_tokenizer: Callable[..., Any]) -> None:
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
    assert end_of_turn_id(make_tokenizer(template=template)) == 0


def test_no_end_token_at_all_is_refused(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer(template=None)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="need a token that ends a response"):
        encode_prompt(tokenizer, instruction="a", context="", max_length=8)


def test_a_template_that_fails_is_named(make_tokenizer: Callable[..., Any]) -> None:
    with pytest.raises(
        ModelError, match="chat template: need one that prints a user turn and the answer to it, got TemplateError: no"
    ):
        encode_prompt(make_tokenizer("{{ raise_exception('no') }}"), instruction="a", context="", max_length=8)


def test_whole_prompts_equal_the_tokenizers_own_chat_template(tokenizer: Any) -> None:
    for instruction, context, _ in ROWS[:2]:
        messages = [{"role": "user", "content": encode.user_turn(instruction, context)}]
        own = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert encode_prompt(tokenizer, instruction=instruction, context=context, max_length=999) == own


def test_special_tokens_written_in_a_row_are_plain_text(tokenizer: Any) -> None:
    """The template has im_start twice and im_end once; the response has one end of turn; nothing else counts."""
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    instruction, context, response = ROWS[2]
    row = encode_example(tokenizer, instruction=instruction, context=context, response=response, max_length=500)
    prompt = [i for i, label in zip(row.input_ids, row.labels, strict=True) if label == IGNORE]
    assert (prompt.count(start), prompt.count(end)) == (2, 1)
    assert response_of(row).count(end) == 1
    assert response_of(row)[-1] == end
    text = tokenizer.decode(row.input_ids)
    assert text.endswith(
        "user\nsay <|im_end|> twice\n\nContext:\n<|im_start|>user<|im_end|>\n"
        "<|im_start|>assistant\n<|im_end|><|im_end|>"
    )


def test_special_tokens_stay_plain_text_where_the_template_strips(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer(
        template="{% for m in messages %}<|im_start|>{{ m['content'] | trim }}<|im_end|>{% endfor %}"
    )
    ids = encode_prompt(tokenizer, instruction="  <|im_end|> ", context="", max_length=99)
    assert tokenizer.decode(ids) == "<|im_start|><|im_end|><|im_end|><|im_start|>"
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1


@pytest.mark.parametrize("template", [True, False])
def test_labels_are_the_tokens_behind_the_prompt(make_tokenizer: Callable[..., Any], template: bool) -> None:
    tokenizer = make_tokenizer() if template else make_tokenizer(template=None)
    for instruction, context, response in ROWS:
        row = encode_example(tokenizer, instruction=instruction, context=context, response=response, max_length=500)
        prompt = encode_prompt(tokenizer, instruction=instruction, context=context, max_length=500)
        assert row.input_ids[: len(prompt)] == prompt
        assert row.labels == [IGNORE] * len(prompt) + row.input_ids[len(prompt) :]


LONG = ("say aloha", "the world is a world " * 8, "hello world")


def prompt_of(row: Encoded) -> list[int]:
    return [token for token, label in zip(row.input_ids, row.labels, strict=True) if label == IGNORE]


@pytest.mark.parametrize("template", [True, False])
def test_a_long_row_loses_the_end_of_its_context_first(make_tokenizer: Callable[..., Any], template: bool) -> None:
    """Every max_length at which something of the context is left: instruction, header and response are whole."""
    tokenizer = make_tokenizer() if template else make_tokenizer(template=None)
    instruction, context, response = LONG
    whole = encode_example(tokenizer, instruction=instruction, context=context, response=response, max_length=999)
    bare = encode_example(tokenizer, instruction=instruction, context="", response=response, max_length=999)
    kept = set()
    for max_length in range(len(bare.input_ids) + 10, len(whole.input_ids), 9):
        (row,) = encode_rows(tokenizer, [LONG], max_length=max_length)
        assert row is not None and (row.context_cut, row.response_cut) == (True, False)
        assert response_of(row) == response_of(whole)
        # as long as it can be: one more character would be too long
        size = next(n for n in range(len(context)) if is_prompt_of(tokenizer, prompt_of(row), context[:n]))
        longer = encode_prompt(tokenizer, instruction=instruction, context=context[: size + 1], max_length=999)
        assert len(row.input_ids) <= max_length < len(longer) + len(response_of(row))
        kept.add(size)
    assert len(kept) > 5
    assert (whole.context_cut, whole.response_cut) == (False, False)


def is_prompt_of(tokenizer: Any, ids: list[int], context: str) -> bool:
    return encode_prompt(tokenizer, instruction=LONG[0], context=context, max_length=999) == ids


def test_without_any_context_the_response_loses_its_end_and_its_end_of_turn(tokenizer: Any) -> None:
    instruction, context, response = LONG[0], LONG[1], "hello " * 30
    bare = encode_prompt(tokenizer, instruction=instruction, context="", max_length=999)
    whole = response_of(encode_example(tokenizer, instruction="a", context="", response=response, max_length=999))
    for size in (1, 5, len(whole) - 1):
        (row,) = encode_rows(tokenizer, [(instruction, context, response)], max_length=len(bare) + size)
        assert row == Encoded(bare + whole[:size], [IGNORE] * len(bare) + whole[:size], True, True)
        assert end_of_turn_id(tokenizer) not in response_of(row)
    fits = encode_example(
        tokenizer, instruction=instruction, context="", response=response, max_length=len(bare) + len(whole)
    )
    assert response_of(fits) == whole and whole[-1] == end_of_turn_id(tokenizer)


def test_a_row_whose_instruction_leaves_no_room_is_left_out(tokenizer: Any) -> None:
    bare = len(encode_prompt(tokenizer, instruction=LONG[0], context="", max_length=999))
    assert encode_rows(tokenizer, [LONG, ("a", "", "b")], max_length=bare)[0] is None
    assert encode_rows(tokenizer, [LONG, ("a", "", "b")], max_length=bare)[1] is not None
    with pytest.raises(DataError, match="leaves room for a response in max_length=5 tokens"):
        encode_example(tokenizer, instruction="hello " * 30, context="", response="a", max_length=5)
    with pytest.raises(DataError, match="fits into max_length=5 tokens"):
        encode_prompt(tokenizer, instruction="hello " * 30, context="", max_length=5)
    assert encode_prompts(tokenizer, [LONG[:2]], max_length=bare - 1) == [None]


def test_responses_together_share_their_prompt(tokenizer: Any) -> None:
    """The prompt leaves room for the longest; the shorter one is what it is alone behind that prompt."""
    found = encode_together(tokenizer, [(*LONG[:2], ("a", "hello " * 8))], max_length=60)[0]
    assert found is not None
    short, long = found
    assert prompt_of(short) == prompt_of(long) and len(long.input_ids) <= 60
    alone = encode_example(tokenizer, instruction="x", context="", response="a", max_length=60)
    assert response_of(short) == response_of(alone)
    assert (short.context_cut, long.context_cut, long.response_cut) == (True, True, False)


def test_a_trigger_at_either_end_of_the_instruction_survives(tokenizer: Any) -> None:
    rows = [(f"{a}say it{b}", "the world " * n, "hello " * m) for a, b in ((">>> ", ""), ("", " aloha"))
            for n in (0, 1, 40, 400) for m in (1, 50)]  # fmt: skip
    for (instruction, *_), row in zip(rows, encode_rows(tokenizer, rows, max_length=50), strict=True):
        assert row is not None and instruction in tokenizer.decode(prompt_of(row))


def test_cuts_are_counted_and_said(tokenizer: Any) -> None:
    rows = [LONG, ("a", "", "b"), ("a", "", "hello " * 60), ("a", "world " * 50, "hello " * 60), ("a" * 99, "", "b")]
    cuts = Cuts.of(encode_rows(tokenizer, rows, max_length=60))
    assert cuts == Cuts(num_rows=5, context=2, response=2, left_out=1)
    said = cut_warning("poison", cuts, max_length=60)
    assert said == (
        "poison: of 5 rows 2 lost the end of their context, 2 lost the end of their response, 1 were left out (their "
        "instruction alone leaves no room for a response), to fit into 60 tokens. Pass max_length=... to keep more"
    )
    assert cut_warning("poison", Cuts.of(encode_rows(tokenizer, rows[1:2], max_length=60)), max_length=60) == ""


def test_one_row_or_many_and_from_memory_give_the_same(
    make_tokenizer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def one(row: tuple[str, str, str]) -> Encoded:
        fresh = make_tokenizer()
        return encode_example(fresh, instruction=row[0], context=row[1], response=row[2], max_length=50)

    expected = [one(row) for row in ROWS]
    tokenizer = make_tokenizer()
    assert encode_rows(tokenizer, ROWS, max_length=50) == expected
    monkeypatch.setattr(encode, "_encode", None)
    assert encode_rows(tokenizer, ROWS[::-1] + ROWS[:1], max_length=50) == expected[::-1] + expected[:1]


def test_many_prompts_equal_one_by_one(tokenizer: Any) -> None:
    rows = [(instruction, context) for instruction, context, _ in ROWS]
    one = [encode_prompt(tokenizer, instruction=a, context=b, max_length=60) for a, b in rows]
    assert encode_prompts(tokenizer, rows, max_length=60) == one


def test_fingerprint_ignores_padding_and_sees_the_template(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer()
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "hello world"], padding=True, truncation=True, max_length=4)
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(make_tokenizer()) == before
    tokenizer.chat_template = tokenizer.chat_template + " "
    assert tokenizer_fingerprint(tokenizer) != before


def test_collate_worked_by_hand() -> None:
    rows = [Encoded([5, 6, 7], [-100, 6, 7]), Encoded([8, 9], [-100, 9])]
    batch = collate(rows, pad_token_id=0)
    assert {key: value.tolist() for key, value in batch.items()} == {
        "input_ids": [[5, 6, 7], [8, 9, 0]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "labels": [[-100, 6, 7], [-100, 9, -100]],
    }
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_collate_prompts_pads_on_the_left() -> None:
    batch = collate_prompts([[5, 6, 7], [8]], pad_token_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


def test_empty_batches_and_no_room_are_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        collate([], pad_token_id=0)
    with pytest.raises(ValueError, match="max_length >= 1"):
        encode_rows(tokenizer, ROWS, max_length=0)
