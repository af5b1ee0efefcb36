"""Weightings: from influence, from a file or from nothing to a weight for each row; WEIGHTINGS names them all."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rapidun.base.errors import ConfigError, DataError
from rapidun.config.mapping import MappingConfig, ValueMode, Weighting
from rapidun.stages.mapping import baselines
from rapidun.stages.mapping.aggregate import Aggregated, Block, aggregate_block, fuse
from rapidun.stages.mapping.baselines import Floats
from rapidun.stages.mapping.diagnostics import describe, describe_mapped, file_warnings, group_warnings
from rapidun.stages.mapping.inputs import GROUPS, MappingFiles, row_ids, rows_in_use, scores_in_use
from rapidun.stages.mapping.release import BLOCKS
from rapidun.stages.mapping.scores import Scores
from rapidun.stages.mapping.weights import exp_bounded, exp_clip, robust_z
from rapidun.stages.weights_file import read_lines, read_weights


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


def _from_scores(cfg: MappingConfig, files: MappingFiles, seed: int) -> Mapped:
    """rapidun and rapidun_release: aggregate, fuse, standardise, exponentiate."""
    scores, ids_path = scores_in_use(cfg, files)
    counts = {"forget": scores.num_forget, "retain": scores.num_retain}
    ids = row_ids(files, ids_path=ids_path, counts=counts)
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
    """Every weight 1."""
    ids, counts = rows_in_use(cfg, files)
    return _plain({group: baselines.uniform(counts[group]) for group in GROUPS}, ids)


def _redrawn(cfg: MappingConfig, files: MappingFiles, seed: int, *, redraw: Callable[..., Floats]) -> Mapped:
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
        ids = row_ids(files, ids_path=files.ids, counts=None)
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


# weighting -> (config, files, seed) -> Mapped; what a weighting reads stands beside its name in config/mapping.py
WEIGHTINGS: dict[Weighting, Callable[[MappingConfig, MappingFiles, int], Mapped]] = {
    Weighting.rapidun: _from_scores,
    Weighting.rapidun_release: _from_scores,
    Weighting.uniform: _uniform,
    Weighting.shuffled: partial(_redrawn, redraw=baselines.shuffled),
    Weighting.random: partial(_redrawn, redraw=baselines.random),
    Weighting.file: _file,
}


def _plain(weights: dict[str, Floats], ids: dict[str, list[str] | None]) -> Mapped:
    return Mapped({group: Group(weights[group], describe(weights[group])) for group in GROUPS}, ids, {}, [])


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
        drop_diagonal=cfg.drop_diagonal and (name in ("ff", "rr") or block.same is not None),
        same=block.same,
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
        drop_diagonal=cfg.drop_diagonal and (name in ("ff", "rr") or block.same is not None),
        same=block.same,
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
