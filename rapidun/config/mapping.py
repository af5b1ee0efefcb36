"""Settings of the mapping stage: influence scores to per-row weights (docs/method.md, section 4)."""

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from rapidun.config import extensions
from rapidun.config.parts import Choice, Faults, add_choice


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
    # where it does not: the settings of this section that it reads instead
    own: tuple[str, ...] = ()
    # reads the loss of each forget row under the model that is to be unlearned
    losses: bool = False
    # unlearning renews the forget weights as training goes
    dynamic: bool = False
    # what the influence section must say for the scores that it is made for; the preset says so
    influence: tuple[tuple[str, object], ...] = ()
    # reads mapping.forget.path and mapping.retain.path
    files: bool = False
    # reads what the pack knows of its rows (is_poisoned, planted errors)
    truth: bool = False
    # other methods are compared with it, seed by seed
    baseline: bool = False


class Weighting(Choice):
    traits: WeightingTraits

    # influence to weights by the settings below; the three differ in their presets and in their names
    rapidun = WeightingTraits(label="RapidUn")
    strength = WeightingTraits(label="strength of influence")
    recommended = WeightingTraits(label="recommended")
    rapidun_release = WeightingTraits(label="RapidUn as released")
    uniform = WeightingTraits(label="uniform", scores=False, settings=False, baseline=True)
    # the rapidun weights, permuted within F and within R: the null hypothesis
    shuffled = WeightingTraits(label="RapidUn shuffled", seed=True, baseline=True)
    # log-normal with the rapidun weights' log-variance
    random = WeightingTraits(label="random", seed=True)
    # weights made elsewhere
    file = WeightingTraits(label="given weights", scores=False, settings=False, files=True)
    # the map over scores of another kind, which their presets ask of the influence stage
    contrastive = WeightingTraits(label="contrastive influence", influence=(("contrast", True),))
    repsim = WeightingTraits(label="hidden-state similarity", influence=(("method", "repsim"),))
    # forget rows by their alignment with the mean retain gradient
    guard = WeightingTraits(label="GUARD", settings=False, own=("guard", "forget"))
    # forget rows by their loss: more weight for a smaller one, before unlearning or as it goes; or for a larger one
    loreun_static = WeightingTraits(
        label="LoReUn, static", scores=False, settings=False, own=("loreun", "forget"), losses=True
    )
    loreun_dynamic = WeightingTraits(
        label="LoReUn, dynamic", scores=False, settings=False, own=("loreun", "forget"), losses=True, dynamic=True
    )
    loreun_release = WeightingTraits(
        label="LoReUn as released with RapidUn", scores=False, settings=False, own=("loreun", "forget"), losses=True
    )
    # 0 for the rows that the pack knows to be wrong, equal weights for the others: what a perfect score would give
    oracle = WeightingTraits(label="oracle", scores=False, settings=False, truth=True)


def _add_weighting(one: extensions.Added) -> None:
    traits = {name: one.traits[name] for name in ("label", "scores", "seed")}
    add_choice(Weighting, one.name, WeightingTraits(**traits, settings=False, own=("extension",)))


extensions.subscribe(extensions.Kind.weighting, _add_weighting, ours=Weighting.__members__)


class Null(Enum):
    """A null hypothesis made from any weighting's weights: does it matter which row has which weight?"""

    none = "none"
    shuffled = "shuffled"  # permuted within each group
    random = "random"  # log-normal with the same log-variance and mean; as many zeros, elsewhere
    uniform = "uniform"  # each group's mean everywhere

    @property
    def draws(self) -> bool:
        return self in (Null.shuffled, Null.random)


class ScoreKind(Enum):
    """What of a pair's score counts."""

    signed = "signed"  # the score as it is
    strength = "strength"  # its absolute value


class Combine(Enum):
    """How the scores of several influence files become one verdict."""

    mean = "mean"  # the mean of each file's row scores, divided by their standard deviations
    agree = "agree"  # map=split: a row is dropped only where every file's own split drops it


class Map(Enum):
    """From a score for each row to a weight."""

    exp = "exp"  # exponential of the robust z, clipped
    split = "split"  # 0 for the lower of two clusters, equal weights for the upper one, or uniform weights


