"""A sweep's budget of damage held against the catalogue of metrics, and read back from a sweep's folder."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from rapidun.base.files import read_json
from rapidun.base.nested import at
from rapidun.config import keys
from rapidun.config.budget import EXAMPLE, SETTING, Budget
from rapidun.config.run import STAGES
from rapidun.report.metrics import BEFORE, COSTS, METRICS, RETRAIN, SETS, Detector, rate_names
from rapidun.report.sweep.cells import Cell

# what may stand before a metric's name: the model before unlearning, the yardstick
PREFIXES = (BEFORE, RETRAIN)
# --budget of no budget
NO_BUDGET = "none"


def make_budget(text: str, *, measured: Collection[str] = (), setting: str = SETTING) -> Budget:
    """The budget, its names checked. Args: measured: further names that there are, of finished cells.

    Raises: ConfigError with every fault.
    """
    return Budget(text, fault=lambda name: _fault(name, measured, setting), setting=setting)


def check_budget(text: str | None) -> None:
    """Before any cell runs. Raises: ConfigError if it asks for something that no cell measures."""
    if text is not None:
        make_budget(text)


def chosen_budget(cells: Sequence[Cell], asked: str | None, planned: str | None) -> Budget | None:
    """The budget to judge by. Args: asked: of --budget; None = the planned one of the sweep.

    Raises: ConfigError if it asks for what no cell measures.
    """
    measured = {name for cell in cells for name in cell.metrics}
    if asked is not None:
        return None if asked.strip() == NO_BUDGET else make_budget(asked, measured=measured, setting="--budget")
    return None if planned is None else make_budget(planned, measured=measured)


def planned_budget(sweep_dir: Path) -> str | None:
    """sweep.budget of the newest launch, as sweep.json notes it. Raises: ArtifactError if that is damaged."""
    path = sweep_dir / "sweep.json"
    plan = read_json(path) if path.is_file() else {}
    found = at(plan, "sweep.budget") if isinstance(plan, dict) else None
    return found if isinstance(found, str) else None


def common_budget(sweeps: Iterable[Path]) -> tuple[str | None, str]:
    """The budget that sweep folders share, if they do, and what to say where they do not."""
    found = {planned_budget(path) for path in sweeps}
    if len(found) <= 1:
        return next(iter(found), None), ""
    shown = ", ".join(sorted(text or NO_BUDGET for text in found))
    return None, f"the sweeps have different budgets ({shown}), so none is used. Pass --budget EXPRESSION"


def known_names() -> list[str]:
    """Metrics and costs that a result may hold, without prefixes and families."""
    rates = [name for detector in Detector for name in rate_names(detector)]
    return [*METRICS, *rates, *(f"num_prompts_{name}" for name in SETS), *(f"{c}{s}" for c in COSTS for s in STAGES)]


def _fault(name: str, measured: Collection[str], setting: str) -> str | None:
    prefix = next((one for one in PREFIXES if name.startswith(one)), "")
    plain, known = name.removeprefix(prefix), known_names()
    # asr_seen.A_surface: triggers of one family
    family = plain.partition(".")[0] in METRICS and plain.startswith("asr_")
    if name in measured or plain in known or (family and plain.count(".") == 1):
        return None
    if keys.find(name) is not None:
        return f"need metrics of the results, got {name}, which is a setting; sweep.where chooses cells by settings"
    close = keys.nearest(plain, [*known, *measured])
    guess = f"did you mean {prefix}{close}?" if close else f"there are {', '.join(list(METRICS)[:8])}, ..."
    return f"{name}: no such metric; {guess} (before.NAME is the model before unlearning). E.g. {setting}={EXAMPLE!r}"
