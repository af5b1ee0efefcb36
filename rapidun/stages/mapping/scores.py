"""Influence scores of any origin as four blocks [train, query] in float64."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from rapidun.base.errors import DataError, MachineError
from rapidun.base.machine import available_memory
from rapidun.stages.mapping.aggregate import Block
from rapidun.stages.mapping.release import BLOCKS, MOST_SCORE, ReleaseFile, read_release, release_blocks
from rapidun.stages.room import FEW_ROWS, mapping_bytes_needed, no_room

Tensors = dict[str, NDArray[np.float64]]


class Scores(NamedTuple):
    """blocks: ff [nF, qF], fr [nF, qR], rf [nR, qF], rr [nR, qR]; rows = training, columns = queries.

    The queries are the training rows themselves (qF = nF, qR = nR) unless the influence was asked for others.
    origin: `blocks` (as the file has them), `gram` (dot products, from the Gram matrix) or `release`.
    """

    blocks: dict[str, Block]
    origin: str
    warnings: list[str]

    @property
    def num_forget(self) -> int:
        return len(self.blocks["ff"].values)

    @property
    def num_retain(self) -> int:
        return len(self.blocks["rr"].values)


def read_scores(path: Path, *, dot: bool = False) -> Scores:
    """Read this software's scores.safetensors.

    dot: take the blocks from the tensor `gram` [nF + nR, nF + nR] (dot products, forget rows first) if the file has it,
        whatever score its blocks hold.
    Raises: DataError if the file cannot be read, a block is missing, shapes disagree, or a score is not finite.
    """
    tensors = _load(path, dot=dot)
    missing = [name for name in BLOCKS if name not in tensors]
    if missing:
        raise DataError(f"{path}: need tensors ff, fr, rf, rr, missing are {', '.join(missing)}")
    return _from_tensors(tensors, dict.fromkeys(BLOCKS, path), dot=dot)


def read_score_files(paths: Mapping[str, Path], *, dot: bool = False) -> Scores:
    """Read one file for each block: all four in the release's format, or all four safetensors that hold the block.

    Raises: DataError as `read_scores` and `read_release`.
    """
    binary = [name for name in BLOCKS if paths[name].suffix == ".safetensors"]
    if not binary:
        files: dict[str, ReleaseFile] = {name: read_release(paths[name]) for name in BLOCKS}
        blocks = release_blocks(files)
        lines = [line for file in files.values() for line in file.warnings]
        bare = [name for name in BLOCKS if all(entry.harmful is None for entry in files[name].entries)]
        if 0 < len(bare) < len(BLOCKS):
            lines.append(
                f"mapping: {len(bare)} of {len(BLOCKS)} influence files ({', '.join(bare)}) have no list "
                f"`harmful` and the others have: harmful influence of these is taken from the end of `helpful`"
            )
        return Scores(blocks, "release", lines)
    if len(binary) < len(BLOCKS):
        other = next(name for name in BLOCKS if name not in binary)
        raise DataError(
            f"mapping.scores: need four .safetensors files or four files in the release's format, "
            f"got {paths[binary[0]]} and {paths[other]}"
        )
    tensors: Tensors = {}
    grams = []
    for name in BLOCKS:
        held = _load(paths[name], dot=dot)
        if name not in held:
            raise DataError(f"{paths[name]}: need a tensor {name}, got {', '.join(sorted(held)) or 'none'}")
        tensors[name] = held[name]
        grams.append(held.get("gram"))
    if len(set(paths.values())) == 1 and grams[0] is not None:
        tensors["gram"] = grams[0]
    return _from_tensors(tensors, paths, dot=dot)


def _load(path: Path, *, dot: bool) -> Tensors:
    """The blocks of a file, and its products where they are asked for, one after the other: they may be large."""
    try:
        with safe_open(str(path), framework="numpy") as held:
            names = [name for name in (*BLOCKS, *(["gram"] if dot else [])) if name in held.keys()]  # noqa: SIM118
            _need_room(sum(held.get_slice(name).get_shape()[0] for name in names if name in ("ff", "rr")))
            return {name: held.get_tensor(name).astype(np.float64) for name in names}
    except FileNotFoundError:
        raise DataError(f"{path}: need an influence file, got no such file. Change mapping.scores") from None
    except OSError as error:
        raise DataError(f"{path}: need a readable influence file, got: {error.strerror or error}") from None
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        # KeyError and TypeError: a number type that numpy lacks, such as bfloat16
        raise DataError(f"{path}: need a safetensors file of float32, got: {error}") from None


def _need_room(num_rows: int) -> None:
    """Raises: MachineError where scores of that many rows do not fit into the memory."""
    fault = no_room(num_rows, mapping_bytes_needed, available_memory(), stage="mapping")
    if num_rows >= FEW_ROWS and fault:
        raise MachineError(fault)


def _from_tensors(tensors: Tensors, paths: Mapping[str, Path], *, dot: bool) -> Scores:
    for name in ("ff", "rr"):
        shape = tensors[name].shape
        if len(shape) != 2 or 0 in shape:
            raise DataError(f"{paths[name]}: need a block {name} of rows and columns, got shape {list(shape)}")
    (num_forget, forget_queries), (num_retain, retain_queries) = tensors["ff"].shape, tensors["rr"].shape
    expected = {"fr": (num_forget, retain_queries), "rf": (num_retain, forget_queries)}
    if "gram" in tensors and dot:
        expected["gram"] = (num_forget + num_retain, num_forget + num_retain)
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise DataError(
                f"{paths.get(name, paths['ff'])}: need {name} of shape {list(shape)} "
                f"(rows = training, columns = queries; ff is {list(tensors['ff'].shape)}, "
                f"rr {list(tensors['rr'].shape)}), "
                f"got {list(tensors[name].shape)}"
            )
    origin = "blocks"
    if dot and "gram" in tensors:
        origin = "gram"
        gram, forget, retain = tensors["gram"], slice(0, num_forget), slice(num_forget, None)
        tensors = {
            "ff": gram[forget, forget],
            "fr": gram[forget, retain],
            "rf": gram[retain, forget],
            "rr": gram[retain, retain],
        }
    for name in BLOCKS:
        values = tensors[name]
        # of NaN no comparison is true
        if not (values.min(initial=0) >= -MOST_SCORE and values.max(initial=0) <= MOST_SCORE):
            row, column = np.argwhere(~(np.abs(values) <= MOST_SCORE))[0]
            raise DataError(
                f"{paths[name]}: need finite scores of size at most {MOST_SCORE:g}, got {tensors[name][row, column]} "
                f"in {name} at training row {row}, query {column}"
            )
    return Scores({name: Block(tensors[name]) for name in BLOCKS}, origin, [])


def with_same_rows(scores: Scores, ids: Mapping[str, list[str]], queries: Mapping[str, list[str]] | None) -> Scores:
    """Say which pairs are a row and itself: those of equal ids.

    Args: ids, queries: of the training rows and of the columns, by group; queries None = the training rows, and in
        blocks that are not square nobody knows: no pair counts as such, which is said.
    Raises: DataError where there are more or fewer ids than columns.
    """
    blocks = scores.blocks
    is_square = all(blocks[name].values.shape[0] == blocks[name].values.shape[1] for name in ("ff", "rr"))
    if queries is None and is_square:
        return scores
    groups = {"f": "forget", "r": "retain"}
    found: dict[str, Block] = {}
    for name, block in blocks.items():
        same = np.zeros(block.values.shape, dtype=bool)
        if queries is not None:
            rows, columns = ids[groups[name[0]]], queries[groups[name[1]]]
            if (len(rows), len(columns)) != block.values.shape:
                raise DataError(
                    f"mapping.scores: need the ids of all rows and columns of {name}, {list(block.values.shape)}, got "
                    f"{len(rows)} and {len(columns)} in ids.json. Were the scores made with other queries?"
                )
            same = np.array(rows, dtype=object)[:, None] == np.array(columns, dtype=object)[None, :]
        found[name] = block._replace(same=same)
    warnings = list(scores.warnings)
    if queries is None:
        warnings.append(
            "mapping: the scores' columns are other rows than their training rows, and no ids.json says which: no pair "
            "is left out as a row and itself"
        )
    return scores._replace(blocks=found, warnings=warnings)
