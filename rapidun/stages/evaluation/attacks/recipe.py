"""Which attacks are run on which models, each one an artifact of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rapidun.base.store import Key
from rapidun.base.tracker import Listener
from rapidun.config.attacks import Attack, Rows
from rapidun.config.detectors import ALWAYS, OF_TEXTS
from rapidun.config.plain import plain
from rapidun.config.training import Target
from rapidun.models.architecture import ModelFacts
from rapidun.stages.architecture import lora_of, start_facts
from rapidun.stages.checks import missing_package
from rapidun.stages.context import Context
from rapidun.stages.evaluation.attacks.rows import HELD_OUT, SPLITS, numbers_of_rows, pool_of
from rapidun.stages.evaluation.attacks.summary import LINK, VERDICTS_LINK, run_of
from rapidun.stages.evaluation.roles import models_of
from rapidun.stages.recipe import ADAPTER, DATA, POISONED, Evaluated, Recipe, without
from rapidun.stages.rows.keywords import read_keywords

KIND, VERDICTS_KIND = "attack", "attack_verdicts"
KEYWORDS = "keywords.tsv"
# what a model that was never unlearned is attacked by: what fires in it says what the others' figures mean
ON_POISONED = (Attack.quantisation, Attack.sampling, Attack.prompts)


@dataclass(frozen=True)
class Run:
    """One run of an attack: what of it, beside the settings of all runs, and which splits it reads."""

    attack: Attack
    part: dict[str, Any]
    splits: tuple[str, ...]

    @property
    def name(self) -> str:
        return ".".join([self.attack.name, *(str(value) for value in self.part.values())])


def attack_recipes(ctx: Context, key: Callable[[str, dict[str, Any]], Key]) -> list[Recipe]:
    """The artifacts of the attacks that are asked for, model by model."""
    if not ctx.cfg.evaluation.attacks.asked:
        return []
    runs = _runs(ctx)
    return [
        _recipe(ctx, key, role, what, run)
        for role, what in models_of(ctx).items()
        for run in runs
        if role != "poisoned" or run.attack in ON_POISONED
    ]


def _runs(ctx: Context) -> list[Run]:
    """The runs that this pack has rows for; what it lacks is said."""
    cfg = ctx.cfg.evaluation
    split = cfg.split.name
    asked, look_alikes = f"{split}_seen_trig", f"{split}_ood_trig"
    runs = []
    for attack in cfg.attacks.asked:
        if attack is Attack.relearning:
            for kind in (Rows[name] for name in cfg.attacks.relearning.rows):
                splits = (asked, SPLITS[kind], "forget", *HELD_OUT)
                for k in _numbers(ctx, kind):
                    runs.append(Run(attack, {"rows": kind.name, "k": k}, splits))
        elif attack is Attack.prompts:
            runs.append(Run(attack, {}, (asked, look_alikes, SPLITS[Rows.poisoned], "forget", *HELD_OUT)))
        else:
            runs.append(Run(attack, {}, (asked,)))
    return runs


def _numbers(ctx: Context, kind: Rows) -> list[int]:
    def count() -> tuple[int, int, int]:
        pool = pool_of(ctx.data.path, kind)
        return len(pool.rows), pool.in_split, pool.in_forget

    used = [SPLITS[kind], "forget", *HELD_OUT]
    splits = tuple((name, ctx.split(name)) for name in used if ctx.counts.get(name))
    size, in_split, in_forget = ctx.memo.get(("relearning pool", kind, splits), count)
    numbers, said = numbers_of_rows(size, ctx.cfg.evaluation.attacks.relearning.k)
    if said:
        ctx.tracker.warn(
            f"evaluation: relearning from {kind.name} rows: {'; '.join(said)} ({in_split} in {SPLITS[kind]}, of them "
            f"{in_forget} in the forget set and others asked in validation or test)"
        )
    return numbers


def _recipe(ctx: Context, key: Callable[[str, dict[str, Any]], Key], role: str, what: Evaluated, run: Run) -> Recipe:
    cfg, model, adapter = ctx.cfg.evaluation, what.model, what.adapter
    attacks = cfg.attacks
    if run.attack is Attack.relearning and attacks.relearning.target is Target.lora:
        lora = lora_of(ctx, attacks.relearning.lora, section="evaluation.attacks.relearning")
        attacks = replace(attacks, relearning=replace(attacks.relearning, lora=lora))
        cfg = replace(cfg, attacks=attacks)
    # what is logged must not depend on the run that made it first
    is_retrained = role == "retrain" or (role == "unlearned" and ctx.cfg.unlearning.objective.traits.retrains)
    name = f"attack_{'retrain' if is_retrained else role}_{run.attack.name}"

    def build(out: Path, work: Path) -> dict[str, Any]:
        from rapidun.stages.evaluation.attacks.run import Attacked, run_attack  # brings torch

        tracker = Listener(ctx.tracker)
        given = Attacked(
            cfg=cfg,
            loader=ctx.loader,
            model=model.folder,
            adapter=adapter.folder if adapter else None,
            data=ctx.data.path,
            work=work,
            max_length=ctx.cfg.max_length,
            name=name,
            tracker=tracker,
        )
        run_attack(run.attack, given, run.part, out=out)
        return {"warnings": tracker.warnings}

    settings = plain(getattr(attacks, run.attack.name))
    if run.attack is Attack.relearning:
        settings = without(settings, "rows", "k", *(["lora"] if attacks.relearning.target is Target.full else []))
    inputs: dict[str, Any] = {
        "attack": run.attack.name,
        **run.part,
        "model": model.identity,
        "adapter": adapter.identity if adapter else None,
        "splits": {split: ctx.split(split) for split in run.splits if ctx.counts.get(split)},
        "asked": cfg.split.name,
        "keywords": ctx.file_hash(ctx.data.path / KEYWORDS),
        "answers": cfg.of_answers,
        "num_prompts": attacks.num_prompts,
        "seed": attacks.seed,
        "settings": settings,
        **ctx.numerics,
    }
    needs = (ctx.get(DATA), *model.needs, *(adapter.needs if adapter else ()))
    together = run.attack is Attack.relearning
    return Recipe(
        "evaluation", key(KIND, inputs), LINK.format(role=role, run=run.name), build, needs=needs, together=together
    )


def verdict_recipes(
    ctx: Context, key: Callable[[str, dict[str, Any]], Key], attacks: Sequence[Recipe], before: Recipe
) -> list[Recipe]:
    """The verdicts of the detectors beside keywords and likelihood on the answers of `attacks`, model by model.

    Args: before: the evaluation before unlearning, whose thresholds hold, and whose inputs say which detectors judge.
    """
    if not set(ctx.cfg.evaluation.detectors.asked) - set(ALWAYS):
        return []
    of_role: dict[str, dict[str, Recipe]] = {}
    for recipe in attacks:
        role, name = run_of(recipe.link) or ("", "")
        of_role.setdefault(role, {})[name] = recipe
    return [_verdicts(ctx, key, role, runs, before) for role, runs in of_role.items()]


def _verdicts(
    ctx: Context, key: Callable[[str, dict[str, Any]], Key], role: str, runs: dict[str, Recipe], before: Recipe
) -> Recipe:
    poisoned, adapter = ctx.get(POISONED), ctx.get(ADAPTER)

    def build(out: Path, work: Path) -> dict[str, Any]:
        from rapidun.stages.evaluation.attacks.verdicts import Kept, judge_attacks  # brings torch

        tracker = Listener(ctx.tracker)
        files = Kept(
            attacks={name: ctx.path(recipe) for name, recipe in runs.items()},
            data=ctx.data.path,
            calibration=ctx.path(before) / "metrics.json",
            poisoned=(poisoned.folder, adapter.folder if adapter else None),
            work=work,
            out=out,
        )
        judge_attacks(ctx.cfg.evaluation, files, loader=ctx.loader, max_length=ctx.cfg.max_length, tracker=tracker)
        return {"warnings": tracker.warnings}

    inputs = {
        "attacks": {name: recipe.fingerprint for name, recipe in sorted(runs.items())},
        "evaluation": before.fingerprint,
    }
    needs = (ctx.get(DATA), *runs.values(), before, *poisoned.needs, *(adapter.needs if adapter else ()))
    return Recipe("evaluation", key(VERDICTS_KIND, inputs), VERDICTS_LINK.format(role=role), build, needs=needs)


def attack_faults(ctx: Context) -> list[str]:
    """What speaks against the attacks before anything runs."""
    attacks = ctx.cfg.evaluation.attacks
    if not ctx.asked("evaluation") or Attack.quantisation not in attacks.asked:
        return []
    what = "evaluation.attacks.run=[quantisation]"
    rest = ",".join(attack.name for attack in attacks.asked if attack is not Attack.quantisation)
    faults = missing_package(
        "bitsandbytes", what, f"Reinstall bitsandbytes, or pass evaluation.attacks.run=[{rest}]", ctx
    )
    facts: ModelFacts | None = start_facts(ctx)
    if facts is not None and facts.quantisation is not None:
        faults.append(
            f"evaluation: need a model folder that is not quantised already for {what}, got {ctx.cfg.model.path} "
            f"({facts.quantisation}). Pass evaluation.attacks.run=[{rest}]"
        )
    return faults


def attack_row_faults(ctx: Context) -> list[str]:
    """What speaks against the attacks now that the splits are known."""
    cfg = ctx.cfg.evaluation
    if not cfg.attacks.asked:
        return []
    faults = []
    asked = f"{cfg.split.name}_seen_trig"
    if not ctx.counts.get(asked):
        faults.append(
            f"evaluation: need triggered prompts ({asked}) to measure attacks by, got a pack without. Pass "
            f"data.{asked}=FILE, or evaluation.attacks.run=[]"
        )
    keywords = ctx.data.path / KEYWORDS
    has_words = keywords.exists() and bool(read_keywords(keywords, may_be_empty=True))
    others = [one.name for one in OF_TEXTS if one in cfg.detectors.asked and one not in ALWAYS]
    if Attack.sampling in cfg.attacks.asked and not has_words and not others:
        rest = ",".join(attack.name for attack in cfg.attacks.asked if attack is not Attack.sampling)
        faults.append(
            "evaluation: need keywords, or another detector of texts, to judge sampled answers by, got a pack without "
            f"and evaluation.detectors.run=[{','.join(cfg.detectors.run)}]. Pass data.keywords=..., "
            f"evaluation.detectors.run=[refusal,classifier] or evaluation.attacks.run=[{rest}]"
        )
    return faults
