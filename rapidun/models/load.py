"""Loading a base model, its tokenizer and an adapter: device, dtype and quantisation in one place."""

import json
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rapidun.base.errors import ModelError
from rapidun.base.processes import local_rank, world_size
from rapidun.base.text import short_message
from rapidun.models import warm
from rapidun.models.architecture import check_own_code, folder_quantisation, read_config
from rapidun.models.libraries import (
    check_sizes,
    put_factors,
    read_adapter_settings,
    read_model,
    read_tokenizer,
    refused,
)
from rapidun.models.weights import (
    WRAPPERS,
    Header,
    Misfit,
    Renaming,
    check_finite,
    check_plain,
    leading_components,
    misfit,
    read_headers,
    unwrapped,
)

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
# any of them is a tokenizer
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt")


class Loaded(NamedTuple):
    """A model in evaluation mode on its device, and the tokenizer it was trained with (it has a pad token)."""

    model: Any
    tokenizer: Any


class Over(Protocol):
    """What goes on a base whenever it is loaded, as part of the model (start_adapter.py)."""

    @property
    def base(self) -> Path:
        """The folder that it belongs to."""

    @property
    def identity(self) -> str:
        """Names its contents."""

    def tokenizer(self, *, say: Callable[[str], None]) -> Path:
        """The folder of the tokenizer of both."""

    def put_on(self, model: Any, *, say: Callable[[str], None]) -> Any:
        """The base with it, every module as it was named."""

    def note(self, out: Path) -> None:
        """Say in the folder of an adapter that was trained over both what it stands on."""


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLoader:
    """How this run loads every model: the same device, dtype, quantisation and attention at each stage."""

    dtype: str = "auto"
    quantisation: str = "none"
    attention: str = "auto"
    device: str = "auto"
    # keep the base model and its tokenizer in memory for the next load of the same folder in this process (warm.py);
    # stages hand back what they loaded, changed weights are never kept
    keep: bool = False
    # part of one base, wherever that folder is loaded: the adapter of a start model that is kept apart
    over: Over | None = None
    # told what the user should know of a model that is loaded: what was made to fit, what is done more slowly
    say: Callable[[str], None] = field(default=_warn, compare=False, repr=False)

    def load(self, path: str | Path, *, adapter: Path | None = None) -> Loaded:
        """Load a causal LM folder, and put a PEFT adapter on it (not merged).

        Args:
            path: a Hugging Face folder with safetensors weights and a tokenizer.
            adapter: a PEFT folder, or None.
        Raises: ModelError if the folder lacks weights or tokenizer, is no causal LM, or the adapter does not fit; if
            a tensor of the model is in no file, or one of the files has no place in the model.
        """
        folder = local_folder(path)
        if not self.keep:
            model, tokenizer = self._load_start(folder, path)
        else:
            how = (self.dtype, self.quantisation, self.attention, self.device)
            over = self.over_at(folder)
            key = (*how, str(folder.resolve()), *map(_file_state, fingerprint_files(folder)))
            key += () if over is None else (over.identity,)
            kept = warm.take(key)
            if kept is None:
                kept = warm.Snapshot(*self._load_start(folder, path))
                warm.keep(key, kept)
            model, tokenizer = kept.model, kept.tokenizer
        if adapter is not None:
            model = load_adapter(model, adapter, say=self.say)
        model.eval()
        return Loaded(model, tokenizer)

    def over_at(self, path: str | Path) -> Over | None:
        """What goes on the model of this folder; None for any but the base of `over`."""
        if self.over is None or Path(path).expanduser().resolve() != self.over.base.resolve():
            return None
        return self.over

    def _load_start(self, folder: Path, path: str | Path) -> Loaded:
        over = self.over_at(folder)
        if over is None:
            return Loaded(self._load_base(folder, path).eval(), load_tokenizer(folder))
        tokenizer = load_tokenizer(over.tokenizer(say=self.say), model=folder)
        return Loaded(over.put_on(self._load_base(folder, path), say=self.say).eval(), tokenizer)

    def hand_back(self) -> None:
        """Say that the model of the last `load`, and what was put on it, is not used any more."""
        if self.keep:
            warm.hand_back()

    def _load_base(self, folder: Path, path: str | Path) -> Any:
        hide_library_bars()
        device = local_device(pick_device(self.device))
        options: dict[str, Any] = {"dtype": pick_dtype(self.dtype, pick_device(self.device))}
        if self.attention != "auto":
            options["attn_implementation"] = self.attention
        raw = read_config(folder)
        check_own_code(raw, path=path)
        own = folder_quantisation(raw)
        if own is not None and self.quantisation != "none":
            raise ModelError(
                f"model: need model.quantisation=none with a folder that is quantised already ({own}), got "
                f"{self.quantisation} and {path}. Pass model.quantisation=none"
            )
        if self.quantisation != "none":
            options["quantization_config"] = _quantisation_config(self.quantisation, options["dtype"])
        # quantised weights stay where they are put
        placed = own is not None or self.quantisation != "none"
        if placed:
            options["device_map"] = {"": device}
        headers = read_headers(folder)
        renaming = unwrapped(headers, folder=folder)
        model, wrong = _read_model(folder, path, headers, renaming, options)
        if wrong:
            # one prefix before all names, and everything fits without it: that is what was meant
            for prefix in leading_components([renaming(name) for name in headers]):
                shorter = Renaming(renaming.dropped, renaming.prefix + prefix)
                other, left = _read_model(folder, path, headers, shorter, options)
                if not left:
                    model, wrong, renaming = other, left, shorter
                    break
        if wrong:
            raise ModelError(
                f"model: need files with the tensors of {type(model).__name__} as {path}/config.json describes it, and "
                f"no others, got {wrong}. Mend config.json, or save the model again, unwrapped and whole"
            )
        if renaming:
            self.say(
                f"model: the names in the weight files of {path} carry {renaming}, left by a wrapper; without it they "
                "fit. Save the model again, unwrapped, to be rid of this note"
            )
        if own is None:
            check_plain(
                {renaming(name): header for name, header in headers.items()},
                path=path,
                buffers=[name for name, _ in model.named_buffers()],
            )
        check_finite(model, path=path)
        if getattr(model.config, "rescale_every", 0):
            # RWKV halves weights in place when it is evaluated and doubles them when it is trained, against overflow in
            # float16: what is saved in between would be half of what was trained
            model.config.rescale_every = 0
        if placed:
            _keep_unpacked(model)
        return model if placed else model.to(device)


