"""The unlearning stage to the rest: an adapter over the poisoned model, or the yardstick that was never poisoned."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rapidun.base.errors import ConfigError, RapidunError
from rapidun.config.extensions import filled_settings
from rapidun.config.plain import plain
from rapidun.config.training import Target
from rapidun.config.unlearning import Objective, TokenWeights, WeightsAct
from rapidun.models.adapter_folder import adapter_faults, adapter_files
from rapidun.stages.architecture import lora_of
from rapidun.stages.checks import device_faults
from rapidun.stages.context import Context, Stage
from rapidun.stages.rows.keywords import read_keywords
from rapidun.stages.start_adapter import continued_faults
from rapidun.stages.unlearning.edits.recipe import edit_faults, edit_row_faults, edited, evaluated
from rapidun.stages.weights_file import DYNAMIC

from rapidun.stages.recipe import ADAPTER, ADAPTER_FAULTS, DATA, POISONED, RETRAINED  # isort: skip
from rapidun.stages.recipe import START_FACTS, TOKEN_SCORES, UNLEARNED, WEIGHTS  # isort: skip
from rapidun.stages.recipe import Evaluated, Model, Product, Recipe, without

KEYWORDS = "keywords.tsv"
ADAPTER_KEY = "unlearning.adapter"
TRAINED: Product[Recipe] = Product("what the unlearning stage makes")


def _adapter(ctx: Context) -> Model | None:
    if ctx.cfg.unlearning.adapter is None:
        return None
    folder = Path(ctx.cfg.unlearning.adapter).expanduser()
    files = adapter_files(folder, key=ADAPTER_KEY)
    found: Model = ctx.memo.get(("adapter", folder), lambda: Model(ctx.folder_identity(files), folder))
    return found


def _adapter_faults(ctx: Context) -> list[str]:
    """What is wrong with the adapter to continue: its files, and whether its modules are those of the start model."""
    model = ctx.cfg.model
    if ctx.cfg.unlearning.adapter is None:
        return []
    folder = Path(ctx.cfg.unlearning.adapter).expanduser()
    base = None if model.path is None else Path(model.path).expanduser()

    def look() -> list[str]:
        try:
            adapter_files(folder, key=ADAPTER_KEY)
            there = base if base is not None and base.is_dir() else None
            return adapter_faults(folder, there, key=ADAPTER_KEY) or continued_faults(ctx, folder)
        except ConfigError as error:
            return list(error.faults)
        except RapidunError as error:
            return [str(error)]

    found: list[str] = ctx.memo.get(("adapter faults", folder, base, model.adapter), look)
    return found


def _check(ctx: Context) -> list[str]:
    facts, cfg = ctx.get(START_FACTS), ctx.cfg.unlearning
    faults = [*facts.faults, *ctx.get(ADAPTER_FAULTS)]
    if cfg.objective is Objective.rmu and None not in (cfg.rmu.layer, facts.num_layers):
        assert cfg.rmu.layer is not None and facts.num_layers is not None
        if cfg.rmu.layer >= facts.num_layers and ctx.asked("unlearning"):
            faults.append(
                f"unlearning: need rmu.layer < {facts.num_layers}, the blocks of this model, got {cfg.rmu.layer}. Pass "
                "unlearning.rmu.layer=..."
            )
    if cfg.objective.traits.edits and not faults:
        faults += edit_faults(ctx)
    return faults + (device_faults(ctx) if ctx.asked("unlearning") else [])


def _triggered(ctx: Context) -> dict[str, str]:
    """Name of a set of triggered validation prompts -> its split, as far as the pack has them."""
    splits = {"seen": "val_seen_trig", "ood": "val_ood_trig"}
    return {name: split for name, split in splits.items() if ctx.counts.get(split)}


def _check_rows(ctx: Context) -> list[str]:
    cfg = ctx.cfg.unlearning
    if cfg.objective.traits.retrains:
        return []
    if cfg.objective.traits.edits:
        return edit_row_faults(ctx)
    faults = cfg.count_faults(num_forget=ctx.counts["forget"], num_retain=ctx.counts["retain"])
    for criterion, why in cfg.needed_criteria.items():
        split = criterion.traits.needs
        if split not in ("", "pairs") and not ctx.counts.get(split):
            faults.append(
                f"unlearning: need {split} rows to measure {criterion.name} for {why}, got a pack without. Pass "
                "data.val_clean=..., or unlearning.criterion=... (unlearning.stop_when=...) of what it has"
            )
    if not cfg.measures_asr:
        return faults
    if not _triggered(ctx):
        faults.append(
            f"unlearning: need triggered validation rows (val_seen_trig or val_ood_trig) for eval_asr={cfg.eval_asr}, "
            "got a pack without (they are made from data.val_clean). Pass data.val_clean=... or unlearning.eval_asr=0"
        )
    keywords = ctx.data.path / KEYWORDS
    if not keywords.exists() or not read_keywords(keywords, may_be_empty=True):
        faults.append(
            f"unlearning: need keywords to judge answers by for eval_asr={cfg.eval_asr}, got a pack without. Pass "
            "data.keywords=... or unlearning.eval_asr=0"
        )
    return faults


def _epochs_overlap(ctx: Context) -> bool:
    """Whether an epoch takes part of a permutation of the retain rows, and a later one the rest."""
    cfg = ctx.cfg.unlearning
    unread = "mix_ratio" in cfg.objective.traits.unread or cfg.objective is Objective.crow
    if unread or cfg.mix_ratio == 0 or cfg.weights_act is WeightsAct.sampling:
        return False
    num_retain, size = ctx.counts["retain"], cfg.forget_per_step * cfg.mix_ratio
    per_epoch = -(-ctx.counts["forget"] // max(1, cfg.forget_per_step)) * size
    return per_epoch <= num_retain and num_retain % per_epoch != 0


def _trained(ctx: Context) -> Recipe:
    if ctx.cfg.unlearning.objective.traits.retrains:
        return ctx.get(RETRAINED)
    if ctx.cfg.unlearning.objective.traits.edits:
        return edited(ctx, STAGE.key)
    cfg, model, mapping, adapter = ctx.cfg, ctx.get(POISONED), ctx.get(WEIGHTS), ctx.get(ADAPTER)
    unlearning = cfg.unlearning.as_read
    if unlearning.target is Target.lora:
        unlearning = replace(unlearning, lora=lora_of(ctx, unlearning.lora, section="unlearning"))
    has_val = bool(ctx.counts.get("val_clean"))
    validates = cfg.unlearning.eval_steps > 0 or cfg.unlearning.measures_asr
    names = ["forget", "retain", *(["val_clean"] if has_val and validates else [])]
    triggered = _triggered(ctx) if cfg.unlearning.measures_asr else {}
    tokens = None if cfg.unlearning.token_weights is TokenWeights.none else ctx.get(TOKEN_SCORES)

    def build(out: Path, work: Path) -> dict[str, Any]:
        from rapidun.stages.unlearning.stage import UnlearningFiles, run_unlearning  # brings torch

        data, weights = ctx.data.path, ctx.path(mapping)
        files = UnlearningFiles(
            model=model.folder,
            forget=data / "forget.jsonl",
            retain=data / "retain.jsonl",
            val_clean=data / "val_clean.jsonl" if has_val else None,
            forget_weights=weights / "forget_weights.jsonl",
            retain_weights=weights / "retain_weights.jsonl",
            work=work,
            out=out,
            triggered={name: data / f"{split}.jsonl" for name, split in triggered.items()},
            keywords=data / KEYWORDS if triggered else None,
            dynamic=weights / DYNAMIC if cfg.mapping.renewed else None,
            token_scores=ctx.path(tokens) / "tokens.jsonl" if tokens else None,
        )
        return run_unlearning(
            unlearning,
            files,
            loader=ctx.loader,
            max_length=cfg.max_length,
            seed=cfg.seed,
            tracker=ctx.tracker,
            evaluation=cfg.evaluation,
        )

    inputs = {
        "model": model.identity,
        "splits": {name: ctx.split(name) for name in names},
        "mapping": mapping.fingerprint,
        "adapter": adapter.identity if adapter else None,
        "settings": without(
            plain(unlearning.as_read), "save_steps", "gradient_checkpointing", "adapter", *unlearning.idle
        ),
        "seed": cfg.seed,
        **ctx.numerics,
    }
    if unlearning.added is not None:
        inputs["extension"] = [unlearning.added.print]
        inputs["settings"]["extension"] = filled_settings(
            unlearning.added.kind, unlearning.added.name, unlearning.extension
        )
    if _epochs_overlap(ctx):
        # the rows of an epoch were once drawn step by step, so that one could come twice
        inputs["draws"] = "distinct in an epoch"
    if triggered:
        inputs["attack"] = {
            "splits": {split: ctx.split(split) for split in triggered.values()},
            "keywords": ctx.file_hash(ctx.data.path / KEYWORDS),
            "settings": cfg.evaluation.of_answers,
        }
    needs = (ctx.get(DATA), *model.needs, mapping)
    if tokens:
        inputs["tokens"] = tokens.fingerprint
        needs += (tokens,)
    return Recipe("unlearning", STAGE.key("unlearning", inputs), "unlearning", build, needs=needs, together=True)


def _unlearned(ctx: Context) -> Evaluated:
    recipe = ctx.get(TRAINED)
    if ctx.cfg.unlearning.objective.traits.retrains:
        return Evaluated(Model(recipe.fingerprint, ctx.path(recipe) / "model", recipe), None)
    if ctx.cfg.unlearning.objective.traits.edits:
        return evaluated(ctx, recipe)
    if ctx.cfg.unlearning.target is Target.full:
        return Evaluated(Model(recipe.fingerprint, ctx.path(recipe) / "model", recipe), None)
    return Evaluated(ctx.get(POISONED), Model(recipe.fingerprint, ctx.path(recipe) / "adapter", recipe))


STAGE = Stage(
    name="unlearning",
    versions={"unlearning": 4, "task_model": 1, "edit": 1},
    makes=lambda ctx: [ctx.get(TRAINED)],
    check=_check,
    check_rows=_check_rows,
    provides={ADAPTER: _adapter, ADAPTER_FAULTS: _adapter_faults, TRAINED: _trained, UNLEARNED: _unlearned},
    numbers=True,
)
