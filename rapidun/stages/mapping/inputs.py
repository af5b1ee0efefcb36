"""What the mapping stage reads: influence made here or elsewhere, and the ids of the rows it is about."""

import json
from dataclasses import dataclass
from pathlib import Path

from rapidun.base.errors import ConfigError, DataError
from rapidun.config.mapping import MappingConfig, Weighting
from rapidun.stages.mapping.release import BLOCKS
from rapidun.stages.mapping.scores import Scores, read_score_files, read_scores, with_same_rows
from rapidun.stages.rows.records import read_records
from rapidun.stages.rows.wrong import is_wrong

GROUPS = ("forget", "retain")


@dataclass(frozen=True, kw_only=True, slots=True)
class MappingFiles:
    """What the stage reads and writes.

    out: folder for forget_weights.jsonl, retain_weights.jsonl, diagnostics.json.
    scores, ids: scores.safetensors and ids.json of the influence stage; cfg.scores replaces them.
    forget, retain: the pack's splits, for the rows' ids.
    losses: losses.jsonl of the forget rows, for weightings that read them.
    """

    out: Path
    scores: Path | None = None
    ids: Path | None = None
    forget: Path | None = None
    retain: Path | None = None
    losses: Path | None = None


def scores_in_use(cfg: MappingConfig, files: MappingFiles) -> tuple[Scores, Path | None]:
    """The scores in use and the ids.json that belongs to them, if any."""
    scores, ids_path = _read_scores(cfg, files)
    ids, queries = (None, None) if ids_path is None else (_read_ids(ids_path)[0], _read_query_ids(ids_path))
    return with_same_rows(scores, ids or {}, queries), ids_path


def _read_scores(cfg: MappingConfig, files: MappingFiles) -> tuple[Scores, Path | None]:
    # these are defined on dot products: our own scores.safetensors has them in `gram`, whatever influence.score is, and
    # no influence pass of their own is needed
    dot = cfg.method in (Weighting.rapidun_release, Weighting.guard)
    blocks = {name: getattr(cfg.scores, name) for name in BLOCKS}
    if all(blocks.values()):
        return read_score_files({name: Path(path).expanduser() for name, path in blocks.items()}, dot=dot), None
    if cfg.scores.path is not None:
        path = Path(cfg.scores.path).expanduser()
        beside = path.with_name("ids.json")
        return read_scores(path, dot=dot), beside if beside.is_file() else None
    if files.scores is None:
        raise ConfigError(
            f"mapping: need influence scores for method={cfg.method.name}, got none. Add the influence stage "
            f"(stages=[influence,mapping], say), or pass mapping.scores.path=... or mapping.scores.ff=... fr, rf, rr"
        )
    return read_scores(files.scores, dot=dot), files.ids


def further_scores(cfg: MappingConfig, *, ids: dict[str, list[str] | None], counts: dict[str, int]) -> list[Scores]:
    """The scores of mapping.scores.also, each about the same rows in the same order.

    Raises: DataError if a file is about other rows, or has no ids.json beside it while the rows' ids are known.
    """
    found = []
    for place, name in enumerate(cfg.scores.also):
        path = Path(name).expanduser()
        key = f"mapping.scores.also[{place}]"
        scores = read_scores(path)
        if {"forget": scores.num_forget, "retain": scores.num_retain} != counts:
            raise DataError(
                f"{key}: need {counts['forget']} forget and {counts['retain']} retain rows as the first influence has, "
                f"got {scores.num_forget} and {scores.num_retain} in {path}"
            )
        beside = path.with_name("ids.json")
        if any(ids.values()):
            if not beside.is_file():
                raise DataError(
                    f"{key}: need ids.json beside {path}, to know that its rows are the same ones, got none"
                )
            theirs, _ = _read_ids(beside)
            scores = with_same_rows(scores, theirs, _read_query_ids(beside))
            for group in GROUPS:
                if theirs[group] != ids[group]:
                    raise DataError(
                        f"{beside}: need the {group} rows of the first influence in the same order, got others "
                        f"or another order. Make both from the same pack"
                    )
        found.append(scores)
    return found


