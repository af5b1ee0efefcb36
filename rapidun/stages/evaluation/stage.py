"""The evaluation stage: what the model answers with and without a trigger, and how likely it finds known answers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rapidun.base.errors import ArtifactError
from rapidun.base.files import read_json, write_json, write_jsonl
from rapidun.base.tracker import Tracker
from rapidun.config.detectors import Detector
from rapidun.config.evaluation import EvaluationConfig
from rapidun.models.load import ModelLoader
from rapidun.stages.answers.detectors.keywords import KeywordDetector, keyword_detector
from rapidun.stages.answers.prompts import prompt_ids_of
from rapidun.stages.answers.subsets import stratified_subset
from rapidun.stages.evaluation.facts.asked import (
    OF_BENCHMARKS,
    FactPrompt,
    ask,
    fact_metrics,
    measure,
    score,
    what_to_know,
)
from rapidun.stages.evaluation.facts.retrained import read_truth_ratios
from rapidun.stages.evaluation.facts.sets import fact_sets
from rapidun.stages.evaluation.halves import halves_of
from rapidun.stages.evaluation.judging import ask_judge, opened_judge
from rapidun.stages.evaluation.known import DETECTOR_METRICS, SETS, known_answers, read_split
from rapidun.stages.evaluation.look_alikes import by_variant, shares_that_count
from rapidun.stages.evaluation.metrics import measured_perplexities
from rapidun.stages.evaluation.panel import Panel, pairs_of
from rapidun.stages.evaluation.shares import answer_metrics, attack_metrics, detector_metrics
from rapidun.stages.evaluation.work import (
    Prompt,
    Work,
    calibration_places,
    generate_and_score,
    make_prompts,
    perplexity_places,
)
from rapidun.stages.rows.fit import check_rows
from rapidun.stages.rows.lost import alike_warning

DETECTORS = "detectors.json"
# the best detector's recall on known answers below which none can be believed
BLIND = 0.5


@dataclass(frozen=True)
class EvaluationFiles:
    """What the stage reads and writes."""

    model: Path
    data: Path  # the data artifact: <split>.jsonl and keywords.tsv
    out: Path
    adapter: Path | None = None
    # metrics.json of the evaluation before unlearning: a detector's rates are those under the poisoned model
    calibration: Path | None = None
    # that model and its adapter, where `model` is another one: what the perplexity detector asks
    poisoned: tuple[Path, Path | None] | None = None
    # generations.jsonl of the evaluation of a model that never saw the forget rows, or of a run with such a model
    retrained: Path | None = None
    # whether the model is the one that never saw the forget rows
    is_yardstick: bool = False


def run_evaluation(
    cfg: EvaluationConfig,
    files: EvaluationFiles,
    *,
    loader: ModelLoader,
    max_length: int,
    seed: int,
    tracker: Tracker,
) -> dict[str, float]:
    """Measure one model: attack success, false triggers, answers, perplexities. METHOD section 6.

    Of a pack that speaks of no triggers there is no attack success: forget, retain and held-out rows are asked as they
    are (facts/, docs/forgetting.md), and so are probe rows of any pack.

    Reads the splits and keywords.tsv of `files.data`; what is not there has no metrics, and is warned about once.
    Writes out/metrics.json (flat), out/missing.json where there are reasons (why a metric is not there),
    out/detectors.json (how good each detector is, and which is the best) and out/generations.jsonl (one line a prompt),
    and logs the metrics.

    Returns: the metrics. Shares are in [0, 1]; perplexities are per token.
    Raises: DataError, ArtifactError, ModelError; ConfigError where no prompt would fit the model's context window.
    """
    splits = {name: f"{cfg.split.name}_{suffix}" for name, suffix in SETS.items()}
    sets = {name: read_split(files.data, split) for name, split in splits.items()}
    facts_of = fact_sets(files.data, split=cfg.split.name, num=cfg.num_prompts, seed=seed)
    clean = sets["clean"]
    of_facts = "forget" in facts_of
    if of_facts:
        # no triggers: what a detector would say of such answers means nothing
        sets, absent = {}, [] if clean else [splits["clean"]]
    else:
        absent = [splits[name] for name, records in sets.items() if not records]
    if absent:
        tracker.warn(f"evaluation: the data has no {', '.join(absent)}: metrics of these sets are left out")
    detector = None if of_facts else _keyword_detector(cfg, files.data, tracker)
    known = known_answers(files.data)
    calibration = _calibration(files.calibration)
    others = [record for records in sets.values() for record in records]
    halves = halves_of(files.data, known, others, num=cfg.num_calibration, seed=seed)

    model, tokenizer = loader.load(files.model, adapter=files.adapter)
    work = Work(tokenizer, max_length)
    chosen = [
        (name, record)
        for name, records in sets.items()
        for record in stratified_subset(records, num=cfg.num_prompts, seed=seed, name=splits[name])
    ]
    prompts: list[Prompt] = make_prompts(work, chosen, known, seed=seed)
    num_alone = sum(not prompt.paired for prompt in prompts)
    if num_alone:
        tracker.warn(
            f"evaluation: {num_alone} of {len(prompts)} prompts have no poisoned and clean response on record: the "
            f"likelihood detector leaves them out. Fill in response_poisoned and response_clean"
        )
    facts = ask(facts_of, work)
    prompts += facts.prompts
    found, cut = prompt_ids_of(model, tokenizer, [prompt.record for prompt in prompts], max_length, cfg.max_new_tokens)
    prompt_ids = [ids for ids in found if ids is not None]
    prompts = [prompt for prompt, ids in zip(prompts, found, strict=True) if ids is not None]
    ppl = perplexity_places(cfg, work, clean, known, seed=seed)
    pairs = calibration_places(cfg, work, known, seed=seed) if calibration is None and not of_facts else None
    known_pairs = None if pairs is None else pairs_of(work, halves, known, seed=seed)
    rows = [row.input_ids for row in (*work.rows, *facts.rows)]
    check_rows("evaluation", model, tokenizer, rows, max_length=max_length)
    work.cuts += facts.cuts
    work.cuts.check("evaluation")
    planted = {name: sets.get(name, []) for name in ("seen", "ood", "unseen_family")}
    lists = {"trained": known.poisoned, "seen": planted["seen"], "ood": planted["ood"]}
    lists["unseen"] = planted["unseen_family"]
    named = {name: [r.trigger_variant for r in records if r.trigger_variant] for name, records in lists.items()}
    if message := alike_warning(tokenizer, named):
        tracker.warn(message)
    if work.cuts:
        cut = "; ".join(filter(None, (cut, work.cuts.words(max_length=max_length, what="responses or pairs to score"))))
    if cut:
        tracker.warn(f"evaluation: {cut}. Pass max_length=... to keep more")

    generate_and_score(cfg, model, tokenizer, prompts, prompt_ids, work, tracker)
    asked = [prompt for prompt in prompts if isinstance(prompt, FactPrompt)]
    answers = score(facts, model, work, tokens_per_batch=cfg.tokens_per_batch, tracker=tracker)
    measure(asked, answers)
    for line in what_to_know(asked, answers, max_new_tokens=cfg.max_new_tokens):
        tracker.warn(f"evaluation: {line}")

    for prompt in prompts:
        if not isinstance(prompt, FactPrompt):
            prompt.keyword = None if detector is None else detector(prompt.generation)
            prompt.likelihood = work.fires(prompt.pair)
    panel = None if of_facts else Panel(cfg, tokenizer, halves, max_length)
    if panel is not None:
        judged = [prompt for prompt in prompts if not isinstance(prompt, FactPrompt)]
        if known_pairs is not None and judged:
            panel.measure_texts(detector)
            panel.measure_pairs(work, known_pairs)
            panel.measure_by(Detector.perplexity, partial(panel.surprise, model))
        elif calibration is not None:
            panel.take(calibration)
        panel.judge(judged, work)
        if Detector.perplexity in panel.thresholds and (calibration is None or files.poisoned is not None):
            if calibration is not None and files.poisoned is not None:
                del model
                loader.hand_back()
                model, tokenizer = loader.load(files.poisoned[0], adapter=files.poisoned[1])
            panel.judge_by(Detector.perplexity, partial(panel.surprise, model), judged)
        if Detector.judge in cfg.detectors.asked and judged:
            del model
            loader.hand_back()
            _by_judge_model(cfg, panel, judged, loader, tracker, is_first=calibration is None)
    metrics: dict[str, float] = {}
    metrics |= attack_metrics(prompts)
    alike = by_variant(prompts, list(Detector))
    before = _facts_before(files.calibration)
    poisoned = alike if before is None else before.get("look_alikes", {})
    metrics |= shares_that_count(alike, poisoned, min_asr=cfg.attacks.prompts.min_asr)
    metrics |= answer_metrics(prompts, with_exact_match=cfg.exact_match)
    perplexities, missing = measured_perplexities(
        {name: [work.scores[place] for place in places] for name, places in ppl.items()}
    )
    metrics |= perplexities
    retrained = None if files.retrained is None else read_truth_ratios(files.retrained)
    measured, lacking = fact_metrics(asked, facts.num_rows, retrained)
    metrics |= measured
    missing |= lacking
    if files.is_yardstick:
        missing.pop("forget_quality", None)  # others are compared with this one
    metrics |= {} if of_facts else calibration or {}
    if pairs is not None and panel is not None:
        metrics |= detector_metrics(cfg, tokenizer, detector, known, work, pairs)
        metrics |= panel.metrics()
        _say_what_no_detector_finds(metrics, tracker)
    counted = [name for name in SETS if sets.get(name)] + list(facts.num_rows)
    metrics |= {f"num_prompts_{name}": sum(prompt.set == name for prompt in prompts) for name in counted}

    # a legal value that no file of JSON holds costs no other metric
    missing |= {name: f"not a finite number ({value})" for name, value in metrics.items() if not math.isfinite(value)}
    metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
    for name, why in missing.items():
        # a benchmark's number that the pack was perhaps never meant for is no reason to worry
        (tracker.note if name in OF_BENCHMARKS else tracker.warn)(f"evaluation: {name} is left out: {why}")
    num_odd = sum(prompt.pair is not None and prompt.likelihood is None for prompt in prompts)
    if num_odd:
        tracker.warn(
            f"evaluation: of {num_odd} of {len(prompts)} prompts neither response can be called the likelier (no "
            f"number, or no token within max_length): the likelihood detector leaves them out"
        )
    write_jsonl(files.out / "generations.jsonl", [prompt.row() for prompt in prompts])
    write_json(files.out / "metrics.json", metrics)
    if panel is not None:
        said = panel.facts() if before is None else {key: before[key] for key in before if key != "look_alikes"}
        write_json(files.out / DETECTORS, {**said, "min_asr": cfg.attacks.prompts.min_asr, "look_alikes": alike})
    if missing:
        write_json(files.out / "missing.json", missing)
    tracker.log(metrics)
    return metrics


def _by_judge_model(
    cfg: EvaluationConfig, panel: Panel, prompts: Sequence[Prompt], loader: ModelLoader, tracker: Tracker, *,
    is_first: bool,
) -> None:  # fmt: skip
    """Ask the judge about known answers (before unlearning) and about the prompts' answers; loaded once, then freed."""
    settings = cfg.detectors.judge
    if not is_first and Detector.judge not in panel.thresholds:
        return
    if Detector.judge in panel.left_out:
        return
    with opened_judge(settings, loader, tokens_per_batch=cfg.tokens_per_batch, tracker=tracker) as judge:
        ask = partial(ask_judge, judge, tracker=tracker)
        if is_first:
            panel.measure_by(Detector.judge, ask, threshold=settings.threshold)
        if Detector.judge in panel.thresholds:
            panel.judge_by(Detector.judge, ask, prompts)


