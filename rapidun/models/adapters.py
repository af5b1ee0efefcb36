"""LoRA adapters: putting them on a model, saving them in PEFT format, merging them."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rapidun.base.errors import ConfigError
from rapidun.config.parts import LoraSettings
from rapidun.models.layers import layer_names, resolved
from rapidun.models.libraries import put_factors
from rapidun.models.load import ModelLoader, Over, load_adapter, peft_renaming
from rapidun.models.selfcheck import Row, confirm, mean_loss
from rapidun.models.tied import is_quantised, note_untied, untie_adapted

# the name under which a saved adapter is read back beside the trained one
AGAIN = "saved"
# of max(1, loss): what 4-bit weights change
QUANTISED_TOLERANCE = 0.25


def num_trainable(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def add_lora(model: Any, settings: LoraSettings, *, seed: int, section: str) -> Any:
    """Put a new LoRA adapter on a model, its A matrices drawn from `seed`, its B matrices zero.

    Raises: ConfigError for a target that no linear module of the model is named, listing those there are.
    """
    from peft import LoraConfig, get_peft_model

    settings = resolved(settings, layer_names(model), section=section)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=settings.targets,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), peft_renaming():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def train_all(model: Any, *, section: str) -> Any:
    """Let every weight train, those of a bfloat16 model as float32 masters (its own spacing is larger than most steps).

    Raises: ConfigError for float16 or quantised weights.
    """
    lora = f"{section}.{'method' if section == 'poison' else 'target'}=lora"
    if is_quantised(model):
        raise ConfigError(
            f"{section}: need weights that are not quantised for full fine-tuning, got a model in "
            f"{model.quantization_method}. Pass model.quantisation=none, or {lora}"
        )
    if model.dtype is torch.float16:
        raise ConfigError(
            f"{section}: need float32 or bfloat16 weights for full fine-tuning, got float16 (its gradients underflow). "
            f"Pass model.dtype=bfloat16, or {lora}"
        )
    if model.dtype is torch.bfloat16:
        model = model.float()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def prepare_quantised(model: Any, *, gradient_checkpointing: bool) -> Any:
    """peft's preparation of an 8-bit or 4-bit base: norms and head in float32, inputs that carry a gradient."""
    from peft import prepare_model_for_kbit_training

    return prepare_model_for_kbit_training(
        model,
        use_gradient_checkpointing=gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )


def save_adapter(model: Any, out: Path, *, base: str | Path, over: Over | None = None) -> None:
    """Write the adapter as a PEFT folder that names its base without this machine's paths.

    Args: over: the adapter that the base had, which the folder then speaks of.
    """
    config = model.peft_config["default"]
    config.base_model_name_or_path = base_name(base)
    # peft keeps a set, whose order changes from process to process
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)
    # "auto" would ask the hub whether the base's vocabulary grew; LoRA on linear modules never grows it
    model.save_pretrained(str(out), selected_adapters=["default"], save_embedding_layers=False)
    # the card repeats the absolute path of the base
    (out / "README.md").unlink(missing_ok=True)
    if over is not None:
        over.note(out)


def base_name(base: str | Path) -> str:
    """A hub id as it stands, a folder by its last component."""
    return Path(base).name if Path(base).exists() else str(base)


def save_merged(
    model: Any,
    tokenizer: Any,
    out: Path,
    *,
    start: str | Path,
    loader: ModelLoader,
    work: Path,
    rows: Sequence[Row],
    section: str,
) -> None:
    """Write the model with its adapter merged into the weights, as a Hugging Face folder, and read it back.

    Over an 8-bit or 4-bit base the merge would be rounded to that grid: the base is loaded once more without
    quantisation and takes the adapter, so the folder holds unquantised weights. A weight that is adapted and tied to
    another one is untied first: what is merged into the head must not reach the embedding.

    Args: rows: a few encoded rows on which the merged model must give the adapted one's loss.
    Raises: ModelError if it does not.
    """
    trained = mean_loss(model, rows)
    if is_quantised(model.get_base_model()):
        save_adapter(model, work / "adapter", base=start)
        base = dataclasses.replace(loader, quantisation="none", keep=False).load(start).model
        model = load_adapter(base, work / "adapter").eval()
        bare = mean_loss(model, rows)
        if abs(bare - trained) > QUANTISED_TOLERANCE * max(1.0, trained):
            loader.say(
                f"{section}: the adapter was trained over a quantised base, with a loss of {trained:.4f} on "
                f"{len(rows)} rows; over the unquantised one, which it is merged into, it is {bare:.4f}"
            )
        trained = bare
    untie_adapted(model)
    with peft_renaming():
        merged = model.merge_and_unload()
    note_untied(merged)
    save_model(merged, tokenizer, out)
    confirm_saved(merged, out, before=trained, loader=loader, rows=rows, section=section)


def confirm_saved(
    model: Any, folder: Path, *, before: float, loader: ModelLoader, rows: Sequence[Row], section: str
) -> None:
    """Read a model folder back and see that it gives the loss that the trained one had.

    Raises: ModelError naming both losses.
    """
    plainly = dataclasses.replace(loader, quantisation="none", keep=False)
    confirm(
        lambda: plainly.load(folder).model,
        rows,
        before=before,
        dtype=model.dtype,
        folder=folder,
        section=section,
        say=loader.say,
    )


def confirm_adapter(model: Any, folder: Path, *, rows: Sequence[Row], section: str, say: Callable[[str], None]) -> None:
    """Read a saved adapter back, beside the one it was saved from, and see that it gives the same loss.

    Raises: ModelError naming both losses.
    """
    before = mean_loss(model, rows)
    devices = [model.device] if model.device.type == "cuda" else []

    def read() -> Any:
        # its first weights are drawn at random before those of the file take their places
        with torch.random.fork_rng(devices=devices), peft_renaming():
            put_factors(model, folder, trainable=False, name=AGAIN)
        model.set_adapter(AGAIN)
        return model

    try:
        confirm(read, rows, before=before, dtype=model.dtype, folder=folder, section=section, say=say)
    finally:
        model.set_adapter("default")
        if AGAIN in model.peft_config:
            model.delete_adapter(AGAIN)


def save_model(model: Any, tokenizer: Any, out: Path) -> None:
    """Write a Hugging Face folder: config, safetensors weights, tokenizer."""
    model.save_pretrained(str(out))
    tokenizer.save_pretrained(str(out))
