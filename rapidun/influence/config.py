"""Settings of the influence stage: which gradients, how they are kept, how they are compared."""

import re
from dataclasses import dataclass, field
from enum import Enum

from rapidun.schema import Faults, LoraSettings


class InfluenceMethod(Enum):
    exact = "exact"  # every inner product, accumulated module by module
    sketch = "sketch"  # block-offset count-sketch to k numbers a row


class Score(Enum):
    dot = "dot"
    cosine = "cosine"


class ParameterSet(Enum):
    """The declared parameters that gradients are taken of."""

    all_linear = "all_linear"  # every nn.Linear weight but the output head
    attention = "attention"
    mlp = "mlp"
    lora = "lora"  # lora_A and lora_B of a fresh adapter (or of the one being continued)
    lm_head = "lm_head"
    embeddings = "embeddings"
    regex = "regex"  # nn.Linear and nn.Embedding modules whose name matches influence.regex


class LossReduction(Enum):
    mean = "mean"
    sum = "sum"


@dataclass(kw_only=True, slots=True)
class InfluenceConfig:
    method: InfluenceMethod = InfluenceMethod.sketch
    score: Score = Score.cosine
    params: ParameterSet = ParameterSet.all_linear
    # full match on module names, for params=regex
    regex: str | None = None
    # numbers kept a row by the sketch
    k: int = 65536
    loss: LossReduction = LossReduction.mean
    # of the sketch and of the fresh adapter of params=lora
    seed: int = 42
    # padded tokens in one batch
    tokens_per_batch: int = 2048
    # memory for per-sample gradients; `exact` makes more passes over the rows where it does not suffice
    memory_gb: float = 4.0
    # the fresh adapter of params=lora
    lora: LoraSettings = field(default_factory=LoraSettings)

    def check(self) -> list[str]:
        faults = Faults("influence")
        faults.need(self.k >= 1, "k >= 1", k=self.k)
        faults.need(self.tokens_per_batch >= 1, "tokens_per_batch >= 1", tokens_per_batch=self.tokens_per_batch)
        faults.need(self.memory_gb > 0, "memory_gb > 0", memory_gb=self.memory_gb)
        if self.params is ParameterSet.regex:
            faults.need(bool(self.regex), "influence.regex with params=regex", regex=self.regex)
        if self.regex:
            try:
                re.compile(self.regex)
            except re.error as error:
                faults.need(False, f"a regular expression ({error})", regex=self.regex)
        self.lora.check(faults)
        return faults
