"""Which measures of privacy are taken of which models, each one an artifact of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rapidun.base.store import Key
from rapidun.base.tracker import Listener
from rapidun.config.privacy import Measure
from rapidun.stages.context import Context
from rapidun.stages.evaluation.privacy.rows import compared, splits_read
from rapidun.stages.evaluation.privacy.summary import LINK
from rapidun.stages.evaluation.roles import models_of, retrained_of
from rapidun.stages.recipe import DATA, Evaluated, Recipe

KIND = "privacy"
# settings that a measure reads beside those of its rows
OWN = {Measure.membership: ("min_k", "num_resamples")}


def privacy_recipes(ctx: Context, key: Callable[[str, dict[str, Any]], Key]) -> list[Recipe]:
    """The artifacts of the measures that are asked for, model by model; what cannot be measured is said."""
    asked = ctx.cfg.evaluation.privacy.asked
    if not asked:
        return []
    models = models_of(ctx)
    left = [measure for measure in asked if measure is not Measure.membership or _can_compare(ctx)]
    return [
        _recipe(ctx, key, role, what, measure)
        for role, what in models.items()
        for measure in left
        # nothing is as near to the retrained model as itself
        if measure is not Measure.distance or ("retrain" in models and role != "retrain")
    ]


def _splits(ctx: Context) -> dict[str, str]:
    used = splits_read(ctx.cfg.evaluation.split.name)
    return {name: ctx.split(name) for name in used if ctx.counts.get(name)}


def _can_compare(ctx: Context) -> bool:
    """Whether there are members and non-members; that there are none, or that they are of different kinds, is said."""
    cfg = ctx.cfg.evaluation

    def look() -> tuple[bool, bool, str, int, int]:
        found = compared(ctx.data.path, split=cfg.split.name, num=cfg.privacy.num_rows, seed=cfg.privacy.seed)
        return found.enough, found.alike, found.split, len(found.others), found.in_training

    about = (cfg.split.name, cfg.privacy.num_rows, cfg.privacy.seed, tuple(_splits(ctx).items()))
    enough, alike, split, num_others, in_training = ctx.memo.get(("members and others", about), look)
    if not enough:
        ctx.tracker.warn(
            f"evaluation: privacy: need at least 2 forget rows and 2 held-out rows ({split}) to tell them apart, got "
            f"{num_others} held-out ones ({in_training} more are asked in training too): mia_* are left out. Pass "
            f"data.{split}=FILE"
        )
    elif not alike:
        ctx.tracker.warn(
            f"evaluation: privacy: the pack has no held-out rows with a poisoned response: forget rows are compared "
            f"with {split}, and mia_* say how different the two kinds are, not only who was trained on. Pass "
            f"data.{cfg.split.name}_seen_trig=FILE, and read mia_* beside those of retrain only"
        )
    return enough


def _recipe(
    ctx: Context, key: Callable[[str, dict[str, Any]], Key], role: str, what: Evaluated, measure: Measure
) -> Recipe:
    cfg, model, adapter = ctx.cfg.evaluation, what.model, what.adapter
    retrained = retrained_of(ctx) if measure is Measure.distance else None
    # what is logged must not depend on the run that made it first
    is_retrained = role == "retrain" or (role == "unlearned" and ctx.cfg.unlearning.objective.traits.retrains)
    name = f"privacy_{'retrain' if is_retrained else role}_{measure.name}"
    weights = {"model": model.identity, "adapter": adapter.identity if adapter else None}

    def build(out: Path, work: Path) -> dict[str, Any]:
        from rapidun.stages.evaluation.privacy.run import Measured, run_measure  # brings torch

        tracker = Listener(ctx.tracker)
        given = Measured(
            cfg=cfg,
            loader=ctx.loader,
            model=model.folder,
            adapter=adapter.folder if adapter else None,
            identity=" ".join(filter(None, weights.values())),
            retrained=retrained.folder if retrained else None,
            data=ctx.data.path,
            work=work,
            max_length=ctx.cfg.max_length,
            name=name,
            tracker=tracker,
        )
        run_measure(measure, given, out=out)
        return {"warnings": tracker.warnings}

    inputs: dict[str, Any] = {
        "measure": measure.name,
        **weights,
        "splits": _splits(ctx),
        "asked": cfg.split.name,
        "settings": {name: getattr(cfg.privacy, name) for name in ("num_rows", "seed", *OWN.get(measure, ()))},
        **ctx.numerics,
    }
    if retrained is not None:
        inputs["retrained"] = retrained.identity
    needs = (ctx.get(DATA), *model.needs, *(adapter.needs if adapter else ()))
    needs += retrained.needs if retrained else ()
    return Recipe("evaluation", key(KIND, inputs), LINK.format(role=role, measure=measure.name), build, needs=needs)
