"""The kept answers of attacks, judged by the detectors of the evaluation beside keywords and likelihood.

Thresholds and the classifier are those of the evaluation before unlearning. No attack is run: another detector, or
another threshold, is a matter of these verdicts alone.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rapidun.base.files import read_json, read_jsonl, write_json
from rapidun.base.tracker import Tracker
from rapidun.config.attacks import Attack
from rapidun.config.detectors import Detector
from rapidun.config.evaluation import EvaluationConfig
from rapidun.models.load import ModelLoader
from rapidun.stages.evaluation.attacks import quantisation, sampling
from rapidun.stages.evaluation.attacks.asking import ANSWERS, CHUNK, RESULT, counts, shares
from rapidun.stages.evaluation.attacks.summary import VERDICTS
from rapidun.stages.evaluation.chunks import in_chunks
from rapidun.stages.evaluation.halves import halves_of
from rapidun.stages.evaluation.judging import ask_judge, opened_judge
from rapidun.stages.evaluation.known import SETS, known_answers, read_split
from rapidun.stages.evaluation.metrics import mean
from rapidun.stages.evaluation.panel import Ask, Panel, fires
from rapidun.stages.rows.records import Record


class Given(NamedTuple):
    """An answer, and the prompt that it was given to: set, id of the row. Equal ones are judged once."""

    set: str
    id: str
    text: str


# detector -> what it says of each answer
Said = Mapping[Detector, Mapping[Given, bool | None]]


@dataclass(frozen=True)
class Kept:
    """What is read and written."""

    # name of a run -> its artifact: attack.json and answers.jsonl
    attacks: Mapping[str, Path]
    data: Path
    # metrics.json of the evaluation before unlearning, and its model
    calibration: Path
    poisoned: tuple[Path, Path | None]
    # what is finished of a killed judging
    work: Path
    out: Path


def judge_attacks(
    cfg: EvaluationConfig, files: Kept, *, loader: ModelLoader, max_length: int, tracker: Tracker
) -> None:
    """Judge the answers of all runs; writes out/verdicts.json: name of a run -> figures, named as in its attack.json.

    Raises: ArtifactError, ModelError, ConfigError.
    """
    lines = {name: list(read_jsonl(folder / ANSWERS)) for name, folder in files.attacks.items()}
    sets = {name: read_split(files.data, f"{cfg.split.name}_{suffix}") for name, suffix in SETS.items()}
    asked = [record for records in sets.values() for record in records]
    halves = halves_of(files.data, known_answers(files.data), asked, num=cfg.num_calibration, seed=cfg.seed)
    model, tokenizer = loader.load(files.poisoned[0], adapter=files.poisoned[1])
    panel = Panel(cfg, tokenizer, halves, max_length)
    panel.take(read_json(files.calibration))

    rows = {(name, record.id): record for name, records in sets.items() for record in records}
    different = list(dict.fromkeys(
        Given(line["set"], line["id"], text) for found in lines.values() for line in found for text in line["texts"]
    ))  # fmt: skip
    said: dict[Detector, dict[Given, bool | None]] = {
        detector: dict(zip(different, verdicts, strict=True))
        for detector, verdicts in panel.by_text([one.text for one in different]).items()
    }
    scored = partial(_scored, panel, rows, different, files.work, tracker)
    if Detector.perplexity in panel.thresholds:
        said[Detector.perplexity] = scored(Detector.perplexity, partial(panel.surprise, model))
    del model
    loader.hand_back()
    if Detector.judge in panel.thresholds:
        settings = cfg.detectors.judge
        with opened_judge(settings, loader, tokens_per_batch=cfg.tokens_per_batch, tracker=tracker) as judge:
            said[Detector.judge] = scored(Detector.judge, partial(ask_judge, judge, tracker=Tracker()))
    found = {}
    for name, folder in files.attacks.items():
        result = read_json(folder / RESULT)
        attack = Attack[result["attack"]]
        found[name] = FIGURES[attack](lines[name], said, panel.thresholds.get(Detector.likelihood_calibrated), tracker)
        figures = {**result.get("metrics", {}), **found[name].get("metrics", {})}
        if attack is Attack.sampling and not any("@" in metric for metric in figures):
            tracker.warn("evaluation: sampling has no figures: the pack has no keywords, and no other detector judges")
    write_json(files.out / VERDICTS, found)


def _scored(
    panel: Panel,
    rows: Mapping[tuple[str, str], Record],
    different: Sequence[Given],
    work: Path,
    tracker: Tracker,
    detector: Detector,
    ask: Ask,
) -> dict[Given, bool | None]:
    """The verdicts of a detector that asks a model; a kill costs a chunk."""

    def compute(chunk: Sequence[Given]) -> list[float | None]:
        scores = ask([rows[one.set, one.id] for one in chunk], [one.text for one in chunk])
        # no file of JSON holds an infinite one
        return [None if one is None else min(max(one, -sys.float_info.max), sys.float_info.max) for one in scores]

    scores = in_chunks(
        work, detector.value, different, compute, size=CHUNK,
        on_done=lambda number: tracker.progress(number, len(different), f"attacks: {detector.value}"),
        tell=tracker.warn,
    )  # fmt: skip
    return dict(zip(different, panel.by_score(detector, scores, [one.text for one in different]), strict=True))


def _by_part(
    lines: Sequence[Mapping[str, Any]], said: Said, threshold: float | None
) -> dict[str, dict[Detector, list[bool | None]]]:
    """Of each part of the answers the verdicts, by detector."""
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        parts.setdefault(line["part"], []).append(line)
    found = {}
    for part, of_part in parts.items():
        verdicts: dict[Detector, list[bool | None]] = {
            detector: [verdict_of[Given(line["set"], line["id"], text)] for line in of_part for text in line["texts"]]
            for detector, verdict_of in said.items()
        }
        if threshold is not None:
            verdicts[Detector.likelihood_calibrated] = [fires(line["ratio"], threshold) for line in of_part]
        found[part] = verdicts
    return found


def _shares(
    name: str, lines: Sequence[Mapping[str, Any]], said: Said, threshold: float | None
) -> dict[str, dict[str, float]]:
    """Of each part of the answers the share of prompts judged poisoned, by detector."""
    return {part: shares(name, verdicts) for part, verdicts in _by_part(lines, said, threshold).items()}


def _relearning(lines: Any, said: Said, threshold: float | None, tracker: Tracker) -> dict[str, Any]:
    return {"curve": [{"step": int(step), **found} for step, found in _shares("asr", lines, said, threshold).items()]}


def _quantisation(lines: Any, said: Said, threshold: float | None, tracker: Tracker) -> dict[str, Any]:
    return {"metrics": quantisation.figures(_shares("asr", lines, said, threshold))}


def _prompts(lines: Any, said: Said, threshold: float | None, tracker: Tracker) -> dict[str, Any]:
    found = _by_part(lines, said, threshold)
    return {
        "variants": {part: {**counts(said_of), **shares("asr_prompts", said_of)} for part, said_of in found.items()}
    }


def _sampling(lines: Any, said: Said, threshold: float | None, tracker: Tracker) -> dict[str, Any]:
    """asr@k by each detector of texts. A prompt with an answer that a detector cannot judge does not count for it."""
    metrics: dict[str, float] = {}
    curves: dict[str, dict[str, list[list[float]]]] = {}
    for detector, verdict_of in said.items():
        parts: dict[str, list[list[bool]]] = {}
        num_left_out = 0
        for line in lines:
            verdicts = [verdict_of[Given(line["set"], line["id"], text)] for text in line["texts"]]
            known = [verdict for verdict in verdicts if verdict is not None]
            if not verdicts:
                continue
            if len(known) == len(verdicts):
                parts.setdefault(line["part"], []).append(known)
            else:
                num_left_out += 1
        if num_left_out:
            tracker.warn(
                f"evaluation: sampling: {num_left_out} prompts have an answer that the {detector.value} detector "
                "cannot judge, and are left out of its figures"
            )
        found, curves[detector.ending] = sampling.figures(parts, detector.ending)
        metrics |= found
    ratios = [line["ratio"] for line in lines if line["part"] == sampling.PREFERRED and line["ratio"] is not None]
    if threshold is not None and ratios:
        ending = Detector.likelihood_calibrated.ending
        metrics[f"asr_sampling{ending}"] = mean([ratio > threshold for ratio in ratios])
    return {"metrics": metrics, "curves_by": curves}


FIGURES: dict[Attack, Callable[[Any, Said, float | None, Tracker], dict[str, Any]]] = {
    Attack.relearning: _relearning,
    Attack.quantisation: _quantisation,
    Attack.sampling: _sampling,
    Attack.prompts: _prompts,
}
