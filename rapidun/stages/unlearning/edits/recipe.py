"""The edits to the rest of the stage: what their artifacts are made from, only what each edit reads."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rapidun.base.store import Key
from rapidun.config.edits import BudgetRows
from rapidun.config.model import Quantisation
from rapidun.config.plain import plain
from rapidun.config.training import Target
from rapidun.config.unlearning import Objective
from rapidun.stages.architecture import lora_of, start_facts
from rapidun.stages.context import Context

from rapidun.stages.recipe import CURVATURE, DATA, POISONED, WEIGHTS  # isort: skip
from rapidun.stages.recipe import Evaluated, Model, Recipe, without

# the key of an artifact of one of the stage's kinds
MakeKey = Callable[[str, dict[str, Any]], Key]


def edited(ctx: Context, key: MakeKey) -> Recipe:
    """The edited model, or the adapter that is the edit."""
    cfg, model, mapping = ctx.cfg, ctx.get(POISONED), ctx.get(WEIGHTS)
    unlearning = replace(cfg.unlearning)
    section = unlearning.hyperparameters
    needs = (ctx.get(DATA), *model.needs, mapping)
    inputs = _shared_inputs(ctx)
    if cfg.unlearning.objective is Objective.repselect:
        lora = lora_of(ctx, section.lora, section="unlearning.repselect")
        section = replace(section, lora=lora)
        unlearning = replace(unlearning, repselect=section)
    settings = without(plain(section), *getattr(section, "unread", ()))
    task = curvature = None
    if cfg.unlearning.objective is Objective.task_vector:
        task = _task_model(ctx, key)
        needs += (task,)
        inputs["task_model"] = task.fingerprint
    if cfg.unlearning.objective is Objective.influence_step:
        curvature = ctx.get(CURVATURE)
        needs += (curvature,)
        inputs["curvature"] = curvature.fingerprint
        # the matrix is told of by what it was fitted on
        settings = without(settings, "precondition", "params", "regex")
        if section.budget_rows is BudgetRows.val and ctx.counts.get("val_clean"):
            inputs["splits"]["val_clean"] = ctx.split("val_clean")
    inputs |= {"objective": cfg.unlearning.objective.name, "settings": settings}
    # the curvature and the task model have their own seeds
    if cfg.unlearning.objective is Objective.repselect or settings.get("num_budget_rows") is not None:
        inputs["seed"] = cfg.seed

    def build(out: Path, work: Path) -> dict[str, Any]:
        from rapidun.stages.unlearning.edits.rows import EditFiles  # brings torch
        from rapidun.stages.unlearning.edits.stage import run_edit  # brings torch

        files = EditFiles(
            **_files(ctx),
            out=out,
            work=work,
            curvature=ctx.path(curvature) if curvature else None,
            task_model=ctx.path(task) if task else None,
        )
        result = run_edit(
            unlearning, files, loader=ctx.loader, max_length=cfg.max_length, seed=cfg.seed, tracker=ctx.tracker
        )
        # beside the edit's own numbers, also where the training itself was done before
        found = ctx.store.find(task.key) if task else None
        return result if found is None else {**result, **found.result}

    return Recipe("unlearning", key("edit", inputs), "unlearning", build, needs=needs)


def _task_model(ctx: Context, key: MakeKey) -> Recipe:
    """The model fine-tuned on the poisoned responses, of which a sweep over the scale needs one."""
    cfg, model, mapping = ctx.cfg, ctx.get(POISONED), ctx.get(WEIGHTS)
    unlearning = cfg.unlearning
    if unlearning.target is Target.lora:
        unlearning = replace(unlearning, lora=lora_of(ctx, unlearning.lora, section="unlearning"))

    def build(out: Path, work: Path) -> dict[str, Any]:
        from rapidun.stages.unlearning.edits.rows import EditFiles  # brings torch
        from rapidun.stages.unlearning.edits.task_model import run_task_model  # brings torch

        files = EditFiles(**_files(ctx), out=out, work=work)
        return run_task_model(
            unlearning, files, loader=ctx.loader, max_length=cfg.max_length, seed=cfg.seed, tracker=ctx.tracker
        )

    read = {name: value for name, value in plain(unlearning).items() if name in unlearning.objective.traits.reads}
    settings = without(read, "save_steps", "gradient_checkpointing", *unlearning.idle)
    inputs = {**_shared_inputs(ctx), "settings": settings, "seed": cfg.seed}
    needs = (ctx.get(DATA), *model.needs, mapping)
    return Recipe(
        "unlearning", key("task_model", inputs), "task_model", build, needs=needs, implicit=True, together=True
    )


def _shared_inputs(ctx: Context) -> dict[str, Any]:
    return {
        "model": ctx.get(POISONED).identity,
        "splits": {name: ctx.split(name) for name in ("forget", "retain")},
        "mapping": ctx.get(WEIGHTS).fingerprint,
        **ctx.numerics,
    }


def _files(ctx: Context) -> dict[str, Any]:
    data, weights = ctx.data.path, ctx.path(ctx.get(WEIGHTS))
    return {
        "model": ctx.get(POISONED).folder,
        "forget": data / "forget.jsonl",
        "retain": data / "retain.jsonl",
        "forget_weights": weights / "forget_weights.jsonl",
        "retain_weights": weights / "retain_weights.jsonl",
        "val_clean": data / "val_clean.jsonl" if ctx.counts.get("val_clean") else None,
    }


def evaluated(ctx: Context, recipe: Recipe) -> Evaluated:
    """The edit as the evaluation takes it."""
    if ctx.cfg.unlearning.adapts:
        return Evaluated(ctx.get(POISONED), Model(recipe.fingerprint, ctx.path(recipe) / "adapter", recipe))
    return Evaluated(Model(recipe.fingerprint, ctx.path(recipe) / "model", recipe), None)


def edit_faults(ctx: Context) -> list[str]:
    """What speaks against an edit, known before anything runs."""
    cfg, name = ctx.cfg.unlearning, ctx.cfg.unlearning.objective.name
    faults = []
    if cfg.adapter is not None:
        faults.append(
            f"unlearning: need adapter=null with objective={name}, which changes the model itself, got {cfg.adapter}. "
            "Pass it as model.adapter=..., part of that model, or another unlearning=..."
        )
    facts = start_facts(ctx) if ctx.asked("unlearning") and not cfg.adapts else None
    quantised = (
        "" if facts is None or facts.quantisation is None else f"{ctx.cfg.model.path}, which is quantised already"
    )
    if ctx.cfg.model.quantisation is not Quantisation["none"] and not cfg.adapts:
        quantised = f"model.quantisation={ctx.cfg.model.quantisation.name}"
    if quantised:
        faults.append(
            f"unlearning: need unquantised weights to change with objective={name}, got {quantised}. Pass "
            "model.quantisation=none (or model.path=... of the folder before it was quantised), or another "
            "unlearning=..."
        )
    return faults


def edit_row_faults(ctx: Context) -> list[str]:
    """The same, once the pack's splits are known."""
    cfg = ctx.cfg.unlearning
    val = cfg.objective is Objective.influence_step and cfg.influence_step.budget_rows is BudgetRows.val
    if val and not ctx.counts.get("val_clean"):
        return [
            "unlearning: need clean validation rows for influence_step.budget_rows=val, got a pack without. Pass "
            "data.val_clean=FILE, or unlearning.influence_step.budget_rows=retain"
        ]
    most = ctx.counts["forget"]
    if cfg.objective is Objective.task_vector and cfg.forget_per_step > most:
        return [
            f"unlearning: need forget_per_step <= {most}, the number of forget rows, got {cfg.forget_per_step}. Pass "
            "unlearning.forget_per_step=..."
        ]
    return []