class ValueMode(Enum):
    """What is done to the scores of one query before they are aggregated."""

    value = "value"
    rank = "rank"
    robust = "robust"


class Aggregate(Enum):
    median = "median"
    mean = "mean"
    top = "top"  # the mean over the `aggregate_top` highest


class Alignment(Enum):
    """How a forget row's gradient is held against the mean gradient of the retain rows."""

    dot = "dot"  # their inner product
    cosine = "cosine"


@dataclass(kw_only=True, slots=True)
class LoreunSettings:
    """loreun_static, loreun_dynamic, loreun_release: F weights by the rows' losses (stages/mapping/loreun.py)."""

    # temperature, nats a response token; larger is flatter
    tau: float = 1.0


@dataclass(kw_only=True, slots=True)
class GuardSettings:
    """guard: F weights by the rows' alignment with the retain rows (stages/mapping/guard.py)."""

    # temperature; larger is flatter
    tau: float = 1.0
    # true: tau is in units of the alignments' standard deviation; false: in their own unit
    relative: bool = True
    alignment: Alignment = Alignment.dot


@dataclass(kw_only=True, slots=True)
class GroupSettings:
    """Bounds of one group's weights; `path` is its weights file under mapping=file.

    With w_min=0 a row may get weight 0, or next to it: it then has no part in unlearning (docs/method.md, section 4).
    """

    w_min: float = 0.2
    w_max: float = 3.0
    path: str | None = None


@dataclass(kw_only=True, slots=True)
class ScoreFiles:
    """Which scores, and influence made elsewhere: one safetensors file for all four blocks, or a file for each."""

    kind: ScoreKind = ScoreKind.signed
    # further influence of the same rows (scores.safetensors of other methods), combined with the one in use
    also: list[str] = field(default_factory=list)
    combine: Combine = Combine.mean
    path: str | None = None
    ff: str | None = None
    fr: str | None = None
    rf: str | None = None
    rr: str | None = None

    @property
    def given(self) -> dict[str, str]:
        """The files that are named, by block; empty when there are none."""
        return {name: path for name in ("path", "ff", "fr", "rf", "rr") if (path := getattr(self, name))}

    @property
    def files(self) -> dict[str, str]:
        """Every file that is named, those of `also` with their place: `also.0`."""
        return self.given | {f"also.{place}": path for place, path in enumerate(self.also)}


