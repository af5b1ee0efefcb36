"""Training settings for a model that nobody has tuned: by its number of parameters, which the weights' headers hold."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rapidun.base.errors import ModelError
from rapidun.base.text import short_message
from rapidun.config.poison import PoisonMethod
from rapidun.config.run import RunConfig

# larger headers are none
MAX_HEADER = 100 << 20
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


def read_header(file: Path) -> dict[str, Any]:
    """name -> {"dtype", "shape", "data_offsets"} of each tensor of a safetensors file.

    Raises: ModelError if it has none.
    """
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if not 2 <= size <= MAX_HEADER:
                raise ValueError("its header has no sensible length")
            text = stream.read(size)
            file_size = stream.seek(0, 2)
        header = json.loads(text)
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        for entry in tensors.values():
            if not isinstance(entry["dtype"], str) or not all(type(number) is int for number in entry["shape"]):
                raise ValueError("its header describes no tensors")
        if file_size < 8 + size + max((entry["data_offsets"][1] for entry in tensors.values()), default=0):
            raise ValueError("it is cut short")
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise ModelError(
            f"model: need weights in safetensors, got {file} ({short_message(error)}). Change model.path=..."
        ) from None
    return tensors


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _of_gguf(file: Path) -> int:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ModelError("model: need the package gguf to read .gguf files. Run: pip install 'rapidun[gguf]'") from None
    try:
        return sum(int(tensor.n_elements) for tensor in GGUFReader(file).tensors)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ModelError(
            f"model: need a GGUF file, got {file} ({short_message(error)}). Change model.path=..."
        ) from None
