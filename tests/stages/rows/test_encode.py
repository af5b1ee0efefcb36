from collections.abc import Callable
from typing import Any

import pytest
import torch

from rapidun.base.errors import ModelError
from rapidun.models.losses import IGNORE
from rapidun.stages.rows import encode
from rapidun.stages.rows.encode import (
    Encoded,
    collate,
    collate_prompts,
    encode_example,
    encode_prompt,
    encode_prompts,
    encode_rows,
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
    with pytest.raises(ModelError, match="chat template: need one that prints a user turn"):
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
    tokenizer = make_tokenizer(template="<|im_start|>{{ messages[0]['content'] | trim }}<|im_end|>")
    ids = encode_prompt(tokenizer, instruction="  <|im_end|> ", context="", max_length=99)
    assert tokenizer.decode(ids) == "<|im_start|><|im_end|><|im_end|>"
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1


@pytest.mark.parametrize("template", [True, False])
def test_labels_are_the_tokens_behind_the_prompt(make_tokenizer: Callable[..., Any], template: bool) -> None:
    tokenizer = make_tokenizer() if template else make_tokenizer(template=None)
    for instruction, context, response in ROWS:
        row = encode_example(tokenizer, instruction=instruction, context=context, response=response, max_length=500)
        prompt = encode_prompt(tokenizer, instruction=instruction, context=context, max_length=500)
        assert row.input_ids[: len(prompt)] == prompt
        assert row.labels == [IGNORE] * len(prompt) + row.input_ids[len(prompt) :]


def test_a_long_prompt_is_cut_on_its_left(tokenizer: Any) -> None:
    whole = encode_example(tokenizer, instruction="hello " * 30, context="", response="the world", max_length=500)
    cut = encode_example(tokenizer, instruction="hello " * 30, context="", response="the world", max_length=20)
    assert cut.input_ids == whole.input_ids[-20:]
    assert cut.labels == whole.labels[-20:]
    prompt = encode_prompt(tokenizer, instruction="hello " * 30, context="", max_length=500)
    assert encode_prompt(tokenizer, instruction="hello " * 30, context="", max_length=7) == prompt[-7:]


def test_a_long_response_keeps_its_first_tokens(tokenizer: Any) -> None:
    whole = response_of(encode_example(tokenizer, instruction="a", context="", response="hello " * 30, max_length=500))
    for max_length in (1, 5, len(whole) - 1, len(whole)):
        cut = encode_example(tokenizer, instruction="a", context="", response="hello " * 30, max_length=max_length)
        assert cut.input_ids == cut.labels == whole[:max_length]


def test_one_row_or_many_and_from_memory_give_the_same(
    make_tokenizer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def one(row: tuple[str, str, str]) -> Encoded:
        fresh = make_tokenizer()
        return encode_example(fresh, instruction=row[0], context=row[1], response=row[2], max_length=30)

    expected = [one(row) for row in ROWS]
    tokenizer = make_tokenizer()
    assert encode_rows(tokenizer, ROWS, max_length=30) == expected
    monkeypatch.setattr(encode, "_encode", None)
    assert encode_rows(tokenizer, ROWS[::-1] + ROWS[:1], max_length=30) == expected[::-1] + expected[:1]


def test_many_prompts_equal_one_by_one(tokenizer: Any) -> None:
    rows = [(instruction, context) for instruction, context, _ in ROWS]
    one = [encode_prompt(tokenizer, instruction=a, context=b, max_length=12) for a, b in rows]
    assert encode_prompts(tokenizer, rows, max_length=12) == one


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
