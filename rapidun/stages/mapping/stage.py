"""The mapping stage: influence scores (or none) to a weight for each forget row and each retain row."""

from typing import TYPE_CHECKING, Any

from rapidun.base.files import write_json
from rapidun.config.mapping import MappingConfig
from rapidun.stages.mapping.inputs import GROUPS, MappingFiles
from rapidun.stages.mapping.weightings import WEIGHTINGS
from rapidun.stages.weights_file import write_weights

if TYPE_CHECKING:
    from rapidun.base.tracker import Tracker


def run_mapping(cfg: MappingConfig, files: MappingFiles, *, seed: int, tracker: "Tracker") -> dict[str, Any]:
    """Write both weights files and diagnostics.json; give the diagnostics.

    The rows' ids come from ids.json of the scores in use (files.ids, or beside cfg.scores.path), else from the pack's
    splits; where both are there they must name the same rows. With neither, every id is null and `index` says which
    row is meant: an invented id would pretend to be an identity.

    Raises: ConfigError if the weighting needs scores and there are none; DataError for a bad input file.
    """
    mapped = WEIGHTINGS[cfg.method](cfg, files, seed)
    for group in GROUPS:
        write_weights(
            files.out / f"{group}_weights.jsonl", mapped.groups[group].weights.tolist(), ids=mapped.ids[group]
        )
    summary: dict[str, Any] = {
        "method": cfg.method.name,
        **{group: mapped.groups[group].facts for group in GROUPS},
        **mapped.extra,
        "warnings": mapped.warnings,
    }
    write_json(files.out / "diagnostics.json", summary)
    for message in mapped.warnings:
        tracker.warn(message)
    tracker.log(
        {
            f"{group}_{key}": float(value)
            for group in GROUPS
            for key, value in mapped.groups[group].facts.items()
            if value is not None
        }
    )
    tracker.progress(1, 1)
    return summary
