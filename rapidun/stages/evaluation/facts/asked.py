"""Asking facts: the prompts to answer, the answers to score, and what comes of them row by row."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rapidun.base.tracker import Tracker
from rapidun.stages.answers.extraction import AnswerScore, score_answers
from rapidun.stages.evaluation.facts import measures
from rapidun.stages.evaluation.facts.retrained import TRUTH, Row, row_of
from rapidun.stages.evaluation.facts.sets import GENERAL, GONE
from rapidun.stages.evaluation.metrics import exact_match, mean, rouge_l_scores
from rapidun.stages.evaluation.work import Prompt, Work
from rapidun.stages.rows.cuts import Cuts
from rapidun.stages.rows.encode import Encoded, encode_rows, encode_together
from rapidun.stages.rows.facts import LETTERS
from rapidun.stages.rows.records import Record

# the measures that every row of facts has: their means are `<name>_<set>`
MEASURES = ("rougeL", "exact_match", "probability", "extraction_strength")
# of rows with wrong answers (TOFU) or choices (WMDP)
FURTHER = ("truth_ratio", "probability_of_options", "choice_accuracy")
# MUSE: a row's `category` is the measure that it is for; of which sets there is a mean, by its ending
MUSE: dict[str, dict[str, Sequence[str]]] = {
    "verbmem": {"forget": GONE},
    "knowmem": {"forget": GONE, "retain": ("retain",)},
}
# what needs more than the rows of a set
OF_BENCHMARKS = ("model_utility", "forget_quality")


@dataclass
class FactPrompt(Prompt):
    """One row that is asked, and what came of it."""

    # places in the list of answers to score; of `truths` the right answer in other words, then the wrong ones
    answer: int | None = None
    truths: list[int] = field(default_factory=list)
    letters: list[int] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, object]:
        return {**Prompt.row(self), "forget_id": self.record.forget_id, "measures": self.measured}


@dataclass
class Facts:
    """All prompts of facts, and the answers whose scores are asked for."""

    prompts: list[FactPrompt] = field(default_factory=list)
    rows: list[Encoded] = field(default_factory=list)
    cuts: Cuts = field(default_factory=Cuts)
    # rows of each set, those that do not fit among them
    num_rows: dict[str, int] = field(default_factory=dict)


def ask(sets: Mapping[str, Sequence[Record]], work: Work) -> Facts:
    """Gather the prompts and the answers of every set."""
    facts = Facts(num_rows={name: len(rows) for name, rows in sets.items()})
    for name, records in sets.items():
        texts = [record.forget_target if name in GONE else record.response for record in records]
        asked = [(record.instruction, record.context, text) for record, text in zip(records, texts, strict=True)]
        encoded = encode_rows(work.tokenizer, asked, max_length=work.max_length)
        facts.cuts += Cuts.of(encoded)
        for record, text, row in zip(records, texts, encoded, strict=True):
            prompt = FactPrompt(name, record, text, None, None)
            facts.prompts.append(prompt)
            if row is None:
                continue
            prompt.answer = len(facts.rows)
            facts.rows.append(row)
            if record.responses_perturbed:
                right = record.response_paraphrased or text
                prompt.truths = _together(facts, work, record.instruction, record, (right, *record.responses_perturbed))
            if record.choices:
                letters = LETTERS[: len(record.choices)]
                listed = "\n".join(f"{letter}. {text}" for letter, text in zip(letters, record.choices, strict=True))
                prompt.letters = _together(facts, work, f"{record.instruction}\n{listed}", record, tuple(letters))
    return facts


def _together(facts: Facts, work: Work, instruction: str, record: Record, answers: tuple[str, ...]) -> list[int]:
    """Places of several answers behind the very same prompt tokens; none where they do not fit."""
    [rows] = encode_together(work.tokenizer, [(instruction, record.context, answers)], max_length=work.max_length)
    facts.cuts += Cuts.of([rows])
    if rows is None:
        return []
    first = len(facts.rows)
    facts.rows += rows
    return list(range(first, len(facts.rows)))


def score(facts: Facts, model: Any, work: Work, *, tokens_per_batch: int, tracker: Tracker) -> list[AnswerScore]:
    total = sum(len(row.input_ids) for row in facts.rows)
    done = 0

    def report(batch: list[int]) -> None:
        nonlocal done
        done += sum(len(facts.rows[index].input_ids) for index in batch)
        tracker.progress(done, total, "scoring facts")

    return score_answers(model, work.tokenizer, facts.rows, tokens_per_batch=tokens_per_batch, on_batch=report)


def measure(prompts: Sequence[FactPrompt], scores: Sequence[AnswerScore]) -> None:
    """Fill in what each row shows, from its answer and its scores; what is no number is left out."""
    rouge = rouge_l_scores([prompt.generation for prompt in prompts], [str(prompt.reference) for prompt in prompts])
    exact = exact_match([prompt.generation for prompt in prompts], [str(prompt.reference) for prompt in prompts])
    for prompt, overlap, same in zip(prompts, rouge, exact, strict=True):
        found = {"rougeL": float(overlap.fmeasure), "rougeL_recall": float(overlap.recall), "exact_match": float(same)}
        if prompt.answer is not None and scores[prompt.answer].num_text_tokens:
            one = scores[prompt.answer]
            # a model whose numbers are none has no likeliest token either
            if not math.isnan(one.log_prob):
                found |= {"probability": one.probability, "extraction_strength": one.extraction_strength}
        if prompt.truths:
            right, *wrong = [scores[place] for place in prompt.truths]
            ratio = measures.log_truth_ratio(right, wrong)
            if not math.isnan(ratio):
                gone = prompt.set in GONE
                found["truth_ratio"] = (measures.truth_ratio_gone if gone else measures.truth_ratio_stays)(ratio)
                found[TRUTH] = ratio
                found["probability_of_options"] = measures.probability_of_options(right, wrong)
        if prompt.letters:
            letters = [scores[place].text_log_prob for place in prompt.letters]
            if not any(map(math.isnan, letters)):
                found["choice_accuracy"] = float(letters.index(max(letters)) == prompt.record.choice)
        prompt.measured = found


def fact_metrics(
    prompts: Sequence[FactPrompt], num_rows: Mapping[str, int], retrained: Mapping[Row, float] | None
) -> tuple[dict[str, float], dict[str, str]]:
    """Means over the rows of each set, and why a number is not there that the pack has what it needs for.

    Args: num_rows: of each set, those left out among them. retrained: row -> ln R of the forget rows under a model that
        never saw them.
    """
    found: dict[str, float] = {}
    missing: dict[str, str] = {}
    means: dict[str, dict[str, float]] = {}
    for name, count in num_rows.items():
        rows = [prompt for prompt in prompts if prompt.set == name]
        values = {key: [row.measured[key] for row in rows if key in row.measured] for key in (*MEASURES, *FURTHER)}
        values["rougeL_recall"] = [row.measured["rougeL_recall"] for row in rows]
        means[name] = {key: mean(listed) for key, listed in values.items() if listed}
        # of TOFU's general facts alone: elsewhere the plain probability is what is reported
        shown = [key for key in (*MEASURES, *FURTHER) if key != "probability_of_options" or name in GENERAL]
        found |= {f"{key}_{name}": means[name][key] for key in shown if key in means[name]}
        for key in MEASURES:
            if not values[key]:
                missing[f"{key}_{name}"] = f"none of {count} rows has an answer within max_length, and a number for it"
        chances = [1 / len(row.record.choices) for row in rows if "choice_accuracy" in row.measured]
        if chances:
            found[f"choice_chance_{name}"] = mean(chances)
    found |= _muse(prompts)
    if any("truth_ratio" in values for values in means.values()):
        utility, lacking = measures.model_utility(means)
        if utility is None:
            missing["model_utility"] = (
                f"it is the harmonic mean of nine numbers, and there is no {', no '.join(lacking)}"
            )
        else:
            found["model_utility"] = utility
    ours = {
        row_of(row.record.id, row.record.instruction, row.record.context, row.reference): row.measured[TRUTH]
        for row in prompts
        if row.set == "forget" and TRUTH in row.measured
    }
    if ours and retrained is None:
        missing["forget_quality"] = (
            "it needs the truth ratios of a model that never saw the forget rows. Pass poison.retrain=true, or "
            "evaluation.retrained=RUN, the folder of such a model's run"
        )
    elif ours and retrained is not None:
        if ours.keys() == retrained.keys():
            found["forget_quality"] = measures.forget_quality(ours, retrained)
        else:
            missing["forget_quality"] = (
                f"the retrained model has truth ratios of other rows: {len(ours.keys() & retrained.keys())} in common "
                f"(id, question and answer), {len(ours)} here, {len(retrained)} there. Evaluate it on the same pack, "
                "evaluation.num_prompts and evaluation.seed"
            )
    return found, missing


def what_to_know(prompts: Sequence[FactPrompt], scores: Sequence[AnswerScore], *, max_new_tokens: int) -> list[str]:
    """Warnings: answers on record that are longer than what is generated, and means that are of some of the rows."""
    lengths = [scores[prompt.answer].num_text_tokens for prompt in prompts if prompt.answer is not None]
    longer = [length for length in lengths if length > max_new_tokens]
    lines = []
    if longer:
        lines.append(
            f"{len(longer)} of {len(lengths)} answers on record are longer than what the model may say (the longest "
            f"has {max(longer)} tokens, evaluation.max_new_tokens={max_new_tokens}): ROUGE-L and exact match of these "
            f"come out too low. Pass evaluation.max_new_tokens={max(longer) + 1}"
        )
    right = [
        prompt
        for prompt in prompts
        if {prompt.reference, prompt.record.response_paraphrased} & {*prompt.record.responses_perturbed}
    ]
    if right:
        lines.append(
            f"{len(right)} of {len(prompts)} rows ({right[0].set} {right[0].record.id}, ...) have their right answer "
            "among the wrong ones (perturbed_answer): their truth ratio says nothing. Take it out"
        )
    for key, lacking in (("truth_ratio", "wrong answers (perturbed_answer)"), ("choice_accuracy", "choices")):
        some = []
        for name in dict.fromkeys(prompt.set for prompt in prompts):
            rows = [key in prompt.measured for prompt in prompts if prompt.set == name]
            if 0 < sum(rows) < len(rows):
                some.append(f"{key}_{name} of {sum(rows)} of {len(rows)} rows")
        if some:
            lines.append(f"there is {', '.join(some)}: the others have no {lacking}, or do not fit")
    return lines


def _muse(prompts: Sequence[FactPrompt]) -> dict[str, float]:
    """verbmem, knowmem: mean ROUGE-L F1 by the rows' `category`. Source: MUSE, Shi et al. 2024 (arXiv 2407.06460)."""
    found = {}
    for name, endings in MUSE.items():
        for ending, sets in endings.items():
            values = [p.measured["rougeL"] for p in prompts if p.set in sets and p.record.category == name]
            if values:
                found[f"{name}_{ending}"] = mean(values)
    return found
