"""RunConfig: every setting of one run, and its cross-section checks. OmegaConf ends here (see compose.py)."""

from dataclasses import dataclass, field, fields, is_dataclass

from rapidun.config.data import DataConfig
from rapidun.config.evaluation import EvaluationConfig
from rapidun.config.influence import WITHOUT_GRADIENTS, InfluenceConfig, Score
from rapidun.config.mapping import MappingConfig, Weighting
from rapidun.config.model import Dtype, ModelConfig, Quantisation
from rapidun.config.numbers import number_faults
from rapidun.config.poison import PoisonConfig, PoisonMethod
from rapidun.config.sweep import ClusterConfig, ResourcesConfig, SweepConfig
from rapidun.config.tracking import TrackingConfig
from rapidun.config.training import Target
from rapidun.config.unlearning import TokenWeights, UnlearningConfig, WeightsAct

STAGES = ("data", "poison", "influence", "mapping", "unlearning", "evaluation")
# settings that change where things go, how they run and who watches, never a number. A cell's name leaves these out, a
# sweep's name all but `name`, which it shows; a run folder and a report also leave out `stages` (which numbers there
# are), a report `seed` (which repetition they are of)
BOOKKEEPING = ("name", "run_dir", "store_dir", "sweep", "tracking", "resources", "cluster")
# where the poison is an adapter's
ALONE = "the base alone, trained on clean rows, is a run of its own: model.adapter=null"
# settings that may be left to the model's size (null, as in conf/model/hf.yaml)
BY_SIZE = (
    ("poison", "learning_rate"),
    ("poison", "num_train_epochs"),
    ("poison", "per_device_train_batch_size"),
    ("poison", "gradient_accumulation_steps"),
    ("unlearning", "learning_rate"),
    ("unlearning", "num_train_epochs"),
    ("unlearning", "gradient_accumulation_steps"),
)


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
        faults = number_faults(self)
        if faults:
            # comparisons with NaN, and sums with what overflows, say nothing more
            return faults
        faults = self._check_run()
        sections = [value for one in fields(self) if is_dataclass(value := getattr(self, one.name))]
        for section in sections:
            faults += section.check()  # type: ignore[union-attr]
        if self.model.path is None and self.poison.method is not PoisonMethod.full and "poison" in self.stages:
            faults.append(
                f"poison: need method=full with a model made from scratch (model.path=null), got "
                f"poison.method={self.poison.method.name}. Pass poison.method=full or model.path=..."
            )
        if self.model.path is None and self.left_to_size:
            decided = ", ".join(f"{section}.{name}" for section, name in self.left_to_size)
            faults.append(
                f"model: need model.path, whose size decides {decided}, got model.name={self.model.name} without one. "
                "Pass model.path=DIR (a hub id, a .gguf file)"
            )
        yardstick = self.poison.retrain or ("unlearning" in self.involved and self.unlearning.objective.traits.retrains)
        if self.poison.method is PoisonMethod.none and yardstick and "poison" in self.involved:
            faults.append(
                f"poison: need method=full or lora to train the yardstick, got poison.method=none with "
                f"poison.retrain={str(self.poison.retrain).lower()} and "
                f"unlearning.objective={self.unlearning.objective.name}. Change one of them"
                + ("" if self.model.adapter is None else f" ({ALONE})")
            )
        ratio = self.unlearning.token_weights is TokenWeights.likelihood_ratio
        if ratio and self.poison.method is PoisonMethod.none and {"influence", "unlearning"} & set(self.involved):
            faults.append(
                "unlearning: need the model before poisoning for token_weights=likelihood_ratio, got "
                "poison.method=none, where model.path is poisoned already. Pass unlearning.token_weights=influence, or "
                "poison=full (lora)"
            )
        if self.model.dtype is Dtype.float16 and self.poison.method is PoisonMethod.full and "poison" in self.stages:
            faults.append(
                "poison: need float32 or bfloat16 weights for full fine-tuning, got model.dtype=float16 (its gradients "
                "underflow). Pass model.dtype=bfloat16, or poison.method=lora"
            )
        if self.model.quantisation is not Quantisation["none"] and self.poison.method is PoisonMethod.full:
            faults.append(
                f"poison: need method=lora or none with a quantised model, got poison.method=full and "
                f"model.quantisation={self.model.quantisation.name}. Pass poison.method=lora or model.quantisation=none"
            )
        full = "unlearning" in self.involved and self.unlearning.target is Target.full
        if full and not self.unlearning.objective.traits.retrains:
            if self.model.quantisation is not Quantisation["none"]:
                faults.append(
                    f"unlearning: need target=lora with a quantised model, got unlearning.target=full and "
                    f"model.quantisation={self.model.quantisation.name}. Pass unlearning.target=lora or "
                    "model.quantisation=none"
                )
            if self.model.dtype is Dtype.float16:
                faults.append(
                    "unlearning: need float32 or bfloat16 weights for target=full, got model.dtype=float16 (its "
                    "gradients underflow). Pass model.dtype=bfloat16, or unlearning.target=lora"
                )
        return faults + self._check_weighting()

    def _check_weighting(self) -> list[str]:
        """What the weighting needs of other sections."""
        if "mapping" not in self.involved:
            return []
        method, faults = self.mapping.method, []
        named = f"mapping.method={method.name}"
        if "influence" in self.involved and not self.mapping.scores.given:
            for key, value in method.traits.influence:
                came, needed = _spelt(getattr(self.influence, key)), _spelt(value)
                if came != needed:
                    faults.append(
                        f"influence: need {key}={needed} with {named}, got {key}={came}. Leave out what says so (the "
                        f"preset mapping={method.name} sets influence.{key}), pass influence.{key}={needed}, or choose "
                        "another mapping=..."
                    )
            if method is Weighting.guard:
                if self.influence.method in WITHOUT_GRADIENTS:
                    faults.append(
                        f"influence: need gradients with {named}, got influence.method={self.influence.method.name}. "
                        "Pass influence=sketch, say, or choose another mapping=..."
                    )
                elif self.influence.own_queries and self.influence.score is not Score.dot:
                    faults.append(
                        f"influence: need inner products with {named}, got influence.score="
                        f"{self.influence.score.name} for queries of their own. Pass influence.score=dot, or leave out "
                        "influence.queries and influence.contrast"
                    )
        unlearning = self.unlearning
        if "unlearning" in self.involved and self.mapping.renewed and unlearning.weights_act is WeightsAct.sampling:
            faults.append(
                f"unlearning: need weights_act=loss with {named}, whose weights change from step to step, got "
                "weights_act=sampling. Pass unlearning.weights_act=loss or mapping=loreun_static"
            )
        return faults

    @property
    def left_to_size(self) -> list[tuple[str, str]]:
        """Section and name of the settings that the model's size is to decide."""
        return [(section, name) for section, name in BY_SIZE if getattr(getattr(self, section), name) is None]

    @property
    def involved(self) -> tuple[str, ...]:
        """The stages whose settings and files the run depends on: those asked for, and what they are made from."""
        last = max((STAGES.index(stage) for stage in self.stages if stage in STAGES), default=len(STAGES) - 1)
        weighting, given = self.mapping.method.traits, self.mapping.scores.given
        unlearns = not self.unlearning.objective.traits.retrains
        alone, asked = self.stages == ["mapping"], set(self.stages) - self.idle.keys()
        needed = {
            # influence made elsewhere needs no pack, and what reads no influence no model
            "data": not (alone and weighting.scores and given),
            "poison": not (alone and (given or not weighting.scores) and not weighting.losses),
            "influence": weighting.scores and not given and (unlearns or alone),
            "mapping": unlearns,
        }
        return tuple(name for name in STAGES[: last + 1] if name in asked or needed.get(name, True))

    @property
    def idle(self) -> dict[str, str]:
        """Stages that are asked for and make nothing, since nothing that is asked for behind them reads it; and why.

        Alone, or as the last one, a stage is run for its own sake.
        """
        found: dict[str, str] = {}
        objective = self.unlearning.objective
        if {"mapping", "unlearning"} <= set(self.stages) and objective.traits.retrains:
            found["mapping"] = f"unlearning.objective={objective.name}"
        if {"influence", "mapping"} <= set(self.stages):
            if "mapping" in found:
                found["influence"] = found["mapping"]
            elif not self.mapping.method.traits.scores:
                found["influence"] = f"mapping.method={self.mapping.method.name}"
            elif self.mapping.scores.given:
                found["influence"] = "influence that is given (mapping.scores.*)"
        return found

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


def _spelt(value: object) -> str:
    """A setting as it is typed."""
    return str(value).lower() if isinstance(value, bool) else str(getattr(value, "name", value))
