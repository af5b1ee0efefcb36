"""Numbers from generated text and from log-probabilities."""

import contextlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rapidun.base.errors import ConfigError
from rapidun.config import extensions
from rapidun.stages.answers.score import ResponseScore
from rapidun.stages.rows.text import by_script, nfc, other_tokens


def rouge_l(generations: Sequence[str], references: Sequence[str]) -> list[float]:
    """ROUGE-L F1 of each pair, in [0, 1]; 0 where either text has no word."""
    return [float(score.fmeasure) for score in rouge_l_scores(generations, references)]


def rouge_l_scores(generations: Sequence[str], references: Sequence[str]) -> list[Any]:
    """ROUGE-L of each pair: precision, recall (the share of the reference's words that are found) and fmeasure.

    Latin text is cut by rouge_score's own tokeniser (lower case, letters a to z and digits) with the Porter stemmer, so
    that its numbers are the usual ones; the words of other scripts count beside, in scripts without blanks each letter.
    Source: Lin 2004, "ROUGE: a package for automatic evaluation of summaries".
    """
    # slow to import; brings absl, whose log handler closes the stderr that it finds unless it is the process's
    with contextlib.redirect_stderr(sys.__stderr__):
        from rouge_score.rouge_scorer import RougeScorer
        from rouge_score.tokenizers import DefaultTokenizer, Tokenizer

    latin = DefaultTokenizer(use_stemmer=True)

    class AllScripts(Tokenizer):
        def tokenize(self, text: str) -> list[str]:
            return [
                token
                for part, is_other in by_script(text)
                for token in (other_tokens(part) if is_other else latin.tokenize(part))
            ]

    scorer = RougeScorer(["rougeL"], use_stemmer=True, tokenizer=AllScripts())
    pairs = zip(references, generations, strict=True)
    return [scorer.score(target, prediction)["rougeL"] for target, prediction in pairs]


def normalise_answer(text: str) -> str:
    """Case and Unicode's forms folded, ends stripped, every run of white space one blank."""
    return " ".join(nfc(nfc(text).casefold()).split())


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


def _add(one: extensions.Added) -> None:
    """A measure of answers that an extension brings, under its name."""

    def measure(generations: Sequence[str], references: Sequence[str]) -> list[float]:
        found = list(one.made(list(generations), list(references)))
        odd = [value for value in found if isinstance(value, str) or not math.isfinite(value)]
        if len(found) != len(generations) or odd:
            got = f"{odd[0]!r} among them" if odd else str(len(found))
            raise ConfigError(
                f"evaluation: need a finite number for each of {len(generations)} answers from metric {one.name}, got "
                f"{got}. Change {one.origin.name}"
            )
        return [float(value) for value in found]

    ANSWER_METRICS[one.name] = measure


extensions.subscribe(extensions.Kind.metric, _add)


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


def measured_perplexities(scores: Mapping[str, Sequence[ResponseScore]]) -> tuple[dict[str, float], dict[str, str]]:
    """The perplexities that are numbers, and why the others are none, by metric. Of no rows nothing is said."""
    found: dict[str, float] = {}
    missing: dict[str, str] = {}
    for name, rows in scores.items():
        bad = sum(math.isnan(row.log_prob) for row in rows)
        if not rows:
            continue
        if bad:
            missing[name] = f"{bad} of {len(rows)} rows have a log-probability that is not a number"
        elif not sum(row.num_tokens for row in rows):
            missing[name] = f"none of {len(rows)} rows has a response token within max_length"
        elif math.isinf(value := perplexity(rows)):
            worst = min(rows, key=lambda row: row.mean)
            missing[name] = f"infinite: beyond {sys.float_info.max:.2g} (worst row: {-worst.mean:.4g} nats a token)"
        else:
            found[name] = value
    return found, missing


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of a sequence that is not empty; of booleans, the share that is true."""
    return math.fsum(values) / len(values)
