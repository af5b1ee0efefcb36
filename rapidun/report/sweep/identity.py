"""What a run computed, read from the manifests of its artifacts: equal for runs whose results are one.

An artifact's manifest holds everything that its contents depend on, and what it was made from by its fingerprint. Two
names follow from that: `result`, of the contents themselves, and `setting`, the same without the seed. Launcher,
threads, resources and paths stand in no manifest's inputs, so they are in neither.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from rapidun.base.files import sha256_json
from rapidun.base.manifest import Artifact, DamagedArtifact, linked_folder, read_artifact
from rapidun.config.run import STAGES

# kinds of artifacts whose inputs hold the run's own seed; every other seed (data.seed, poison.seed, ...) is a setting
SEEDED = ("mapping", "unlearning", "edit", "task_model", "curvature")
# what unlearning reads of a mapping: weights count by what they are, whoever gave them
WEIGHTS = ("forget_weights.jsonl", "retain_weights.jsonl", "dynamic.json")


class Made(NamedTuple):
    """The names of what was computed."""

    result: str
    # runs of one setting differ in their seed only
    setting: str


class Lineage:
    """Looks up what runs computed; each manifest of the store is read once."""

    def __init__(self) -> None:
        self._known: dict[Path, Made | None] = {}

    def of_run(self, path: Path, status: dict[str, Any]) -> Made | None:
        """What the last stage of a run made; None where the store no longer tells."""
        stages = status.get("stages")
        links: dict[str, str] = {}
        for stage in reversed(STAGES):
            entry = stages.get(stage) if isinstance(stages, dict) else None
            links = entry.get("artifacts", {}) if isinstance(entry, dict) else {}
            if links:
                break
        found: dict[str, Made] = {}
        for link, id in links.items():
            folder = linked_folder(path / link)
            made = self._of(folder) if str(id).endswith(f"/{folder.name}") else None
            if made is None:
                return None
            found[link] = made
        return _over(found) if found else None

    def _of(self, folder: Path) -> Made | None:
        if folder not in self._known:
            try:
                self._known[folder] = self._made(read_artifact(folder))
            except (DamagedArtifact, OSError):
                self._known[folder] = None
        return self._known[folder]

    def _made(self, artifact: Artifact) -> Made | None:
        inputs, reads = artifact.manifest.get("inputs"), artifact.manifest.get("reads")
        if not isinstance(inputs, dict) or not isinstance(reads, dict):
            # of an early version
            return None
        needs: dict[str, Made] = {}
        for id in reads:
            made = self._of(artifact.path.parent.parent / id)
            if made is None:
                return None
            needs[id.partition("/")[2]] = made
        what = {"kind": artifact.stage, "version": artifact.manifest.get("version")}
        own = {name: value for name, value in inputs.items() if name != "seed" or artifact.stage not in SEEDED}
        result = sha256_json({**what, "inputs": _swapped(inputs, {name: made.result for name, made in needs.items()})})
        setting = sha256_json({**what, "inputs": _swapped(own, {name: made.setting for name, made in needs.items()})})
        if artifact.stage != "mapping":
            return Made(result, setting)
        weights = {name: entry.get("sha256") for name, entry in artifact.files.items() if name in WEIGHTS}
        if not weights or None in weights.values():
            return Made(result, setting)
        result = sha256_json({"weights": weights})
        return Made(result, result if inputs.get("seed") is None else setting)


def _over(found: dict[str, Made]) -> Made:
    results = {link: made.result for link, made in found.items()}
    settings = {link: made.setting for link, made in found.items()}
    return Made(sha256_json(results)[:16], sha256_json(settings)[:16])


def _swapped(value: Any, names: dict[str, str]) -> Any:
    """Inputs, each fingerprint of an artifact exchanged for the name of what that one holds."""
    if isinstance(value, dict):
        return {key: _swapped(one, names) for key, one in value.items()}
    if isinstance(value, list):
        return [_swapped(one, names) for one in value]
    return names.get(value, value) if isinstance(value, str) else value
