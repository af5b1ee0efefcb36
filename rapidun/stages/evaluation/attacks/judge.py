"""Triggered prompts asked and their answers judged, as the evaluation does it: both detectors, greedy answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rapidun.config.evaluation import EvaluationConfig
from rapidun.stages.answers.detectors.keywords import KeywordDetector
from rapidun.stages.answers.detectors.likelihood import likelihood_fires
from rapidun.stages.answers.generate import generate_greedy
from rapidun.stages.answers.prompts import prompt_ids_of
from rapidun.stages.answers.score import comparable, score_responses
from rapidun.stages.answers.subsets import stratified_subset
from rapidun.stages.evaluation.known import clean_response, poisoned_response, read_split
from rapidun.stages.evaluation.metrics import mean
from rapidun.stages.rows.encode import Encoded, encode_together
from rapidun.stages.rows.records import Record

# rows of a chunk that a killed attack need not do again
CHUNK = 64
# what each detector's figures end in
ENDINGS = {"keyword": "", "likelihood": "_likelihood"}


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt: its tokens, and the poisoned and the clean response behind them (None where one is not on record)."""

    id: str
    group: str
    prompt: list[int]
    pair: tuple[Encoded, Encoded] | None


class Verdict(NamedTuple):
    """What the detectors say of one prompt; None where one cannot judge."""

    keyword: bool | None
    likelihood: bool | None


@dataclass(frozen=True)
class Judge:
    """How answers are made and judged. A model is in eval mode whenever it is handed over."""

    cfg: EvaluationConfig
    tokenizer: Any
    detector: KeywordDetector | None

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

    def prefers(self, model: Any, asked: Sequence[Asked]) -> list[bool | None]:
        """Whether the model finds the poisoned response likelier than the clean one, token by token."""
        rows = [row for one in asked if one.pair is not None for row in one.pair]
        scores = iter(
            score_responses(
                model, rows, pad_token_id=self.tokenizer.pad_token_id, tokens_per_batch=self.cfg.tokens_per_batch
            )
        )
        found: list[bool | None] = []
        for one in asked:
            if one.pair is None:
                found.append(None)
                continue
            poisoned, clean = next(scores), next(scores)
            known = comparable(poisoned, clean)
            found.append(likelihood_fires(poisoned.mean, clean.mean) if known else None)
        return found

    def verdicts(self, model: Any, asked: Sequence[Asked]) -> list[Verdict]:
        """Both detectors on each prompt."""
        answers = self.answers(model, asked) if self.detector is not None else []
        keyword = [None if self.detector is None else self.detector(text) for text in answers] or [None] * len(asked)
        return [Verdict(*pair) for pair in zip(keyword, self.prefers(model, asked), strict=True)]


def triggered(cfg: EvaluationConfig, data: Path, suffix: str) -> list[Record]:
    """At most attacks.num_prompts rows of the split `<split>_<suffix>`, those the evaluation asks before others."""
    split = f"{cfg.split.name}_{suffix}"
    return stratified_subset(read_split(data, split), num=cfg.attacks.num_prompts, seed=cfg.seed, name=split)


def prepare(
    cfg: EvaluationConfig, model: Any, tokenizer: Any, records: Sequence[Record], *, max_length: int, group: str = ""
) -> tuple[list[Asked], str]:
    """Records as prompts with their two responses, and the words for what was cut or left out.

    Args: group: what the prompts are counted under; a record's trigger family where it is empty.
    Raises: as `prompt_ids_of`.
    """
    found, cut = prompt_ids_of(model, tokenizer, records, max_length, cfg.max_new_tokens)
    pairs = pairs_of(tokenizer, records, max_length=max_length)
    asked = [
        Asked(record.id, group or record.trigger_family or "", ids, pair)
        for record, ids, pair in zip(records, found, pairs, strict=True)
        if ids is not None
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


def shares(name: str, verdicts: Sequence[Verdict], groups: Sequence[str] = ()) -> dict[str, float]:
    """Share of prompts judged poisoned by each detector, `<name>` and `<name>_likelihood`, among those it can judge.

    Args: groups: of each prompt; where given, `<name>.<group>` as well.
    """
    found: dict[str, float] = {}
    for detector, ending in ENDINGS.items():
        judged = [(place, value) for place, one in enumerate(verdicts) if (value := getattr(one, detector)) is not None]
        if not judged:
            continue
        found[f"{name}{ending}"] = mean([value for _, value in judged])
        for group in sorted({groups[place] for place, _ in judged} - {""} if groups else ()):
            found[f"{name}{ending}.{group}"] = mean([value for place, value in judged if groups[place] == group])
    return found
