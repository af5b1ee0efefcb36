"""What a model folder is, from its config.json and the heads of its weight files: known before anything is loaded."""

import dataclasses
import difflib
import json
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from importlib.util import find_spec
from inspect import getsource
from pathlib import Path
from typing import Any, NamedTuple, cast

from rapidun.base.errors import ConfigError, ModelError
from rapidun.base.text import short_message
from rapidun.config.parts import ALL_LINEAR, LORA_TARGETS, LoraSettings
from rapidun.models.weights import check_plain, read_headers, untied_head

# architectures whose linear layers, the head aside, are exactly LORA_TARGETS: no model need be built to know (a test
# builds each)
LIKE_LLAMA = (
    "llama", "mistral", "ministral3", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3", "olmo", "olmo2",
    "olmo3", "granite", "stablelm", "cohere", "cohere2", "exaone4", "seed_oss", "helium", "ernie4_5",
)  # fmt: skip
# those that tie head and embedding where config.json does not say
TIED = ("gemma", "gemma2", "gemma3_text", "cohere", "cohere2", "smollm3", "ernie4_5")
# architectures in which peft refuses some layers, whose weights the fast path of the code uses without calling them
MAMBA = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
MAMBA_BARRED = ("out_proj", "conv1d")
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


class LayerNames(NamedTuple):
    """What LoRA can adapt, as `target_modules` names it."""

    # every nn.Linear (GPT-2's Conv1D too) but the output head
    body: tuple[str, ...]
    head: tuple[str, ...]
    # names at which peft would adapt the fused experts in place of the layers so called
    fused: tuple[str, ...] = ()
    # names that peft refuses in this architecture, or whose weights its code uses without calling the layer
    barred: tuple[str, ...] = ()


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

    @cached_property
    def names(self) -> LayerNames:
        """What LoRA can adapt. Raises: ModelError for an architecture that cannot be built."""
        return folder_names(self.folder)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as it stands. Raises: ModelError where there is none, or it is no JSON object."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
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
        config = _configuration(folder)
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


def _configuration(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # each architecture checks its settings in its own way
        raise ModelError(
            f"model: need an architecture that transformers knows without code from the folder, got {folder} "
            f"({short_message(error)}). Change model.path=..."
        ) from error


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


def _without_weights(folder: Path) -> Any:
    """The model on torch's meta device: its modules, no numbers."""
    import torch
    from transformers import AutoModelForCausalLM

    config = _configuration(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # whatever the architecture's own code raises
        raise ModelError(
            f"model: need an architecture that can be built, got {folder} ({short_message(error)}). "
            "Change model.path=..."
        ) from error


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
