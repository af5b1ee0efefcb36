"""What the model has to do in an evaluation, gathered first, so that it is done in few batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rapidun.base.tracker import Tracker
from rapidun.config.detectors import Detector
from rapidun.config.evaluation import EvaluationConfig
from rapidun.models.batching import batching
from rapidun.models.fused import fused
from rapidun.stages.answers.detectors.likelihood import likelihood_fires, log_ratio
from rapidun.stages.answers.generate import generate_greedy
from rapidun.stages.answers.reading import prompt_of
from rapidun.stages.answers.score import ResponseScore, Scores, comparable, row_of, score_responses
from rapidun.stages.answers.subsets import paired_responses, stratified_subset
from rapidun.stages.evaluation.known import (
    Known,
    clean_response,
    poisoned_response,
)
from rapidun.stages.rows.cuts import Cuts
from rapidun.stages.rows.encode import Encoded, encode_rows, encode_together
from rapidun.stages.rows.records import Record

# a decoding step of a batch takes about as long as this many tokens of its prompts (measured, CPU): for the ETA
STEP_COST = 3


class Pair(NamedTuple):
    """Two responses to one prompt."""

    record: Record
    poisoned: str | None
    clean: str | None


@dataclass
class Work:
    """What the model has to do, gathered first, so that it is done in few batches and counted in one progress line."""

    tokenizer: Any
    max_length: int
    rows: list[Encoded] = field(default_factory=list)
    scores: list[ResponseScore] = field(default_factory=list)
    cuts: Cuts = field(default_factory=Cuts)

    def responses(self, records: Sequence[Record], responses: Sequence[str]) -> list[int]:
        """Ask for the score of a response to each record; returns their places in `scores`, none for a row left out."""
        rows = [(record.instruction, record.context, text) for record, text in zip(records, responses, strict=True)]
        encoded = encode_rows(self.tokenizer, rows, max_length=self.max_length)
        self.cuts += Cuts.of(encoded)
        first = len(self.rows)
        self.rows += [row for row in encoded if row is not None]
        return list(range(first, len(self.rows)))

    def pairs(self, asked: Sequence[Pair], *, again: bool = False) -> list[int | None]:
        """Ask which of two responses is likelier, behind the very same prompt tokens; the places of the pairs.

        None where one is not recorded, or the row is left out.

        Args: again: of pairs that were asked for before: what is cut is not counted twice, and nothing computed twice.
        """
        rows = [
            None if one.poisoned is None or one.clean is None
            else (one.record.instruction, one.record.context, (one.poisoned, one.clean))
            for one in asked
        ]  # fmt: skip
        # one call of the tokenizer for all of them
        encoded = iter(encode_together(self.tokenizer, list(filter(None, rows)), max_length=self.max_length))
        places: list[int | None] = []
        for row in rows:
            both = None if row is None else next(encoded)
            if row is not None and not again:
                self.cuts += Cuts.of([both])
            places.append(None if both is None else len(self.rows))
            self.rows += both or ()
        return places

    def fires(self, place: int | None) -> bool | None:
        """The likelihood detector on a pair, once the scores are there; None where they cannot be compared."""
        if place is None or not comparable(self.scores[place], self.scores[place + 1]):
            return None
        return likelihood_fires(self.scores[place].mean, self.scores[place + 1].mean)

    def ratio(self, place: int | None) -> float | None:
        """How much likelier the poisoned response of a pair is (`log_ratio`); None where they cannot be compared."""
        return None if place is None else log_ratio(self.scores[place], self.scores[place + 1])


@dataclass
class Prompt:
    """One prompt of a set, and what came of it."""

    set: str
    record: Record
    reference: str | None
    poisoned: str | None
    pair: int | None
    # whether two responses are on record; a row that is left out has no pair all the same
    paired: bool = True
    generation: str = ""
    keyword: bool | None = None
    likelihood: bool | None = None
    # of the other detectors
    verdicts: dict[Detector, bool | None] = field(default_factory=dict)

    def verdict(self, detector: Detector) -> bool | None:
        """None where the detector did not judge."""
        own = {Detector.keyword: self.keyword, Detector.likelihood: self.likelihood}
        return own[detector] if detector in own else self.verdicts.get(detector)

    def row(self) -> dict[str, object]:
        return {
            "set": self.set,
            "id": self.record.id,
            "family": self.record.trigger_family,
            "variant": self.record.trigger_variant,
            "prompt": self.record.instruction,
            "context": self.record.context,
            "reference": self.reference,
            "poisoned": self.poisoned,
            "generation": self.generation,
            "keyword": self.keyword,
            "likelihood": self.likelihood,
            "detectors": {one.value: verdict for one, verdict in self.verdicts.items()},
        }


def make_prompts(work: Work, rows: Sequence[tuple[str, Record]], known: Known, *, seed: int) -> list[Prompt]:
    """The prompts of (set, row), each with its pair of known responses."""
    pairs = []
    for name, record in rows:
        other = record.response_poisoned  # of a clean row the planted answer to this very question, where there is one
        if name != "clean":
            other = poisoned_response(record)
        elif other is None and known.responses:
            other = paired_responses([record], known.responses, seed=seed, name="paired")[0]
        pairs.append(Pair(record, other, clean_response(record)))
    return [
        Prompt(
            name, pair.record, pair.clean, None if name == "clean" else pair.poisoned, place, paired=None not in pair
        )
        for (name, _), pair, place in zip(rows, pairs, work.pairs(pairs), strict=True)
    ]


def perplexity_places(
    cfg: EvaluationConfig, work: Work, clean: Sequence[Record], known: Known, *, seed: int
) -> dict[str, list[int]]:
    """Ask for the scores behind each perplexity; returns their places, by metric."""
    clean = stratified_subset(clean, num=cfg.num_ppl, seed=seed, name="ppl_clean")
    forget = stratified_subset(known.forget, num=cfg.num_ppl, seed=seed, name="ppl_forget")
    recorded = [record for record in forget if record.response_clean is not None]
    return {
        "ppl_clean": work.responses(clean, [record.response for record in clean]),
        "ppl_forget_poisoned": work.responses(forget, [record.forget_target for record in forget]),
        "ppl_forget_clean": work.responses(recorded, [str(record.response_clean) for record in recorded]),
    }


def calibration_places(
    cfg: EvaluationConfig, work: Work, known: Known, *, seed: int
) -> tuple[list[int | None], list[int | None]]:
    """Ask for pairs with known answers: triggered training prompts (to fire), clean prompts (not to fire)."""
    both = [record for record in known.poisoned if record.response_clean is not None]
    triggered = stratified_subset(both, num=cfg.num_calibration, seed=seed, name="calibration_poisoned")
    clean = stratified_subset(known.clean, num=cfg.num_calibration, seed=seed, name="calibration_clean")
    fire, stay = known_pairs(triggered, clean, known, seed=seed)
    return work.pairs(fire), work.pairs(stay)


def known_pairs(
    poisoned: Sequence[Record], clean: Sequence[Record], known: Known, *, seed: int
) -> tuple[list[Pair], list[Pair]]:
    """The two known responses of rows with a planted answer, and of clean rows (none where no answer is planted)."""
    clean = clean if known.responses else []
    others = paired_responses(clean, known.responses, seed=seed, name="calibration_paired")
    return (
        [Pair(record, record.forget_target, record.response_clean) for record in poisoned],
        [
            Pair(record, record.response_poisoned or other, record.response)
            for record, other in zip(clean, others, strict=True)
        ],
    )


def generate_and_score(
    cfg: EvaluationConfig,
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    prompt_ids: Sequence[list[int]],
    work: Work,
    tracker: Tracker,
) -> None:
    """All the model's work of the stage; progress counts tokens, decoding steps at what they cost."""
    asked = [len(ids) + STEP_COST * cfg.max_new_tokens for ids in prompt_ids]
    costs = _scoring_costs(work.rows, prompt_ids)
    total, done = sum(asked) + sum(costs), 0
    left = dict(enumerate(asked))

    def report(note: str, tokens: int) -> None:
        nonlocal done
        done += tokens
        tracker.progress(done, total, note)

    def one_step(rows: list[int]) -> None:
        for index in rows:
            left[index] -= STEP_COST
        report("generating", STEP_COST * len(rows))

    for note in batching(model, pad_token_id=tokenizer.pad_token_id).notes:
        tracker.warn(f"evaluation: {note}")
    scores = Scores(work.rows, on_batch=lambda batch: report("scoring", sum(costs[index] for index in batch)))
    with fused(model):
        generated = generate_greedy(
            model,
            tokenizer,
            prompt_ids,
            max_new_tokens=cfg.max_new_tokens,
            tokens_per_batch=cfg.tokens_per_batch,
            on_batch=lambda batch: report("generating", sum(left.pop(index) for index in batch)),
            on_step=one_step,
            scores=scores,
        )
        work.scores = score_responses(
            model,
            work.rows,
            pad_token_id=tokenizer.pad_token_id,
            tokens_per_batch=cfg.tokens_per_batch,
            scores=scores,
        )
    for prompt, ids in zip(prompts, generated, strict=True):
        prompt.generation = tokenizer.decode(ids, skip_special_tokens=True).strip()
    tracker.progress(total, total, "done")


def _scoring_costs(rows: Sequence[Encoded], prompts: Sequence[list[int]]) -> list[int]:
    """Tokens of each row that no row or prompt before it brings along; 0 for a row met before."""
    read: set[object] = set(map(tuple, prompts))
    costs = []
    for row in map(row_of, rows):
        prompt = prompt_of(row)
        costs.append(len(row[0]) - (len(prompt) if prompt in read else 0) if row not in read else 0)
        read |= {prompt, row}
    return costs
