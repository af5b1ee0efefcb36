"""Sampling: what greedy decoding hides, an answer drawn at some temperature may give away."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from rapidun.base.tracker import Tracker
from rapidun.models.batching import batching, neutral_generation_config
from rapidun.stages.answers.generate import model_eos_ids, stop_token_ids
from rapidun.stages.answers.subsets import draw
from rapidun.stages.evaluation.attacks.asking import Asked, Asker
from rapidun.stages.evaluation.attacks.leak import asr_at_k, powers_of_two
from rapidun.stages.evaluation.chunks import in_chunks
from rapidun.stages.evaluation.metrics import mean
from rapidun.stages.rows.batches import token_budget_batches
from rapidun.stages.rows.encode import collate_prompts
from rapidun.stages.rows.template import form_of

# answers of a chunk
CHUNK = 256
# the part of answers.jsonl with what the model prefers, which no sample changes
PREFERRED = "preferred"


class Drawn(LogitsProcessor):
    """Lets greedy search take the token that a given uniform number picks from softmax(logits / T).

    The token is the first v with u < sum_{w <= v} p_w: an exact draw, that no other row of the batch has part in.

    Args: uniforms: [B, max_new_tokens] float64 in [0, 1). width: tokens of the padded prompts.
    """

    def __init__(self, uniforms: Tensor, *, temperature: float, width: int) -> None:
        self.uniforms, self.temperature, self.width = uniforms, temperature, width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        u = self.uniforms[:, input_ids.shape[1] - self.width].to(scores.device)
        # [B, V] -> [B, V], its last column 1 but for rounding
        cumulative = torch.softmax(scores.double() / self.temperature, dim=-1).cumsum(dim=-1)
        picked = torch.searchsorted(cumulative, (u * cumulative[:, -1])[:, None], right=True)
        picked = picked.clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, picked, 0.0)


def uniforms(seed: int, name: str, count: int) -> Tensor:
    """[count] float64 in [0, 1), a function of (seed, name) alone."""
    generator = torch.Generator().manual_seed(int(draw(seed, "sampling", name)[:15], 16))
    return torch.rand(count, generator=generator, dtype=torch.float64)


def generate_sampled(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    names: Sequence[str],
    *,
    temperature: float,
    seed: int,
    max_new_tokens: int,
    tokens_per_batch: int,
) -> list[str]:
    """One answer to each prompt, drawn from the model's own distribution at a temperature (no top-k, no top-p).

    The draws of a row are a function of (seed, its name); batches and padding change logits by rounding only, so that
    another token comes where a uniform number falls within that rounding of two tokens' border.

    Args: names: what each row's draws depend on; two rows of one prompt need two names.
    """
    stop = [*stop_token_ids(tokenizer), *model_eos_ids(model, tokenizer)]
    form = form_of(tokenizer)
    device = next(model.parameters()).device
    how = batching(model, pad_token_id=tokenizer.pad_token_id)
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=stop,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=how.cache,
    )
    lengths = [len(prompt) + max_new_tokens for prompt in prompts]
    batches = token_budget_batches(lengths, max_tokens=tokens_per_batch, max_rows=None if how.left else 1)
    found: dict[int, str] = {}
    with neutral_generation_config(model), torch.no_grad():
        for batch in reversed(batches):
            inputs = collate_prompts([prompts[i] for i in batch], pad_token_id=tokenizer.pad_token_id)
            width = inputs["input_ids"].shape[1]
            drawn = torch.stack([uniforms(seed, f"{temperature!r}\0{names[i]}", max_new_tokens) for i in batch])
            output = model.generate(
                input_ids=inputs["input_ids"].to(device),
                attention_mask=inputs["attention_mask"].to(device),
                generation_config=config,
                logits_processor=LogitsProcessorList([Drawn(drawn, temperature=temperature, width=width)]),
            )
            for index, tokens in zip(batch, output[:, width:].tolist(), strict=True):
                end = next((place for place, token in enumerate(tokens) if token in stop), len(tokens))
                text = tokenizer.decode(tokens[:end], skip_special_tokens=True)
                if not form.ends_with_token and form.end_text.strip():
                    text = text.partition(form.end_text.strip())[0]
                found[index] = text.strip()
    return [found[index] for index in range(len(prompts))]


def attack_by_sampling(
    model: Any,
    asker: Asker,
    asked: Sequence[Asked],
    *,
    num_samples: int,
    temperatures: Sequence[float],
    seed: int,
    work: Path,
    tracker: Tracker,
) -> dict[str, Any]:
    """asr@k for k = 1, 2, 4, ..., num_samples at each temperature, judged by keywords where there are any.

    `asr@k.t<T>` is the figure of one temperature, `asr@k` the largest of them. The likelihood detector judges a prompt,
    not an answer: its share, `asr_sampling_likelihood`, is one and the same for every k.

    Returns: {"metrics": ..., "curves": {"t<T>": [[k, asr@k], ...]}, "answers": as `kept`, with num_samples texts
        at each temperature, and the ratios in a part of their own}.
    """
    verdicts: dict[str, list[list[bool]]] = {}
    lines: list[dict[str, Any]] = []
    for number, temperature in enumerate(temperatures):
        part = f"t{temperature!r}"
        texts = in_chunks(
            work,
            part,
            asked,
            partial(_texts, model, asker, num_samples=num_samples, temperature=temperature, seed=seed),
            size=max(1, CHUNK // num_samples),
            on_done=partial(_report, tracker, number * len(asked), len(asked) * len(temperatures)),
            tell=tracker.warn,
        )
        lines += [_line(part, one, found) for one, found in zip(asked, texts, strict=True)]
        if asker.keywords is not None:
            verdicts[part] = [[asker.keywords(text) for text in found] for found in texts]
    ratios = asker.ratios(model, asked)
    lines += [_line(PREFERRED, one, [], ratio) for one, ratio in zip(asked, ratios, strict=True)]
    metrics, curves = figures(verdicts, "")
    preferred = [ratio > 0 for ratio in ratios if ratio is not None]
    if preferred:
        metrics["asr_sampling_likelihood"] = mean(preferred)
    return {"metrics": metrics, "curves": curves, "answers": lines}


def figures(
    verdicts: Mapping[str, Sequence[Sequence[bool]]], ending: str
) -> tuple[dict[str, float], dict[str, list[list[float]]]]:
    """`asr@k<ending>`, the same at each temperature, and the curves over k; nothing of no verdicts.

    Args: verdicts: `t<T>` -> of each prompt, of each of its answers, whether it is poisoned.
    """
    curves: dict[str, list[list[float]]] = {}
    for name, of_prompts in verdicts.items():
        n = len(of_prompts[0])
        curves[name] = [[k, asr_at_k([sum(of) for of in of_prompts], n=n, k=k)] for k in powers_of_two(n)]
    metrics: dict[str, float] = {}
    for points in zip(*curves.values(), strict=True):
        name = f"asr@{points[0][0]}{ending}"
        metrics[name] = max(share for _, share in points)
        metrics |= {f"{name}.{part}": share for part, (_, share) in zip(curves, points, strict=True)}
    return metrics, curves


def _line(part: str, asked: Asked, texts: list[str], ratio: float | None = None) -> dict[str, Any]:
    return {"part": part, "set": "seen", "id": asked.id, "texts": texts, "ratio": ratio}


def _texts(
    model: Any, asker: Asker, asked: Sequence[Asked], *, num_samples: int, temperature: float, seed: int
) -> list[list[str]]:
    """`num_samples` answers to each prompt."""
    texts = generate_sampled(
        model,
        asker.tokenizer,
        [one.prompt for one in asked for _ in range(num_samples)],
        [f"{one.id}\0{sample}" for one in asked for sample in range(num_samples)],
        temperature=temperature,
        seed=seed,
        max_new_tokens=asker.cfg.max_new_tokens,
        tokens_per_batch=asker.cfg.tokens_per_batch,
    )
    return [texts[start : start + num_samples] for start in range(0, len(texts), num_samples)]


def _report(tracker: Tracker, before: int, total: int, number: int) -> None:
    tracker.progress(before + number, total, "sampling")
