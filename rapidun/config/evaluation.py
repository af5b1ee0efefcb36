"""Settings of the evaluation stage: which rows, how many, how long the generations."""

from dataclasses import dataclass, field
from enum import Enum

from rapidun.config.attacks import AttacksConfig
from rapidun.config.detectors import DetectorsConfig
from rapidun.config.lm_eval import LmEvalConfig
from rapidun.config.parts import Faults
from rapidun.config.privacy import PrivacyConfig


class Split(Enum):
    val = "val"  # for choosing settings
    test = "test"  # for reporting


@dataclass(kw_only=True, slots=True)
class EvaluationConfig:
    split: Split = Split.test
    # prompts of each set (clean, seen, ood, unseen family), stratified by family; null = all
    num_prompts: int | None = 100
    # rows of each perplexity; null = all
    num_ppl: int | None = 200
    # known poisoned and known clean rows, for the likelihood detector's own recall and false-positive rate
    # (the keyword detector needs no model and takes every known response)
    num_calibration: int = 100
    # of the choice of prompts; its own, so that a sweep over `seed` compares on the same prompts
    seed: int = 42
    # different keywords that a response must hold to be judged poisoned
    min_keywords: int = 1
    max_new_tokens: int = 48
    # tokens in one batch, padding and those still to be generated among them; where keys and values take less memory
    # than logits, more are decoded at once
    tokens_per_batch: int = 4096
    # also compare generations with the clean response word for word (short answers)
    exact_match: bool = False
    # what judges answers, beside keywords and likelihood
    detectors: DetectorsConfig = field(default_factory=DetectorsConfig)
    # what an adversary may do with the unlearned model; evaluation=attacks
    attacks: AttacksConfig = field(default_factory=AttacksConfig)
    # what of the forget rows can still be told from it, and how far it is from a retrained one; evaluation=attacks
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    # benchmarks of lm-evaluation-harness, before and after
    lm_eval: LmEvalConfig = field(default_factory=LmEvalConfig)
    # folder of a run whose unlearned model never saw the forget rows (unlearning=retrain), for forget_quality of rows
    # with wrong answers (docs/forgetting.md); null = the yardstick of poison.retrain=true, if there is one
    retrained: str | None = None

    @property
    def of_answers(self) -> dict[str, int]:
        """What decides how a model is asked and its answers judged, wherever that is done."""
        return {"seed": self.seed, "min_keywords": self.min_keywords, "max_new_tokens": self.max_new_tokens}

    def check(self) -> list[str]:
        faults = Faults("evaluation")
        for key in ("num_prompts", "num_ppl"):
            value = getattr(self, key)
            faults.need(value is None or value >= 1, f"{key} >= 1 or null", **{key: value})
        for key in ("num_calibration", "min_keywords", "max_new_tokens", "tokens_per_batch"):
            value = getattr(self, key)
            faults.need(value >= 1, f"{key} >= 1", **{key: value})
        self.detectors.check(faults)
        self.attacks.check(faults)
        self.privacy.check(faults)
        self.lm_eval.check(faults)
        return faults
