"""Settings of the mapping stage: influence scores to per-row weights (docs/method.md, section 4)."""

import math
from dataclasses import dataclass, field
from enum import Enum

from rapidun.config.parts import Choice, Faults


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightingTraits:
    """What a weighting depends on; fingerprints and plans follow."""

    # as reports call it
    label: str
    # reads influence
    scores: bool = True
    # draws random numbers from `seed`
    seed: bool = False
    # reads the settings of the map (temperatures, bounds, aggregate)
    settings: bool = True
    # reads mapping.forget.path and mapping.retain.path
    files: bool = False
    # other methods are compared with it, seed by seed
    baseline: bool = False


class Weighting(Choice):
    traits: WeightingTraits

    rapidun = WeightingTraits(label="RapidUn")
    rapidun_release = WeightingTraits(label="RapidUn as released")
    uniform = WeightingTraits(label="uniform", scores=False, settings=False, baseline=True)
    # the rapidun weights, permuted within F and within R: the null hypothesis
    shuffled = WeightingTraits(label="RapidUn shuffled", seed=True, baseline=True)
    # log-normal with the rapidun weights' log-variance
    random = WeightingTraits(label="random", seed=True)
    # weights made elsewhere
    file = WeightingTraits(label="given weights", scores=False, settings=False, files=True)


class ValueMode(Enum):
    """What is done to the scores of one query before they are aggregated."""

    value = "value"
    rank = "rank"
    robust = "robust"


class Aggregate(Enum):
    median = "median"
    mean = "mean"


@dataclass(kw_only=True, slots=True)
class GroupSettings:
    """Bounds of one group's weights; `path` is its weights file under mapping=file."""

    w_min: float = 0.2
    w_max: float = 3.0
    path: str | None = None


@dataclass(kw_only=True, slots=True)
class ScoreFiles:
    """Influence made elsewhere: one safetensors file for all four blocks (`path`), or a file for each block."""

    path: str | None = None
    ff: str | None = None
    fr: str | None = None
    rf: str | None = None
    rr: str | None = None

    @property
    def given(self) -> dict[str, str]:
        """The files that are named, by block; empty when there are none."""
        return {name: path for name in self.__slots__ if (path := getattr(self, name))}


@dataclass(kw_only=True, slots=True)
class MappingConfig:
    method: Weighting = Weighting.rapidun
    # S_f = alpha * agg(FF) - beta * agg(FR);  S_r = gamma * agg(RR) - delta * agg(RF)
    alpha: float = 1.0
    beta: float = 1.0
    gamma: float = 1.0
    delta: float = 1.0
    # temperatures: larger is flatter
    tau_f: float = 0.7
    tau_r: float = 1.2
    forget: GroupSettings = field(default_factory=GroupSettings)
    retain: GroupSettings = field(default_factory=GroupSettings)
    mode: ValueMode = ValueMode.value
    aggregate: Aggregate = Aggregate.median
    # per query only the top k training rows keep their value, the others become 0; null = all
    top_k: int | None = None
    # leave out a row's influence on itself
    drop_diagonal: bool = True
    # true: the bounds hold for the weights; false: for the values before they are divided by their mean
    bounded: bool = True
    mad_floor: float = 1e-3
    # subtract the aggregate of the most harmful rows as well
    use_harmful: bool = False
    alpha_harm: float = 1.0
    beta_harm: float = 1.0
    gamma_harm: float = 1.0
    delta_harm: float = 1.0
    scores: ScoreFiles = field(default_factory=ScoreFiles)

    def check(self) -> list[str]:
        faults = Faults("mapping")
        for key in ("tau_f", "tau_r", "mad_floor"):
            value = getattr(self, key)
            faults.need(value > 0 and math.isfinite(value), f"{key} > 0", **{key: value})
        for name, group in (("forget", self.forget), ("retain", self.retain)):
            faults.need(
                0 < group.w_min <= group.w_max and math.isfinite(group.w_max),
                "0 < w_min <= w_max",
                **{f"{name}__w_min": group.w_min, f"{name}__w_max": group.w_max},
            )
            faults.need(
                not self.bounded or group.w_min <= 1.0 <= group.w_max,
                "w_min <= 1 <= w_max, since bounded weights have mean 1",
                **{f"{name}__w_min": group.w_min, f"{name}__w_max": group.w_max},
            )
            faults.need(
                not self.method.traits.files or group.path is not None,
                f"mapping.{name}, a weights file",
                **{name: group.path},
            )
        for key in ("alpha", "beta", "gamma", "delta", "alpha_harm", "beta_harm", "gamma_harm", "delta_harm"):
            faults.need(math.isfinite(getattr(self, key)), f"a finite {key}", **{key: getattr(self, key)})
        faults.need(self.top_k is None or self.top_k >= 1, "top_k >= 1 or null", top_k=self.top_k)
        blocks = [self.scores.ff, self.scores.fr, self.scores.rf, self.scores.rr]
        faults.need(
            all(blocks) or not any(blocks),
            "all four of scores.ff, scores.fr, scores.rf, scores.rr, or none",
            scores=[path or "null" for path in blocks],
        )
        faults.need(
            not (any(blocks) and self.scores.path),
            "scores.path or the four blocks, not both",
            scores__path=self.scores.path,
        )
        return faults
