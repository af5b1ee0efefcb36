"""Truth ratios of a model that never saw the forget rows, which another evaluation left behind."""

from pathlib import Path

from rapidun.base.errors import ArtifactError
from rapidun.base.files import read_jsonl

TRUTH = "log_truth_ratio"
# of one evaluation, or of a run folder: there the model after unlearning
PLACES = ("measures", "measures_after")


def read_truth_ratios(path: Path) -> dict[str, float]:
    """Forget row -> ln R, from the generations.jsonl of an evaluation or of a run (after unlearning).

    Raises: ArtifactError where there are none.
    """
    found: dict[str, float] = {}
    for row in read_jsonl(path):
        if not isinstance(row, dict) or row.get("set") != "forget":
            continue
        measured = [row[name] for name in PLACES if isinstance(row.get(name), dict)]
        value = measured[0].get(TRUTH) if measured else None
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[str(row.get("id"))] = float(value)
    if not found:
        raise ArtifactError(
            f"{path}: need truth ratios of forget rows (rows with perturbed_answer), got none. Evaluate the retrained "
            "model on the same pack, or change evaluation.retrained=..."
        )
    return found


def generations_of(place: str) -> Path:
    """The file that `evaluation.retrained` means: a run's folder, or the file itself."""
    path = Path(place).expanduser()
    return path / "evaluation" / "generations.jsonl" if path.is_dir() else path
