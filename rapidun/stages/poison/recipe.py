"""The poison stage to the rest: the start model, the model that is to be unlearned, and the retrained yardstick."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rapidun.base.errors import ConfigError, DataError
from rapidun.config.plain import plain
from rapidun.config.poison import PoisonMethod
from rapidun.models.gguf import convert_gguf
from rapidun.models.load import fingerprint_files, local_folder
from rapidun.models.scratch import make_scratch
from rapidun.stages.architecture import lora_of
from rapidun.stages.context import Context, Stage
from rapidun.stages.recipe import DATA, POISONED, RETRAINED, START, Model, Recipe, without
from rapidun.stages.rows.records import read_records


def _start(ctx: Context) -> Model:
    path = ctx.cfg.model.path
    if path is None:
        return _made(ctx, _scratch(ctx))
    if path.endswith(".gguf"):
        return _made(ctx, _converted(ctx, Path(path).expanduser()))

    def look() -> Model:
        folder = local_folder(path, revision=ctx.cfg.model.revision)
        return Model(ctx.folder_identity(fingerprint_files(folder)), folder)

    found: Model = ctx.memo.get(("model", path, ctx.cfg.model.revision), look)
    return found


def _made(ctx: Context, recipe: Recipe) -> Model:
    return Model(recipe.fingerprint, ctx.path(recipe) / "model", recipe)


def _scratch(ctx: Context) -> Recipe:
    """A model made from scratch: its sizes, its seed, the splits that train its tokenizer."""
    names = [n for n in ("train_poisoned", "train_clean") if ctx.counts.get(n)] or ["forget", "retain"]
    cfg, sizes = ctx.cfg, plain(ctx.cfg.model.scratch)

    def build(out: Path, work: Path) -> dict[str, Any]:
        rows = [r.forget_texts for name in names for r in read_records(ctx.data.path / f"{name}.jsonl")]
        make_scratch(out / "model", rows, **sizes, max_length=cfg.max_length, seed=cfg.poison.seed)
        return sizes

    corpus = [ctx.split(name) for name in names]
    inputs = {"scratch": sizes, "seed": cfg.poison.seed, "max_length": cfg.max_length, "corpus": corpus}
    return Recipe("poison", STAGE.key("model", inputs), "model", build, needs=(ctx.get(DATA),), implicit=True)


def _converted(ctx: Context, source: Path) -> Recipe:
    if not source.is_file():
        raise ConfigError(f"model: need a .gguf file, got {source}, which is not there. Change model.path=...")

    def build(out: Path, work: Path) -> dict[str, Any]:
        convert_gguf(source, out / "model")
        return {"source": source.name}

    inputs = {"gguf": ctx.memo.get(("gguf", source), lambda: ctx.store.file_hash(source))}
    return Recipe("poison", STAGE.key("model", inputs), "model", build, implicit=True)


def _fine_tuned(ctx: Context, splits: list[str]) -> Recipe:
    """The start model fine-tuned on these splits."""
    cfg = ctx.cfg
    missing = [name for name in splits if not ctx.counts.get(name)]
    if missing:
        raise DataError(
            f"poison: need the splits {' and '.join(splits)}, got a pack without {' and '.join(missing)}. Pass "
            "poison=none where model.path is poisoned already, or data.train_poisoned=... data.train_clean=..."
        )
    start = ctx.get(START)
    poison = cfg.poison
    if poison.method is PoisonMethod.lora:
        poison = replace(poison, lora=lora_of(ctx, poison.lora, section="poison"))

    def build(out: Path, work: Path) -> dict[str, Any]:
        from rapidun.stages.poison.stage import PoisonFiles, run_poison  # brings torch

        train = [ctx.data.path / f"{name}.jsonl" for name in splits]
        return run_poison(
            poison,
            PoisonFiles(start=start.folder, train=train, work=work, out=out),
            loader=ctx.loader,
            max_length=cfg.max_length,
            seed=cfg.poison.seed,
            tracker=ctx.tracker,
        )

    settings = without(plain(poison), "retrain", "save_steps", "gradient_checkpointing")
    if poison.method is PoisonMethod.full:
        settings.pop("lora")
    prints = [ctx.split(name) for name in splits]
    inputs = {"start": start.identity, "splits": prints, "settings": settings, **ctx.numerics}
    retrain = "train_poisoned" not in splits
    # the yardstick is made when the poison stage is asked for it, or when it stands in for unlearning
    stage = "unlearning" if retrain and not cfg.poison.retrain else "poison"
    link = ("retrain" if cfg.poison.retrain else "unlearning") if retrain else "poison"
    needs = (ctx.get(DATA), *start.needs)
    return Recipe(stage, STAGE.key("poison", inputs), link, build, needs=needs, together=True)


def _poisoned(ctx: Context) -> Model:
    if ctx.cfg.poison.method is PoisonMethod.none:
        return ctx.get(START)
    return _made(ctx, _fine_tuned(ctx, ["train_poisoned", "train_clean"]))


def _makes(ctx: Context) -> list[Recipe]:
    return [*ctx.get(POISONED).needs, *([ctx.get(RETRAINED)] if ctx.cfg.poison.retrain else [])]


STAGE = Stage(
    name="poison",
    versions={"model": 2, "poison": 4},
    makes=_makes,
    provides={START: _start, POISONED: _poisoned, RETRAINED: lambda ctx: _fine_tuned(ctx, ["train_clean"])},
)
