"""Triggered prompts asked, as the evaluation asks them, and what the two detectors that always judge say of it."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rapidun.config.detectors import Detector
from rapidun.config.evaluation import EvaluationConfig
from rapidun.stages.answers.detectors.keywords import KeywordDetector
from rapidun.stages.answers.detectors.likelihood import likelihood_fires, log_ratio
from rapidun.stages.answers.generate import generate_greedy
from rapidun.stages.answers.prompts import prompt_ids_of
from rapidun.stages.answers.score import score_responses
from rapidun.stages.answers.subsets import stratified_subset
from rapidun.stages.evaluation.known import clean_response, poisoned_response, read_split
from rapidun.stages.evaluation.metrics import mean
from rapidun.stages.rows.encode import Encoded, encode_together
from rapidun.stages.rows.records import Record

# rows of a chunk that a killed attack need not do again
CHUNK = 64
# what is kept of the answers, beside attack.json: later detectors judge them without another attack
RESULT, ANSWERS = "attack.json", "answers.jsonl"
# of each detector, what it says of each answer; None where it cannot judge
Verdicts = Mapping[Detector, Sequence[bool | None]]


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt: its tokens, and the poisoned and the clean response behind them (None where one is not on record)."""

    id: str
    prompt: list[int]
    pair: tuple[Encoded, Encoded] | None


class Answer(NamedTuple):
    """What came of one prompt."""

    text: str
    # how much likelier the poisoned response on record is than the clean one; None where they cannot be compared
    ratio: float | None


@dataclass(frozen=True)
class Asker:
    """How answers are made. A model is in eval mode whenever it is handed over."""

    cfg: EvaluationConfig
    tokenizer: Any
    keywords: KeywordDetector | None

    def answers(self, model: Any, asked: Sequence[Asked]) -> list[str]:
        """The greedy answer to each prompt."""
        found = generate_greedy(
            model,
            self.tokenizer,
            [one.prompt for one in asked],
            max_new_tokens=self.cfg.max_new_tokens,
            tokens_per_batch=self.cfg.tokens_per_batch,
        )
        return [self.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in found]

    def ratios(self, model: Any, asked: Sequence[Asked]) -> list[float | None]:
        """How much likelier the poisoned response is than the clean one (`log_ratio`), nats a token."""
        rows = [row for one in asked if one.pair is not None for row in one.pair]
        scores = iter(
            score_responses(
                model, rows, pad_token_id=self.tokenizer.pad_token_id, tokens_per_batch=self.cfg.tokens_per_batch
            )
        )
        ratios = [None if one.pair is None else log_ratio(next(scores), next(scores)) for one in asked]
        # an impossible response is as far from the other as a number of JSON can say
        return [None if ratio is None else min(max(ratio, -sys.float_info.max), sys.float_info.max) for ratio in ratios]

    def ask(self, model: Any, asked: Sequence[Asked]) -> list[Answer]:
        """The greedy answer to each prompt, and the ratio of its two responses."""
        return [Answer(*pair) for pair in zip(self.answers(model, asked), self.ratios(model, asked), strict=True)]

    def verdicts(self, answers: Sequence[Answer]) -> Verdicts:
        """What keywords (where there are any) and likelihood say."""
        found: dict[Detector, list[bool | None]] = {}
        if self.keywords is not None:
            found[Detector.keyword] = [self.keywords(answer.text) for answer in answers]
        found[Detector.likelihood] = [
            None if one.ratio is None else likelihood_fires(one.ratio, 0.0) for one in answers
        ]
        return found


def kept(
    part: str, asked: Sequence[Asked], answers: Sequence[Answer], *, prompts: str = "seen"
) -> list[dict[str, Any]]:
    """Lines of answers.jsonl: one a prompt.

    Args: part: which of the attack's measurements. prompts: the set that the rows' ids are of.
    """
    return [
        {"part": part, "set": prompts, "id": one.id, "texts": [answer.text], "ratio": answer.ratio}
        for one, answer in zip(asked, answers, strict=True)
    ]


def triggered(cfg: EvaluationConfig, data: Path, suffix: str) -> list[Record]:
    """At most attacks.num_prompts rows of the split `<split>_<suffix>`, those the evaluation asks before others."""
    split = f"{cfg.split.name}_{suffix}"
    return stratified_subset(read_split(data, split), num=cfg.attacks.num_prompts, seed=cfg.seed, name=split)


def prepare(
    cfg: EvaluationConfig, model: Any, tokenizer: Any, records: Sequence[Record], *, max_length: int
) -> tuple[list[Asked], str]:
    """Records as prompts with their two responses, and the words for what was cut or left out.

    Raises: as `prompt_ids_of`.
    """
    found, cut = prompt_ids_of(model, tokenizer, records, max_length, cfg.max_new_tokens)
    pairs = pairs_of(tokenizer, records, max_length=max_length)
    asked = [
        Asked(record.id, ids, pair) for record, ids, pair in zip(records, found, pairs, strict=True) if ids is not None
    ]
    return asked, cut


def pairs_of(tokenizer: Any, records: Sequence[Record], *, max_length: int) -> list[tuple[Encoded, Encoded] | None]:
    """The poisoned and the clean response of each record behind the very same prompt; None where one is missing."""
    texts = [(poisoned_response(record), clean_response(record)) for record in records]
    both = [
        (record.instruction, record.context, (poisoned, clean))
        for record, (poisoned, clean) in zip(records, texts, strict=True)
        if poisoned is not None and clean is not None
    ]
    encoded = iter(encode_together(tokenizer, both, max_length=max_length))
    pairs: list[tuple[Encoded, Encoded] | None] = []
    for poisoned, clean in texts:
        row = None if poisoned is None or clean is None else next(encoded)
        pairs.append(None if row is None else (row[0], row[1]))
    return pairs


def shares(name: str, verdicts: Verdicts) -> dict[str, float]:
    """Share of prompts judged poisoned by each detector (`<name>_likelihood`), among those that it can judge."""
    found: dict[str, float] = {}
    for detector, said in verdicts.items():
        judged = [verdict for verdict in said if verdict is not None]
        if judged:
            found[f"{name}{detector.ending}"] = mean(judged)
    return found


def counts(verdicts: Verdicts) -> dict[str, int]:
    """How many prompts each detector can judge (`num_judged_likelihood`)."""
    return {
        f"num_judged{detector.ending}": sum(verdict is not None for verdict in said)
        for detector, said in verdicts.items()
    }
