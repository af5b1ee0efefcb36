"""Run folders of a sweep over a store of small artifacts, made as the pipeline makes them; no model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rapidun.base.files import write_json
from rapidun.base.manifest import Artifact
from rapidun.base.store import Key, Store
from rapidun.pipeline.folder import RunFolder


def write_made_cell(
    sweep: Path, name: str, overrides: list[str], result: dict[str, Any], *, seed: int, weights: str, method: str = "",
    draws: bool = False, objective: str = "npo",
) -> Path:  # fmt: skip
    """One finished cell whose unlearning reads `weights`, of a mapping that is called by its overrides or `method`.

    Args: draws: the weights are drawn from the seed. objective: `retrain` reads no weights and no seed.
    """
    store = Store(sweep.parent / "store")
    mapping = _made(
        store, "mapping", {"settings": {"method": method or overrides[0]}, "seed": seed if draws else None},
        {"forget_weights.jsonl": weights, "retain_weights.jsonl": "1", "diagnostics.json": method or overrides[0]},
    )  # fmt: skip
    if objective == "retrain":
        unlearned = _made(store, "poison", {"rows": "clean", "seed": 42}, {"model": "retrained"})
    else:
        inputs = {"mapping": mapping.fingerprint, "settings": {"objective": objective}, "seed": seed}
        unlearned = _made(store, "unlearning", inputs, {"adapter": f"{weights}{seed}"}, reads=[mapping])
    before = _made(store, "evaluation", {"adapter": None}, {"metrics.json": "before"})
    after = _made(
        store, "evaluation", {"adapter": unlearned.fingerprint, "calibration": before.fingerprint},
        {"metrics.json": unlearned.fingerprint}, reads=[unlearned, before],
    )  # fmt: skip
    folder = RunFolder(sweep / name)
    settings = {"name": "grid", "seed": seed, "stages": ["data", "mapping", "unlearning", "evaluation"]}
    folder.open(config=settings, config_yaml="name: grid\n", overrides=overrides)
    write_json(sweep / name / "overrides.json", {"task": overrides})
    folder.finish_stage("mapping", {"mapping": mapping}, cached=False)
    folder.finish_stage("unlearning", {"unlearning": unlearned}, cached=False)
    folder.finish_stage("evaluation", {"evaluation/.before": before, "evaluation/.after": after}, cached=False)
    folder.finish({"name": "grid", "seed": seed, **result})
    folder.close()
    return sweep / name


@pytest.fixture
def made_cell() -> Callable[..., Path]:
    return write_made_cell


def _made(
    store: Store, kind: str, inputs: dict[str, Any], files: dict[str, str], reads: list[Artifact] | None = None
) -> Artifact:  # fmt: skip
    def build(out: Path, work: Path) -> dict[str, Any]:
        for name, text in files.items():
            (out / name).write_text(text)
        return {}

    return store.make(Key(kind, 1, inputs), build, reads={one.id: one.digest for one in reads or []})[0]
