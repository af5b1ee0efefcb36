"""What a model folder is, from its config.json and the heads of its weight files: known before anything is loaded."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rapidun.base.errors import ModelError
from rapidun.base.text import short_message
from rapidun.models.libraries import read_model_config, refused
from rapidun.models.weights import check_plain, read_headers, untied_head

# architectures whose linear layers, the head aside, are exactly LORA_TARGETS: no model need be built to know (a test
# builds each)
LIKE_LLAMA = (
    "llama", "mistral", "ministral3", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3", "olmo", "olmo2",
    "olmo3", "granite", "stablelm", "cohere", "cohere2", "exaone4", "seed_oss", "helium", "ernie4_5",
)  # fmt: skip
# those that tie head and embedding where config.json does not say
TIED = ("gemma", "gemma2", "gemma3_text", "cohere", "cohere2", "smollm3", "ernie4_5")
# `quant_method` of config.json -> the package that reads such weights
READERS = {
    "bitsandbytes": "bitsandbytes",
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
    "hqq": "hqq",
    "aqlm": "aqlm",
    "quanto": "optimum.quanto",
    "torchao": "torchao",
    "compressed-tensors": "compressed_tensors",
}
# methods whose layers peft's LoRA can be trained over here
TRAINABLE = ("bitsandbytes",)


@dataclass(frozen=True, slots=True)
class FolderQuantisation:
    """How a folder's weights are quantised already."""

    # "bitsandbytes", "gptq", ...
    method: str
    bits: int | None
    # the package that reads it is installed
    readable: bool
    # LoRA can be trained over it
    trainable: bool

    def __str__(self) -> str:
        return f"{self.method}{f', {self.bits} bits' if self.bits else ''}"


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model folder without loading it."""

    folder: Path
    model_type: str
    architectures: tuple[str, ...]
    # why it is no causal language model; None where it is one
    not_causal: str | None
    quantisation: FolderQuantisation | None
    vocab_size: int | None
    # most tokens of one sequence; None where the architecture has no bound
    window: int | None
    tied: bool
    num_layers: int | None
    # numbers in the weight files; packed ones (4-bit) count as stored
    num_parameters: int
    # what the user should know of the folder
    notes: tuple[str, ...] = ()


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as it stands. Raises: ModelError where there is none, or it is no JSON object."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"model: need a Hugging Face folder with config.json, got {folder} ({short_message(error)})"
        ) from error
    if not isinstance(found, dict):
        raise ModelError(f"model: need a JSON object in {folder}/config.json, got {type(found).__name__}")
    return found


def inspect(folder: Path) -> ModelFacts:
    """Read a folder's config.json and the heads of its weight files.

    Raises: ModelError for a folder without config.json, damaged or absent weight files, an architecture that the
        installed transformers does not know, a model of the folder's own code, weights that are codes without scales.
    """
    raw = read_config(folder)
    notes = [note] if (note := check_own_code(raw, path=folder)) else []
    model_type = str(raw.get("model_type"))
    text = raw.get("text_config") if isinstance(raw.get("text_config"), dict) else {}
    if model_type in LIKE_LLAMA:
        # these have the usual names, and transformers need not be asked
        value: Callable[[str], Any] = {**(text or {}), **raw}.get
        unlikely = _not_causal(raw)
        tied = bool(raw.get("tie_word_embeddings", model_type in TIED))
    else:
        config = configuration(folder)
        inner = config.get_text_config(decoder=True)
        value = lambda name: getattr(inner, name, getattr(config, name, None))  # noqa: E731
        unlikely = _not_causal(raw) or _not_causal_of(config)
        tied = bool(getattr(inner, "tie_word_embeddings", getattr(config, "tie_word_embeddings", False)))
    headers = read_headers(folder)
    quantised = folder_quantisation(raw)
    if quantised is None:
        check_plain(headers, path=folder)
    if tied and quantised is None and (head := untied_head(headers)):
        tied = False
        notes.append(
            f"model: config.json of {folder} ties the output head to the embeddings, its files hold another head "
            f"({head}): that one is used, untied. Set tie_word_embeddings to false there to be rid of this note"
        )
    num_parameters = 0
    for header in headers.values():
        size = 1
        for length in header.shape:
            size *= length
        num_parameters += size
    return ModelFacts(
        folder=folder,
        model_type=model_type,
        architectures=tuple(raw.get("architectures") or ()),
        not_causal=unlikely,
        quantisation=quantised,
        vocab_size=_number(value("vocab_size")),
        window=_number(value("max_position_embeddings")),
        tied=tied,
        num_layers=_number(value("num_hidden_layers")),
        num_parameters=num_parameters,
        notes=tuple(notes),
    )


def check_own_code(raw: dict[str, Any], *, path: str | Path) -> str:
    """Whether the class that is loaded is the one that a config.json speaks of; a folder's own code is never run.

    Returns: what to say of code beside a stock class, or of a class of another model type; empty where all is as usual.
    Raises: ModelError for a folder whose model is a class of its own code, or one that transformers does not know.
    """
    model_type = str(raw.get("model_type"))
    own = raw.get("auto_map")
    code = own.get("AutoModelForCausalLM") if isinstance(own, dict) else None
    listed = raw.get("architectures")
    # FSDP's own prefix; spellings differ (MPTForCausalLM, MptForCausalLM)
    names = [str(name).removeprefix("FSDP") for name in (listed if isinstance(listed, list | tuple) else ())]
    usual = f"{model_type.replace('_text', '').replace('_', '')}forcausallm"
    if code is None and all(name.lower() == usual for name in names):
        return ""
    of_type, known = _stock_classes(model_type)
    if not of_type:
        # a model type that transformers does not know: said where it is loaded
        return ""
    strange = [name for name in names if name.lower() not in of_type]
    if code is not None and (strange or not names):
        said = f"auto_map {code} and architectures {', '.join(names) or 'none'}"
    elif any(name.lower() not in known and not _in_transformers(name) for name in strange):
        said = f"architectures {', '.join(strange)}"
    else:
        said = ""
    if said:
        raise ModelError(
            f"model: need a class of transformers for the model type {model_type}, got {path} with {said}: code of the "
            "folder is not run, and the stock class would be another model. Change model.path=..., or, where the stock "
            "class is meant, write its name into architectures of config.json"
        )
    if code is not None:
        return (
            f"model: {path} names code of its own (auto_map {code}), which is not run: {names[0]} of transformers is "
            "loaded, as architectures says"
        )
    if strange:
        return (
            f"model: config.json of {path} lists {', '.join(strange)}, a class of another model type than "
            f"{model_type}, by which the model is loaded. Compare its answers with the publisher's"
        )
    return ""


@lru_cache(maxsize=8)
def _stock_classes(model_type: str) -> tuple[frozenset[str], frozenset[str]]:
    """Lower-case names of the classes that transformers lists for a model type, and for any."""
    from transformers.models.auto import modeling_auto

    of_type: set[str] = set()
    known: set[str] = set()
    for name, mapping in vars(modeling_auto).items():
        if not name.endswith("_MAPPING_NAMES"):
            continue
        for kind, found in mapping.items():
            classes = {one.lower() for one in ((found,) if isinstance(found, str) else found)}
            known |= classes
            if kind == model_type:
                of_type |= classes
    return frozenset(of_type), frozenset(known)


def _in_transformers(name: str) -> bool:
    import transformers

    return name.startswith("Auto") or hasattr(transformers, name)


def folder_quantisation(raw: dict[str, Any]) -> FolderQuantisation | None:
    """The quantisation that a config.json speaks of."""
    found = raw.get("quantization_config") or (raw.get("text_config") or {}).get("quantization_config")
    if not isinstance(found, dict):
        return None
    method = str(found.get("quant_method") or ("bitsandbytes" if _bits(found) else "unknown"))
    package = READERS.get(method)
    try:
        readable = package is not None and find_spec(package) is not None
    except ModuleNotFoundError:
        readable = False
    return FolderQuantisation(method, _bits(found), readable, readable and method in TRAINABLE)


def _bits(found: dict[str, Any]) -> int | None:
    if found.get("load_in_4bit") or found.get("_load_in_4bit"):
        return 4
    if found.get("load_in_8bit") or found.get("_load_in_8bit"):
        return 8
    return _number(found.get("bits"))


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _not_causal(raw: dict[str, Any]) -> str | None:
    """What config.json alone says against a causal language model."""
    if raw.get("is_encoder_decoder"):
        return "an encoder and a decoder (is_encoder_decoder)"
    for name in raw.get("architectures") or ():
        task = re.search(r"For([A-Z]\w+)$", str(name))
        if task and re.search(r"Classification|QuestionAnswering|MaskedLM|MultipleChoice|PreTraining$", task[1]):
            return f"a {name}"
    return None


def _not_causal_of(config: Any) -> str | None:
    """What transformers' lists of architectures say against it."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = config.model_type
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return f"of the kind {kind}, of which there is no causal language model"
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        return f"an encoder: a {kind} without is_decoder, whose tokens see those behind them"
    return None


def configuration(folder: Path) -> Any:
    """AutoConfig of a folder. Raises: ModelError for an architecture that transformers does not know."""
    # each architecture checks its settings in its own way
    with refused(
        lambda why: (
            f"model: need an architecture that transformers knows without code from the folder, got {folder} ({why}). "
            "Change model.path=..."
        )
    ):
        return read_model_config(folder)


def gguf_architecture(file: Path) -> str:
    """`general.architecture` of a GGUF file, which is written first; "" where it is not."""
    key = b"general.architecture"
    try:
        with file.open("rb") as stream:
            head = stream.read(4096)
    except OSError:
        return ""
    place = head.find(key)
    # behind the key: the type of a text, 8, in four bytes, its length in eight
    if not head.startswith(b"GGUF") or place < 0 or head[place + len(key) :][:4] != b"\x08\x00\x00\x00":
        return ""
    start = place + len(key) + 12
    length = int.from_bytes(head[start - 8 : start], "little")
    return head[start : start + length].decode("utf-8", errors="replace") if length < 100 else ""
