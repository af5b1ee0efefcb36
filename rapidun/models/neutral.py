"""Training settings for a model that nobody has tuned: by its number of parameters, which the weights' headers hold."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rapidun.base.errors import ModelError
from rapidun.config.poison import PoisonMethod
from rapidun.config.run import RunConfig
from rapidun.models.libraries import gguf_reader, refused
from rapidun.models.weights import read_header

# weights in one number of a quantised folder: bitsandbytes packs two into a byte, GPTQ and AWQ eight into an int32
PACKED = {"U8": 2, "I32": 8}
# bitsandbytes keeps these beside the packed weights
SCALES = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB", ".weight_format")


class Size(NamedTuple):
    """What conf/model/hf.yaml leaves to the size; its head says where the numbers are from."""

    name: str
    # parameters
    limit: float
    full_rate: float
    unlearning_rate: float
    batch_size: int
    accumulation: int


SIZES = (
    Size("small", 350e6, 1e-4, 5e-4, 8, 1),
    Size("middling", 3e9, 5e-5, 2e-4, 8, 1),
    # the same rows in a step in less memory
    Size("large", math.inf, 2e-5, 6e-5, 2, 4),
)
LORA_RATE = 2e-4


def settle(cfg: RunConfig, count: Callable[[], int]) -> str:
    """Put numbers in the place of settings that are left to the model's size; what was set stays.

    Args: count: the model's parameters; asked only where a setting is open.
    Returns: a line for the log; empty where nothing was open.
    """
    places = cfg.left_to_size
    if not places:
        return ""
    number = count()
    size = next(size for size in SIZES if number <= size.limit)
    # rows typed for one pass of the model are not multiplied
    accumulation = size.accumulation if cfg.poison.per_device_train_batch_size is None else 1
    values = {
        ("poison", "learning_rate"): LORA_RATE if cfg.poison.method is PoisonMethod.lora else size.full_rate,
        ("poison", "per_device_train_batch_size"): size.batch_size,
        ("poison", "gradient_accumulation_steps"): accumulation,
        ("poison", "num_train_epochs"): 2.0,
        ("unlearning", "learning_rate"): size.unlearning_rate,
        ("unlearning", "gradient_accumulation_steps"): 1,
        ("unlearning", "num_train_epochs"): 2.0,
    }
    for section, name in places:
        setattr(getattr(cfg, section), name, values[section, name])
    shown = ", ".join(f"{section}.{name}={values[section, name]:g}" for section, name in places)
    return f"model: {number / 1e6:,.1f} million parameters ({size.name}), so {shown} (conf/model/hf.yaml)"


def num_parameters(place: Path) -> int:
    """Parameters of a folder's safetensors files, or of a .gguf file; no weights are read.

    Raises: ModelError for a file whose header cannot be read.
    """
    if place.suffix == ".gguf":
        return _of_gguf(place)
    total = 0
    is_packed = "quantization_config" in _config(place)
    for file in sorted(place.glob("*.safetensors")):
        for name, entry in read_header(file).items():
            if is_packed and (name.endswith(SCALES) or ".quant_state." in name):
                continue
            total += math.prod(entry["shape"]) * (PACKED.get(entry["dtype"], 1) if is_packed else 1)
    return total


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _of_gguf(file: Path) -> int:
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise ModelError("model: need the package gguf to read .gguf files. Run: pip install 'rapidun[gguf]'") from None
    with refused(lambda why: f"model: need a GGUF file, got {file} ({why}). Change model.path=..."):
        return sum(int(tensor.n_elements) for tensor in gguf_reader(file).tensors)
