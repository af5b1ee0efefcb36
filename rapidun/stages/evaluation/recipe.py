"""The evaluation stage to the rest: the same measurements before and after unlearning."""

import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from rapidun.base.errors import ModelError
from rapidun.base.files import read_json, read_jsonl, write_atomic, write_json, write_jsonl
from rapidun.base.tracker import Listener
from rapidun.config import extensions
from rapidun.config.attacks import PromptSettings
from rapidun.config.detectors import Detector
from rapidun.config.plain import plain
from rapidun.config.unlearning import Objective
from rapidun.models.load import fingerprint_files
from rapidun.report.metrics import ROLES
from rapidun.stages.checks import device_faults
from rapidun.stages.context import Context, Stage
from rapidun.stages.evaluation.attacks.recipe import (
    attack_faults,
    attack_recipes,
    attack_row_faults,
    verdict_recipes,
)
from rapidun.stages.evaluation.attacks.summary import collected, flat
from rapidun.stages.evaluation.benchmarks.recipe import benchmark_faults, benchmark_recipes, benchmarks
from rapidun.stages.evaluation.facts.retrained import generations_of, objective_of
from rapidun.stages.evaluation.facts.sets import ASKED_FOR, HELD_OUT, is_of_facts
from rapidun.stages.evaluation.judge_folder import check_judge, judge_folder
from rapidun.stages.evaluation.privacy import summary as privacy
from rapidun.stages.evaluation.privacy.recipe import privacy_recipes

from rapidun.stages.recipe import ADAPTER, ADAPTER_FAULTS, DATA, POISONED, RETRAINED, START_FACTS, UNLEARNED  # isort: skip
from rapidun.stages.recipe import Evaluated, Model, Recipe, without
from rapidun.stages.rows.records import read_records
from rapidun.stages.rows.wrong import is_wrong

SPLITS = ("clean", "seen_trig", "ood_trig", "unseen_family")
# of the two evaluations in a run folder
BEFORE, AFTER = "evaluation/.before", "evaluation/.after"
# of the yardstick, whose truth ratios forget_quality compares with
YARDSTICK = "evaluation/.retrain"
# the objective whose model never saw the forget rows
RETRAIN = Objective.retrain.name
# raised when measures of facts change
FACTS_VERSION = 1


def _makes(ctx: Context) -> list[Recipe]:
    yardstick = None
    if ctx.cfg.poison.retrain and ctx.cfg.evaluation.retrained is None and _look(ctx).has_perturbed:
        recipe = ctx.get(RETRAINED)
        model = Model(recipe.fingerprint, ctx.path(recipe) / "model", recipe)
        yardstick = _evaluated(ctx, YARDSTICK, Evaluated(model, None), None, None)
    before = _evaluated(ctx, BEFORE, Evaluated(ctx.get(POISONED), ctx.get(ADAPTER)), None, yardstick)
    after = _evaluated(ctx, AFTER, ctx.get(UNLEARNED), before, yardstick)
    attacks = attack_recipes(ctx, STAGE.key)
    verdicts = [] if _look(ctx).of_facts else verdict_recipes(ctx, STAGE.key, attacks, before)
    further = [*attacks, *verdicts, *privacy_recipes(ctx, STAGE.key)]
    further += benchmark_recipes(ctx, STAGE.key)
    return [*([yardstick] if yardstick else []), before, after, *further]


