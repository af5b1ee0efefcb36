"""Weightings: from influence, from a file or from nothing to a weight for each row; WEIGHTINGS names them all."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rapidun.base.errors import ConfigError, DataError
from rapidun.config import extensions
from rapidun.config.mapping import Alignment, Combine, Map, MappingConfig, Null, Weighting
from rapidun.stages.mapping import baselines
from rapidun.stages.mapping.baselines import Floats
from rapidun.stages.mapping.diagnostics import (
    bounded_warnings,
    describe,
    describe_bounded,
    describe_mapped,
    describe_split,
    file_warnings,
    group_warnings,
)
from rapidun.stages.mapping.guard import alignments, guard
from rapidun.stages.mapping.inputs import (
    GROUPS,
    MappingFiles,
    further_scores,
    row_ids,
    rows_in_use,
    scores_in_use,
    wrong_rows,
)
from rapidun.stages.mapping.loreun import loreun, loreun_release, losses_in_use
from rapidun.stages.mapping.row_scores import OWN_BLOCKS, GroupScores, combined, score_rows
from rapidun.stages.mapping.scores import Scores
from rapidun.stages.mapping.split import agreed, kept_equally, split_scores
from rapidun.stages.mapping.weights import exp_clip, robust_z
from rapidun.stages.rows.bounded_weights import Weights, exp_bounded
from rapidun.stages.weights_file import read_lines, read_weights


class Group(NamedTuple):
    """One group's weights [n] and what is said of them."""

    weights: Floats
    facts: dict[str, Any]
    # [n], what the weights were made from; None where there are no scores
    scores: Floats | None = None


class Mapped(NamedTuple):
    """The stage's result before it is written. ids: by group, None where no file names the rows."""

    groups: dict[str, Group]
    ids: dict[str, list[str] | None]
    extra: dict[str, Any]
    warnings: list[str]


def _from_scores(cfg: MappingConfig, files: MappingFiles, seed: int) -> Mapped:
    """rapidun and the like, whatever its scores are of: aggregate, fuse, then exponentiate or split."""
    main, ids_path = scores_in_use(cfg, files)
    counts = {"forget": main.num_forget, "retain": main.num_retain}
    ids = row_ids(files, ids_path=ids_path, counts=counts)
    sources = [main, *further_scores(cfg, ids=ids, counts=counts)]
    _need_different(cfg, sources)
    scored = [score_rows(cfg, scores) for scores in sources]
    warnings = [
        line for scores, rows in zip(sources, scored, strict=True) for line in (*scores.warnings, *rows.warnings)
    ]
    groups = {}
    for group in GROUPS:
        fused, scale = combined([rows.groups[group] for rows in scored])
        for place, rows in enumerate(scored[1:]):
            if float(np.ptp(rows.groups[group].scores)) == 0.0:
                warnings.append(
                    f"mapping: all {group} scores of mapping.scores.also[{place}] are equal: they say nothing"
                )
        if cfg.map is Map.split:
            groups[group], found = _split(cfg, fused, scale, [rows.groups[group] for rows in scored])
        else:
            zeros = max(scored[0].zero_shares[name] or 0.0 for name in OWN_BLOCKS[group])
            groups[group], found = _exponential(cfg, group, fused, scale, zeros)
        warnings += found
    extra = {"scores_from": main.origin, "zero_share_after_top_k": scored[0].zero_shares}
    return Mapped(groups, ids, extra, warnings)


def _need_different(cfg: MappingConfig, sources: list[Scores]) -> None:
    """Raises: DataError where one influence is named twice: it would count as two opinions."""
    for place, one in enumerate(sources[1:]):
        for other in sources[: place + 1]:
            same = [np.array_equal(one.blocks[name].values, other.blocks[name].values) for name in one.blocks]
            if all(same):
                raise DataError(
                    f"mapping.scores.also[{place}]: need influence that differs from the others, got "
                    f"{cfg.scores.also[place]}, whose scores are those of another one. Take it out"
                )


