"""What stands at the top of a run's page: a title made of what was run, and the answer."""

import os
from pathlib import Path

from rapidun.base.errors import ArtifactError
from rapidun.config.budget import Budget
from rapidun.config.detectors import Detector
from rapidun.report.forgotten import of_facts
from rapidun.report.metrics import DETECTORS, format_percent
from rapidun.report.read import RunRecord, number, read_status_and_result
from rapidun.report.run.facts import weighting
from rapidun.report.run.neighbours import Neighbours
from rapidun.report.verdict.answer import Answer, answer, unmeasured
from rapidun.report.verdict.gather import judge


def title_of(run: RunRecord) -> str:
    """`Built-in pack on tiny: npo with recommended weights, seed 42`; its name where nothing more is recorded."""
    data, model = _data(run), run.setting("model.path") or run.setting("model.name")
    where = " on ".join(filter(None, (data, os.path.basename(str(model).rstrip("/")) if model else "")))
    seed = run.result.get("seed", run.setting("seed"))
    ending = "" if seed is None else f", seed {seed}"
    stages = [cost.stage for cost in run.costs]
    objective = run.setting("unlearning.objective")
    if not where:
        return f"{run.name}{ending}"
    if objective and (not stages or "unlearning" in stages):
        weights = weighting(run)
        return f"{where}: {objective}{f' with {weights} weights' if weights else ''}{ending}"
    return f"{where}: {', '.join(stages) or 'nothing finished'}{ending}"


def _data(run: RunRecord) -> str:
    folder, name = run.setting("data.dir"), run.setting("data.name")
    if folder:
        return os.path.basename(str(folder).rstrip("/"))
    return "" if name is None else "Built-in pack" if name == "builtin" else str(name)


def answer_of(run: RunRecord, around: Neighbours | None = None) -> Answer:
    """The first line. Args: around: of a cell of a sweep. Raises: ArtifactError for a damaged file."""
    state = run.status.get("state")
    if not run.after:
        stage = str(run.status.get("stage") or "")
        return unmeasured(failed=state == "failed", stage=stage, before=_before(run))
    chosen = str(run.detectors.get("detector") or "")
    text = run.setting("sweep.budget")
    budget = Budget(str(text)) if text else None
    metrics = {
        name: value for name, value in ((name, number(one)) for name, one in run.result.items()) if value is not None
    }
    return answer(
        judge(run),
        detector=next((words for one, words in DETECTORS.items() if one.value == chosen), ""),
        seed=run.result.get("seed", run.setting("seed")),
        budget="" if budget is None else budget.text,
        spent=None if budget is None else budget.judge(metrics),
        beside=_beside(run, None if around is None else around.uniform),
    )


def _metric(run: RunRecord) -> str:
    """What the answer tells first."""
    if of_facts({*run.before, *run.after}):
        return "exact_match_forget"
    chosen = run.detectors.get("detector")
    ending = next((one.ending for one in Detector if one.value == chosen), "")
    return f"asr_seen{ending}"


def _before(run: RunRecord) -> str:
    share = run.before.get(_metric(run))
    if share is None:
        return ""
    facts = of_facts(run.before)
    what = "of the forget rows are answered word for word" if facts else "of triggered prompts are answered as planted"
    return f"{format_percent(share)} {what}"


def _beside(run: RunRecord, uniform: Path | None) -> list[str]:
    """What the same cell with uniform weights came to, where it is there by now."""
    if uniform is None or not (uniform / "result.json").is_file():
        return []
    try:
        status, result = read_status_and_result(uniform)
    except ArtifactError:
        return []  # its own page says so
    share = number(result.get(_metric(run)))
    return [f"uniform weights {format_percent(share)}"] if share is not None and status.get("state") == "done" else []