def _keep_unpacked(model: Any) -> None:
    """Keep bitsandbytes from packing 4-bit weights for a CPU the first time that a model is evaluated.

    No gradient passes through a packed layer, without a word: one validation, and the rest of the training would be
    another. Sides that are no multiples of its blocks fail.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _read_model(
    folder: Path, path: str | Path, headers: Mapping[str, Header], renaming: Renaming, options: dict[str, Any]
) -> tuple[Any, Misfit]:
    """Load a model, and say what of it the files do not hold, and what of theirs it does not take."""
    import torch

    patterns = renaming.patterns(headers)
    check_sizes(folder)
    # tensors that are missing are drawn at random before the report tells of them
    with (
        refused(lambda why: f"model: need a causal LM in safetensors, got {path} ({why})"),
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[], enabled=bool(renaming)),
    ):
        # bitsandbytes warns about a transpose that its own CPU kernels do
        warnings.filterwarnings("ignore", module="bitsandbytes")
        model, report = read_model(
            folder,
            output_loading_info=True,
            # reported by name, with both shapes
            ignore_mismatched_sizes=True,
            key_mapping=dict.fromkeys(patterns, "") or None,
            **options,
        )
    # saving would put the names back
    if patterns:
        conversions = getattr(model, "_weight_conversions", None) or []
        model._weight_conversions = [one for one in conversions if not set(one.source_patterns) & set(patterns)]
    return model, misfit(model, report, headers, renaming)


def load_tokenizer(folder: str | Path, *, model: Path | None = None) -> Any:
    """Load a tokenizer; where it has no pad token that the model knows, another token pads (padding is masked
    everywhere).

    Args: model: the folder of the model, where that is another one.
    Raises: ModelError if there is none.
    """
    with refused(lambda why: f"model: need a tokenizer in {folder} (tokenizer.json), got none ({why})"):
        tokenizer = read_tokenizer(folder)
    if not tokenizer.chat_template and (processor := Path(folder) / "chat_template.json").is_file():
        # a processor's file, which the library reads for processors only
        try:
            found = json.loads(processor.read_text(encoding="utf-8"))["chat_template"]
            if not isinstance(found, str) or not found.strip():
                raise ValueError("its chat_template is no text")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ModelError(
                f"model: need a chat_template in {processor}, got {short_message(error)}. Mend the file, or take it "
                "away where the plain form (Instruction: ... Answer:) is meant"
            ) from error
        tokenizer.chat_template = found
    # of a model that was never resized for a pad token added later
    size = _vocab_size(Path(folder) if model is None else model)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= size:
        names = ("eos_token", "unk_token", "bos_token")
        known = [
            name for name in names if (token_id := getattr(tokenizer, f"{name}_id")) is not None and token_id < size
        ]
        if not known:
            raise ModelError(
                f"model: need a tokenizer with a pad or an end-of-text token that the model knows, got {folder} with "
                "neither. Set eos_token in its tokenizer_config.json"
            )
        tokenizer.pad_token = getattr(tokenizer, known[0])
    return tokenizer


def _vocab_size(folder: Path) -> float:
    """The tokens that the model beside a tokenizer knows; infinite where no config says."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return math.inf
    if not isinstance(config, dict):
        return math.inf
    nested = config.get("text_config")
    sizes = [part.get("vocab_size") for part in (config, nested) if isinstance(part, dict)]
    return next((size for size in sizes if isinstance(size, int)), math.inf)