def _exponential(
    cfg: MappingConfig, group: str, fused: Floats, scale: float, zero_share: float
) -> tuple[Group, list[str]]:
    tau, bounds = (cfg.tau_f, cfg.forget) if group == "forget" else (cfg.tau_r, cfg.retain)
    floor = cfg.mad_floor * scale if cfg.mad_floor_relative else cfg.mad_floor
    standardised = robust_z(fused, mad_floor=floor)
    to_weights = exp_bounded if cfg.bounded else exp_clip
    result = to_weights(standardised.z, tau=tau, low=bounds.w_min, high=bounds.w_max)
    facts = describe_mapped(result, standardised)
    warnings = group_warnings(
        facts,
        group=group,
        tau=tau,
        w_min=bounds.w_min,
        w_max=bounds.w_max,
        mad_floor=cfg.mad_floor,
        relative=cfg.mad_floor_relative,
        zero_share=zero_share,
    )
    return Group(result.weights, facts, fused), warnings


def _split(cfg: MappingConfig, fused: Floats, scale: float, own: list[GroupScores]) -> tuple[Group, list[str]]:
    """Weight 0 below the split, equal weights above; uniform weights where it abstains."""
    rule = {
        "min_separation": cfg.split.min_separation,
        "min_evidence": cfg.split.min_evidence,
        "max_dropped": cfg.split.max_dropped,
    }
    if cfg.scores.combine is Combine.agree:
        split = agreed([split_scores(one.scores, scale=one.scale, **rule) for one in own])
    else:
        split = split_scores(fused, scale=scale, **rule)
    weights = kept_equally(split.dropped)
    facts = {**describe(weights), **describe_split(split)}
    return Group(weights, facts, fused), []


def _from_losses(cfg: MappingConfig, files: MappingFiles, seed: int) -> Mapped:
    """loreun_static, loreun_dynamic (where it begins) and loreun_release: F by the rows' losses, R 1."""
    ids, losses, num_retain = losses_in_use(files)
    tau, bounds = cfg.loreun.tau, cfg.forget
    released = cfg.method is Weighting.loreun_release
    rule = loreun_release if released else loreun
    result = rule(losses, tau=tau, low=bounds.w_min, high=bounds.w_max)
    mapped = _of_forget(
        cfg, result, losses if released else -losses, num_retain, ids, what="losses", key="loreun", tau=tau
    )
    extra = {"losses": {"mean": float(np.mean(losses)), "min": float(np.min(losses)), "max": float(np.max(losses))}}
    warnings = list(mapped.warnings)
    if released and abs(mean := mapped.groups["forget"].facts["mean"] - 1.0) > 0.05:
        warnings.append(
            f"mapping: the forget weights have mean {1.0 + mean:.3g} after the clip, as released: it scales the forget "
            "loss by as much. Pass mapping=loreun_static for weights of mean 1"
        )
    return mapped._replace(extra=extra, warnings=warnings)


def _guard(cfg: MappingConfig, files: MappingFiles, seed: int) -> Mapped:
    """F by the alignment with the mean retain gradient, R 1."""
    scores, ids_path = scores_in_use(cfg, files)
    counts = {"forget": scores.num_forget, "retain": scores.num_retain}
    ids = row_ids(files, ids_path=ids_path, counts=counts)
    settings, bounds = cfg.guard, cfg.forget
    found = alignments(scores, cosine=settings.alignment is Alignment.cosine)
    result, unit = guard(found, tau=settings.tau, relative=settings.relative, low=bounds.w_min, high=bounds.w_max)
    mapped = _of_forget(cfg, result, -found, counts["retain"], ids, what="alignments", key="guard", tau=settings.tau)
    warnings = [*scores.warnings, *mapped.warnings]
    if scores.origin == "blocks":
        warnings.append(
            "mapping: guard is defined on dot products; the scores file has no tensor `gram`, so its blocks are taken "
            "for such. Make it with influence.score=dot"
        )
    return mapped._replace(extra={"scores_from": scores.origin, "alignment_unit": unit}, warnings=warnings)


