"""Greedy decoding in length-bucketed, left-padded batches."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from rapidun.models.batching import batching, neutral_generation_config
from rapidun.stages.rows.batches import token_budget_batches
from rapidun.stages.rows.encode import collate_prompts
from rapidun.stages.rows.template import form_of


def stop_token_ids(tokenizer: Any) -> list[int]:
    """Tokens that end a generation: the end of turn that the one encoding teaches, and the tokenizer's eos."""
    form = form_of(tokenizer)
    ids = [form.end_ids[-1] if form.ends_with_token else None, tokenizer.eos_token_id]
    return list(dict.fromkeys(token_id for token_id in ids if token_id is not None))


def model_eos_ids(model: Any, tokenizer: Any) -> list[int]:
    """The model's own eos (its generation config may list several), as far as they are no ordinary pieces of text.

    A config made without a thought for its tokenizer names any number.
    """
    marks = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    ids: list[int] = []
    for config in (model.generation_config, model.config):
        found = getattr(config, "eos_token_id", None)
        ids += [i for i in (found if isinstance(found, list | tuple) else [found]) if i is not None and i in marks]
    return list(dict.fromkeys(ids))


class _Texts(StoppingCriteria):
    """Stops a row once its new tokens hold the text that ends an answer, where that is no token of its own."""

    def __init__(self, tokenizer: Any, text: str, *, width: int) -> None:
        self.tokenizer, self.text, self.width = tokenizer, text, width
        # it may begin anywhere in the tokens before its last
        self.num_tokens = len(text.encode()) + 1

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        new = input_ids[:, self.width :][:, -self.num_tokens :]
        done = [self.text in text for text in self.tokenizer.batch_decode(new)]
        return torch.tensor(done, device=input_ids.device)


def _before(tokenizer: Any, tokens: list[int], text: str) -> list[int]:
    """The tokens in front of a text, all where it does not come."""
    whole = tokenizer.decode(tokens)
    if text not in whole:
        return tokens
    size = len(whole.partition(text)[0])
    return next(tokens[:n] for n in range(len(tokens), -1, -1) if len(tokenizer.decode(tokens[:n])) <= size)


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
    """The tokens that the model adds to each prompt, each step the likeliest one, what stops them left out.

    y_t = argmax_v p(v | prompt, y_<t), until a stop token, the text that ends an answer, or max_new_tokens. The other
    rows of a batch and the padding change logits by rounding only; where they change more, prompts go one by one. In
    bfloat16 rounding can decide a near tie; but the batches are a function of the prompts' lengths, so the same prompts
    always give the same generations.

    Args:
        model: a causal language model in eval mode, with or without a PEFT adapter.
        prompts: token ids, as encode_prompt gives them. tokens_per_batch: most padded tokens, new ones counted.
        on_batch: told the indices of the prompts that are done.
    """
    if not prompts:
        return []
    stop = [*stop_token_ids(tokenizer), *model_eos_ids(model, tokenizer)]
    form = form_of(tokenizer)
    end_text = "" if form.ends_with_token else form.end_text.strip()
    device = next(model.parameters()).device
    found = batching(model, pad_token_id=tokenizer.pad_token_id)
    if not found.left:
        max_rows = 1
    new: dict[int, list[int]] = {}
    lengths = [len(prompt) + max_new_tokens for prompt in prompts]
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=stop,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=found.cache,
    )
    with neutral_generation_config(model):
        # the longest batch first: if memory runs out, it does so at once
        for batch in reversed(token_budget_batches(lengths, max_tokens=tokens_per_batch, max_rows=max_rows)):
            inputs = collate_prompts([prompts[i] for i in batch], pad_token_id=tokenizer.pad_token_id)
            width = inputs["input_ids"].shape[1]
            texts = StoppingCriteriaList([_Texts(tokenizer, end_text, width=width)] if end_text else [])
            # not inference_mode: buffers that the model makes on the way would be of no use to a later backward pass
            with torch.no_grad():
                output = model.generate(
                    input_ids=inputs["input_ids"].to(device),
                    attention_mask=inputs["attention_mask"].to(device),
                    generation_config=config,
                    stopping_criteria=texts,
                )
            for index, tokens in zip(batch, output[:, width:].tolist(), strict=True):
                end = next((place for place, token in enumerate(tokens) if token in stop), len(tokens))
                new[index] = _before(tokenizer, tokens[:end], end_text) if end_text else tokens[:end]
            on_batch(batch)
    return [new[index] for index in range(len(prompts))]
