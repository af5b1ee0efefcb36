"""The mapping stage: influence scores (or none) to a weight for each forget row and each retain row."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rapidun.base.errors import ConfigError, DataError
from rapidun.base.files import write_json
from rapidun.config.mapping import MappingConfig, ValueMode, Weighting
from rapidun.stages.mapping import baselines
from rapidun.stages.mapping.aggregate import Aggregated, Block, aggregate_block
from rapidun.stages.mapping.diagnostics import describe, describe_mapped, file_warnings, group_warnings
from rapidun.stages.mapping.fuse import fuse
from rapidun.stages.mapping.release import BLOCKS
from rapidun.stages.mapping.scores import Scores, read_score_files, read_scores
from rapidun.stages.mapping.weights import exp_bounded, exp_clip, robust_z
from rapidun.stages.weights_file import read_lines, read_weights, write_weights

if TYPE_CHECKING:
    from rapidun.base.tracker import Tracker

Floats = NDArray[np.float64]
GROUPS = ("forget", "retain")


@dataclass(frozen=True, kw_only=True, slots=True)
class MappingFiles:
    """What the stage reads and writes.

    out: folder for forget_weights.jsonl, retain_weights.jsonl, diagnostics.json.
    scores, ids: scores.safetensors and ids.json of the influence stage; cfg.scores replaces them.
    forget, retain: the pack's splits, for the rows' ids.
    """

    out: Path
    scores: Path | None = None
    ids: Path | None = None
    forget: Path | None = None
    retain: Path | None = None


class Group(NamedTuple):
    """One group's weights [n] and what is said of them."""

    weights: Floats
    facts: dict[str, Any]


class Mapped(NamedTuple):
    """The stage's result before it is written. ids: by group, None where no file names the rows."""

    groups: dict[str, Group]
    ids: dict[str, list[str] | None]
    extra: dict[str, Any]
    warnings: list[str]


def run_mapping(cfg: MappingConfig, files: MappingFiles, *, seed: int, tracker: "Tracker") -> dict[str, Any]:
    """Write both weights files and diagnostics.json; give the diagnostics.

    The rows' ids come from ids.json of the scores in use (files.ids, or beside cfg.scores.path), else from the pack's
    splits; where both are there they must name the same rows. With neither, every id is null and `index` says which
    row is meant: an invented id would pretend to be an identity.

    Raises: ConfigError if the weighting needs scores and there are none; DataError for a bad input file.
    """
    mapped = WEIGHTINGS[cfg.method](cfg, files, seed)
    for group in GROUPS:
        write_weights(
            files.out / f"{group}_weights.jsonl", mapped.groups[group].weights.tolist(), ids=mapped.ids[group]
        )
    summary: dict[str, Any] = {
        "method": cfg.method.name,
        **{group: mapped.groups[group].facts for group in GROUPS},
        **mapped.extra,
        "warnings": mapped.warnings,
    }
    write_json(files.out / "diagnostics.json", summary)
    for message in mapped.warnings:
        tracker.warn(message)
    tracker.log(
        {
            f"{group}_{key}": float(value)
            for group in GROUPS
            for key, value in mapped.groups[group].facts.items()
            if value is not None
        }
    )
    tracker.progress(1, 1)
    return summary


def _from_scores(cfg: MappingConfig, files: MappingFiles, seed: int) -> Mapped:
    """rapidun and rapidun_release: aggregate, fuse, standardise, exponentiate."""
    scores, ids_path = _read_scores(cfg, files)
    counts = {"forget": scores.num_forget, "retain": scores.num_retain}
    ids = _row_ids(files, ids_path=ids_path, counts=counts)
    aggregated = {name: _aggregate(cfg, name, scores.blocks[name]) for name in BLOCKS}
    harmful = {name: _aggregate_harmful(cfg, name, scores.blocks[name]) for name in BLOCKS} if cfg.use_harmful else None
    forget, retain = fuse(
        {name: aggregated[name].scores for name in BLOCKS},
        alpha=cfg.alpha,
        beta=cfg.beta,
        gamma=cfg.gamma,
        delta=cfg.delta,
        harmful=None if harmful is None else {name: harmful[name].scores for name in BLOCKS},
        alpha_harm=cfg.alpha_harm,
        beta_harm=cfg.beta_harm,
        gamma_harm=cfg.gamma_harm,
        delta_harm=cfg.delta_harm,
    )
    zeros = {name: aggregated[name].zero_share for name in BLOCKS}
    warnings = [*scores.warnings, *_score_warnings(cfg, scores)]
    groups = {}
    for group, fused, tau, bounds, own in (
        ("forget", forget, cfg.tau_f, cfg.forget, ("ff", "fr")),
        ("retain", retain, cfg.tau_r, cfg.retain, ("rr", "rf")),
    ):
        standardised = robust_z(fused, mad_floor=cfg.mad_floor)
        to_weights = exp_bounded if cfg.bounded else exp_clip
        result = to_weights(standardised.z, tau=tau, low=bounds.w_min, high=bounds.w_max)
        groups[group] = Group(result.weights, describe_mapped(result, standardised))
        warnings += group_warnings(
            groups[group].facts,
            group=group,
            tau=tau,
            w_min=bounds.w_min,
            w_max=bounds.w_max,
            mad_floor=cfg.mad_floor,
            zero_share=max(zeros[name] or 0.0 for name in own),
        )
    return Mapped(groups, ids, {"scores_from": scores.origin, "zero_share_after_top_k": zeros}, warnings)


