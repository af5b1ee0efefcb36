"""The unlearning stage to the rest: an adapter over the poisoned model, or the yardstick that was never poisoned."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rapidun.base.errors import ConfigError
from rapidun.config.plain import plain
from rapidun.stages.architecture import lora_of
from rapidun.stages.context import Context, Stage

from rapidun.stages.recipe import ADAPTER, DATA, POISONED, RETRAINED, UNLEARNED, WEIGHTS  # isort: skip
from rapidun.stages.recipe import Evaluated, Model, Product, Recipe, without

TRAINED: Product[Recipe] = Product("what the unlearning stage makes")


def _adapter(ctx: Context) -> Model | None:
    if ctx.cfg.unlearning.adapter is None:
        return None
    folder = Path(ctx.cfg.unlearning.adapter).expanduser()
    files = [folder / "adapter_config.json", folder / "adapter_model.safetensors"]
    if not all(file.is_file() for file in files):
        raise ConfigError(
            f"unlearning: need a PEFT folder (adapter_config.json, adapter_model.safetensors), got {folder}. "
            "Change unlearning.adapter=..."
        )
    found: Model = ctx.memo.get(("adapter", folder), lambda: Model(ctx.folder_identity(files), folder))
    return found


def _trained(ctx: Context) -> Recipe:
    if ctx.cfg.unlearning.objective.traits.retrains:
        return ctx.get(RETRAINED)
    cfg, model, mapping, adapter = ctx.cfg, ctx.get(POISONED), ctx.get(WEIGHTS), ctx.get(ADAPTER)
    unlearning = replace(cfg.unlearning, lora=lora_of(ctx, cfg.unlearning.lora, section="unlearning"))
    has_val = bool(ctx.counts.get("val_clean"))
    names = ["forget", "retain", *(["val_clean"] if has_val and cfg.unlearning.eval_steps else [])]

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
        )
        return run_unlearning(
            unlearning,
            files,
            loader=ctx.loader,
            max_length=cfg.max_length,
            seed=cfg.seed,
            tracker=ctx.tracker,
        )

    inputs = {
        "model": model.identity,
        "splits": {name: ctx.split(name) for name in names},
        "mapping": mapping.fingerprint,
        "adapter": adapter.identity if adapter else None,
        "settings": without(plain(unlearning), "save_steps", "gradient_checkpointing", "adapter"),
        "seed": cfg.seed,
        **ctx.numerics,
    }
    needs = (ctx.get(DATA), *model.needs, mapping)
    return Recipe("unlearning", STAGE.key("unlearning", inputs), "unlearning", build, needs=needs, together=True)


def _unlearned(ctx: Context) -> Evaluated:
    recipe = ctx.get(TRAINED)
    if ctx.cfg.unlearning.objective.traits.retrains:
        return Evaluated(Model(recipe.fingerprint, ctx.path(recipe) / "model", recipe), None)
    return Evaluated(ctx.get(POISONED), Model(recipe.fingerprint, ctx.path(recipe) / "adapter", recipe))


STAGE = Stage(
    name="unlearning",
    versions={"unlearning": 3},
    makes=lambda ctx: [ctx.get(TRAINED)],
    provides={ADAPTER: _adapter, TRAINED: _trained, UNLEARNED: _unlearned},
    numbers=True,
)
