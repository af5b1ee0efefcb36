"""Settings of an index of gradients, each said once: `rapidun index build` derives its flags from these fields."""

from dataclasses import dataclass, field
from enum import Enum
from operator import attrgetter

from rapidun.config.influence import InfluenceConfig, InfluenceMethod, LossReduction, ParameterSet
from rapidun.config.model import Device, Dtype, Quantisation
from rapidun.config.parts import LoraSettings

# what an index shares with the influence stage is the same there unless said otherwise
_STAGE = InfluenceConfig()


# methods that give each row numbers to keep
SKETCHED = (InfluenceMethod.sketch, InfluenceMethod.tensorsketch)
# what a row is to say -> how it is read off a record; poisoned: what the model should lose
RESPONSES = {"response": attrgetter("response"), "poisoned": attrgetter("forget_target")}


class IndexDtype(Enum):
    """How one number of a row is stored."""

    int8 = "int8"
    fp16 = "fp16"


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSettings:
    """Whose gradients, of what, how they are sketched and stored: all that a row's numbers depend on beside the row.

    Of the metadata, `help` is the flag's line, `choices` are members that may be named (for text, and where not all
    will do), `only` is the setting, with its
    value, without which this one would be ignored, and `any` says that a whole number may be below 1.
    """

    device: str = field(default="auto", metadata={"choices": Device})
    params: ParameterSet = _STAGE.params
    regex: str | None = field(
        default=None,
        metadata={"help": "full match on module names, for --params regex", "only": ("params", ParameterSet.regex)},
    )
    # the fresh adapter of params=lora
    lora: LoraSettings = field(default_factory=LoraSettings)
    loss: LossReduction = _STAGE.loss
    method: InfluenceMethod = field(default=_STAGE.method, metadata={"choices": SKETCHED})
    k: int = field(default=4096, metadata={"help": "numbers a row"})
    buckets: int = field(
        default=_STAGE.buckets,
        metadata={
            "help": "tensorsketch: numbers of a weight",
            "metavar": "B",
            "only": ("method", InfluenceMethod.tensorsketch),
        },
    )
    seed: int = field(default=_STAGE.seed, metadata={"help": "of the sketch", "least": 0})
    dtype: IndexDtype = field(default=IndexDtype.int8, metadata={"help": "of a stored number"})
    shard_rows: int = field(default=1024, metadata={"help": "rows of a shard: what one claim is worth"})
    max_length: int = field(default=256, metadata={"help": "tokens of a row"})
    tokens_per_batch: int = _STAGE.tokens_per_batch
    threads: int = field(default=1, metadata={"help": "of one worker; other numbers may round otherwise"})
    model_dtype: str = field(default="auto", metadata={"choices": Dtype})
    quantisation: str = field(default="none", metadata={"choices": Quantisation})
    attention: str = field(default="auto", metadata={"help": "an attention of transformers: sdpa, eager, ..."})
