"""The start model's architecture to the recipes: what LoRA adapts in it, and what speaks against the settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rapidun.config.influence import WITHOUT_GRADIENTS, InfluenceMethod, ParameterSet
from rapidun.config.model import Quantisation
from rapidun.config.parts import ALL_LINEAR, LoraSettings
from rapidun.config.poison import PoisonMethod
from rapidun.config.training import Target
from rapidun.config.unlearning import Objective
from rapidun.models.architecture import ModelFacts, gguf_architecture, inspect
from rapidun.models.layers import LayerNames, folder_names, names_like, resolve_targets
from rapidun.models.load import local_folder
from rapidun.models.weights import adapter_misfit, read_headers
from rapidun.stages.context import Context

# whose results need the model
WITH_MODEL = ("poison", "influence", "unlearning", "evaluation")


def lora_of(ctx: Context, settings: LoraSettings, *, section: str) -> LoraSettings:
    """The settings with the layers written out, so that a fingerprint says which they are.

    As they were typed where the architecture is not known yet, or has no such layers: that is said when they are used.
    """
    names = ctx.once("layers that LoRA can adapt", lambda: _start_names(ctx))
    if names is None:
        return settings
    targets, faults = resolve_targets(settings.targets, names, section=section, lora_dropout=settings.lora_dropout)
    return settings if faults else dataclasses.replace(settings, target_modules=targets)


def start_facts(ctx: Context) -> ModelFacts | None:
    """What is known of the folder that `model.path` names; None for a GGUF file, a scratch model, one to fetch.

    Raises: ModelError if there is no such folder, or its files are damaged.
    """
    folder = _start_folder(ctx)
    return None if folder is None else ctx.once("facts of the model folder", lambda: inspect(folder))


def model_faults(ctx: Context) -> list[str]:
    """Why the asked stages cannot do with the start model what they are asked to.

    Raises: ModelError for a folder that is damaged.
    """
    if not _needs_model(ctx):
        return []
    facts = start_facts(ctx)
    for note in facts.notes if facts is not None else ():
        ctx.tracker.warn(note)
    faults = _faults_of_kind(ctx)
    faults += _faults_of_adapter(ctx)
    if facts is None or facts.not_causal is None:
        faults += _faults_of_targets(ctx)
    return faults


def _needs_model(ctx: Context) -> bool:
    asked = [stage for stage in ctx.cfg.stages if stage in WITH_MODEL]
    return bool(asked) and not (asked == ["influence"] and ctx.cfg.influence.method is InfluenceMethod.bm25)


def _faults_of_kind(ctx: Context) -> list[str]:
    facts, cfg = start_facts(ctx), ctx.cfg
    if facts is None:
        return []
    faults = []
    if facts.not_causal is not None:
        faults.append(
            f"model: need a causal language model, got {cfg.model.path}, {facts.not_causal}. Change model.path=..."
        )
    quantised = facts.quantisation
    if quantised is None:
        return faults
    what = f"{cfg.model.path}, a folder that is quantised already ({quantised})"
    other = "or model.path=... of the folder before it was quantised"
    if cfg.model.quantisation is not Quantisation["none"]:
        faults.append(
            f"model: need model.quantisation=none with {what}, got {cfg.model.quantisation.name}. "
            f"Pass model.quantisation=none, {other}"
        )
    if not quantised.readable:
        faults.append(
            f"model: need a package that reads {quantised.method}, got none installed, for {what}. Pass {other[3:]}"
        )
    retrains = cfg.poison.retrain or cfg.unlearning.objective.traits.retrains
    if "poison" in cfg.stages and cfg.poison.method is not PoisonMethod.none:
        faults.append(
            f"poison: need unquantised weights to train or to merge into, got poison.method={cfg.poison.method.name} "
            f"and {what}. Pass poison=none where it is poisoned already, {other}"
        )
    elif retrains and {"poison", "unlearning"} & set(cfg.stages):
        faults.append(f"poison: need unquantised weights to retrain, got {what}. Pass another unlearning=..., {other}")
    if "unlearning" in cfg.stages and cfg.unlearning.target is Target.full and not retrains:
        faults.append(
            f"unlearning: need unquantised weights to train them all, got unlearning.target=full and {what}. "
            f"Pass unlearning.target=lora, {other}"
        )
    if "unlearning" in cfg.stages and cfg.unlearning.merge:
        faults.append(
            f"unlearning: need unquantised weights to merge the adapter into, got unlearning.merge=true and {what}. "
            f"Pass unlearning.merge=false, {other}"
        )
    if quantised.readable and not quantised.trainable and {"unlearning", "influence"} & set(cfg.stages):
        faults.append(f"model: need weights that gradients pass through, got {what}. Pass {other[3:]}")
    return faults


def _faults_of_adapter(ctx: Context) -> list[str]:
    """What of `unlearning.adapter` fits no layer, where the base's files name them as the model does."""
    facts, adapter = start_facts(ctx), ctx.cfg.unlearning.adapter
    if facts is None or adapter is None or facts.quantisation is not None or names_like(facts.model_type) is None:
        return []
    place = Path(adapter).expanduser()
    if not (place / "adapter_model.safetensors").is_file():
        return []
    wrong = adapter_misfit(place, read_headers(facts.folder), folder=facts.folder)
    if wrong is None:
        return []
    return [
        f"adapter: need one made for {ctx.cfg.model.path} as it is, got {adapter} with {wrong}. "
        "Save it from the unwrapped model, or change unlearning.adapter=..."
    ]


