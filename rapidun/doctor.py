"""`rapidun doctor`: what this machine has, what will not work on it, and why."""

import argparse
import importlib
import logging
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rapidun.paths import config_dir

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "safetensors",
    "tokenizers",
    "hydra-core",
    "omegaconf",
    "wandb",
    "gguf",
)
OPTIONAL = {"gguf": "model.path=FILE.gguf and `rapidun model fetch` will not work: pip install 'rapidun[gguf]'"}


@dataclass(slots=True)
class Findings:
    """`facts` are (name, value) pairs in the order shown; `problems` say what will not work and what to do."""

    facts: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def main(argv: Sequence[str]) -> int:
    """Print the findings; 1 if something that every run needs is missing."""
    argparse.ArgumentParser(prog="rapidun doctor", description=__doc__).parse_args(argv)
    found = examine()
    width = max(len(name) for name, _ in found.facts)
    for name, value in found.facts:
        print(f"{name:<{width}}  {value}")
    print()
    for problem in found.problems:
        print(f"will not work: {problem}")
    if not found.problems:
        print("nothing is amiss")
    return 1 if any(problem.startswith("every run") for problem in found.problems) else 0


def examine() -> Findings:
    """Look at packages, devices, memory, quantisation, the hub and W&B."""
    found = Findings()
    found.facts.append(("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"))
    found.facts.append(("configuration", str(config_dir())))
    for package in PACKAGES:
        try:
            found.facts.append((package, version(package)))
        except PackageNotFoundError:
            found.facts.append((package, "not installed"))
            found.problems.append(
                OPTIONAL.get(package, f"every run: {package} is not installed: pip install {package}")
            )
    _devices(found)
    _memory(found)
    _quantisation(found)
    _network(found)
    return found


def _devices(found: Findings) -> None:
    try:
        import torch
    except Exception as error:  # a broken installation raises OSError and others; all mean the same here
        found.problems.append(f"every run: torch cannot be imported ({_first_line(error)})")
        return
    found.facts.append(("cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"))
    if not torch.cuda.is_available():
        why = "torch is a CPU build" if torch.version.cuda is None else "torch sees no CUDA device (driver?)"
        found.facts.append(("gpu", f"none: {why}"))
        found.problems.append(f"model.device=cuda: {why}; model.device=auto uses the CPU")
        found.problems.append("model.attention=flash_attention_2: needs a GPU; model.attention=auto is fine")
        return
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        found.facts.append((f"gpu {index}", f"{card.name}, {card.total_memory / 2**30:.0f} GiB"))
    if not torch.cuda.is_bf16_supported():
        found.problems.append("model.dtype=bfloat16: this GPU has no bfloat16; pass model.dtype=float16 or float32")


def _memory(found: Findings) -> None:
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        found.facts.append(("memory", f"{total:.0f} GiB"))
        if total < 4:
            found.problems.append(f"model=smollm2_135m: wants about 4 GiB of memory, this machine has {total:.1f}")
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    found.facts.append(("disk", f"{free:.0f} GiB free here"))
    if not os.access(Path.cwd(), os.W_OK):
        found.problems.append(f"every run: {Path.cwd()} cannot be written; pass run_dir=... and store_dir=...")


def _quantisation(found: Findings) -> None:
    # it says on import which optional kernels it misses
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        importlib.import_module("bitsandbytes")
    except Exception as error:  # its import probes the machine and fails in many ways
        found.facts.append(("4-bit, 8-bit", "no"))
        found.problems.append(
            f"model.quantisation=4bit or 8bit: bitsandbytes cannot be imported ({_first_line(error)})"
        )
        return
    found.facts.append(("4-bit, 8-bit", "yes (bitsandbytes)"))


def _network(found: Findings) -> None:
    offline = os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true", "True", "YES", "yes", "ON", "on")
    found.facts.append(
        ("model hub", "switched off (HF_HUB_OFFLINE)" if offline else "asked when model.path is a hub id")
    )
    if offline:
        found.problems.append("a hub id that is not in the local cache: HF_HUB_OFFLINE is set; pass model.path=DIR")
    found.facts.append(("wandb mode", wandb_mode()))


def wandb_mode() -> str:
    """Say what tracking=wandb would do here; only whether a key is there is looked at, never the key."""
    mode = os.environ.get("WANDB_MODE")
    if mode:
        return f"{mode} (WANDB_MODE)"
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    has_key = bool(os.environ.get("WANDB_API_KEY"))
    try:
        has_key = has_key or (netrc.is_file() and "api.wandb.ai" in netrc.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        has_key = False
    return "online (a key is set)" if has_key else "offline (no key is set); sync later with `wandb sync`"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
