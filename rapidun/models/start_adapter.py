"""A LoRA adapter over a base as the model that a run starts from: what goes on whenever the base is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rapidun.base.errors import ConfigError
from rapidun.base.files import write_json
from rapidun.models.adapter_folder import STANDS_ON, adapter_files, named_base, start_faults, whole_faults
from rapidun.models.adapter_tokens import choose_tokenizer, tokenizer_files
from rapidun.models.converted import save_converted
from rapidun.models.fold import fold
from rapidun.models.load import ModelLoader, load_adapter, load_tokenizer
from rapidun.models.tied import is_quantised
from rapidun.models.weights import read_headers

KEY = "model.adapter"

README = """# An adapter that stands on another one

Trained over {base} **with the adapter {name}** (sha256 of its files: {identity}), not over {base} alone:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(model, "{name}").merge_and_unload()
model = PeftModel.from_pretrained(model, "THIS FOLDER")
```

In rapidun: `model.path={base} model.adapter={name} unlearning.adapter=THIS_FOLDER`.
"""


@dataclass(frozen=True, kw_only=True)
class StartAdapter:
    """A base folder, and the adapter that is part of the model wherever that folder is loaded."""

    base: Path
    folder: Path
    # of the contents of the adapter's files
    identity: str

    def tokenizer(self, *, say: Callable[[str], None]) -> Path:
        """The folder of the tokenizer. Raises: ConfigError for one that does not go with the base."""
        choice = choose_tokenizer(self.folder, self.base, key=KEY)
        if choice.faults:
            raise ConfigError(list(choice.faults))
        if choice.note:
            say(choice.note)
        return choice.folder

    def put_on(self, model: Any, *, say: Callable[[str], None]) -> Any:
        """Make the adapter part of a model that was just loaded (fold.py).

        Returns: the model, in evaluation mode, its modules named as before.
        Raises: ConfigError, ModelError for an adapter that does not go with the base, or cannot be served.
        """
        trainable = {id(parameter): parameter.requires_grad for parameter in model.parameters()}
        folded = fold(self.wrapped(model, say=say), say=say).eval()
        for parameter in folded.parameters():
            parameter.requires_grad_(trainable.get(id(parameter), parameter.dtype.is_floating_point))
        return folded

    def wrapped(self, model: Any, *, say: Callable[[str], None]) -> Any:
        """The model as peft has it, the adapter's factors in modules of their own."""
        import torch

        quantised = str(getattr(model, "quantization_method", "")) if is_quantised(model) else ""
        faults = start_faults(self.folder, key=KEY, quantised=quantised)
        if not quantised:
            faults += whole_faults(self.folder, read_headers(self.base), base=self.base, key=KEY)
        if faults:
            raise ConfigError(faults)
        devices = [model.device] if model.device.type == "cuda" else []
        # first factors are drawn at random before those of the file take their places
        with torch.random.fork_rng(devices=devices):
            return load_adapter(model, self.folder, say=say, key=KEY).eval()

    def note(self, out: Path) -> None:
        """Say beside an adapter that was trained over both that it needs both."""
        base = named_base(out) or self.base.name
        about = {"base": base, "adapter": self.folder.name, "identity": self.identity}
        write_json(out / STANDS_ON, about)
        text = README.format(base=base, name=self.folder.name, identity=self.identity)
        (out / "README.md").write_text(text, encoding="utf-8")


def identity_files(folder: Path) -> list[Path]:
    """The files of an adapter's folder that decide what it computes. Raises: ConfigError for a folder without them."""
    return [*adapter_files(folder, key=KEY), *tokenizer_files(folder)]


def merge_start(start: StartAdapter, out: Path, *, loader: ModelLoader) -> dict[str, Any]:
    """Write base and adapter as one Hugging Face folder, in the loader's dtype; read back it must give their loss.

    Args: loader: of the base alone, unquantised.
    Returns: base, adapter (their folders' names), loss (of two texts).
    Raises: ConfigError, ModelError.
    """
    tokenizer = load_tokenizer(start.tokenizer(say=loader.say), model=start.base)
    adapted = start.wrapped(loader.load(start.base).model, say=loader.say)
    loss = save_converted(adapted, tokenizer, partial(fold, say=loader.say), out, loader=loader)
    return {"base": start.base.name, "adapter": start.folder.name, "loss": loss}
