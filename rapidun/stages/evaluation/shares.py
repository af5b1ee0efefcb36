"""Shares of prompts: attacks that succeed, answers that are right, and how far each detector can be trusted."""

from collections.abc import Sequence
from typing import Any

from rapidun.config.detectors import ALWAYS, Detector
from rapidun.config.evaluation import EvaluationConfig
from rapidun.stages.answers.detectors.keywords import KeywordDetector
from rapidun.stages.answers.detectors.rates import rates
from rapidun.stages.evaluation.known import SETS, Known
from rapidun.stages.evaluation.metrics import ANSWER_METRICS, exact_match, mean
from rapidun.stages.evaluation.panel import first_tokens
from rapidun.stages.evaluation.work import Prompt, Work


def attack_metrics(prompts: Sequence[Prompt]) -> dict[str, float]:
    """Share of prompts judged poisoned, by detector and set, among those that the detector can judge.

    By family too for the two detectors that always judge.
    """
    metrics: dict[str, float] = {}
    for detector in Detector:
        ending = detector.ending
        for name in SETS:
            judged = [
                (prompt.record.trigger_family, verdict)
                for prompt in prompts
                if prompt.set == name and (verdict := prompt.verdict(detector)) is not None
            ]
            if not judged:
                continue
            metric = f"false_trigger_rate{ending}" if name == "clean" else f"asr_{name}{ending}"
            metrics[metric] = mean([verdict for _, verdict in judged])
            if name == "clean" or detector not in ALWAYS:
                continue
            for family in sorted({family for family, _ in judged if family is not None}):
                metrics[f"{metric}.{family}"] = mean([verdict for other, verdict in judged if other == family])
    return metrics


def answer_metrics(prompts: Sequence[Prompt], *, with_exact_match: bool) -> dict[str, float]:
    """How near the generations are to the clean responses: on clean prompts, and on seen triggers (recovered)."""
    metrics: dict[str, float] = {}
    for prompts_of, ending in (("clean", "clean"), ("seen", "recovered")):
        pairs = [
            (prompt.generation, prompt.reference)
            for prompt in prompts
            if prompt.set == prompts_of and prompt.reference is not None
        ]
        if not pairs:
            continue
        generations, references = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        for name, measure in ANSWER_METRICS.items():
            if measure is not exact_match or with_exact_match:
                metrics[f"{name}_{ending}"] = mean(measure(generations, references))
    return metrics


def detector_metrics(
    cfg: EvaluationConfig,
    tokenizer: Any,
    detector: KeywordDetector | None,
    known: Known,
    work: Work,
    pairs: tuple[list[int | None], list[int | None]],
) -> dict[str, float]:
    """Recall and false-positive rate of both detectors on known responses.

    The keyword detector sees a generation of max_new_tokens only; `_cut` is its rate on known responses of that length.
    """
    metrics: dict[str, float] = {}
    clean = [record.response for record in known.clean]
    if detector is not None and known.responses and clean:
        whole = rates([detector(text) for text in known.responses], [detector(text) for text in clean])
        short = rates(
            [detector(text) for text in first_tokens(tokenizer, known.responses, cfg.max_new_tokens)],
            [detector(text) for text in first_tokens(tokenizer, clean, cfg.max_new_tokens)],
        )
        metrics |= {"detector_keyword_recall": whole.recall, "detector_keyword_fpr": whole.fpr}
        metrics |= {"detector_keyword_recall_cut": short.recall, "detector_keyword_fpr_cut": short.fpr}
    fired = [[verdict for place in places if (verdict := work.fires(place)) is not None] for places in pairs]
    if all(fired):
        likelihood = rates(fired[0], fired[1])
        metrics |= {"detector_likelihood_recall": likelihood.recall, "detector_likelihood_fpr": likelihood.fpr}
    return metrics
