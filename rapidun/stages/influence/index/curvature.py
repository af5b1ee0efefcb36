"""K-FAC and EK-FAC factors on disk, for queries to an index: fitted apart from it, never part of it.

factors.safetensors   {weight.rows, weight.columns, weight.eigenvalues: float32}, see precondition.py
factors.json          {"recipe": what they were fitted on, "sha256": of the other file, "check": over both}

The folder appears by one rename, whole. Its recipe names contents, never paths.
"""

import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rapidun.base.errors import ArtifactError, ConfigError, ModelError
from rapidun.base.files import read_json, sha256_file, sha256_json, sync, write_json, write_tensors
from rapidun.base.limits import refusing
from rapidun.config.influence import Precondition
from rapidun.models.curvature import Curvature, curvature_tensors, read_curvatures
from rapidun.stages.influence.fisher import fit_curvature
from rapidun.stages.influence.gradients.params import TrackedParameter
from rapidun.stages.influence.gram import OnBatch
from rapidun.stages.influence.index.gradients import GradientRows
from rapidun.stages.influence.index.manifest import Manifest, check_same, make_folder

NOTE = "factors.json"
TENSORS = "factors.safetensors"
FACTORS_VERSION = 1
# parts of an index's description that concern the numbers of its rows, not the model
OF_ROWS = ("normalisation", "method")
AGAIN = "Delete the folder and run the same rapidun index fit again"


def fitted_source(described: dict[str, Any]) -> dict[str, Any]:
    """What factors and an index must share, of what `describe_model` says: all but the sketch.

    The sketch's seed draws the fresh adapter of params=lora as well: there it stays.
    """
    source = {key: value for key, value in described.items() if key not in OF_ROWS}
    parameters = described["parameters"]
    seed = None if parameters["fresh_lora"] is None else described["method"]["seed"]
    return {**source, "parameters": {**parameters, "fresh_lora_seed": seed}}


def fit_recipe(
    described: dict[str, Any], *, kind: Precondition, rows: Path, num_rows: int, response: str, seed: int
) -> dict[str, Any]:
    """Everything that the factors depend on (JSON values)."""
    return {
        "version": FACTORS_VERSION,
        "kind": kind.name,
        "rows": sha256_file(rows),
        "num_rows": num_rows,
        "response": response,
        "seed": seed,
        "source": fitted_source(described),
    }


def fit_factors(
    rows: GradientRows, *, kind: Precondition, seed: int, on_batch: OnBatch | None = None
) -> dict[str, Curvature]:
    """Fit on all rows; by name of the weight. Arguments as `fit_curvature`.

    Raises: ConfigError for weights that are no nn.Linear's own, ModelError if a loss or gradient is not finite.
    """
    batches = list(rows.batches(rows.records))
    names = [f"row {record.id}" for record in rows.records]
    try:
        return fit_curvature(
            rows.model, rows.parameters, batches, kind=kind, row_names=names, seed=seed, on_batch=on_batch
        )
    except ConfigError as error:
        # the words of the influence stage, without its places
        words = str(error).partition(". Change ")[0].replace(" for influence.precondition", "")
        raise ConfigError(f"{words}. Build an index with other --params") from error
    except (ArithmeticError, torch.linalg.LinAlgError) as error:
        mend = "Mend the rows or the model, or build the index with --model-dtype float32"
        raise ModelError(f"{error}. {mend}") from error


def is_fitted(folder: Path, recipe: dict[str, Any]) -> bool:
    """Whether the folder holds a whole fit of this recipe; makes it where there is none.

    Raises: ArtifactError if it holds a fit of another recipe (shows each difference), a damaged one, or something else.
    """
    with refusing(into=folder):
        make_folder(folder)
    if not any(folder.iterdir()):
        return False
    if not (folder / NOTE).is_file():
        raise ArtifactError(f"{folder}: need a new or an empty folder, got one with other files. Change --out")
    note = _read_note(folder)
    check_same(Manifest(folder, note["recipe"]), recipe, what="a fit of these settings", mend="Pass another --out")
    _check_bytes(folder, note)
    return True


def write_factors(folder: Path, recipe: dict[str, Any], curvatures: Mapping[str, Curvature]) -> None:
    """Publish a fit by one rename, onto nothing or an empty folder.

    Raises: MachineError for a full disk; as `is_fitted` if another process was first with something else.
    """
    place = folder.resolve()
    part = place.with_name(f"{place.name}.{secrets.token_hex(4)}.part")
    try:
        with refusing(into=folder):
            part.mkdir(parents=True)
            write_tensors(part / TENSORS, curvature_tensors(curvatures))
            note = {"recipe": recipe, "sha256": sha256_file(part / TENSORS)}
            write_json(part / NOTE, {**note, "check": sha256_json(note)})
            sync(part)
            try:
                os.rename(part, place)
            except OSError:
                if not is_fitted(folder, recipe):
                    raise
            sync(place.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_fits(folder: Path, described: dict[str, Any], *, index: Path) -> None:
    """Compare what factors were fitted on with an index, before any model is loaded.

    Raises: ArtifactError if there are none, or if their model, parameters or loss are not the index's (both values).
    """
    check_same(
        Manifest(folder, _read_note(folder)["recipe"]),
        {"source": fitted_source(described)},
        what=f"a fit for the index {index}",
        mend="Make one: rapidun index fit",
    )


def factors_fingerprint(folder: Path) -> str:
    """SHA-256 over what a fit was made of and what came out."""
    return sha256_json(_read_note(folder))


def read_factors(folder: Path, parameters: Sequence[TrackedParameter], *, device: torch.device) -> dict[str, Curvature]:
    """The factors, by name of the weight.

    Raises: ArtifactError if the file is missing or not what was written, or if it lacks one of the parameters.
    """
    from safetensors.torch import load_file

    _check_bytes(folder, _read_note(folder))
    curvatures = read_curvatures(load_file(folder / TENSORS, device=str(device)))
    for parameter in parameters:
        found = curvatures.get(parameter.name)
        if found is None or found.eigenvalues.shape != parameter.shape:
            shape = "nothing" if found is None else list(found.eigenvalues.shape)
            raise ArtifactError(
                f"{folder}: need factors of {parameter.name} {list(parameter.shape)}, got {shape}: fitted with another "
                f"version of the libraries? {AGAIN}"
            )
    return curvatures


def _read_note(folder: Path) -> dict[str, Any]:
    path = folder / NOTE
    if not path.is_file():
        raise ArtifactError(f"{folder}: need factors ({NOTE} in it), got none. Make them: rapidun index fit")
    note = read_json(path)
    if not isinstance(note, dict) or note.pop("check", None) != sha256_json(note):
        raise ArtifactError(f"{path}: need a note that fits its own checksum, got a damaged file. {AGAIN}")
    if note["recipe"]["version"] != FACTORS_VERSION:
        raise ArtifactError(f"{path}: need version {FACTORS_VERSION}, got {note['recipe']['version']}. {AGAIN}")
    return note


def _check_bytes(folder: Path, note: dict[str, Any]) -> None:
    path = folder / TENSORS
    if not path.is_file():
        raise ArtifactError(f"{path}: need the factors of {NOTE}, got no file. {AGAIN}")
    found = sha256_file(path)
    if found != note["sha256"]:
        raise ArtifactError(
            f"{path}: need SHA-256 {note['sha256'][:12]}..., got {found[:12]}...: the file was damaged. {AGAIN}"
        )
