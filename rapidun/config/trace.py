"""Settings of `rapidun trace`, each said once: its flags are derived from these fields."""

from dataclasses import dataclass, field
from enum import Enum

from rapidun.config.influence import InfluenceConfig, Pooling, Score
from rapidun.config.model import Device, Dtype, Quantisation

# what is shared with the influence stage is the same there
_STAGE = InfluenceConfig()


class Signal(Enum):
    """What may tell that a training row is behind a bad output."""

    repsim = "repsim"  # cosine of the hidden states
    bm25 = "bm25"  # words in common, rare ones count more
    gradients = "gradients"  # cosine of the gradients, from an index


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSettings:
    """How rows are compared with queries. Metadata as in config/index.py."""

    layer: int = field(default=_STAGE.layer, metadata={"help": "repsim: hidden states of which layer", "any": True})
    pooling: Pooling = field(default=_STAGE.pooling, metadata={"help": "repsim: mean over which tokens"})
    score: Score = field(default=_STAGE.score, metadata={"help": "gradients: how two are compared"})
    max_length: int = field(default=256, metadata={"help": "tokens of a row"})
    tokens_per_batch: int = _STAGE.tokens_per_batch
    model_dtype: str = field(default="auto", metadata={"choices": Dtype})
    quantisation: str = field(default="none", metadata={"choices": Quantisation})
    device: str = field(default="auto", metadata={"choices": Device})