def _uniform(cfg: MappingConfig, files: MappingFiles, seed: int) -> Mapped:
    """Every weight 1: needs the number of rows only, so that no influence has to be computed."""
    ids_path = files.ids
    if ids_path is None and (files.forget is None or files.retain is None):
        scores, ids_path = _read_scores(cfg, files)
        counts = {"forget": scores.num_forget, "retain": scores.num_retain}
        ids = _row_ids(files, ids_path=ids_path, counts=counts)
    else:
        ids = _row_ids(files, ids_path=ids_path, counts=None)
        counts = {group: len(ids[group] or []) for group in GROUPS}
    return _plain({group: baselines.uniform(counts[group]) for group in GROUPS}, ids)


def _shuffled(cfg: MappingConfig, files: MappingFiles, seed: int) -> Mapped:
    return _redrawn(cfg, files, seed, baselines.shuffled)


def _random(cfg: MappingConfig, files: MappingFiles, seed: int) -> Mapped:
    return _redrawn(cfg, files, seed, baselines.random)


def _redrawn(cfg: MappingConfig, files: MappingFiles, seed: int, redraw: Callable[..., Floats]) -> Mapped:
    """The weights of `rapidun` under the same settings, then permuted or drawn anew within each group."""
    base = _from_scores(cfg, files, seed)
    weights = {
        group: redraw(base.groups[group].weights, generator=baselines.group_generator(seed, cfg.method.name, group))
        for group in GROUPS
    }
    extra = {**base.extra, "rapidun": {group: base.groups[group].facts for group in GROUPS}}
    return _plain(weights, base.ids)._replace(extra=extra, warnings=base.warnings)


def _file(cfg: MappingConfig, files: MappingFiles, seed: int) -> Mapped:
    """Weights made elsewhere, put in the order of the pack's rows and otherwise left as they are."""
    paths = {"forget": cfg.forget.path, "retain": cfg.retain.path}
    missing = [group for group in GROUPS if paths[group] is None]
    if missing:
        keys = " and ".join(f"mapping.{group}.path" for group in missing)
        raise ConfigError(f"mapping: need a weights file for each group with mapping=file, got none in {keys}")
    ids: dict[str, list[str] | None] = {"forget": None, "retain": None}
    if files.ids is not None or (files.forget is not None and files.retain is not None):
        ids = _row_ids(files, ids_path=files.ids, counts=None)
    weights: dict[str, Floats] = {}
    for group in GROUPS:
        path = Path(str(paths[group])).expanduser()
        names = ids[group]
        if names is None:
            # no pack to match: the file itself says which rows there are
            lines = read_lines(path)
            if all(line.id is not None for line in lines):
                names = [str(line.id) for line in lines]
                ids[group] = names
            else:
                names = [f"index {index}" for index in range(len(lines))]
        weights[group] = np.asarray(read_weights(path, names), dtype=np.float64)
    mapped = _plain(weights, ids)
    warnings = [line for group in GROUPS for line in file_warnings(mapped.groups[group].facts, group=group)]
    return mapped._replace(warnings=warnings)


# weighting -> (config, files, seed) -> Mapped
WEIGHTINGS: dict[Weighting, Callable[[MappingConfig, MappingFiles, int], Mapped]] = {
    Weighting.rapidun: _from_scores,
    Weighting.rapidun_release: _from_scores,
    Weighting.uniform: _uniform,
    Weighting.shuffled: _shuffled,
    Weighting.random: _random,
    Weighting.file: _file,
}


def _plain(weights: dict[str, Floats], ids: dict[str, list[str] | None]) -> Mapped:
    return Mapped({group: Group(weights[group], describe(weights[group])) for group in GROUPS}, ids, {}, [])


