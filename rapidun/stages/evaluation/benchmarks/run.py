"""Benchmarks by lm-evaluation-harness on a model that is loaded already, without network and without code of tasks."""

import logging
import math
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rapidun.base.errors import DataError
from rapidun.base.files import write_json
from rapidun.base.text import short_message
from rapidun.base.tracker import Tracker
from rapidun.config.lm_eval import LmEvalConfig
from rapidun.models.batching import batching
from rapidun.models.libraries import read_rows
from rapidun.models.load import ModelLoader
from rapidun.stages.evaluation.benchmarks.tasks import Task

RESULT = "lm_eval.json"
# nothing may come from the hub
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}


def run_benchmarks(
    cfg: LmEvalConfig,
    tasks: Sequence[Task],
    *,
    loader: ModelLoader,
    model: Path,
    adapter: Path | None,
    seed: int,
    work: Path,
    out: Path,
    name: str,
    tracker: Tracker,
) -> None:
    """Run the tasks on one model and write out/lm_eval.json: {"metrics": {...}, "tasks": {name: rows counted}}.

    The metrics are `lm_eval.<task>.<metric>`, with `.<filter>` behind it where that is another than `none`.

    Raises: DataError where lm-eval cannot run a task.
    """
    try:
        loaded = loader.load(model, adapter=adapter)
        found = evaluate(cfg, tasks, loaded.model, loaded.tokenizer, seed=seed, work=work)
    finally:
        loader.hand_back()
    metrics, missing = flat(found["results"])
    if missing:
        tracker.warn(f"evaluation: lm_eval: no finite number, left out: {', '.join(missing)}")
    counted = {task: count["effective"] for task, count in found.get("n-samples", {}).items()}
    write_json(out / RESULT, {"metrics": metrics, "tasks": counted})
    tracker.log({f"{name}_{key}": value for key, value in metrics.items()})


def evaluate(
    cfg: LmEvalConfig, tasks: Sequence[Task], model: Any, tokenizer: Any, *, seed: int, work: Path
) -> dict[str, Any]:
    """What lm_eval.simple_evaluate returns, of tasks that are handed over as plain mappings: it opens no task file."""
    with _quiet(), _offline():
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        right = batching(model, pad_token_id=tokenizer.pad_token_id).right
        wrapped = HFLM(
            pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=cfg.batch_size if right else 1,
            trust_remote_code=False,
        )  # fmt: skip
        handed: list[Any] = [_handed(task, work) for task in tasks]
        with _sandbox(), _own_draws():
            try:
                found = lm_eval.simple_evaluate(
                    model=wrapped, tasks=handed, limit=cfg.limit, num_fewshot=cfg.num_fewshot, log_samples=False,
                    task_manager=TaskManager(include_defaults=False), bootstrap_iters=0, random_seed=seed,
                    numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed,
                    confirm_run_unsafe_code=False,
                )  # fmt: skip
            except Exception as error:  # whatever a template, a row or lm-eval's own code raises
                names = ", ".join(task.name for task in tasks)
                raise DataError(
                    f"evaluation.lm_eval: need tasks that lm-eval can run, got {short_message(error)} of {names}. "
                    "Change the task files, or evaluation.lm_eval.tasks=[...]"
                ) from error
    assert found is not None
    return dict(found)


def _handed(task: Task, work: Path) -> dict[str, Any]:
    """The task as lm-eval takes it, its rows read by a builder of `datasets` that runs no code of theirs."""

    def rows(**ignored: Any) -> Any:
        files = {split: [str(path) for path in paths] for split, paths in task.rows.items()}
        return read_rows(task.settings["dataset_path"], files, cache=work / "datasets")

    return {**deepcopy(task.settings), "custom_dataset": rows}


def flat(results: dict[str, dict[str, Any]]) -> tuple[dict[str, float], list[str]]:
    """lm-eval's `{task: {"acc,none": 0.5}}` as flat names, and the names without a finite number."""
    metrics: dict[str, float] = {}
    missing = []
    for task, values in results.items():
        for key, value in values.items():
            metric, _, how = key.partition(",")
            if not how or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            is_error = metric.endswith("_stderr")
            parts = [metric.removesuffix("_stderr"), *([] if how == "none" else [how])]
            name = ".".join(["lm_eval", task, *parts, *(["stderr"] if is_error else [])])
            if math.isfinite(value):
                metrics[name] = float(value)
            elif not is_error:
                missing.append(name)
    return metrics, missing


@contextmanager
def _sandbox() -> Iterator[None]:
    """lm-eval renders templates in an environment of its own, in which they could call whatever they reach."""
    from lm_eval import utils

    kept = utils.env
    safe = ImmutableSandboxedEnvironment(
        loader=kept.loader, undefined=kept.undefined, keep_trailing_newline=True, autoescape=False
    )
    safe.filters["regex_replace"] = kept.filters["regex_replace"]
    utils.env = safe
    try:
        yield
    finally:
        utils.env = kept


@contextmanager
def _own_draws() -> Iterator[None]:
    """lm-eval seeds the generators of the whole process: what runs next in it must draw as if it had not been here."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@contextmanager
def _offline() -> Iterator[None]:
    # lm-eval and what it imports set variables of their own
    kept = dict(os.environ)
    os.environ.update(OFFLINE)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval says much of what it does; what matters comes back as an error or a count."""
    import warnings

    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        log = logging.getLogger("lm_eval")
        stack.callback(log.setLevel, log.level)
        log.setLevel(logging.ERROR)
        yield
