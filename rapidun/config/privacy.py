"""Settings of the privacy and depth measures (evaluation.privacy): which are taken, over how many rows."""

from dataclasses import dataclass, field
from enum import Enum

from rapidun.config.parts import Faults


class Measure(Enum):
    """In the order of tables."""

    membership = "membership"  # whether forget rows can be told from rows that were never trained on
    extraction = "extraction"  # how little of a forget row's answer brings back the rest
    distance = "distance"  # mean token KL to the model that was trained on clean rows only
    margins = "margins"  # of each row, for KLOM over several runs (rapidun klom)


@dataclass(kw_only=True, slots=True)
class PrivacyConfig:
    # membership | extraction | distance | margins; [] = none (evaluation=attacks has all)
    run: list[str] = field(default_factory=list)
    # rows of each set, families in their shares; null = all
    num_rows: int | None = 200
    # share of a response's tokens that min-k% and min-k%++ average over, the least likely ones
    min_k: float = 0.2
    # bootstrap samples behind each 95 % interval
    num_resamples: int = 1000
    # of the choice of rows and of the bootstrap
    seed: int = 42

    @property
    def asked(self) -> list[Measure]:
        return [measure for measure in Measure if measure.name in self.run]

    def check(self, faults: Faults) -> None:
        names = [measure.name for measure in Measure]
        faults.need(
            set(self.run) <= set(names) and len(set(self.run)) == len(self.run),
            f"privacy.run among {', '.join(names)}, each once",
            privacy__run=self.run,
        )
        faults.need(
            self.num_rows is None or self.num_rows >= 2,
            "privacy.num_rows >= 2 or null",
            privacy__num_rows=self.num_rows,
        )
        faults.need(0 < self.min_k <= 1, "0 < privacy.min_k <= 1", privacy__min_k=self.min_k)
        faults.need(
            self.num_resamples >= 100, "privacy.num_resamples >= 100", privacy__num_resamples=self.num_resamples
        )
        faults.need(0 <= self.seed < 2**32, "0 <= privacy.seed < 2**32", privacy__seed=self.seed)