def _read_scores(cfg: MappingConfig, files: MappingFiles) -> tuple[Scores, Path | None]:
    """The scores in use and the ids.json that belongs to them, if any."""
    # the release's recipe is defined on dot products: our own scores.safetensors has them in `gram`, whatever
    # influence.score says, so that the recipe needs no influence pass of its own
    dot = cfg.method is Weighting.rapidun_release
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


def _aggregate(cfg: MappingConfig, name: str, block: Block) -> Aggregated:
    values, place = block.values, block.place
    if cfg.top_k is None or cfg.mode is not ValueMode.value:
        values = _complete(cfg, name, block)
    return aggregate_block(
        values,
        place=place,
        mode=cfg.mode.name,
        aggregate=cfg.aggregate.name,
        top_k=cfg.top_k,
        drop_diagonal=cfg.drop_diagonal and name in ("ff", "rr"),
    )


def _aggregate_harmful(cfg: MappingConfig, name: str, block: Block) -> Aggregated:
    """The same over the k lowest values.

    As released (method rapidun_release on the release's files): the file's harmful list, sorted in descending order
    once more, then its top k; with a list of all rows these are the k highest values once more.
    """
    values = block.values if block.harmful is None else block.harmful
    if cfg.top_k is None or cfg.mode is not ValueMode.value:
        values = _complete(cfg, name, block)
    return aggregate_block(
        values,
        place=block.harmful_place,
        mode=cfg.mode.name,
        aggregate=cfg.aggregate.name,
        top_k=cfg.top_k,
        lowest=not (cfg.method is Weighting.rapidun_release and block.harmful is not None),
        drop_diagonal=cfg.drop_diagonal and name in ("ff", "rr"),
    )


def _complete(cfg: MappingConfig, name: str, block: Block) -> Floats:
    """Every value of a block, from both lists of a file.

    Raises: DataError if the lists are cut short and leave pairs out.
    """
    values = block.values
    if block.harmful is not None:
        values = np.where(np.isnan(values), block.harmful, values)
    absent = np.isnan(values)
    if absent.any():
        query = int(np.argmax(absent.any(axis=0)))
        raise DataError(
            f"mapping.scores.{name}: need the influence of all {len(values)} training rows with "
            f"top_k={cfg.top_k or 'null'} and mode={cfg.mode.name}, got {int((~absent[:, query]).sum())} of them for "
            f'query "{query}". Lists cut short do for mapping.top_k=... with mapping.mode=value'
        )
    return values


def _score_warnings(cfg: MappingConfig, scores: Scores) -> list[str]:
    found = []
    if cfg.method is Weighting.rapidun_release and scores.origin == "blocks":
        found.append(
            "mapping: rapidun_release is defined on dot products; the scores file has no tensor `gram`, so its blocks "
            "are taken for such. Make it with influence.score=dot"
        )
    if cfg.use_harmful and cfg.top_k is None:
        found.append(
            "mapping: use_harmful without top_k aggregates all values once more, which only scales the scores. "
            "Set mapping.top_k"
        )
    if cfg.top_k is not None and cfg.mode is ValueMode.value:
        for name in BLOCKS:
            listed = ~np.isnan(scores.blocks[name].values)
            fewest = int(listed.sum(axis=0).min())
            if fewest < min(cfg.top_k, len(listed)):
                found.append(
                    f"mapping: block {name} lists {fewest} of {len(listed)} training rows for a query, fewer than "
                    f"mapping.top_k={cfg.top_k}; the others count as 0"
                )
    return found


def _row_ids(
    files: MappingFiles, *, ids_path: Path | None, counts: dict[str, int] | None
) -> dict[str, list[str] | None]:
    """The rows' ids in the order of the scores, by group.

    Raises: DataError if their number is not that of the scores, or ids.json and the pack name different rows.
    """
    ids: dict[str, list[str] | None] = {"forget": None, "retain": None}
    if ids_path is not None:
        ids.update(_read_ids(ids_path))
    for group in GROUPS:
        split = files.forget if group == "forget" else files.retain
        known, source = ids[group], ids_path
        if split is not None:
            # imported here: with influence files alone the stage needs no pack
            from rapidun.stages.rows.records import read_records

            in_pack = [record.id for record in read_records(split)]
            if known is not None and sorted(known) != sorted(in_pack):
                different = sorted(set(known) ^ set(in_pack))[:1] or ["a repeated one"]
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


def _read_ids(path: Path) -> dict[str, list[str] | None]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: need JSON with the ids of forget and retain, got: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(content.get(group), list) for group in GROUPS):
        raise DataError(f'{path}: need {{"forget": [...], "retain": [...]}}, got something else')
    return {group: [str(name) for name in content[group]] for group in GROUPS}
