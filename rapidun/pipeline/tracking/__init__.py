"""Where numbers go: metrics.jsonl always; W&B, TensorBoard, Trackio when asked. Their faults never end a run."""

from rapidun.base.tracker import Tracker
from rapidun.pipeline.tracking.lines import without_repeats
from rapidun.pipeline.tracking.run import RunTracker, open_tracker

__all__ = ["RunTracker", "Tracker", "open_tracker", "without_repeats"]
