import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from rapidun.stages.answers.generate import generate_greedy, stop_token_ids
from rapidun.stages.rows.encode import encode_prompts

TEXTS = ["a", "bc de", "hello there", "x" * 40, "what is 1 + 1?", "zz top", "hey you", "the end of it all"]


def naive(model: Any, prompt: list[int], stop: list[int], max_new_tokens: int) -> list[int]:
    """One row, no cache, no padding: the whole text again for every token."""
    ids = list(prompt)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token in stop:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    return encode_prompts(tokenizer, [(text, "") for text in TEXTS], max_length=64)


def run(model: Any, tokenizer: Any, prompts: list[list[int]], **settings: Any) -> list[list[int]]:
    return generate_greedy(model, tokenizer, prompts, **{"max_new_tokens": 12, "tokens_per_batch": 200, **settings})


def test_equals_a_naive_argmax_loop(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    expected = [naive(model, prompt, [2], 12) for prompt in prompts]
    assert run(model, tokenizer, prompts) == expected
    assert len({tuple(tokens) for tokens in expected}) > 4, "a model that says one thing to all would show nothing"


def test_stops_at_any_stop_token(model: Any, tokenizer: Any, prompts: list[list[int]], monkeypatch: Any) -> None:
    """Stop tokens chosen among the tokens that the model does say, so that rows of a batch end at different steps."""
    free = [naive(model, prompt, [2], 12) for prompt in prompts]
    stop = [free[0][3], free[2][5], 2]
    monkeypatch.setattr("rapidun.stages.answers.generate.stop_token_ids", lambda tokenizer: stop)
    expected = [naive(model, prompt, stop, 12) for prompt in prompts]
    assert run(model, tokenizer, prompts) == expected
    assert len({len(tokens) for tokens in expected}) > 1


@pytest.mark.parametrize("settings", [{"tokens_per_batch": 1}, {"tokens_per_batch": 10**6}, {"max_rows": 3}])
def test_the_batch_does_not_matter(
    model: Any, tokenizer: Any, prompts: list[list[int]], settings: dict[str, int]
) -> None:
    assert run(model, tokenizer, prompts, **settings) == run(model, tokenizer, prompts)


def test_the_order_does_not_matter(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    assert run(model, tokenizer, prompts[::-1]) == run(model, tokenizer, prompts)[::-1]


def test_the_models_own_generation_settings_do_not_matter(
    model: Any, tokenizer: Any, prompts: list[list[int]], caplog: Any
) -> None:
    """Sampling, penalties and lengths that a model folder brings are put aside, and are there again afterwards."""
    expected = run(model, tokenizer, prompts)
    own = GenerationConfig(
        do_sample=True, temperature=9.0, top_k=3, top_p=0.2, repetition_penalty=5.0, no_repeat_ngram_size=1,
        max_length=20, min_new_tokens=11, eos_token_id=7,
    )  # fmt: skip
    kept = model.generation_config
    model.generation_config = own
    try:
        assert run(model, tokenizer, prompts) == expected
        assert model.generation_config is own
    finally:
        model.generation_config = kept
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft reads transformers' old name
def test_an_adapter_is_used(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    """With a LoRA on top the answers are those of base + adapter, by the same naive loop."""
    settings = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    wrapped = get_peft_model(copy.deepcopy(model), settings).eval()
    wrapped.base_model.model.generation_config.repetition_penalty = 5.0
    expected = [naive(wrapped, prompt, [2], 12) for prompt in prompts]
    assert run(wrapped, tokenizer, prompts) == expected
    assert expected != run(model, tokenizer, prompts)


def test_stop_tokens(tokenizer: Any) -> None:
    """<end> (2) closes a turn of the template and is the eos; with another eos both stop."""
    assert stop_token_ids(tokenizer) == [2]
    other = copy.deepcopy(tokenizer)
    other.eos_token = "<s>"
    assert stop_token_ids(other) == [2, 1]


def test_tells_every_prompt_once_and_takes_none(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    told: list[int] = []
    run(model, tokenizer, prompts, on_batch=told.extend)
    assert sorted(told) == list(range(len(prompts)))
    assert run(model, tokenizer, []) == []
