"""Settings of the poison stage: supervised fine-tuning of the model that will be unlearned."""

from dataclasses import dataclass, field
from enum import Enum

from rapidun.config.parts import Faults, LoraSettings, OptimiserSettings


class PoisonMethod(Enum):
    none = "none"  # model.path is poisoned already
    full = "full"
    lora = "lora"  # trained as an adapter, then merged


@dataclass(kw_only=True, slots=True)
class PoisonConfig(OptimiserSettings):
    method: PoisonMethod = PoisonMethod.full
    # also train the yardstick: the same start, the clean rows only
    retrain: bool = False
    # of the training order and a scratch model's first weights; its own, so that a sweep over `seed` shares the model
    seed: int = 42
    per_device_train_batch_size: int | None = 8
    lora: LoraSettings = field(default_factory=LoraSettings)

    def check(self) -> list[str]:
        faults = Faults("poison")
        self.check_optimiser(faults)
        faults.need(
            self.per_device_train_batch_size is None or self.per_device_train_batch_size >= 1,
            "per_device_train_batch_size >= 1",
            per_device_train_batch_size=self.per_device_train_batch_size,
        )
        self.lora.check(faults)
        return faults