def _keyword_detector(cfg: EvaluationConfig, data: Path, tracker: Tracker) -> KeywordDetector | None:
    detector = keyword_detector(data / "keywords.tsv", min_keywords=cfg.min_keywords)
    if detector is None:
        tracker.warn(
            "evaluation: the data has no keywords.tsv with a word in it: metrics of the keyword detector are left out. "
            "Pass data.keywords=..."
        )
    return detector


def _say_what_no_detector_finds(metrics: Mapping[str, float], tracker: Tracker) -> None:
    """Attack success is too low by every detector that there is: the answers themselves have to be read."""
    recalls = {
        name: metrics[key] for name in ("keyword", "likelihood") if (key := f"detector_{name}_recall") in metrics
    }
    if recalls and max(recalls.values()) < BLIND:
        found = ", ".join(f"by {name} {recall:.0%}" for name, recall in recalls.items())
        tracker.warn(
            f"evaluation: no detector finds half of the answers that are known to be poisoned ({found}): attack "
            "success comes out too low, whatever the model says. See exact_match_recovered, rougeL_recovered and "
            "the generations"
        )


def _facts_before(calibration: Path | None) -> dict[str, Any] | None:
    """detectors.json beside an earlier evaluation's metrics; None where there is no earlier one."""
    if calibration is None:
        return None
    path = calibration.parent / DETECTORS
    found = read_json(path) if path.exists() else {}
    if not isinstance(found, dict):
        raise ArtifactError(f"{path}: need a JSON object, got {type(found).__name__}. Delete it and run again")
    return found


def _calibration(path: Path | None) -> dict[str, float] | None:
    """The detectors' rates in an earlier evaluation's metrics; None where there is no earlier one."""
    if path is None:
        return None
    before = read_json(path)
    if not isinstance(before, dict):
        raise ArtifactError(
            f"{path}: need the metrics of an evaluation, got {type(before).__name__}. Delete it and run again"
        )
    return {name: value for name, value in before.items() if name.startswith(DETECTOR_METRICS)}