def load_adapter(
    model: Any,
    adapter: Path,
    *,
    trainable: bool = False,
    say: Callable[[str], None] = _warn,
    key: str = "unlearning.adapter",
) -> Any:
    """Put a PEFT adapter on a model.

    Args: say: told of an adapter that changes nothing. key: the setting that names the folder.
    Raises: ModelError if the folder is no adapter or does not fit the model: a factor that is in no file, one that has
        no place in the model, another shape, a number that is none.
    """
    from peft import get_peft_model

    if not (adapter / "adapter_config.json").is_file() or not (adapter / "adapter_model.safetensors").is_file():
        raise ModelError(
            f"adapter: need a PEFT folder (adapter_config.json, adapter_model.safetensors), got {adapter}. "
            f"Change {key}=..."
        )
    with refused(lambda why: f"adapter: need one made for this model, got {adapter} ({why})"), peft_renaming():
        config = read_adapter_settings(adapter)
        config.inference_mode = not trainable
        # a hint only: what fits decides. peft would warn of another name
        base, config.base_model_name_or_path = config.base_model_name_or_path, None
        adapted = get_peft_model(model, config)
        config.base_model_name_or_path = base
        # as PeftModel.from_pretrained does, which keeps what it found of the names to itself
        report = put_factors(adapted, adapter, trainable=trainable)
    _check_adapter(adapted, report, adapter, say, key)
    return adapted


def _check_adapter(adapted: Any, report: Any, adapter: Path, say: Callable[[str], None], key: str) -> None:
    missing, unused = sorted(report.missing_keys), sorted(report.unexpected_keys)
    if missing or unused:
        parts = [f"{len(missing)} factors that it lacks (first {missing[0]})"] if missing else []
        parts += [f"{len(unused)} that the model has no place for (first {unused[0]})"] if unused else []
        left = [word for word in (*WRAPPERS, "module") if any(word in name.split(".") for name in unused)]
        hint = f", whose names carry {' and '.join(left)} of a wrapper" if left else ""
        raise ModelError(
            f"adapter: need one made for {type(adapted.get_base_model()).__name__} as it is, got {adapter} with "
            f"{' and '.join(parts)}{hint}. Save it from the unwrapped model, or change {key}=..."
        )
    trained = [(name, p) for name, p in adapted.named_parameters() if ".default" in name]
    for name, parameter in trained:
        if not parameter.detach().isfinite().all():
            raise ModelError(
                f"adapter: need finite weights, got {name} in {adapter} with NaN or infinite numbers. Take an earlier "
                f"checkpoint, or change {key}=..."
            )
    # what LoRA adds is a product with B, which starts at zero
    last = [p for name, p in trained if "lora_B" in name or "lora_embedding_B" in name]
    if last and len(last) * 2 == len(trained) and not any(bool(p.detach().any()) for p in last):
        say(f"adapter: all {len(last)} B matrices of {adapter} are zero, as before training: it changes nothing")


