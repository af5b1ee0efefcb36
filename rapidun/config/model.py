"""Settings of the model: where it comes from, and how it is loaded."""

from dataclasses import dataclass, field
from enum import Enum

from rapidun.config.parts import Faults


class Dtype(Enum):
    auto = "auto"  # bfloat16 on a GPU that has it, float32 otherwise
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


# member names that start with a digit need the functional form: Quantisation["4bit"]
Quantisation = Enum("Quantisation", {"none": "none", "8bit": "8bit", "4bit": "4bit"})


class Attention(Enum):
    auto = "auto"
    eager = "eager"
    sdpa = "sdpa"
    flash_attention_2 = "flash_attention_2"


class Device(Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class AdapterAs(Enum):
    apart = "apart"  # on disk base and adapter stay two; it goes on whenever the base is loaded
    merged = "merged"  # one folder in the store, which everything then runs over


@dataclass(kw_only=True, slots=True)
class ScratchConfig:
    """Sizes of the Llama-architecture model that is made when model.path is null."""

    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    vocab_size: int = 1024


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    name: str = "tiny"
    # a Hugging Face folder, a hub id, or a .gguf file; null = a model made from scratch
    path: str | None = None
    # a LoRA adapter (PEFT folder) over it, which is part of the start model: a poisoned one, say; null = none
    adapter: str | None = None
    # apart: nothing is written, and over quantised weights it is not rounded to their grid
    adapter_as: AdapterAs = AdapterAs.apart
    # branch, tag or commit of a hub id
    revision: str | None = None
    dtype: Dtype = Dtype.auto
    # none | 8bit | 4bit (NF4): bitsandbytes, on the GPU or the CPU
    quantisation: Quantisation = Quantisation["none"]
    attention: Attention = Attention.auto
    device: Device = Device.auto
    scratch: ScratchConfig = field(default_factory=ScratchConfig)

    def check(self) -> list[str]:
        faults = Faults("model")
        sizes = self.scratch
        if self.adapter is not None and self.path is None:
            faults.append(
                "model: need model.path=... of the base that an adapter was made for, got model.adapter="
                f"{self.adapter} and a model made from scratch (model.path=null). Pass model=hf model.path=DIR, or "
                "model.adapter=null"
            )
        for key in ScratchConfig.__slots__:
            faults.need(getattr(sizes, key) >= 1, f"scratch.{key} >= 1", **{f"scratch__{key}": getattr(sizes, key)})
        faults.need(
            sizes.num_attention_heads >= 1 and sizes.hidden_size % sizes.num_attention_heads == 0,
            "scratch.hidden_size a multiple of scratch.num_attention_heads",
            scratch__hidden_size=sizes.hidden_size,
            scratch__num_attention_heads=sizes.num_attention_heads,
        )
        faults.need(sizes.vocab_size >= 300, "scratch.vocab_size >= 300", scratch__vocab_size=sizes.vocab_size)
        return faults
