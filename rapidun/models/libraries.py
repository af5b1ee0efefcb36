"""The only place where a library reads a user's files: no code of a folder, no question, no pickle, no odd exception.

tests/models/test_libraries.py looks through the package for loaders that are called elsewhere.
"""

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rapidun.base.errors import ModelError, RapidunError
from rapidun.base.limits import refusal
from rapidun.base.text import short_message
from rapidun.models.weights import read_headers

# said each time: left out, transformers asks at the terminal whether the folder's code may run
SAFE: dict[str, Any] = {"trust_remote_code": False}
LOCAL: dict[str, Any] = {**SAFE, "local_files_only": True}
# of `datasets`; its others run a script, or read pickles (pandas)
BUILDERS = ("json", "csv", "parquet", "text")
# sides of weights, and how often their layers are repeated, by the names that architectures give them
SIDES = (
    "hidden_size", "intermediate_size", "vocab_size", "n_embd", "d_model", "n_inner", "d_ff", "ffn_dim", "dim",
    "embedding_size", "word_embed_proj_dim", "ffn_hidden_size", "moe_intermediate_size",
)  # fmt: skip
REPEATS = (
    "num_hidden_layers",
    "num_layers",
    "n_layer",
    "n_layers",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
)
# a config.json may speak of more than its files hold, by this much and never so little, for a message of what is absent
SLACK, ALWAYS = 16, 50_000_000
MOST_REPEATS = 2000


@contextmanager
def refused(message: Callable[[str], str]) -> Iterator[None]:
    """Make a ModelError of whatever a library raises over a file: `message` of its first line.

    Libraries raise what comes: KeyError, struct.error, AttributeError of a list, plain Exception, and panics of Rust,
    which are no Exception at all.
    """
    try:
        yield
    except RapidunError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        raise refusal(error) or ModelError(message(short_message(error) or type(error).__name__)) from error


def read_model(folder: Path, **options: Any) -> Any:
    """AutoModelForCausalLM of a folder's safetensors. Raises: as transformers does; see `refused`."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **LOCAL, **options)


def make_model(config: Any) -> Any:
    """A model of random weights, on torch's device in force."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, **SAFE)


def read_model_config(folder: Path) -> Any:
    """AutoConfig of a folder."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, **LOCAL)


def read_tokenizer(name: str | Path, *, fetch: bool = False) -> Any:
    """AutoTokenizer of a folder. Args: fetch: `name` may be a hub id."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, **(SAFE if fetch else LOCAL))


def read_gguf(source: Path) -> tuple[Any, Any, Any]:
    """Tokenizer, float32 model and loading report of a GGUF file; what lies beside the file is not looked at."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_gguf_sizes(source)
    with tempfile.TemporaryDirectory() as alone:
        (Path(alone) / source.name).symlink_to(source.resolve())
        place: dict[str, Any] = {"gguf_file": source.name, **LOCAL}
        tokenizer = AutoTokenizer.from_pretrained(alone, **place)
        model, report = AutoModelForCausalLM.from_pretrained(
            alone, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **place
        )
    return tokenizer, model, report


def gguf_reader(source: Path) -> Any:
    """The head of a GGUF file; its weights stay on disk."""
    from gguf import GGUFReader

    return GGUFReader(source)


def check_gguf_sizes(source: Path) -> None:
    """Whether a GGUF file's head speaks of a model of the size of its tensors.

    Raises: ModelError.
    """
    reader = gguf_reader(source)
    stored = sum(int(tensor.n_elements) for tensor in reader.tensors)
    ends = {"block_count": "num_layers", "embedding_length": "hidden_size", "vocab_size": "vocab_size"}
    ends |= {"feed_forward_length": "intermediate_size", "expert_count": "num_experts"}
    said: dict[str, Any] = {}
    for name, field in reader.fields.items():
        known = ends.get(name.rpartition(".")[2])
        value = field.contents() if known else None
        said |= {str(known): max(value) if isinstance(value, list) and value else value} if known else {}
    _check_sizes(said, stored, len(reader.tensors), str(source))


def check_sizes(folder: Path) -> None:
    """Whether config.json speaks of a model of the size of the folder's weight files, before it is made.

    Raises: ModelError.
    """
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"model: need a Hugging Face folder with config.json, got {folder} ({short_message(error)})"
        ) from error
    headers = read_headers(folder)
    if not headers:
        return
    # codes of quantised weights: up to eight in a number
    stored = 8 * sum(math.prod(header.shape) for header in headers.values())
    for part in (raw, *(raw.values() if isinstance(raw, dict) else ())):
        if isinstance(part, dict):
            _check_sizes(part, stored, len(headers), f"{folder}/config.json")


def _check_sizes(said: Mapping[str, Any], stored: int, num_tensors: int, place: str) -> None:
    most = SLACK * stored + ALWAYS
    sides = {name: said[name] for name in SIDES if type(said.get(name)) is int}
    width = max([1, *(size for name, size in sides.items() if name != "vocab_size" and name in SIDES[:2] + SIDES[3:5])])
    for name, size in sides.items():
        if size < 0 or size * (width if name == "vocab_size" else 1) > most:
            raise ModelError(
                f"model: need sizes that fit the {stored:,} numbers in the files, got {name}={size} in {place}. Mend "
                "it, or change model.path=..."
            )
    for name in REPEATS:
        times = said.get(name)
        if type(times) is int and not 0 <= times <= max(num_tensors, MOST_REPEATS):
            raise ModelError(
                f"model: need at most as many layers as the {num_tensors} tensors in the files, got {name}={times} in "
                f"{place}. Mend it, or change model.path=..."
            )


def read_rows(builder: str, files: Mapping[str, list[str]], *, cache: Path) -> Any:
    """Rows of files by a builder of `datasets`, split by split.

    Raises: ModelError for a builder that is a script, or reads pickles.
    """
    from datasets import load_dataset

    if builder not in BUILDERS:
        raise ModelError(f"evaluation.lm_eval: need dataset_path among {', '.join(BUILDERS)}, got {builder}")
    return load_dataset(builder, data_files=dict(files), cache_dir=str(cache))


def read_adapter_settings(adapter: Path) -> Any:
    """PeftConfig of a folder on this machine.

    Raises: ModelError where it names a module that peft would import.
    """
    from peft import PeftConfig

    raw = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    if isinstance(raw, dict) and raw.get("megatron_config"):
        raise ModelError(
            f"adapter: need one without megatron_config, which names a module to import ({raw.get('megatron_core')}), "
            f"got {adapter}/adapter_config.json. Take it out there"
        )
    return PeftConfig.from_pretrained(str(adapter))


def put_factors(adapted: Any, adapter: Path, *, trainable: bool, name: str = "default") -> Any:
    """Read adapter_model.safetensors of a folder into a PEFT model as its adapter `name`; returns peft's report."""
    if not (adapter / "adapter_model.safetensors").is_file():
        # peft would take the pickle beside it
        raise ModelError(f"adapter: need adapter_model.safetensors, got {adapter} without")
    return adapted.load_adapter(str(adapter), name, is_trainable=trainable)
