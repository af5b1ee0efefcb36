"""The Fisher matrix of the retain rows, weight by weight: what unlearning=influence_step takes for the Hessian."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rapidun.base.errors import ConfigError, DataError, ModelError
from rapidun.base.files import write_tensors
from rapidun.base.tracker import Tracker
from rapidun.config.influence import ParameterSet, Precondition
from rapidun.models.batching import batching
from rapidun.models.curvature import curvature_tensors
from rapidun.models.load import ModelLoader
from rapidun.stages.influence.batches import make_batches
from rapidun.stages.influence.fisher import fit_curvature
from rapidun.stages.influence.gradients.params import num_numbers, select_parameters
from rapidun.stages.rows.encode import encode_rows
from rapidun.stages.rows.fit import check_rows
from rapidun.stages.rows.records import read_records

TENSORS = "curvature.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvatureFiles:
    """What is read, and the folder that is filled."""

    model: Path
    retain: Path
    out: Path


def run_curvature(
    kind: Precondition,
    files: CurvatureFiles,
    *,
    params: ParameterSet,
    regex: str | None,
    tokens_per_batch: int,
    loader: ModelLoader,
    max_length: int,
    seed: int,
    tracker: Tracker,
) -> dict[str, Any]:
    """Fit K-FAC or EK-FAC on the retain rows and write out/curvature.safetensors (models/curvature.py), float32.

    Rows count the same, whatever their weights: the matrix says how the loss on R bends, not what is to be kept most.
    Returns: kind, num_rows, num_modules, num_parameters.
    Raises: DataError without a row that can be encoded, ConfigError for weights that are no nn.Linear's own,
        ModelError for gradients that are no numbers.
    """
    model, tokenizer = loader.load(files.model)
    try:
        parameters = select_parameters(model, params, regex=regex)
    except ConfigError as error:
        raise _reworded(error) from error
    records = read_records(files.retain)
    encoded = encode_rows(tokenizer, [record.texts for record in records], max_length=max_length)
    kept = [(record.id, row) for record, row in zip(records, encoded, strict=True) if row is not None]
    if not kept:
        raise DataError(
            f"unlearning: need retain rows whose instruction leaves room for a response in max_length={max_length} "
            f"tokens, got {len(records)} rows and none that does. Pass max_length=..."
        )
    names, rows = [f"retain row {name}" for name, _ in kept], [row for _, row in kept]
    check_rows("unlearning", model, tokenizer, [row.input_ids for row in rows], max_length=max_length)
    padded = batching(model, pad_token_id=tokenizer.pad_token_id).right
    batches = make_batches(
        rows,
        names,
        tokens_per_batch=tokens_per_batch,
        pad_token_id=tokenizer.pad_token_id,
        device=next(model.parameters()).device,
        max_rows=None if padded else 1,
    )
    try:
        curvatures = fit_curvature(
            model,
            parameters,
            batches,
            kind=kind,
            row_names=names,
            seed=seed,
            on_batch=partial(_report, tracker, f"{num_numbers(parameters):,} numbers"),
        )
    except ConfigError as error:
        raise _reworded(error) from error
    except (ArithmeticError, torch.linalg.LinAlgError) as error:
        raise ModelError(f"{error}. Pass model.dtype=float32, or mend the rows or the model") from error
    write_tensors(files.out / TENSORS, curvature_tensors(curvatures))
    return {
        "kind": kind.name,
        "num_rows": len(rows),
        "num_modules": len(parameters),
        "num_parameters": num_numbers(parameters),
    }


def _reworded(error: ConfigError) -> ConfigError:
    """The words of the influence stage, without its places."""
    words = str(error).partition(". Change ")[0].replace(" for influence.precondition", "")
    words = words.removeprefix("influence: ")
    return ConfigError(f"unlearning: {words}. Change unlearning.influence_step.params or influence_step.regex")


def _report(tracker: Tracker, sizes: str, done: int, total: int, note: str) -> None:
    tracker.progress(done, total, f"{note}, {sizes}")
