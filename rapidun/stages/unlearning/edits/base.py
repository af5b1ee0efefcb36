"""What an edit is: a function that changes a model's weights, or puts an adapter on it, once."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rapidun.base.tracker import Tracker
from rapidun.config.unlearning import UnlearningConfig
from rapidun.models.load import ModelLoader
from rapidun.stages.unlearning.edits.changes import Changes
from rapidun.stages.unlearning.edits.rows import EditFiles, EditRows


@dataclass(frozen=True, kw_only=True)
class Given:
    """What every edit is given."""

    # in eval mode; the edit may change its weights in place
    model: Any
    tokenizer: Any
    rows: EditRows
    cfg: UnlearningConfig
    files: EditFiles
    loader: ModelLoader
    max_length: int
    seed: int
    tracker: Tracker


@dataclass(frozen=True, kw_only=True)
class Edited:
    """The edited model, what changed, and what is to be said of how: JSON values for edits.json."""

    model: Any
    changes: Changes
    # numbers for the result
    numbers: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    # the edit is a PEFT adapter over the model as it was
    adapter: bool = False


Edit = Callable[[Given], Edited]
