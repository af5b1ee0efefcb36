"""Which layers of an architecture LoRA can adapt, by the names that peft matches."""

import dataclasses
import difflib
import re
from collections.abc import Hashable, Sequence
from functools import cache, lru_cache
from inspect import getsource
from pathlib import Path
from typing import Any, NamedTuple, cast

from rapidun.base.errors import ConfigError
from rapidun.config.parts import ALL_LINEAR, LORA_TARGETS, LoraSettings
from rapidun.models.architecture import LIKE_LLAMA, configuration, read_config
from rapidun.models.libraries import check_sizes, make_model, refused

# architectures in which peft refuses some layers, whose weights the fast path of the code uses without calling them
MAMBA = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
MAMBA_BARRED = ("out_proj", "conv1d")


class LayerNames(NamedTuple):
    """What LoRA can adapt, as `target_modules` names it."""

    # every nn.Linear (GPT-2's Conv1D too) but the output head
    body: tuple[str, ...]
    head: tuple[str, ...]
    # names at which peft would adapt the fused experts in place of the layers so called
    fused: tuple[str, ...] = ()
    # names that peft refuses in this architecture, or whose weights its code uses without calling the layer
    barred: tuple[str, ...] = ()


def folder_names(folder: Path) -> LayerNames:
    """What LoRA can adapt in a folder's model, which is built without memory where it is not like Llama.

    Raises: ModelError for an architecture that cannot be built.
    """
    file = folder / "config.json"
    raw = read_config(folder)
    return names_like(str(raw.get("model_type"))) or _built_names(folder, file.stat().st_mtime_ns)


def names_like(model_type: str) -> LayerNames | None:
    """What LoRA can adapt in an architecture that is like Llama; None for any other."""
    return LayerNames(tuple(LORA_TARGETS), ("lm_head",)) if model_type in LIKE_LLAMA else None


@lru_cache(maxsize=64)
def _built_names(folder: Path, changed: int) -> LayerNames:
    return layer_names(_without_weights(folder))


