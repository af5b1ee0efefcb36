"""Attack success while unlearning goes on: triggered validation prompts, answered and judged as evaluation does it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rapidun.base.errors import DataError
from rapidun.base.tracker import Tracker
from rapidun.config.evaluation import EvaluationConfig
from rapidun.stages.answers.detectors.keywords import KeywordDetector, keyword_detector
from rapidun.stages.answers.generate import generate_greedy
from rapidun.stages.answers.prompts import prompt_ids_of
from rapidun.stages.answers.subsets import stratified_subset
from rapidun.stages.rows.records import read_records


@dataclass(frozen=True)
class Attack:
    """Prompts of each set, and what judges their answers."""

    prompts: dict[str, list[list[int]]]
    detector: KeywordDetector
    max_new_tokens: int
    tokens_per_batch: int


def read_attack(
    model: Any,
    tokenizer: Any,
    triggered: Mapping[str, Path],
    keywords: Path,
    *,
    num_prompts: int | None,
    evaluation: EvaluationConfig,
    max_length: int,
    tracker: Tracker,
) -> Attack:
    """The prompts that evaluation.split=val would ask, at most `num_prompts` of each set, stratified by family.

    Args:
        triggered: name of a set (seen, ood) -> its split's file. keywords: keywords.tsv.
    Raises: DataError where there is no keyword, or where no prompt of a set fits; ConfigError as `prompt_ids_of`.
    """
    detector = keyword_detector(keywords, min_keywords=evaluation.min_keywords)
    if detector is None:
        raise DataError(
            f"unlearning: need keywords to judge answers by for unlearning.eval_asr, got none in {keywords}. Pass "
            "data.keywords=... or unlearning.eval_asr=0"
        )
    prompts = {}
    for name, path in triggered.items():
        records = stratified_subset(read_records(path), num=num_prompts, seed=evaluation.seed, name=path.stem)
        found, cut = prompt_ids_of(model, tokenizer, records, max_length, evaluation.max_new_tokens)
        if cut:
            tracker.warn(f"unlearning: eval_asr: {cut}. Pass max_length=... to keep more")
        prompts[name] = [ids for ids in found if ids is not None]
    return Attack(prompts, detector, evaluation.max_new_tokens, evaluation.tokens_per_batch)


def attack_success(model: nn.Module, tokenizer: Any, attack: Attack) -> dict[str, float]:
    """val_asr_<set>: share of the prompts whose greedy answer holds the keywords. The model is in eval mode."""
    shares = {}
    for name, prompts in attack.prompts.items():
        answers = generate_greedy(
            model,
            tokenizer,
            prompts,
            max_new_tokens=attack.max_new_tokens,
            tokens_per_batch=attack.tokens_per_batch,
        )
        texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]
        shares[f"val_asr_{name}"] = sum(map(attack.detector, texts)) / len(texts)
    return shares
