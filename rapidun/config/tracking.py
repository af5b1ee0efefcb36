"""Settings of tracking: who else is told the numbers that metrics.jsonl always has."""

from dataclasses import dataclass, field
from enum import Enum

from rapidun.config.parts import Faults

# what W&B refuses in the name of a project
NOT_IN_PROJECT = "/\\#?%:"


class TrackerKind(Enum):
    none = "none"
    wandb = "wandb"
    tensorboard = "tensorboard"
    trackio = "trackio"


class WandbMode(Enum):
    auto = "auto"  # online where a key is set and the server answers, offline otherwise; never prompts
    online = "online"  # the same, but an offline run is worth a warning
    offline = "offline"


@dataclass(kw_only=True, slots=True)
class TrackingConfig:
    kind: TrackerKind = TrackerKind.none
    project: str = "rapidun"
    # W&B: user or team; null = the key's own
    entity: str | None = None
    mode: WandbMode = WandbMode.auto
    tags: list[str] = field(default_factory=list)
    # where the tracker keeps its files; null = the run folder (wandb, tensorboard), Trackio's own folder (trackio)
    dir: str | None = None
    # W&B: adapter, weights and scores as artifacts, each stage's linked to what it was made from
    log_artifacts: bool = False

    def check(self) -> list[str]:
        faults = Faults("tracking")
        plain = bool(self.project.strip()) and not any(c in self.project for c in NOT_IN_PROJECT)
        faults.need(plain, f"a project name without any of {NOT_IN_PROJECT}", project=self.project)
        faults.need(len(self.project) <= 128, "a project name of at most 128 letters", project=self.project)
        faults.need(all(0 < len(tag) <= 64 for tag in self.tags), "tags of 1 to 64 letters", tags=self.tags)
        return faults