@dataclass(kw_only=True, slots=True)
class SplitSettings:
    """When map=split abstains, that is, gives a group uniform weights (rapidun/stages/mapping/split.py)."""

    # distance of two clusters' means in standard deviations within them
    min_separation: float = 3.0
    # how much likelier two clusters must be than a single law (twice the log-likelihood ratio to a normal one)
    min_evidence: float = 14.0
    # largest share of a group that may be dropped
    max_dropped: float = 0.6


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
    # aggregate=top: so many queries for each training row
    aggregate_top: int = 10
    map: Map = Map.exp
    split: SplitSettings = field(default_factory=SplitSettings)
    loreun: LoreunSettings = field(default_factory=LoreunSettings)
    guard: GuardSettings = field(default_factory=GuardSettings)
    # exchange the weights for those of a null hypothesis
    null: Null = Null.none
    # per query only the top k training rows keep their value, the others become 0; null = all
    top_k: int | None = None
    # leave out a row's influence on itself
    drop_diagonal: bool = True
    # true: the bounds hold for the weights; false: for the values before they are divided by their mean
    bounded: bool = True
    # smallest spread of the scores that z divides by
    mad_floor: float = 1e-3
    # true: in units of the scores' own scale (root mean square of what is fused); false: in units of the score
    mad_floor_relative: bool = True
    # subtract the aggregate of the most harmful rows as well
    use_harmful: bool = False
    alpha_harm: float = 1.0
    beta_harm: float = 1.0
    gamma_harm: float = 1.0
    delta_harm: float = 1.0
    scores: ScoreFiles = field(default_factory=ScoreFiles)
    # settings of a weighting that an extension brings (docs/extending.md)
    extension: dict[str, Any] = field(default_factory=dict)

    @property
    def added(self) -> extensions.Added | None:
        """The weighting, where an extension brings it."""
        return extensions.find(extensions.Kind.weighting, self.method.name)

    @property
    def draws(self) -> bool:
        """Whether the weights depend on `seed`."""
        return self.method.traits.seed or self.null.draws

    @property
    def renewed(self) -> bool:
        """Whether unlearning renews the forget weights; those of null=uniform are 1 whatever the losses are."""
        return self.method.traits.dynamic and self.null is not Null.uniform

    @property
    def unread(self) -> dict[str, str]:
        """The settings that the weights do not depend on, each with the setting that makes it so."""
        traits, method = self.method.traits, f"mapping.method={self.method.name}"
        found = {name: method for name in ("loreun", "guard", "extension") if name not in traits.own}
        if not traits.settings:
            kept = ("method", "null", "scores", "forget", "retain", *traits.own)
            found |= {name: method for name in self.__slots__ if name not in kept}
            if "forget" in traits.own:
                found["retain"] = method
            if "extension" in traits.own:
                found |= dict.fromkeys(("forget", "retain"), method)
            if traits.scores:
                found |= dict.fromkeys(("scores.kind", "scores.also", "scores.combine"), method)
        elif self.map is Map.split:
            names = ("tau_f", "tau_r", "bounded", "mad_floor", "mad_floor_relative", "forget", "retain")
            found |= dict.fromkeys(names, "mapping.map=split")
        else:
            found["split"] = "mapping.map=exp"
        if traits.settings and self.aggregate is not Aggregate.top:
            found["aggregate_top"] = f"mapping.aggregate={self.aggregate.name}"
        if not self.scores.also:
            found["scores.combine"] = "mapping.scores.also=[]"
        return found

    def check(self) -> list[str]:
        faults = Faults("mapping")
        temperatures = {"tau_f": self.tau_f, "tau_r": self.tau_r, "mad_floor": self.mad_floor}
        temperatures |= {"loreun.tau": self.loreun.tau, "guard.tau": self.guard.tau}
        for key, value in temperatures.items():
            faults.need(value > 0 and math.isfinite(value), f"{key} > 0", **{key.replace(".", "__"): value})
        for name, group in (("forget", self.forget), ("retain", self.retain)):
            faults.need(
                0 <= group.w_min <= group.w_max and 0 < group.w_max < math.inf,
                "0 <= w_min <= w_max, 0 < w_max",
                **{f"{name}__w_min": group.w_min, f"{name}__w_max": group.w_max},
            )
            # the release's are clipped, others of their own settings always bounded
            clipped = self.method is Weighting.loreun_release
            bounded = not clipped and (self.bounded or "forget" in self.method.traits.own)
            faults.need(
                not bounded or group.w_min <= 1.0 <= group.w_max,
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
        faults.need(self.aggregate_top >= 1, "aggregate_top >= 1", aggregate_top=self.aggregate_top)
        split = self.split
        for key, low, high in (("min_separation", 0.0, 1e6), ("min_evidence", 0.0, 1e6), ("max_dropped", 0.0, 1.0)):
            value = getattr(split, key)
            faults.need(low <= value <= high, f"{low:g} <= split.{key} <= {high:g}", **{f"split__{key}": value})
        faults.need(
            self.scores.combine is Combine.mean or self.map is Map.split,
            "scores.combine=mean with map=exp (agreement is about rows that a split drops)",
            scores__combine=self.scores.combine.name,
        )
        faults.need(
            not (self.use_harmful and self.scores.kind is ScoreKind.strength),
            "use_harmful=false with scores.kind=strength (the lowest strengths are no harm)",
            use_harmful=self.use_harmful,
        )
        faults += extensions.setting_faults(
            extensions.Kind.weighting, self.method.name, self.extension,
            section="mapping", choice=f"method={self.method.name}",
        )  # fmt: skip
        release = self.method is Weighting.rapidun_release
        faults.need(
            not (release and self.scores.also),
            "one influence with method=rapidun_release, the published recipe",
            scores__also=self.scores.also,
        )
        baseline = self.method in (Weighting.shuffled, Weighting.random)
        faults.need(
            not (baseline and self.null is not Null.none),
            f"null=none with method={self.method.name}, a null by itself",
            null=self.null.name,
        )
        faults.need(
            not (self.method.traits.dynamic and self.null is Null.random),
            f"null=none, shuffled or uniform with method={self.method.name}, whose weights change as training goes",
            null=self.null.name,
        )
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
