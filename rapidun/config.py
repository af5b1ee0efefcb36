"""RunConfig: every setting of one run, and its cross-section checks. OmegaConf ends here (see compose.py)."""

from dataclasses import dataclass, field
from enum import Enum

from rapidun.data.config import DataConfig
from rapidun.evaluation.config import EvaluationConfig
from rapidun.influence.config import InfluenceConfig
from rapidun.mapping.config import MappingConfig
from rapidun.poison.config import PoisonConfig, PoisonMethod
from rapidun.schema import Faults
from rapidun.sweep.config import ClusterConfig, ResourcesConfig, SweepConfig
from rapidun.tracking.config import TrackingConfig
from rapidun.unlearning.config import UnlearningConfig

STAGES = ("data", "poison", "influence", "mapping", "unlearning", "evaluation")


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


@dataclass(kw_only=True, slots=True)
class RunConfig:
    name: str = "run"
    # a run of consecutive stages, or one alone
    stages: list[str] = field(default_factory=lambda: list(STAGES))
    # of the mapping's draws and of unlearning; data, poison, influence and evaluation have their own
    seed: int = 42
    # tokens of prompt and response together
    max_length: int = 256
    # null = outputs/runs/<date>_<time>_<name>
    run_dir: str | None = None
    store_dir: str = "outputs/store"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    poison: PoisonConfig = field(default_factory=PoisonConfig)
    influence: InfluenceConfig = field(default_factory=InfluenceConfig)
    mapping: MappingConfig = field(default_factory=MappingConfig)
    unlearning: UnlearningConfig = field(default_factory=UnlearningConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)

    def check(self) -> list[str]:
        """Every fault of every section, then those between sections. Empty when all is well."""
        faults = self._check_run()
        sections = (
            self.model,
            self.data,
            self.poison,
            self.influence,
            self.mapping,
            self.unlearning,
            self.evaluation,
            self.tracking,
            self.resources,
            self.cluster,
            self.sweep,
        )
        for section in sections:
            faults += section.check()
        if self.model.path is None and self.poison.method is not PoisonMethod.full and "poison" in self.stages:
            faults.append(
                f"poison: need method=full with a model made from scratch (model.path=null), got "
                f"poison.method={self.poison.method.name}. Pass poison.method=full or model.path=..."
            )
        if self.model.quantisation is not Quantisation["none"] and self.poison.method is PoisonMethod.full:
            faults.append(
                f"poison: need method=lora or none with a quantised model, got poison.method=full and "
                f"model.quantisation={self.model.quantisation.name}. Pass poison.method=lora or model.quantisation=none"
            )
        return faults

    def _check_run(self) -> list[str]:
        faults = []
        order = " ".join(STAGES)
        unknown = [stage for stage in self.stages if stage not in STAGES]
        places = [STAGES.index(stage) for stage in self.stages if stage in STAGES]
        if unknown or not self.stages:
            faults.append(
                f"stages: need names among [{order}], got {self.stages}. Pass stages=[influence,mapping], say"
            )
        elif places != list(range(places[0], places[0] + len(places))):
            faults.append(
                f"stages: need consecutive stages in this order: [{order}], got {self.stages}. Change stages=[...]"
            )
        if not 0 <= self.seed < 2**32:
            faults.append(f"seed: need 0 <= seed < 2**32, got {self.seed}. Pass seed=...")
        if self.max_length < 8:
            faults.append(f"max_length: need at least 8 tokens, got {self.max_length}. Pass max_length=...")
        if not self.name.strip() or any(c in self.name for c in "/\\\0"):
            faults.append(f"name: need a name without slashes, got {self.name!r}. Pass name=...")
        return faults
