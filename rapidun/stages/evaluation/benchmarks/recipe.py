"""Which benchmarks are run on which models, each one an artifact of its own, and their metrics by model."""

import re
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rapidun.base.errors import ConfigError
from rapidun.base.files import read_json
from rapidun.base.store import Key
from rapidun.base.tracker import Listener
from rapidun.stages.checks import missing_package
from rapidun.stages.context import Context
from rapidun.stages.evaluation.benchmarks.tasks import Task, read_tasks
from rapidun.stages.evaluation.roles import models_of
from rapidun.stages.recipe import Evaluated, Recipe

KIND = "lm_eval"
LINK = "evaluation/.lm_eval.{role}.{task}"


def benchmark_recipes(ctx: Context, key: Callable[[str, dict[str, Any]], Key]) -> list[Recipe]:
    """The artifacts of the benchmarks that are asked for, model by model. Raises: ConfigError as `read_tasks`."""
    if not ctx.cfg.evaluation.lm_eval.tasks:
        return []
    tasks = _tasks(ctx)
    return [_recipe(ctx, key, role, what, task) for role, what in models_of(ctx).items() for task in tasks]


def _tasks(ctx: Context) -> list[Task]:
    cfg = ctx.cfg.evaluation.lm_eval
    folder = Path(str(cfg.include_path)).expanduser()
    return ctx.once("tasks of lm-eval", lambda: read_tasks(folder, cfg.tasks))


def _recipe(ctx: Context, key: Callable[[str, dict[str, Any]], Key], role: str, what: Evaluated, task: Task) -> Recipe:
    cfg, model, adapter = ctx.cfg.evaluation.lm_eval, what.model, what.adapter
    # what is logged must not depend on the run that made it first
    is_retrained = role == "retrain" or (role == "unlearned" and ctx.cfg.unlearning.objective.traits.retrains)
    name = f"lm_eval_{'retrain' if is_retrained else role}"

    def build(out: Path, work: Path) -> dict[str, Any]:
        from rapidun.stages.evaluation.benchmarks.run import run_benchmarks  # brings torch

        tracker = Listener(ctx.tracker)
        run_benchmarks(
            cfg,
            [task],
            loader=ctx.loader,
            model=model.folder,
            adapter=adapter.folder if adapter else None,
            seed=ctx.cfg.evaluation.seed,
            work=work,
            out=out,
            name=name,
            tracker=tracker,
        )
        return {"warnings": tracker.warnings}

    inputs: dict[str, Any] = {
        "model": model.identity,
        "adapter": adapter.identity if adapter else None,
        "task": task.name,
        # the names of files of rows say nothing
        "files": [ctx.file_hash(path) for path in task.files],
        "limit": cfg.limit,
        "num_fewshot": cfg.num_fewshot,
        "seed": ctx.cfg.evaluation.seed,
        "lm_eval": version("lm_eval"),
        **{name: value for name, value in ctx.numerics.items() if name != "max_length"},
    }
    needs = (*model.needs, *(adapter.needs if adapter else ()))
    return Recipe("evaluation", key(KIND, inputs), LINK.format(role=role, task=task.name), build, needs=needs)


def benchmark_faults(ctx: Context) -> list[str]:
    """What speaks against the benchmarks before anything runs: no lm-eval, a task file that could run code."""
    cfg = ctx.cfg.evaluation.lm_eval
    if not ctx.asked("evaluation") or not cfg.tasks:
        return []
    faults = missing_package(
        "lm_eval", f"evaluation.lm_eval.tasks=[{','.join(cfg.tasks)}]",
        "Install it (pip install 'rapidun[lm-eval]'), or pass evaluation.lm_eval.tasks=[]", ctx,
    )  # fmt: skip
    try:
        _tasks(ctx)
    except ConfigError as error:
        faults += error.faults
    return faults


def benchmarks(artifacts: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    """{role: {`lm_eval.<task>.<metric>`: value}}, from the artifacts' folders by their links; empty without any."""
    found: dict[str, dict[str, float]] = {}
    for link, folder in artifacts.items():
        match = re.fullmatch(r"evaluation/\.lm_eval\.([a-z]+)\..+", link)
        if match is not None:
            found.setdefault(match[1], {}).update(read_json(folder / "lm_eval.json")["metrics"])
    return found
