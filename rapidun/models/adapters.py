"""LoRA adapters: putting them on a model, saving them in PEFT format, merging them."""

import dataclasses
import difflib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rapidun.base.errors import ConfigError
from rapidun.config.parts import LoraSettings
from rapidun.models.load import load_adapter, peft_renaming


def num_trainable(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def linear_names(model: nn.Module) -> list[str]:
    """Last components of the names of the modules that LoRA can adapt, sorted."""
    from transformers.pytorch_utils import Conv1D

    named = (name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D))
    return sorted({name.rpartition(".")[2] for name in named})


def add_lora(model: Any, settings: LoraSettings, *, seed: int, section: str) -> Any:
    """Put a new LoRA adapter on a model, its A matrices drawn from `seed`, its B matrices zero.

    Raises: ConfigError for a target that no linear module of the model is named, listing those there are.
    """
    from peft import LoraConfig, get_peft_model

    known = linear_names(model)
    faults = []
    for name in settings.target_modules:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" (nearest: {near[0]})" if near else ""
        faults.append(
            f"{section}: need names among {known} in lora.target_modules, got {name}{hint}. "
            f"Pass {section}.lora.target_modules=[...]"
        )
    if faults:
        raise ConfigError(faults)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=list(settings.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), peft_renaming():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def is_quantised(model: nn.Module) -> bool:
    return getattr(model, "quantization_method", None) is not None


def prepare_quantised(model: Any, *, gradient_checkpointing: bool) -> Any:
    """peft's preparation of an 8-bit or 4-bit base: norms and head in float32, inputs that carry a gradient."""
    from peft import prepare_model_for_kbit_training

    return prepare_model_for_kbit_training(
        model,
        use_gradient_checkpointing=gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )


def save_adapter(model: Any, out: Path, *, base: str | Path) -> None:
    """Write the adapter as a PEFT folder that names its base without this machine's paths."""
    config = model.peft_config["default"]
    config.base_model_name_or_path = base_name(base)
    # peft keeps a set, whose order changes from process to process
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)
    # "auto" would ask the hub whether the base's vocabulary grew; LoRA on linear modules never grows it
    model.save_pretrained(str(out), selected_adapters=["default"], save_embedding_layers=False)
    # the card repeats the absolute path of the base
    (out / "README.md").unlink(missing_ok=True)


def base_name(base: str | Path) -> str:
    """A hub id as it stands, a folder by its last component."""
    return Path(base).name if Path(base).exists() else str(base)


def save_merged(model: Any, tokenizer: Any, out: Path, *, start: str | Path, loader: Any, work: Path) -> None:
    """Write the model with its adapter merged into the weights, as a Hugging Face folder.

    Over an 8-bit or 4-bit base the merge would be rounded to that grid: the base is loaded once more without
    quantisation and takes the adapter, so the folder holds unquantised weights.
    """
    if is_quantised(model.get_base_model()):
        save_adapter(model, work / "adapter", base=start)
        base = dataclasses.replace(loader, quantisation="none").load(start).model
        model = load_adapter(base, work / "adapter")
    save_model(model.merge_and_unload(), tokenizer, out)


def save_model(model: Any, tokenizer: Any, out: Path) -> None:
    """Write a Hugging Face folder: config, safetensors weights, tokenizer."""
    model.save_pretrained(str(out))
    tokenizer.save_pretrained(str(out))
