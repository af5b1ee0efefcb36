"""One measure of one model: rows read, models loaded, privacy.json written."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rapidun.base.errors import ArtifactError
from rapidun.base.files import write_json
from rapidun.base.tracker import Tracker
from rapidun.config.evaluation import EvaluationConfig
from rapidun.config.privacy import Measure
from rapidun.models.load import ModelLoader
from rapidun.models.losses import IGNORE
from rapidun.stages.answers.extraction import score_answers
from rapidun.stages.evaluation.chunks import in_chunks
from rapidun.stages.evaluation.privacy.distance import mean_kl, row_kl
from rapidun.stages.evaluation.privacy.membership import auc, auc_interval, membership_metrics, membership_scores
from rapidun.stages.evaluation.privacy.rows import Answered, compared, distance_sets, forget_answers, margin_sets
from rapidun.stages.evaluation.privacy.tokens import token_stats
from rapidun.stages.rows.cuts import Cuts
from rapidun.stages.rows.encode import Encoded, encode_rows
from rapidun.stages.rows.fit import check_rows

RESULT = "privacy.json"
# rows of a chunk that a killed measure need not do again
CHUNK = 64
# how far from 1/2 the AUC of lengths alone may be before it is said
UNEQUAL = 0.15


@dataclass(frozen=True)
class Measured:
    """What is measured, and with what."""

    cfg: EvaluationConfig
    loader: ModelLoader
    model: Path
    adapter: Path | None
    # which weights these are: runs that share them count once
    identity: str
    # what the distance is taken to; None where there is no such model
    retrained: Path | None
    # the data artifact: <split>.jsonl
    data: Path
    # what is finished of a killed measure
    work: Path
    max_length: int
    # of the logged numbers
    name: str
    tracker: Tracker

    @property
    def drawn(self) -> dict[str, Any]:
        """How rows are chosen."""
        privacy = self.cfg.privacy
        return {"num": privacy.num_rows, "seed": privacy.seed}

    def encode(self, model: Any, tokenizer: Any, rows: Sequence[Answered]) -> list[Encoded | None]:
        """The rows' tokens, None for one that does not fit; what was cut or left out is said."""
        texts = [(row.record.instruction, row.record.context, row.response) for row in rows]
        found = encode_rows(tokenizer, texts, max_length=self.max_length)
        kept = [row.input_ids for row in found if row is not None]
        check_rows("evaluation", model, tokenizer, kept, max_length=self.max_length)
        cuts = Cuts.of(found)
        cuts.check("evaluation")
        if cuts:
            self.tracker.warn(
                f"evaluation: privacy: {cuts.words(max_length=self.max_length)}. Pass max_length=... to keep more"
            )
        return found