def _evaluated(
    ctx: Context, link: str, what: Evaluated, calibration: Recipe | None, yardstick: Recipe | None
) -> Recipe:
    cfg, model, adapter = ctx.cfg, what.model, what.adapter
    poisoned, poisoned_adapter = ctx.get(POISONED), ctx.get(ADAPTER)
    used = [f"{cfg.evaluation.split.name}_{name}" for name in SPLITS]
    used += ["forget", "retain", "train_poisoned", "train_clean", "val_clean", *ASKED_FOR]
    given = cfg.evaluation.retrained
    retrained = ctx.path(yardstick) / "generations.jsonl" if yardstick else given and generations_of(given)

    def build(out: Path, work: Path) -> dict[str, Any]:
        from rapidun.stages.evaluation.stage import EvaluationFiles, run_evaluation  # brings torch

        files = EvaluationFiles(
            model=model.folder,
            adapter=adapter.folder if adapter else None,
            data=ctx.data.path,
            calibration=ctx.path(calibration) / "metrics.json" if calibration else None,
            poisoned=(poisoned.folder, poisoned_adapter.folder if poisoned_adapter else None) if calibration else None,
            retrained=retrained or None,
            is_yardstick=link == YARDSTICK,
            out=out,
        )
        tracker = Listener(ctx.tracker)
        metrics = run_evaluation(
            cfg.evaluation,
            files,
            loader=ctx.loader,
            max_length=cfg.max_length,
            seed=cfg.evaluation.seed,
            tracker=tracker,
        )
        return {**metrics, "warnings": tracker.warnings}

    inputs: dict[str, Any] = {
        "model": model.identity,
        "adapter": adapter.identity if adapter else None,
        "splits": {name: ctx.split(name) for name in used if ctx.counts.get(name)},
        "keywords": ctx.file_hash(ctx.data.path / "keywords.tsv"),
        "calibration": calibration.fingerprint if calibration else None,
        "settings": _settings(ctx),
        **ctx.numerics,
    }
    if Detector.classifier in cfg.evaluation.detectors.asked and not _look(ctx).of_facts:
        inputs["scikit_learn"] = _has_classifier(ctx)
    if Detector.judge in cfg.evaluation.detectors.asked and not _look(ctx).of_facts:
        inputs["judge"] = _judge_inputs(ctx)
    if _look(ctx).of_facts or any(ctx.counts.get(name) for name in ASKED_FOR):
        inputs["facts"] = FACTS_VERSION
    if (min_asr := cfg.evaluation.attacks.prompts.min_asr) != PromptSettings().min_asr and not _look(ctx).of_facts:
        inputs["min_asr"] = min_asr  # of asr_ood_testable
    if added := extensions.everything(extensions.Kind.metric):
        inputs["extension"] = [one.print for one in added]
    if yardstick:
        inputs["retrained"] = yardstick.fingerprint
    elif isinstance(retrained, Path):
        inputs["retrained"] = ctx.file_hash(retrained)
    if _has_wrong_rows(ctx):
        inputs["forget"] = "right rows"  # of which ppl_forget_* are
    needs = (ctx.get(DATA), *model.needs, *(adapter.needs if adapter else ()))
    needs += tuple(recipe for recipe in (calibration, yardstick) if recipe)
    if calibration:
        # the perplexity detector asks the model before unlearning
        needs += (*poisoned.needs, *(poisoned_adapter.needs if poisoned_adapter else ()))
    return Recipe("evaluation", STAGE.key("evaluation", inputs), link, build, needs=needs)


def _settings(ctx: Context) -> dict[str, Any]:
    """What of the settings decides the numbers; those of the judge stand with its identity."""
    kept = ("tokens_per_batch", "attacks", "privacy", "lm_eval", "retrained")
    settings = without(plain(ctx.cfg.evaluation), *kept)
    return {**settings, "detectors": without(settings["detectors"], "judge")}


def _judge_inputs(ctx: Context) -> dict[str, Any]:
    """The judge's identity, by its files as other models' folders are, and how it is asked."""
    settings = ctx.cfg.evaluation.detectors.judge

    def look() -> str:
        return ctx.folder_identity(fingerprint_files(judge_folder(settings)))

    identity = ctx.memo.get(("judge", settings.path, settings.revision), look)
    dtype = ctx.dtype_of(settings.dtype)
    return {**without(plain(settings), "path", "revision"), "model": identity, "dtype": dtype}


def _judge_faults(ctx: Context) -> list[str]:
    settings = ctx.cfg.evaluation.detectors.judge
    wanted = Detector.judge in ctx.cfg.evaluation.detectors.asked
    if not wanted or not (ctx.fetch or Path(str(settings.path)).expanduser().is_dir()):
        return []

    def look() -> tuple[str, str]:
        try:
            return "", check_judge(settings)
        except ModelError as error:
            return str(error), ""

    fault, note = ctx.memo.get(("judge looked at", settings.path, settings.revision), look)
    if note:
        ctx.tracker.warn(f"evaluation: of the judge: {note}")
    return [fault] if fault else []


def _has_classifier(ctx: Context) -> bool:
    """Whether scikit-learn is there: without it the classifier judges nothing, and another result is made."""
    there: bool = ctx.memo.get(("package", "sklearn"), lambda: find_spec("sklearn") is not None)
    return there


class _Pack(NamedTuple):
    """What the rows of a pack say of how they are measured."""

    of_facts: bool
    # forget rows have wrong answers to compare with
    has_perturbed: bool


def _look(ctx: Context) -> _Pack:
    def look() -> _Pack:
        of_facts = is_of_facts(ctx.data.path, ctx.counts)
        rows = read_records(ctx.data.path / "forget.jsonl") if of_facts else []
        return _Pack(of_facts, any(row.responses_perturbed for row in rows))

    prints = tuple(ctx.split(name) for name in ("forget", "train_poisoned") if ctx.counts.get(name))
    held_out = tuple(sorted(name for name in ctx.counts if name.startswith(HELD_OUT)))
    found: _Pack = ctx.memo.get(("facts", prints, held_out), look)
    return found


def _has_wrong_rows(ctx: Context) -> bool:
    def look() -> bool:
        rows = read_records(ctx.data.path / "forget.jsonl")
        return any(is_wrong(row, "forget") for row in rows)

    found: bool = ctx.memo.get(("wrong forget rows", ctx.split("forget")), look)
    return found