def _of_forget(
    cfg: MappingConfig,
    result: Weights,
    scores: Floats,
    num_retain: int,
    ids: dict[str, list[str] | None],
    *,
    what: str,
    key: str,
    tau: float,
) -> Mapped:
    """Weights of the forget rows, with what they were made from [n], larger = more weight; R 1."""
    facts = describe_bounded(result, scores)
    warnings = bounded_warnings(
        facts,
        what=what,
        tau_key=f"{key}.tau",
        tau=tau,
        w_min=cfg.forget.w_min,
        w_max=cfg.forget.w_max,
        constant=float(np.ptp(scores)) == 0.0,
    )
    retain = baselines.uniform(num_retain)
    groups = {"forget": Group(result.weights, facts, scores), "retain": Group(retain, describe(retain))}
    return Mapped(groups, ids, {}, warnings)


def _oracle(cfg: MappingConfig, files: MappingFiles, seed: int) -> Mapped:
    """0 for rows that the pack knows to stand in the wrong group, equal weights for the others."""
    ids, _ = rows_in_use(cfg, files)
    weights = {}
    for group, wrong in wrong_rows(files, ids).items():
        if all(known is None for known in wrong):
            raise DataError(
                f"mapping: need rows that say is_poisoned with method=oracle, got {len(wrong)} {group} rows without "
                "it. Use a pack that knows its wrong rows (data.noise.forget=0.25, say), or another mapping"
            )
        dropped = np.array([known is True for known in wrong])
        if dropped.all():
            raise DataError(f"mapping: need a {group} row that is not wrong with method=oracle, got none")
        weights[group] = kept_equally(dropped)
    return _plain(weights, ids)


def _uniform(cfg: MappingConfig, files: MappingFiles, seed: int) -> Mapped:
    """Every weight 1."""
    ids, counts = rows_in_use(cfg, files)
    return _plain({group: baselines.uniform(counts[group]) for group in GROUPS}, ids)


def _redrawn(cfg: MappingConfig, files: MappingFiles, seed: int) -> Mapped:
    """`mapping=shuffled` and `mapping=random`: the nulls of `rapidun` under the same settings."""
    return nulled(_from_scores(cfg, files, seed), Null[cfg.method.name], seed=seed, of="rapidun")


def nulled(mapped: Mapped, null: Null, *, seed: int, of: str = "of") -> Mapped:
    """Exchange the weights of any weighting for those of a null hypothesis, group by group.

    What is said of the weighting itself stays, under the name `of`; its scores are left out, since no weight here was
    made from them.
    """
    if null is Null.none:
        return mapped
    weights, warnings = {}, list(mapped.warnings)
    for group in GROUPS:
        base = mapped.groups[group].weights
        if float(np.ptp(base)) == 0.0:
            warnings.append(
                f"mapping: all {group} weights are equal before null={null.name} as well: it is the same weighting "
                "there, and no difference between the two says anything"
            )
        generator = baselines.group_generator(seed, null.name, group)
        weights[group] = baselines.NULLS[null.name](base, generator=generator)
        mean = math.fsum(base) / len(base)
        # weights made elsewhere may scale a group's loss: so does their null. Those made here have mean 1
        if null is Null.random and not math.isclose(mean, 1.0, rel_tol=1e-9):
            weights[group] = mean * weights[group]
    extra = {**mapped.extra, of: {group: mapped.groups[group].facts for group in GROUPS}}
    return _plain(weights, mapped.ids)._replace(extra=extra, warnings=warnings)


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
    warnings: list[str] = []
    for group in GROUPS:
        path = Path(str(paths[group])).expanduser()
        names = ids[group]
        known = names is not None
        if names is None:
            # no pack to match: the file itself says which rows there are
            lines = read_lines(path)
            if all(line.id is not None for line in lines):
                names = [str(line.id) for line in lines]
                ids[group] = names
            else:
                names = [f"index {index}" for index in range(len(lines))]
        weights[group] = np.asarray(read_weights(path, names, warnings=warnings if known else None), dtype=np.float64)
    mapped = _plain(weights, ids)
    warnings += [line for group in GROUPS for line in file_warnings(mapped.groups[group].facts, group=group)]
    return mapped._replace(warnings=warnings)