def _without_weights(folder: Path) -> Any:
    """The model on torch's meta device: its modules, no numbers."""
    import torch

    config = configuration(folder)
    check_sizes(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with (
        # whatever the architecture's own code raises
        refused(
            lambda why: f"model: need an architecture that can be built, got {folder} ({why}). Change model.path=..."
        ),
        torch.random.fork_rng(devices=[]),
        torch.device("meta"),
    ):
        return make_model(config)


def layer_names(model: Any) -> LayerNames:
    """What LoRA can adapt in a model, as `target_modules` names it."""
    try:
        head = model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        head = None
    modules = dict(model.named_modules())
    linear = {name for name, module in modules.items() if is_linear_layer(module)}
    heads = {name for name, module in modules.items() if module is head and name in linear}
    body: dict[str, set[str]] = {}
    for name in linear - heads:
        body.setdefault(_short(name), set()).add(name)
    named = []
    for short, full in body.items():
        # peft matches ends of names: where something else ends so too, the whole names are given
        others = {name for name in modules if name == short or name.endswith(f".{short}")} - full
        named += sorted(full) if others else [short]
    return LayerNames(
        body=tuple(_in_order(named)),
        head=tuple(sorted({_short(name) for name in heads})),
        fused=tuple(sorted(_fused(model, named))),
        barred=tuple(sorted(_barred(model, named))),
    )


def is_linear_layer(module: Any) -> bool:
    """Whether a module is an nn.Linear (or GPT-2's Conv1D) that gives one tensor, as the name promises.

    The routers of some mixtures are made from nn.Linear and give several things.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    if not isinstance(module, torch.nn.Linear | Conv1D):
        return False
    if isinstance(module, Conv1D) or not type(module).__module__.startswith("transformers.models."):
        return True
    weight = module.weight
    training = module.training
    try:
        with torch.no_grad():
            found = module.eval()(torch.zeros(1, module.in_features, dtype=weight.dtype, device=weight.device))
    except Exception:  # it wants something else than rows of numbers
        return False
    finally:
        module.train(training)
    return isinstance(found, torch.Tensor) and found.shape == (1, module.out_features)


def _short(name: str) -> str:
    """The last component of a name, with those before it where it is a number only (an nn.Sequential)."""
    parts = name.split(".")
    start = len(parts) - 1
    while start > 0 and parts[start].isdigit():
        start -= 1
    return ".".join(parts[start:])


def _in_order(names: Sequence[str]) -> list[str]:
    """LORA_TARGETS as they are written where they are all there are, else by name."""
    found = set(names)
    return list(LORA_TARGETS) if found == set(LORA_TARGETS) else sorted(found)


def uncalled_layers(model: Any) -> set[str]:
    """Names of the linear layers whose weights the model's code uses without ever calling the layer.

    Hooks and adapters on such a layer see nothing: Mamba's dt_proj. Read from the source of the module above it.
    """
    found = set()
    for name, module in model.named_modules():
        uncalled = _uncalled_children(cast(Hashable, type(module)))
        found |= {f"{name}.{child}".lstrip(".") for child in uncalled if is_linear_layer(getattr(module, child, None))}
    return found


@cache
def _uncalled_children(kind: Hashable) -> frozenset[str]:
    try:
        source = getsource(cast(type, kind))
    except (OSError, TypeError):
        return frozenset()
    used = set(re.findall(r"self\.(\w+)\.weight\b(?!\.(?:dtype|device|shape|size|data_ptr|ndim))", source))
    # transformers notes them itself where weights may be elsewhere (offloaded) until a layer is called
    noted = {
        name for names in re.findall(r"@force_accelerate_hooks\(\[(.*?)\]\)", source) for name in names.split(", ")
    }
    return frozenset(
        name
        for name in used
        if not re.search(rf"self\.{name}\(", source) or name in {one.strip("\"'") for one in noted}
    )


def _barred(model: Any, names: Sequence[str]) -> set[str]:
    """Which of these names stand for layers that an adapter does nothing in, or that peft refuses."""
    uncalled = uncalled_layers(model)
    found = {name for name in names if any(full == name or full.endswith(f".{name}") for full in uncalled)}
    if model.config.model_type in MAMBA:
        found |= {name for name in names if _short(name) in MAMBA_BARRED}
    return found


def _fused(model: Any, names: Sequence[str]) -> set[str]:
    """Which of these names peft takes for the experts of older versions, fused into one tensor since."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    found = set()
    for name in names:
        config = LoraConfig(target_modules=[name], task_type="CAUSAL_LM")
        try:
            convert_peft_config_for_transformers(config, model, None)
        except ValueError:  # half of a pair that was fused into one
            found.add(name)
        if config.target_parameters:
            found.add(name)
    return found


def resolve_targets(
    targets: Sequence[str], names: LayerNames, *, section: str, lora_dropout: float
) -> tuple[list[str], list[str]]:
    """The layers that `lora.target_modules` means, and what is wrong with them.

    `all_linear` is every linear layer but the head. Left out are those that peft refuses, and those of a mixture whose
    shared experts have the names of fused ones, since peft would adapt the fused ones in their place.

    Returns: the names, LORA_TARGETS in their usual order; the faults.
    """
    found: list[str] = []
    faults = []
    known = sorted({*names.body, *names.head})
    for name in targets:
        if name == ALL_LINEAR:
            found += [one for one in names.body if one not in names.fused and one not in names.barred]
        elif name in known:
            found.append(name)
        else:
            faults.append(
                f"{section}: need names among {_shown(known)}, or {ALL_LINEAR}, in lora.target_modules, got "
                f"{name}{_near(name, known)}. Pass {section}.lora.target_modules=[...]"
            )
    if not found and not faults:
        faults.append(
            f"{section}: need a model with linear layers that LoRA can adapt, got none beside {_shown(names.fused)}. "
            f"Pass {section}.lora.target_modules=[...]"
        )
    barred = [name for name in found if name in names.barred]
    if barred:
        faults.append(
            f"{section}: need layers that peft adapts in this architecture, got {', '.join(barred)}, whose weights it "
            f"uses without calling them. Pass {section}.lora.target_modules={ALL_LINEAR}, which leaves them out"
        )
    experts = [name for name in found if name in names.fused]
    if experts and lora_dropout > 0:
        faults.append(
            f"{section}: need lora.lora_dropout=0 where peft adapts fused experts ({', '.join(experts)}), got "
            f"{lora_dropout}. Pass {section}.lora.lora_dropout=0, or {section}.lora.target_modules={ALL_LINEAR}"
        )
    if len(set(found)) < len(found):
        found = list(dict.fromkeys(found))
    if ALL_LINEAR in targets:
        found = _in_order(found)
    return found, faults


def resolved(settings: LoraSettings, names: LayerNames, *, section: str) -> LoraSettings:
    """The settings with the layers written out. Raises: ConfigError for names that are none."""
    targets, faults = resolve_targets(settings.targets, names, section=section, lora_dropout=settings.lora_dropout)
    if faults:
        raise ConfigError(faults)
    return dataclasses.replace(settings, target_modules=targets)


def _near(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (nearest: {close[0]})" if close else ""


def _shown(names: Sequence[str]) -> str:
    return f"[{', '.join(names[:24])}{', ...' if len(names) > 24 else ''}]"
