"""The flat contents of result.json, as they follow from the artifacts of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

from rapidun.base.manifest import Artifact
from rapidun.base.nested import numbers
from rapidun.stages.recipes import STAGES


def final_metrics(
    asked: Sequence[str],
    *,
    name: str,
    seed: int,
    links: Mapping[str, Mapping[str, Artifact]],
    costs: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What result.json says.

    Args:
        asked: the stages of the run, in order. links: stage -> link name -> artifact. costs: stage -> its entry of
            status.json, with seconds and peak_memory_gb.
    """
    metrics: dict[str, Any] = {"name": name, "seed": seed}
    for stage in asked:
        shown = STAGES[stage].metrics
        if shown is not None:
            metrics.update(shown({link: artifact.path for link, artifact in links[stage].items()}))
    for stage, entry in STAGES.items():
        for artifact in links.get(stage, {}).values() if entry.numbers else ():
            metrics.update(numbers(artifact.result, f"{stage}."))
    for stage, cost in costs.items():
        metrics[f"seconds.{stage}"] = cost["seconds"]
        metrics[f"peak_memory_gb.{stage}"] = cost["peak_memory_gb"]
    return metrics