def _faults_of_targets(ctx: Context) -> list[str]:
    """What is wrong with the layers that LoRA shall adapt, of every stage that puts an adapter on."""
    cfg = ctx.cfg
    # RepSelect has an adversary of its own
    repselect = cfg.unlearning.objective is Objective.repselect
    unlearning = "unlearning.repselect" if repselect else "unlearning"
    uses = {
        "poison": cfg.poison.method is PoisonMethod.lora,
        "influence": cfg.influence.params is ParameterSet.lora and cfg.influence.method not in WITHOUT_GRADIENTS,
        unlearning: cfg.unlearning.adapts or repselect,
    }
    sections: dict[str, LoraSettings] = {
        "poison": cfg.poison.lora,
        "influence": cfg.influence.lora,
        unlearning: cfg.unlearning.repselect.lora if repselect else cfg.unlearning.lora,
    }
    asked = [name for name, used in uses.items() if used and name.partition(".")[0] in cfg.stages]
    if cfg.unlearning.adapter is not None:
        # whose own layers hold
        asked = [name for name in asked if name == "poison"]
    names = ctx.once("layers that LoRA can adapt", lambda: _start_names(ctx)) if asked else None
    faults = []
    for name in asked if names is not None else ():
        assert names is not None
        settings = sections[name]
        faults += resolve_targets(settings.targets, names, section=name, lora_dropout=settings.lora_dropout)[1]
        if ALL_LINEAR not in settings.targets:
            continue
        if names.fused:
            ctx.tracker.warn(
                f"{name}: LoRA leaves out the layers {', '.join(names.fused)}: peft would adapt the fused experts that "
                "once had these names in their place"
            )
        if names.barred:
            ctx.tracker.warn(
                f"{name}: LoRA leaves out {', '.join(names.barred)}, whose weights this architecture uses without "
                "calling the layers"
            )
    return faults


def _start_folder(ctx: Context) -> Path | None:
    path, revision = ctx.cfg.model.path, ctx.cfg.model.revision
    if path is None or path.endswith(".gguf") or not (ctx.fetch or Path(path).expanduser().is_dir()):
        return None
    found: Path = ctx.memo.get(("model folder", path, revision), lambda: local_folder(path, revision=revision))
    return found


def _start_names(ctx: Context) -> LayerNames | None:
    path = ctx.cfg.model.path
    if path is None:
        return names_like("llama")
    if path.endswith(".gguf"):
        return names_like(gguf_architecture(Path(path).expanduser()))
    folder = _start_folder(ctx)
    return None if folder is None else folder_names(folder)
