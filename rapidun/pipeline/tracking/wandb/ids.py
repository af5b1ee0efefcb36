"""What a run is called in W&B: by its settings and folder, so that the next attempt and a dashboard find it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rapidun.base.files import sha256_json

# what a run's numbers depend on
SCIENCE = ("model", "data", "poison", "influence", "mapping", "unlearning", "evaluation", "seed", "max_length")


def id_of(settings: Mapping[str, Any], run_dir: Path) -> str:
    """The same after a requeue, another one in another sweep, folder or with other settings.

    Args: settings: the run's, resolved, as plain values.
    """
    sweep = (settings.get("sweep") or {}).get("name")
    if sweep:
        return f"cell-{run_dir.name}-{sha256_json(sweep)[:6]}"
    science = {name: settings[name] for name in SCIENCE}
    return f"cell-{sha256_json([str(run_dir.resolve()), science])[:16]}"


def run_ids(settings: Mapping[str, Any], run_dir: Path) -> list[str]:
    """The id, and those of offline attempts that lie in the run's folder: `offline-run-<time>-<id>-r1`."""
    base = id_of(settings, run_dir)
    attempts = {path.name.split("-", 3)[-1] for path in (run_dir / "wandb").glob(f"offline-run-*-{base}-r*")}
    return [base, *sorted(attempts)]
