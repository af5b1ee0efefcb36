"""Numbers from generated text and from log-probabilities."""

import math
from collections.abc import Callable, Sequence

from rapidun.stages.evaluation.score import ResponseScore


def rouge_l(generations: Sequence[str], references: Sequence[str]) -> list[float]:
    """ROUGE-L F1 of each pair, in [0, 1]; 0 where either text has no word.

    rouge_score's own tokeniser (lower case, Latin letters and digits) with the Porter stemmer. Text in other scripts
    has no word there and scores 0.
    Source: Lin 2004, "ROUGE: a package for automatic evaluation of summaries".
    """
    from rouge_score.rouge_scorer import RougeScorer  # takes a while to import

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(references, generations, strict=True)
    return [float(scorer.score(target, prediction)["rougeL"].fmeasure) for target, prediction in pairs]


def normalise_answer(text: str) -> str:
    """Case folded, ends stripped, every run of white space one blank."""
    return " ".join(text.casefold().split())


def exact_match(generations: Sequence[str], references: Sequence[str]) -> list[bool]:
    """Whether each generation is its reference, up to case and white space."""
    pairs = zip(generations, references, strict=True)
    return [normalise_answer(generation) == normalise_answer(reference) for generation, reference in pairs]


# name -> measure of each answer beside its reference; on clean prompts `<name>_clean`, on seen triggers
# `<name>_recovered`. report/metrics.py says how each is shown
ANSWER_METRICS: dict[str, Callable[[Sequence[str], Sequence[str]], Sequence[float]]] = {
    "rougeL": rouge_l,
    "exact_match": exact_match,
}


def perplexity(scores: Sequence[ResponseScore]) -> float:
    """exp(-sum_i S_i / sum_i n_i): every response token counts the same, so a long response weighs more.

    Infinite where exp leaves float64's range. Raises: ValueError if there is no token at all.
    """
    num_tokens = sum(score.num_tokens for score in scores)
    if num_tokens == 0:
        raise ValueError("perplexity needs at least one response token")
    mean = -math.fsum(score.log_prob for score in scores) / num_tokens
    try:
        return math.exp(mean)
    except OverflowError:
        return math.inf


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of a sequence that is not empty; of booleans, the share that is true."""
    return math.fsum(values) / len(values)
