"""Stage order, what is reused, the run folder: one run from its configuration to its report."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapidun.artifacts import Artifacts
from rapidun.config import RunConfig
from rapidun.console import StageConsole
from rapidun.files import read_json, read_jsonl, write_jsonl
from rapidun.runfolder import RunFolder, new_run_dir
from rapidun.schema import plain
from rapidun.tracking import RunTracker


@dataclass(frozen=True, slots=True)
class Result:
    """What a finished run hands back to Python."""

    run_dir: Path
    metrics: dict[str, Any]

    @property
    def weights(self) -> dict[str, list[float]]:
        """{"forget": [...], "retain": [...]} in row order."""
        folder = self.run_dir / "mapping"
        return {
            group: [row["weight"] for row in read_jsonl(folder / f"{group}_weights.jsonl")]
            for group in ("forget", "retain")
        }

    @property
    def scores(self) -> dict[str, Any]:
        """Influence blocks `ff` [nF, nF], `fr` [nF, nR], `rf`, `rr`, numpy: rows = training, columns = query."""
        from safetensors.numpy import load_file

        return load_file(self.run_dir / "influence" / "scores.safetensors")


def run_pipeline(
    cfg: RunConfig, *, overrides: list[str], config_yaml: str, console: StageConsole | None = None
) -> Result:
    """Run the stages that `cfg.stages` names and write the run folder.

    Args:
        cfg: a checked configuration. overrides: what was typed, for command.txt.
        config_yaml: the resolved configuration as text.
    Raises: RapidunError for what the user can mend; any other error is a failed stage. Both leave status.json behind.
    """
    from rapidun.report.html import write_run_report
    from rapidun.report.tables import closing_table

    console = console or StageConsole()
    run_dir = Path(cfg.run_dir) if cfg.run_dir else new_run_dir(cfg.name)
    folder = RunFolder(run_dir)
    folder.open(config=plain(cfg), config_yaml=config_yaml, overrides=overrides)
    tracker = RunTracker(folder.metrics_path, on_progress=console.update, on_warning=console.warn)
    if cfg.tracking.kind.name == "wandb":
        tracker.start_wandb(
            project=cfg.tracking.project,
            entity=cfg.tracking.entity,
            mode=cfg.tracking.mode.name,
            tags=cfg.tracking.tags,
            run_dir=run_dir,
            group=cfg.sweep.name,
            name=cfg.name,
            config=plain(cfg),
        )
    metrics: dict[str, Any] = {}
    failed = True
    try:
        metrics = _run_stages(cfg, folder, console, tracker)
        folder.finish(metrics)
        failed = False
    except BaseException as error:
        folder.fail(error)
        raise
    finally:
        console.abort()
        tracker.finish(metrics, failed=failed)
        # of a failed run as well: it says what failed and shows what was finished
        report = write_run_report(run_dir)
    table = closing_table(run_dir)
    if table is not None:
        console.console.print(table)
    console.console.print(f"report: {report}", highlight=False, soft_wrap=True)
    return Result(run_dir, metrics)


def _run_stages(cfg: RunConfig, folder: RunFolder, console: StageConsole, tracker: RunTracker) -> dict[str, Any]:
    """Run stage after stage, note each in the run folder; return the flat contents of result.json."""
    artifacts = Artifacts(cfg, tracker)
    for stage in cfg.stages:
        folder.start_stage(stage)
        console.start(stage)
        artifacts.run_stage(stage)
        made, links = artifacts.made.get(stage, []), artifacts.links.get(stage, {})
        cached = bool(made) and not any(made)
        cost = folder.finish_stage(stage, links, cached=cached)
        if links:
            artifacts.store.note_run(folder.path)
        how = "reused" if cached else "done"
        console.finish(
            note=f"{how}   {cost['seconds']:.1f} s   {cost['peak_memory_gb']:.2f} GiB" if links else "nothing to do"
        )
        if stage == "evaluation":
            _write_evaluation(artifacts, folder.path / "evaluation")
    return _final_metrics(cfg, artifacts, folder)


def _write_evaluation(artifacts: Artifacts, folder: Path) -> None:
    """before.json, after.json and the paired generations, in the run folder itself."""
    pairs: dict[tuple[str, str], dict[str, Any]] = {}
    recipes = artifacts.recipes
    for when, recipe in (("before", recipes.before), ("after", recipes.after)):
        artifact = artifacts.get(recipe)
        shutil.copyfile(artifact.path / "metrics.json", folder / f"{when}.json.part")
        os.replace(folder / f"{when}.json.part", folder / f"{when}.json")
        for row in read_jsonl(artifact.path / "generations.jsonl"):
            shared = {k: row[k] for k in ("set", "id", "family", "variant", "prompt", "context", "reference")}
            pair = pairs.setdefault((row["set"], row["id"]), shared)
            pair[when] = row["generation"]
            pair[f"keyword_{when}"], pair[f"likelihood_{when}"] = row["keyword"], row["likelihood"]
    write_jsonl(folder / "generations.jsonl", pairs.values())


def _final_metrics(cfg: RunConfig, artifacts: Artifacts, folder: RunFolder) -> dict[str, Any]:
    """The flat contents of result.json."""
    metrics: dict[str, Any] = {"name": cfg.name, "seed": cfg.seed}
    if "evaluation" in cfg.stages:
        before, after = (artifacts.links["evaluation"][f"evaluation/.{when}"] for when in ("before", "after"))
        metrics.update(read_json(after.path / "metrics.json"))
        metrics.update({f"before.{k}": v for k, v in read_json(before.path / "metrics.json").items()})
    for stage in ("mapping", "unlearning"):
        for artifact in artifacts.links.get(stage, {}).values():
            metrics.update(_numbers(artifact.result, f"{stage}."))
    for stage, status in folder.status["stages"].items():
        metrics[f"seconds.{stage}"] = status["seconds"]
        metrics[f"peak_memory_gb.{stage}"] = status["peak_memory_gb"]
    return metrics


def _numbers(result: dict[str, Any], prefix: str) -> dict[str, float]:
    """The numbers of a stage's result, those of its groups as `<group>.<name>`."""
    found: dict[str, float] = {}
    for name, value in result.items():
        if isinstance(value, dict):
            found.update(_numbers(value, f"{prefix}{name}."))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + name] = value
    return found