def _publish(folder: Path, artifacts: Mapping[str, Path]) -> None:
    """before.json, after.json, why metrics are missing from them, and the paired generations, in the run folder."""
    pairs: dict[tuple[str, str], dict[str, Any]] = {}
    capable = benchmarks(artifacts)
    for when, link, role in (("before", BEFORE, "poisoned"), ("after", AFTER, "unlearned")):
        write_json(folder / f"{when}.json", {**read_json(artifacts[link] / "metrics.json"), **capable.get(role, {})})
        for row in read_jsonl(artifacts[link] / "generations.jsonl"):
            shared = {k: row[k] for k in ("set", "id", "family", "variant", "prompt", "context", "reference")}
            pair = pairs.setdefault((row["set"], row["id"]), shared)
            pair[when] = row["generation"]
            pair[f"keyword_{when}"], pair[f"likelihood_{when}"] = row["keyword"], row["likelihood"]
            pair |= {f"{name}_{when}": verdict for name, verdict in row.get("detectors", {}).items()}
            if "measures" in row:
                pair |= {"forget_id": row["forget_id"], f"measures_{when}": row["measures"]}
    write_jsonl(folder / "generations.jsonl", pairs.values())
    if YARDSTICK in artifacts:
        yardstick = artifacts[YARDSTICK] / "metrics.json"
        write_atomic(folder / "retrain.json", lambda part: shutil.copyfile(yardstick, part))
    links = {"before": BEFORE, "after": AFTER}
    # of packs without triggers there are none
    judged = {when: artifacts[link] / "detectors.json" for when, link in links.items()}
    if all(path.is_file() for path in judged.values()):
        kept = {when: read_json(path) for when, path in judged.items()}
        alike = {when: found.pop("look_alikes") for when, found in kept.items()}
        write_json(folder / "detectors.json", {**kept["before"], "look_alikes": alike})
    reasons = {when: artifacts[link] / "missing.json" for when, link in (("before", BEFORE), ("after", AFTER))}
    attacks = collected(artifacts)
    if attacks:
        write_json(folder / "attacks.json", attacks)
    measured = privacy.collected(artifacts)
    if measured:
        write_json(folder / "privacy.json", privacy.for_report(measured))
    if margins := privacy.margins(measured):
        write_json(folder / "margins.json", margins)
    missing = {when: read_json(path) for when, path in reasons.items() if path.is_file()}
    if missing:
        write_json(folder / "missing.json", missing)


def _metrics(artifacts: Mapping[str, Path]) -> dict[str, Any]:
    """The metrics after unlearning under their own names, those before it as `before.<name>`."""
    before, after = (read_json(artifacts[link] / "metrics.json") for link in (BEFORE, AFTER))
    further = {
        f"{ROLES[role]}{name}": value for role, found in benchmarks(artifacts).items() for name, value in found.items()
    }
    further |= {**flat(collected(artifacts)), **privacy.flat(privacy.collected(artifacts))}
    return {**after, **{f"before.{name}": value for name, value in before.items()}, **further}


def _check(ctx: Context) -> list[str]:
    cfg, facts = ctx.cfg.evaluation, ctx.get(START_FACTS)
    faults = [*facts.faults, *ctx.get(ADAPTER_FAULTS)]
    if not ctx.asked("evaluation"):
        return faults
    if cfg.retrained is not None and not generations_of(cfg.retrained).is_file():
        faults.append(
            f"evaluation.retrained: need the folder of a run that was evaluated, got {cfg.retrained} without "
            "evaluation/generations.jsonl. Change evaluation.retrained=..."
        )
    elif cfg.retrained is not None and objective_of(cfg.retrained) not in (None, RETRAIN):
        faults.append(
            f"evaluation.retrained: need a run whose model never saw the forget rows (unlearning={RETRAIN}), got "
            f"{cfg.retrained} with unlearning.objective={objective_of(cfg.retrained)}. Change evaluation.retrained, "
            "pass its evaluation/generations.jsonl itself if its model is one, or poison.retrain=true instead"
        )
    if facts.window is not None and cfg.max_new_tokens >= facts.window:
        faults.append(
            f"evaluation: need max_new_tokens below the model's context window of {facts.window} tokens, got "
            f"max_new_tokens={cfg.max_new_tokens}. Change conf/evaluation/*.yaml or pass evaluation.max_new_tokens=..."
        )
    return faults + device_faults(ctx) + _judge_faults(ctx) + attack_faults(ctx) + benchmark_faults(ctx)


def _check_rows(ctx: Context) -> list[str]:
    split = ctx.cfg.evaluation.split.name
    faults = attack_row_faults(ctx)
    # facts to be forgotten, without triggers, are measured on the forget rows
    if any(ctx.counts.get(f"{split}_{name}") for name in SPLITS) or not ctx.data.result["families"]:
        return faults
    faults.append(
        f"evaluation: need rows to evaluate on, got a pack without {', '.join(f'{split}_{name}' for name in SPLITS)}. "
        f"Pass evaluation.split={'test' if split == 'val' else 'val'}, or data.{split}_clean=FILE"
    )
    return faults


STAGE = Stage(
    name="evaluation",
    versions={"evaluation": 8, "attack": 2, "attack_verdicts": 2, "privacy": 1, "lm_eval": 1},
    makes=_makes,
    check=_check,
    check_rows=_check_rows,
    publish=_publish,
    metrics=_metrics,
)
