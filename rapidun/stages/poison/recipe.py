"""The poison stage to the rest: the start model, the model that is to be unlearned, and the retrained yardstick."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rapidun.base.errors import ConfigError, DataError, ModelError
from rapidun.base.files import sha256_json
from rapidun.base.text import short_message
from rapidun.base.tracker import Listener
from rapidun.config.model import AdapterAs
from rapidun.config.plain import plain
from rapidun.config.poison import PoisonMethod
from rapidun.config.run import RunConfig
from rapidun.models.architecture import inspect
from rapidun.models.gguf import convert_gguf
from rapidun.models.load import TOKENIZERS, fingerprint_files, local_folder
from rapidun.models.neutral import num_parameters, settle
from rapidun.models.scratch import make_scratch
from rapidun.models.start_adapter import StartAdapter, merge_start
from rapidun.models.weights import read_header
from rapidun.stages.architecture import lora_of, model_faults
from rapidun.stages.checks import device_faults, missing_files, missing_package
from rapidun.stages.context import Context, Memo, Stage

from rapidun.stages.recipe import DATA, POISONED, RETRAINED, START, START_ADAPTER, START_FACTS  # isort: skip
from rapidun.stages.recipe import Model, Product, Recipe, StartFacts, without
from rapidun.stages.rows.records import read_records
from rapidun.stages.start_adapter import folder_of, identity_of, start_adapter_faults, start_warnings

BASE: Product[Model] = Product("the model that model.path names, or one made in its place")


def _start(ctx: Context) -> Model:
    base, start = ctx.get(BASE), ctx.get(START_ADAPTER)
    if start is None:
        return base
    for warning in start_warnings(ctx):
        ctx.tracker.warn(warning)
    if ctx.cfg.model.adapter_as is AdapterAs.merged:
        return _made(ctx, _merged(ctx, base, start))
    # the loader puts the adapter on wherever the base is loaded
    return Model(sha256_json({"base": base.identity, "adapter": start.identity})[:16], base.folder, base.recipe)


def _start_adapter(ctx: Context) -> StartAdapter | None:
    folder = folder_of(ctx.cfg.model)
    if folder is None:
        return None
    return StartAdapter(base=ctx.get(BASE).folder, folder=folder, identity=identity_of(ctx, folder))


def _base(ctx: Context) -> Model:
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


def _facts(ctx: Context) -> StartFacts:
    """What is known of the start model before it is loaded, its adapter with it."""
    facts = _facts_of_base(ctx)
    return facts if facts.faults else replace(facts, faults=tuple(start_adapter_faults(ctx)))


def _facts_of_base(ctx: Context) -> StartFacts:
    """What is known of the base before it is loaded; a hub id is fetched first, if it may be."""
    model = ctx.cfg.model
    path = model.path
    if path is None:
        # as make_scratch makes it
        window = max(512, 2 * ctx.cfg.max_length)
        return StartFacts(window=window, num_layers=model.scratch.num_hidden_layers)
    if path.endswith(".gguf"):
        faults = missing_files({"model.path": path}, "a .gguf file")
        what, remedy = "model.path=FILE.gguf", "pip install 'rapidun[gguf]'"
        return StartFacts(faults=(*faults, *missing_package("gguf", what, remedy, ctx)))

    if not ctx.fetch and not Path(path).expanduser().is_dir():
        return StartFacts()

    def look() -> StartFacts:
        try:
            return look_at_start(local_folder(path, revision=model.revision))
        except ModelError as error:
            return StartFacts(faults=(str(error),))

    found: StartFacts = ctx.memo.get(("start", path, model.revision), look)
    return found


def look_at_start(folder: Path) -> StartFacts:
    """What a model folder's config.json, tokenizer files and weights' headers say; no weights are read."""
    faults = _damaged(folder)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        faults.append(f"model: need a tokenizer in {folder} (tokenizer.json), got none. Change model.path=...")
    try:
        facts = inspect(folder)
    except ModelError as error:
        return StartFacts(faults=tuple(faults) or (str(error),))
    return StartFacts(window=facts.window, num_layers=facts.num_layers, faults=tuple(faults))


def _damaged(folder: Path) -> list[str]:
    """Files of weights that are cut short, or none, or that the index names and are not there."""
    faults = []
    for file in sorted(folder.glob("*.safetensors")):
        try:
            read_header(file)
        except ModelError as error:
            faults.append(str(error))
    index = folder / "model.safetensors.index.json"
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values() if index.is_file() else []
        lacking = sorted({str(name) for name in places if not (folder / str(name)).is_file()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return [*faults, f"model: need {index} with a weight_map, got {short_message(error)}. Change model.path=..."]
    if lacking:
        shown = ", ".join(lacking[:3]) + (", ..." if lacking[3:] else "")
        faults.append(f"model: need the files that {index} names, got a folder without {shown}. Change model.path=...")
    return faults


def settle_by_size(cfg: RunConfig, memo: Memo) -> str:
    """Put numbers in the place of settings that are left to the model's size; return a line for the log, if any.

    Raises: ModelError for a model that is not there.
    """
    path, revision = cfg.model.path, cfg.model.revision
    # of a model that no stage needs
    idle = not set(cfg.involved) & {"poison", "influence", "unlearning", "evaluation"}
    if path is None or (idle and not Path(path).expanduser().exists()):
        return ""

    def count() -> int:
        is_gguf = path.endswith(".gguf")
        return num_parameters(Path(path).expanduser() if is_gguf else local_folder(path, revision=revision))

    return settle(cfg, lambda: memo.get(("parameters", path, revision), count))


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


def _merged(ctx: Context, base: Model, start: StartAdapter) -> Recipe:
    """Base and adapter as one folder."""

    def build(out: Path, work: Path) -> dict[str, Any]:
        tracker = Listener(ctx.tracker)
        loader = replace(ctx.loader, quantisation="none", keep=False, say=tracker.warn)
        result = merge_start(start, out / "model", loader=loader)
        return {**result, "warnings": tracker.warnings}

    inputs = {"base": base.identity, "adapter": start.identity, "dtype": ctx.dtype}
    return Recipe("poison", STAGE.key("model", inputs), "start", build, needs=base.needs, implicit=True)


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
    if cfg.model.adapter is not None and "train_poisoned" not in splits:
        ctx.tracker.warn(
            f"poison: the yardstick starts from the base with {cfg.model.adapter}: what that adapter was trained on "
            "stays in it, and only the poison of this run is missing"
        )
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

    settings = without(plain(poison), "retrain", "save_steps", "gradient_checkpointing", *poison.idle_optimiser)
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


def _check(ctx: Context) -> list[str]:
    cfg, facts = ctx.cfg, ctx.get(START_FACTS)
    faults = list(facts.faults)
    trains = cfg.poison.method is not PoisonMethod.none or cfg.poison.retrain
    trains = (trains and ctx.asked("poison")) or (ctx.asked("unlearning") and cfg.unlearning.objective.traits.retrains)
    if not faults:
        faults += model_faults(ctx)
    return faults + (device_faults(ctx) if trains else [])


def _makes(ctx: Context) -> list[Recipe]:
    return [*ctx.get(POISONED).needs, *([ctx.get(RETRAINED)] if ctx.cfg.poison.retrain else [])]


STAGE = Stage(
    name="poison",
    versions={"model": 2, "poison": 4},
    makes=_makes,
    check=_check,
    provides={
        BASE: _base,
        START: _start,
        START_ADAPTER: _start_adapter,
        START_FACTS: _facts,
        POISONED: _poisoned,
        RETRAINED: lambda ctx: _fine_tuned(ctx, ["train_clean"]),
    },
)
