"""From influence blocks to one score for each row of either group, and what several influences say together."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rapidun.base.errors import DataError
from rapidun.config.mapping import MappingConfig, ScoreKind, ValueMode, Weighting
from rapidun.stages.mapping.aggregate import Aggregated, Block, aggregate_block, fuse
from rapidun.stages.mapping.release import BLOCKS
from rapidun.stages.mapping.scores import Scores

Floats = NDArray[np.float64]

# the blocks that a group's scores are made from: on its own queries, on the other group's
OWN_BLOCKS = {"forget": ("ff", "fr"), "retain": ("rr", "rf")}
# signed scores whose mean is a smaller share of their mean strength than this say little by their sign
NOISE_SHARE = 0.1


class GroupScores(NamedTuple):
    """scores: [n], larger = the row belongs to its group. scale: root mean square of what was fused."""

    scores: Floats
    scale: float


class RowScores(NamedTuple):
    """groups: by `forget`, `retain`. zero_shares: by block, share of zeros after top k, None without it."""

    groups: dict[str, GroupScores]
    zero_shares: dict[str, float | None]
    warnings: list[str]


def score_rows(cfg: MappingConfig, scores: Scores) -> RowScores:
    """Aggregate each block over its queries and weigh a row's own group against the other one.

    Raises: DataError where a file's lists are cut short and the settings need every pair.
    """
    blocks = scores.blocks
    if cfg.scores.kind is ScoreKind.strength:
        blocks = {name: _strength(block) for name, block in blocks.items()}
    aggregated = {name: _aggregate(cfg, name, blocks[name]) for name in BLOCKS}
    harmful = {name: _aggregate_harmful(cfg, name, blocks[name]) for name in BLOCKS} if cfg.use_harmful else None
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
    factors = {"ff": cfg.alpha, "fr": cfg.beta, "rr": cfg.gamma, "rf": cfg.delta}
    groups = {}
    for group, fused in (("forget", forget), ("retain", retain)):
        terms = [factors[name] * aggregated[name].scores for name in OWN_BLOCKS[group]]
        groups[group] = GroupScores(fused, float(np.sqrt(sum(np.mean(term**2) for term in terms))))
    zeros = {name: aggregated[name].zero_share for name in BLOCKS}
    return RowScores(groups, zeros, _score_warnings(cfg, scores))


def combined(sources: list[GroupScores]) -> GroupScores:
    """One score for each row from several influences: the mean of each one's scores over their standard deviation.

    One influence stays as it is, in its own unit. Scores that are all equal say nothing and count as 0.
    """
    if len(sources) == 1:
        return sources[0]
    parts = []
    for source in sources:
        deviation = source.scores - np.mean(source.scores)
        spread = float(np.std(source.scores))
        # a spread of a few roundings is none
        parts.append(deviation / spread if spread > 1e-12 * source.scale else np.zeros_like(deviation))
    mean = np.mean(parts, axis=0)
    return GroupScores(mean, float(np.sqrt(np.mean(mean**2))))


def _strength(block: Block) -> Block:
    """|score|, where a score is there; of cut lists the two are joined first, since both ends are strong."""
    values = block.values
    if block.harmful is not None:
        values = np.where(np.isnan(values), block.harmful, values)
    return Block(np.abs(values), same=block.same)


def _aggregate(cfg: MappingConfig, name: str, block: Block) -> Aggregated:
    values, place = block.values, block.place
    if cfg.top_k is None or cfg.mode is not ValueMode.value:
        values = _complete(cfg, name, block)
    return aggregate_block(
        values,
        place=place,
        mode=cfg.mode.name,
        aggregate=cfg.aggregate.name,
        num_top=cfg.aggregate_top,
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
        num_top=cfg.aggregate_top,
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
    if cfg.scores.kind is ScoreKind.signed and cfg.method is not Weighting.rapidun_release:
        found += _noise_warnings(scores)
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


def _noise_warnings(scores: Scores) -> list[str]:
    """Signed scores that scatter about zero: their sign, and so an uneven weight, is noise."""
    found = []
    for group, name in (("forget", "ff"), ("retain", "rr")):
        values, same = scores.blocks[name].values, scores.blocks[name].same
        total, strength, count = 0.0, 0.0, 0
        # row by row: the block may be large
        for row, line in enumerate(values):
            other = np.arange(len(line)) != row if same is None else ~same[row]
            pairs = line[~np.isnan(line) & other]
            total, strength, count = total + pairs.sum(), strength + np.abs(pairs).sum(), count + len(pairs)
        mean, strength = total / max(1, count), strength / max(1, count)
        if strength > 0 and abs(mean) < NOISE_SHARE * strength:
            found.append(
                f"mapping: signed scores between {group} rows scatter about zero (mean {mean:.2g}, mean strength "
                f"{strength:.2g}), so that uneven {group} weights may be no better than noise. "
                f"Pass mapping.scores.kind=strength, mapping=recommended or mapping=uniform"
            )
    return found