def wrong_rows(files: MappingFiles, ids: dict[str, list[str] | None]) -> dict[str, list[bool | None]]:
    """Whether each row, in the order of its weights, stands in the wrong group, as far as the pack says.

    Returns: by group; a group is absent where there is no pack, or no ids to find its rows by.
    """
    found = {}
    for group, path in (("forget", files.forget), ("retain", files.retain)):
        names = ids[group]
        if path is not None and names is not None:
            known = {record.id: is_wrong(record, group) for record in read_records(path)}
            found[group] = [known[name] for name in names]
    return found


def rows_in_use(cfg: MappingConfig, files: MappingFiles) -> tuple[dict[str, list[str] | None], dict[str, int]]:
    """The rows' ids and how many there are, by group; the pack's where there is one: that reads no influence."""
    ids_path, counts = files.ids, None
    if ids_path is None and (files.forget is None or files.retain is None):
        scores, ids_path = scores_in_use(cfg, files)
        counts = {"forget": scores.num_forget, "retain": scores.num_retain}
    ids = row_ids(files, ids_path=ids_path, counts=counts)
    return ids, counts or {group: len(ids[group] or []) for group in GROUPS}


def row_ids(
    files: MappingFiles, *, ids_path: Path | None, counts: dict[str, int] | None
) -> dict[str, list[str] | None]:
    """The rows' ids in the order of the scores, by group.

    Raises: DataError if their number is not that of the scores, or ids.json and the pack name different rows.
    """
    ids: dict[str, list[str] | None] = {"forget": None, "retain": None}
    left_out: dict[str, list[str]] = {"forget": [], "retain": []}
    if ids_path is not None:
        scored, left_out = _read_ids(ids_path)
        ids.update(scored)
    for group in GROUPS:
        split = files.forget if group == "forget" else files.retain
        known, source = ids[group], ids_path
        if split is not None:
            in_pack = [record.id for record in read_records(split)]
            if known is not None and sorted(known + left_out[group]) != sorted(in_pack):
                different = sorted({*known, *left_out[group]} ^ set(in_pack))[:1] or ["a repeated one"]
                raise DataError(
                    f"{ids_path}: need the {len(in_pack)} rows of {split}, got {len(known)} rows; they differ in id "
                    f"{different[0]!r}. Were the scores made for other rows?"
                )
            if known is None:
                known, source = in_pack, split
                ids[group] = known
        if known is not None and counts is not None and len(known) != counts[group]:
            raise DataError(
                f"{source}: need as many {group} rows as the influence scores have, {counts[group]}, got {len(known)}. "
                f"Were the scores made for other rows?"
            )
    return ids


def _read_ids(path: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The ids of the scored rows, and of those that were too long to be scored, by group."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: need JSON with the ids of forget and retain, got: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(content.get(group), list) for group in GROUPS):
        raise DataError(f'{path}: need {{"forget": [...], "retain": [...]}}, got something else')
    left_out = content.get("left_out", {})
    return (
        {group: [str(name) for name in content[group]] for group in GROUPS},
        {group: [str(name) for name in left_out.get(group, [])] for group in GROUPS},
    )


def _read_query_ids(path: Path) -> dict[str, list[str]] | None:
    """The ids of the scores' columns by group; None where they are those of the rows. `_read_ids` has read the file."""
    queries = json.loads(path.read_text(encoding="utf-8")).get("queries")
    if queries is None:
        return None
    if not isinstance(queries, dict) or not all(isinstance(queries.get(group), list) for group in GROUPS):
        raise DataError(f'{path}: need "queries": {{"forget": [...], "retain": [...]}} or none, got something else')
    return {group: [str(name) for name in queries[group]] for group in GROUPS}
