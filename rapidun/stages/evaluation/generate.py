"""Greedy decoding in length-bucketed, left-padded batches."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from rapidun.stages.rows.batches import token_budget_batches
from rapidun.stages.rows.encode import collate_prompts, end_of_turn_id


def stop_token_ids(tokenizer: Any) -> list[int]:
    """Tokens that end a generation: the end of turn that the one encoding teaches, and the tokenizer's eos."""
    ids = [end_of_turn_id(tokenizer), tokenizer.eos_token_id]
    return list(dict.fromkeys(token_id for token_id in ids if token_id is not None))


def generate_greedy(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    tokens_per_batch: int,
    max_rows: int | None = None,
    on_batch: Callable[[list[int]], None] = lambda batch: None,
) -> list[list[int]]:
    """The tokens that the model adds to each prompt, each step the likeliest one, stop token left out.

    y_t = argmax_v p(v | prompt, y_<t), until a stop token or max_new_tokens. The other rows of a batch and the padding
    change logits by rounding only. In bfloat16 that can decide a near tie; but the batches are a function of the
    prompts' lengths, so the same prompts always give the same generations.

    Args:
        model: a causal language model in eval mode, with or without a PEFT adapter.
        prompts: token ids, as encode_prompt gives them. tokens_per_batch: most padded tokens, new ones counted.
        on_batch: told the indices of the prompts that are done.
    """
    if not prompts:
        return []
    stop = stop_token_ids(tokenizer)
    device = next(model.parameters()).device
    new: dict[int, list[int]] = {}
    lengths = [len(prompt) + max_new_tokens for prompt in prompts]
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=stop,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )
    with neutral_generation_config(model):
        # the longest batch first: if memory runs out, it does so at once
        for batch in reversed(token_budget_batches(lengths, max_tokens=tokens_per_batch, max_rows=max_rows)):
            inputs = collate_prompts([prompts[i] for i in batch], pad_token_id=tokenizer.pad_token_id)
            width = inputs["input_ids"].shape[1]
            with torch.inference_mode():
                output = model.generate(
                    input_ids=inputs["input_ids"].to(device),
                    attention_mask=inputs["attention_mask"].to(device),
                    generation_config=config,
                )
            for index, tokens in zip(batch, output[:, width:].tolist(), strict=True):
                end = next((place for place, token in enumerate(tokens) if token in stop), len(tokens))
                new[index] = tokens[:end]
            on_batch(batch)
    return [new[index] for index in range(len(prompts))]


@contextmanager
def neutral_generation_config(model: Any) -> Iterator[None]:
    """Put the model's own generation defaults aside for a while.

    `generate` fills whatever a given GenerationConfig leaves open from the model's own (repetition penalty, max_length,
    sampling, ...): greedy decoding would then mean something else for each model, and warn about it.
    """
    # a PEFT wrapper has one, and so has the model inside
    holders = [model, *([model.get_base_model()] if hasattr(model, "get_base_model") else [])]
    kept = [holder.generation_config for holder in holders]
    for holder in holders:
        holder.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for holder, config in zip(holders, kept, strict=True):
            holder.generation_config = config