def hide_library_bars() -> None:
    """Loading and saving is a matter of seconds; downloads, which come before, keep their bars."""
    from transformers.utils import logging

    logging.disable_progress_bar()


@contextmanager
def peft_renaming() -> Iterator[None]:
    """Quieten peft 0.21: it asks transformers 5.24 for an attribute by its former name, and warns of tied weights,
    which are untied before a merge (adapters.py).
    """
    with warnings.catch_warnings():
        for tied in (
            r"Model (has|with) `tie_word_embeddings=True`",
            "Input and output embeddings are no longer tied",
            "Setting `save_embedding_layers` to `True`",
        ):
            warnings.filterwarnings("ignore", message=tied, category=UserWarning)
        warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated", category=FutureWarning)
        yield


def local_folder(path: str | Path, *, revision: str | None = None) -> Path:
    """The folder of a model on this machine; a hub id is fetched (or taken from the hub cache when offline).

    Raises: ModelError if there is no such folder, or the hub has or gives no such model.
    """
    text = str(path)
    folder = Path(text).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"model: need a Hugging Face folder with config.json, got {text}. Change model.path=...")
        if (folder / "adapter_config.json").is_file():
            # transformers would load the base that this file names, wherever that is, in place of the folder's weights
            raise ModelError(
                f"model: need a folder with a whole model, got {text} with an adapter_config.json. Pass the folder of "
                "its base as model.path=... and the adapter as model.adapter=... (unlearning.adapter=... to train it "
                "on), or take that file away"
            )
        if not any(folder.glob("*.safetensors")):
            raise ModelError(
                f"model: need weights in safetensors (*.safetensors), got {text} without any. Change model.path=..."
            )
        return folder
    if text.startswith(("/", ".", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text):
        raise ModelError(
            f"model: need a folder, a .gguf file or a hub id, got {text}, which is not there. Change model.path=..."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(text, revision=revision, allow_patterns=[*WEIGHT_FILES, *SMALL_FILES]))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ModelError(
            f"model: need a folder or a reachable hub id, got {text} ({short_message(error)}). "
            "Change model.path=..., or fetch it first: rapidun model fetch smollm2_135m DIR"
        ) from error


def fingerprint_files(folder: Path) -> list[Path]:
    """The files of a model folder that decide what it computes."""
    return sorted({file for pattern in ("*.safetensors", *SMALL_FILES) for file in folder.glob(pattern)})


def pick_device(device: str) -> str:
    """`auto` takes the GPU where there is one.

    Raises: ModelError if `cuda` is asked for and there is none.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("model: need a GPU for model.device=cuda, got none. Pass model.device=auto or cpu")
    return device


def local_device(device: str) -> str:
    """This process's own GPU where several processes share those of a machine (as accelerate shares them out)."""
    import torch

    if device != "cuda" or world_size() == 1:
        return device
    return f"cuda:{local_rank() % torch.cuda.device_count()}"


def _file_state(file: Path) -> tuple[str, int, int, int]:
    state = file.stat()
    return file.name, state.st_size, state.st_mtime_ns, state.st_ino


def pick_dtype(dtype: str, device: str) -> Any:
    """`auto` is bfloat16 on a GPU that has it, float32 elsewhere."""
    import torch

    if dtype == "auto":
        return torch.bfloat16 if device == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return getattr(torch, dtype)


def _quantisation_config(quantisation: str, compute_dtype: Any) -> Any:
    from transformers import BitsAndBytesConfig

    if quantisation == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute_dtype)