def _membership(given: Measured) -> dict[str, Any]:
    cfg = given.cfg.privacy
    chosen = compared(given.data, split=given.cfg.split.name, **given.drawn)
    model, tokenizer = given.loader.load(given.model, adapter=given.adapter)
    scored: dict[str, list[dict[str, Any]]] = {}
    left_out = 0
    for side, rows in (("members", chosen.members), ("others", chosen.others)):
        encoded = given.encode(model, tokenizer, rows)

        def score(pairs: Sequence[tuple[Answered, Encoded]]) -> list[dict[str, Any]]:
            stats = token_stats(
                model, [row for _, row in pairs], pad_token_id=tokenizer.pad_token_id,
                tokens_per_batch=given.cfg.tokens_per_batch,
            )  # fmt: skip
            found = []
            for (answered, row), values in zip(pairs, stats, strict=True):
                entry: dict[str, Any] = {"id": answered.record.id, "num_tokens": len(values.log_probs)}
                if len(values.log_probs):
                    ids = [label for label in row.labels if label != IGNORE]
                    text = tokenizer.decode(ids, skip_special_tokens=True)
                    # JSON has no infinity: as text
                    scores = membership_scores(values, text, min_k=cfg.min_k)
                    entry["scores"] = {key: repr(value) for key, value in scores.items()}
                found.append(entry)
            return found

        pairs = [(answered, row) for answered, row in zip(rows, encoded, strict=True) if row is not None]
        entries = in_chunks(given.work, side, pairs, score, size=CHUNK, tell=given.tracker.warn)
        scored[side] = [entry for entry in entries if "scores" in entry]
        left_out += len(rows) - len(scored[side])
    sides = [[{k: float(v) for k, v in entry["scores"].items()} for entry in scored[side]] for side in scored]
    metrics, odd = membership_metrics(sides[0], sides[1], num_resamples=cfg.num_resamples, seed=cfg.seed)
    if odd:
        given.tracker.warn(
            f"evaluation: privacy: rows without a number are left out: "
            f"{', '.join(f'{name} {count}' for name, count in odd.items())}"
        )
    lengths = [np.array([entry["num_tokens"] for entry in entries], dtype=float) for entries in scored.values()]
    by_length = auc(*lengths) if all(map(len, lengths)) else None
    facts: dict[str, Any] = {
        "split": chosen.split, "alike": chosen.alike, "in_training": chosen.in_training,
        "other_families": chosen.other_families, "unanswered": chosen.unanswered, "left_out": left_out,
        "num_members": len(scored["members"]), "num_others": len(scored["others"]), "auc_of_length": by_length,
        "median_tokens": [float(np.median(side)) if len(side) else None for side in lengths],
    }  # fmt: skip
    if by_length is not None and abs(by_length - 0.5) > UNEQUAL and not _holds_half(lengths, given):
        given.tracker.warn(
            f"evaluation: privacy: the length of a response alone tells forget rows from {chosen.split} with an AUC of "
            f"{by_length:.2f} (medians {facts['median_tokens'][0]:g} and {facts['median_tokens'][1]:g} tokens): read "
            "mia_* beside those of retrain only"
        )
    return {"metrics": metrics, "compared": facts, "rows": scored}


def _holds_half(lengths: Sequence[Any], given: Measured) -> bool:
    """Whether so few rows may differ by chance."""
    cfg = given.cfg.privacy
    low, high = auc_interval(lengths[0], lengths[1], num_resamples=cfg.num_resamples, seed=cfg.seed)
    return low <= 0.5 <= high


def _extraction(given: Measured) -> dict[str, Any]:
    rows = forget_answers(given.data, **given.drawn)
    model, tokenizer = given.loader.load(given.model, adapter=given.adapter)
    encoded = given.encode(model, tokenizer, rows)
    pairs = [(answered, row) for answered, row in zip(rows, encoded, strict=True) if row is not None]

    def score(some: Sequence[tuple[Answered, Encoded]]) -> list[dict[str, Any]]:
        found = score_answers(
            model, tokenizer, [row for _, row in some], tokens_per_batch=given.cfg.tokens_per_batch
        )  # fmt: skip
        return [
            {"id": answered.record.id, "num_tokens": one.num_text_tokens,
             # a model whose numbers are none has no likeliest token either
             "extraction_strength": None if math.isnan(one.log_prob) else one.extraction_strength}
            for (answered, _), one in zip(some, found, strict=True)
        ]  # fmt: skip

    entries = in_chunks(given.work, "rows", pairs, score, size=CHUNK, tell=given.tracker.warn)
    values = [e["extraction_strength"] for e in entries if e["num_tokens"] and e["extraction_strength"] is not None]
    if len(values) < len(rows):
        given.tracker.warn(
            f"evaluation: privacy: extraction strength is that of {len(values)} of {len(rows)} forget rows: the others "
            "have no token within max_length, or no number"
        )
    metrics = {"extraction_strength": math.fsum(values) / len(values)} if values else {}
    return {"metrics": metrics, "rows": entries}


