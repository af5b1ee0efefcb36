"""Truth ratios of a model that never saw the forget rows, which another evaluation left behind."""

from pathlib import Path

from rapidun.base.errors import ArtifactError
from rapidun.base.files import read_json, read_jsonl

TRUTH = "log_truth_ratio"
# of one evaluation, or of a run folder: there the model after unlearning
PLACES = ("measures", "measures_after")


# id, question, context, answer on record: two packs may call different rows by one id
Row = tuple[str, str, str, str]


def read_truth_ratios(path: Path) -> dict[Row, float]:
    """Forget row -> ln R, from the generations.jsonl of an evaluation or of a run (after unlearning).

    Raises: ArtifactError where there are none.
    """
    found: dict[Row, float] = {}
    for row in read_jsonl(path):
        if not isinstance(row, dict) or row.get("set") != "forget":
            continue
        measured = [row[name] for name in PLACES if isinstance(row.get(name), dict)]
        value = measured[0].get(TRUTH) if measured else None
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[row_of(row.get("id"), row.get("prompt"), row.get("context"), row.get("reference"))] = float(value)
    if not found:
        raise ArtifactError(
            f"{path}: need truth ratios of forget rows (rows with perturbed_answer), got none. Evaluate the retrained "
            "model on the same pack, or change evaluation.retrained=..."
        )
    return found


def row_of(name: object, question: object, context: object, answer: object) -> Row:
    """What two evaluations must have in common to be of one row."""
    return str(name), str(question or ""), str(context or ""), str(answer or "")


def objective_of(place: str) -> str | None:
    """What the run in this folder unlearned by; None where nobody says, as of a file of generations itself."""
    path = Path(place).expanduser() / "settings.json"
    settings = read_json(path) if path.is_file() else {}
    unlearning = settings.get("unlearning") if isinstance(settings, dict) else None
    if not isinstance(unlearning, dict) or "unlearning" not in (settings.get("stages") or ()):
        return None
    objective = unlearning.get("objective")
    return None if objective is None else str(objective)


def generations_of(place: str) -> Path:
    """The file that `evaluation.retrained` means: a run's folder, or the file itself."""
    path = Path(place).expanduser()
    return path / "evaluation" / "generations.jsonl" if path.is_dir() else path
