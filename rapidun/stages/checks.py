"""What several stages check before anything runs: the device, packages, files that are only named."""

import os
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from rapidun.config.model import Attention, Device
from rapidun.stages.context import GPU_DEVICES, Context


def device_faults(ctx: Context) -> list[str]:
    """What this machine lacks to run the model as it is asked to."""
    model, resources = ctx.cfg.model, ctx.cfg.resources
    if not ctx.here:
        return []
    faults = []
    why = no_gpu()
    if why and model.device is Device.cuda:
        faults.append(f"model: need a GPU for model.device=cuda, got none ({why}). Pass model.device=auto or cpu")
    elif why and resources.num_gpus and model.device is not Device.cpu:
        faults.append(
            f"resources: need a GPU for resources.num_gpus={resources.num_gpus}, got none ({why}). Pass resources=cpu"
        )
    flash = Attention.flash_attention_2
    if model.attention is flash and (why or find_spec("flash_attn") is None):
        faults.append(
            f"model: need {'a GPU' if why else 'the package flash_attn'} for model.attention={flash.name}, got none. "
            "Pass model.attention=auto"
        )
    if model.quantisation.name != "none":
        remedy = "Reinstall bitsandbytes, or pass model.quantisation=none"
        faults += missing_package("bitsandbytes", f"model.quantisation={model.quantisation.name}", remedy, ctx)
    return faults


@cache
def _torch_version() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""


def no_gpu() -> str:
    """Why no GPU can be used here; empty where one seems to be there. Brings no torch."""
    if not any(Path(device).exists() for device in GPU_DEVICES):
        return "this machine shows none"
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides them"
    if _torch_version().endswith("+cpu"):
        return "torch is a CPU build"
    return ""


def missing_package(name: str, what: str, remedy: str, ctx: Context) -> list[str]:
    """A fault where a package is not installed that `what` needs."""
    there = not ctx.here or ctx.memo.get(("package", name), lambda: find_spec(name) is not None)
    return [] if there else [f"{what.split('=')[0]}: need the package {name} for {what}, got none. {remedy}"]


def missing_files(named: Mapping[str, str], what: str) -> list[str]:
    """A fault for each named file that is not there or cannot be read; `named`: key -> path."""
    faults = []
    for key, path in named.items():
        file = Path(path).expanduser()
        if not file.is_file() or not os.access(file, os.R_OK):
            state = "which is not there" if not file.exists() else "which is no file that can be read"
            faults.append(f"{key}: need {what}, got {path}, {state}. Change {key}=...")
    return faults