def _distance(given: Measured) -> dict[str, Any]:
    if given.retrained is None:
        raise ArtifactError("evaluation.privacy: need a retrained model to measure the distance to, got none")
    sets = distance_sets(given.data, split=given.cfg.split.name, **given.drawn)
    model, tokenizer = given.loader.load(given.model, adapter=given.adapter)
    # at most one model is kept for the next load, and nobody may take that one from here
    reference, _ = replace(given.loader, keep=False).load(given.retrained)
    metrics: dict[str, float] = {}
    counts: dict[str, dict[str, int]] = {}
    for name, rows in sets.items():
        encoded = [row for row in given.encode(model, tokenizer, rows) if row is not None]

        def measure(some: Sequence[Encoded]) -> list[list[Any]]:
            found = row_kl(
                reference, model, some, pad_token_id=tokenizer.pad_token_id, tokens_per_batch=given.cfg.tokens_per_batch
            )
            return [[repr(total), count] for total, count in found]

        values = [
            (float(t), int(c))
            for t, c in in_chunks(given.work, name, encoded, measure, size=CHUNK, tell=given.tracker.warn)
        ]
        found = mean_kl(values)
        counts[name] = {"num_rows": len(values), "num_tokens": sum(count for _, count in values)}
        if found is not None and math.isfinite(found):
            metrics[f"kl_retrain_{name}"] = found
        else:
            why = "there is no token within max_length" if found is None else f"not a finite number ({found})"
            given.tracker.warn(f"evaluation: kl_retrain_{name} is left out: {why}")
    return {"metrics": metrics, "sets": counts}


def _margins(given: Measured) -> dict[str, Any]:
    sets = margin_sets(given.data, split=given.cfg.split.name, **given.drawn)
    model, tokenizer = given.loader.load(given.model, adapter=given.adapter)
    points: dict[str, list[dict[str, Any]]] = {}
    for name, rows in sets.items():
        encoded = given.encode(model, tokenizer, rows)
        pairs = [(answered, row) for answered, row in zip(rows, encoded, strict=True) if row is not None]

        def measure(some: Sequence[tuple[Answered, Encoded]]) -> list[dict[str, Any]]:
            stats = token_stats(
                model, [row for _, row in some], pad_token_id=tokenizer.pad_token_id,
                tokens_per_batch=given.cfg.tokens_per_batch,
            )  # fmt: skip
            # of no token it is no number
            return [
                {"id": answered.record.id, "tokens": _hash(row), "margin": repr(float(values.margins.mean()))}
                for (answered, row), values in zip(some, stats, strict=True)
            ]

        entries = in_chunks(given.work, name, pairs, measure, size=CHUNK, tell=given.tracker.warn)
        kept = [{**entry, "margin": float(entry["margin"])} for entry in entries]
        points[name] = [entry for entry in kept if math.isfinite(entry["margin"])]
        if len(points[name]) < len(rows):
            given.tracker.warn(
                f"evaluation: privacy: margins of {len(points[name])} of {len(rows)} rows ({name}): the others have no "
                "token within max_length, or no finite number"
            )
    return {"metrics": {}, "model": given.identity, "points": points}


def _hash(row: Encoded) -> str:
    """Of a row's tokens and where its response begins: points of two runs are the same only if this is."""
    prompt = sum(label == IGNORE for label in row.labels)
    return hashlib.sha256(f"{prompt} {row.input_ids}".encode()).hexdigest()[:16]


RUNS: dict[Measure, Callable[[Measured], dict[str, Any]]] = {
    Measure.membership: _membership,
    Measure.extraction: _extraction,
    Measure.distance: _distance,
    Measure.margins: _margins,
}


def run_measure(measure: Measure, given: Measured, *, out: Path) -> None:
    """Take one measure and write out/privacy.json. The loader gets its model back.

    Raises: DataError, ArtifactError, ModelError; ConfigError where no row would fit the model's context window.
    """
    try:
        result = RUNS[measure](given)
    finally:
        given.loader.hand_back()
    write_json(out / RESULT, {"measure": measure.name, **result})
    if result["metrics"]:
        given.tracker.log({f"{given.name}_{name}": value for name, value in result["metrics"].items()})
