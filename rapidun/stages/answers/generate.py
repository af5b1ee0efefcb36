"""Greedy decoding of many prompts: rows that end leave, others take their place (decode.py), or by `generate`."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from rapidun.models.batching import batching, neutral_generation_config
from rapidun.stages.answers.decode import decode_greedy, decoding
from rapidun.stages.answers.score import Scores
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


class _Ends:
    """What ends an answer: tokens, and a text where that is no token of its own."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        form = form_of(tokenizer)
        self.tokenizer = tokenizer
        self.tokens = [*stop_token_ids(tokenizer), *model_eos_ids(model, tokenizer)]
        self.text = "" if form.ends_with_token else form.end_text.strip()
        # it may begin anywhere in the tokens before its last
        self.num_tokens = len(self.text.encode()) + 1

    def holds_text(self, new: Sequence[int]) -> bool:
        """Whether the last tokens of an answer hold the text."""
        return bool(self.text) and self.text in self.tokenizer.decode(new[-self.num_tokens :])

    def before(self, new: list[int]) -> list[int]:
        """An answer without what ends it and what comes behind."""
        end = next((place for place, token in enumerate(new) if token in self.tokens), len(new))
        return _before(self.tokenizer, new[:end], self.text) if self.text else new[:end]


class _Texts(StoppingCriteria):
    """Stops a row once its new tokens hold the text."""

    def __init__(self, ends: _Ends, *, width: int) -> None:
        self.ends, self.width = ends, width

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        done = [self.ends.holds_text(new) for new in input_ids[:, self.width :].tolist()]
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
    on_step: Callable[[list[int]], None] = lambda rows: None,
    scores: Scores | None = None,
) -> list[list[int]]:
    """The tokens that the model adds to each prompt, each step the likeliest one, what stops them left out.

    y_t = argmax_v p(v | prompt, y_<t), until a stop token, the text that ends an answer, or max_new_tokens. The other
    rows of a batch and the padding change logits by rounding only; where they change more, prompts go one by one. In
    bfloat16 rounding can decide a near tie; but which rows go together is a function of the prompts and of the model,
    so the same prompts always give the same generations.

    Args:
        model: a causal language model in eval mode, with or without a PEFT adapter.
        prompts: token ids, as encode_prompt gives them. tokens_per_batch: most tokens read at once, padding counted;
        as many are decoded at once, new ones counted, or as many as keep their keys and values in the memory of so many
        tokens' logits. max_rows: most rows decoded at once.
        on_batch: told the indices of the prompts that are done. on_step: those that got a token.
        scores: responses to be scored while their prompts are read, where that costs less (score_responses does the
        rest, and all of them where not).
    """
    # the same prompts have the same answers
    indices: dict[tuple[int, ...], list[int]] = {}
    for index, prompt in enumerate(prompts):
        indices.setdefault(tuple(prompt), []).append(index)
    if not indices:
        return []
    # prompts in an order that does not depend on the caller's
    distinct = sorted(indices, key=lambda prompt: (len(prompt), prompt))
    ends = _Ends(model, tokenizer)
    pad = tokenizer.pad_token_id
    found = decoding(model, pad_token_id=pad)
    here = {p: n for n, p in enumerate(distinct) if len(p) + max_new_tokens <= found.longest}
    there = {p: n for n, p in enumerate(distinct) if p not in here}

    def told(by: Callable[[list[int]], None], numbers: list[int]) -> None:
        if numbers:
            by([index for number in numbers for index in indices[distinct[number]]])

    new: dict[int, list[int]] = {}
    how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "max_rows": max_rows, "on_done": partial(told, on_batch)}
    if there:
        new |= _by_generate(model, tokenizer, there, ends=ends, tokens_per_batch=tokens_per_batch, **how)
    if here:
        new |= decode_greedy(
            model,
            here,
            ended=lambda new: new[-1] in ends.tokens or ends.holds_text(new),
            tokens_read=tokens_per_batch,
            tokens_kept=tokens_per_batch * found.tokens_for_logits,
            pad_token_id=pad,
            on_step=partial(told, on_step),
            scores=Scores([]) if scores is None else scores,
            **how,
        )
    answers: list[list[int]] = [[] for _ in prompts]
    for number, text in enumerate(distinct):
        for index in indices[text]:
            answers[index] = ends.before(new[number])
    return answers


def _by_generate(
    model: Any,
    tokenizer: Any,
    prompts: Mapping[tuple[int, ...], int],
    *,
    ends: _Ends,
    max_new_tokens: int,
    tokens_per_batch: int,
    max_rows: int | None,
    on_done: Callable[[list[int]], None],
) -> dict[int, list[int]]:
    """The new tokens of each prompt, by its number, what ends them and what comes behind included."""
    pad = tokenizer.pad_token_id
    device = next(model.parameters()).device
    found = batching(model, pad_token_id=pad)
    if not found.left:
        max_rows = 1
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=ends.tokens,
        pad_token_id=pad,
        use_cache=found.cache,
    )
    texts, numbers = list(prompts), list(prompts.values())
    lengths = [len(prompt) + max_new_tokens for prompt in texts]
    new: dict[int, list[int]] = {}
    with neutral_generation_config(model):
        # the longest batch first: if memory runs out, it does so at once
        for batch in reversed(token_budget_batches(lengths, max_tokens=tokens_per_batch, max_rows=max_rows)):
            inputs = collate_prompts([list(texts[place]) for place in batch], pad_token_id=pad)
            width = inputs["input_ids"].shape[1]
            criteria = StoppingCriteriaList([_Texts(ends, width=width)] if ends.text else [])
            # not inference_mode: buffers that the model makes on the way would be of no use to a later backward pass
            with torch.no_grad():
                output = model.generate(
                    input_ids=inputs["input_ids"].to(device),
                    attention_mask=inputs["attention_mask"].to(device),
                    generation_config=config,
                    stopping_criteria=criteria,
                )
            new |= zip([numbers[place] for place in batch], output[:, width:].tolist(), strict=True)
            on_done([numbers[place] for place in batch])
    return new