# weighting -> (config, files, seed) -> Mapped; what a weighting reads stands beside its name in config/mapping.py
WEIGHTINGS: dict[Weighting, Callable[[MappingConfig, MappingFiles, int], Mapped]] = {
    Weighting.rapidun: _from_scores,
    Weighting.rapidun_release: _from_scores,
    Weighting.uniform: _uniform,
    Weighting.strength: _from_scores,
    Weighting.recommended: _from_scores,
    Weighting.contrastive: _from_scores,
    Weighting.repsim: _from_scores,
    Weighting.guard: _guard,
    Weighting.loreun_static: _from_losses,
    Weighting.loreun_dynamic: _from_losses,
    Weighting.loreun_release: _from_losses,
    Weighting.shuffled: _redrawn,
    Weighting.random: _redrawn,
    Weighting.file: _file,
    Weighting.oracle: _oracle,
}


class WeightingInputs(NamedTuple):
    """What a weighting that an extension brings is given."""

    # rows of each group, forget and retain
    counts: dict[str, int]
    # their ids, None where no file names them
    ids: dict[str, list[str] | None]
    # its settings object; None where it has none
    settings: Any
    seed: int
    # influence, blocks ff [nF, nF], fr [nF, nR], rf, rr: rows = training, columns = query; empty where it reads none
    scores: dict[str, Floats]

    def generator(self, group: str) -> np.random.Generator:
        """Random numbers of a group's own, from `seed`."""
        return baselines.group_generator(self.seed, "extension", group)


def _add(one: extensions.Added) -> None:
    """A weighting that an extension brings, under its name."""

    def weigh(cfg: MappingConfig, files: MappingFiles, seed: int) -> Mapped:
        scores: dict[str, Floats] = {}
        if one.traits["scores"]:
            found, ids_path = scores_in_use(cfg, files)
            counts = {"forget": found.num_forget, "retain": found.num_retain}
            ids = row_ids(files, ids_path=ids_path, counts=counts)
            scores = {name: np.asarray(block.values, dtype=np.float64) for name, block in found.blocks.items()}
        else:
            ids, counts = rows_in_use(cfg, files)
        settings = extensions.settings_of(extensions.Kind.weighting, one.name, cfg.extension)
        given = one.made(WeightingInputs(counts, ids, settings, seed, scores))
        weights = {group: _checked(one, given, group, counts[group]) for group in GROUPS}
        return _plain(weights, ids)

    WEIGHTINGS[Weighting[one.name]] = weigh


def _checked(one: extensions.Added, given: Any, group: str, count: int) -> Floats:
    """Raises: ConfigError for anything but a finite weight >= 0 for each row, one of them at least above 0."""
    try:
        weights = np.asarray(given[group], dtype=np.float64)
    except (KeyError, TypeError, ValueError) as error:
        got = f"{type(error).__name__}: {error}"
    else:
        if weights.shape == (count,) and np.all(np.isfinite(weights)) and np.all(weights >= 0) and np.any(weights > 0):
            return weights
        same = weights.shape == (count,) and count > 0
        got = f"numbers from {weights.min():g} to {weights.max():g}" if same else f"shape {list(weights.shape)}"
    raise ConfigError(
        f"mapping: need a finite weight >= 0 for each of {count} {group} rows, one above 0, from method={one.name}, "
        f"got {got}. Change {one.origin.name}"
    )


def _plain(weights: dict[str, Floats], ids: dict[str, list[str] | None]) -> Mapped:
    return Mapped({group: Group(weights[group], describe(weights[group])) for group in GROUPS}, ids, {}, [])


extensions.subscribe(extensions.Kind.weighting, _add)
