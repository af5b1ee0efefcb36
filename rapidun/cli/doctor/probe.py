"""Runs as a process of its own and prints what torch and bitsandbytes can do here, a JSON line each.

A broken driver or kernel can hang or kill the process that asks. Imports nothing of rapidun: it is run as a file.
"""

import json
import os
import sys
import warnings
from typing import Any


def main() -> int:
    """Print the lines; each is complete or missing."""
    # before CUDA is set up
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    warnings.simplefilter("ignore")
    _print({"torch": _torch()})
    _print({"quantisation": _quantisation()})
    return 0


def _print(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def _torch() -> dict[str, Any]:
    try:
        import torch
    except Exception as error:  # a broken installation raises OSError and others; all mean the same here
        return {"error": _first_line(error)}
    found: dict[str, Any] = {"version": torch.__version__, "cuda": torch.version.cuda, "gpus": []}
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            free, total = torch.cuda.mem_get_info(index)
            gpu = {"name": card.name, "memory": total, "free": free, "capability": f"{card.major}.{card.minor}"}
            found["gpus"].append(gpu)
        found["bf16"] = torch.cuda.is_bf16_supported()
    return found


def _quantisation() -> dict[str, str]:
    """8bit, 4bit -> "" where a small layer gives an answer on the device that is used, else why not."""
    try:
        import bitsandbytes
        import torch
    except Exception as error:
        return dict.fromkeys(("8bit", "4bit"), f"bitsandbytes cannot be imported ({_first_line(error)})")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.float32
    layers = {
        "8bit": lambda: bitsandbytes.nn.Linear8bitLt(64, 64, has_fp16_weights=False),
        "4bit": lambda: bitsandbytes.nn.Linear4bit(64, 64, quant_type="nf4", compute_dtype=dtype),
    }
    found = {}
    for name, make in layers.items():
        try:
            with torch.no_grad():
                answer = make().to(device)(torch.ones(4, 64, dtype=dtype, device=device))
            found[name] = "" if bool(torch.isfinite(answer).all()) else "a small layer gives no finite answer"
        except Exception as error:
            found[name] = _first_line(error)
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).strip().split("\n")[0] or type(error).__name__)[:200]


if __name__ == "__main__":
    sys.exit(main())
