"""KLOM: how far the outputs of unlearned models are from those of retrained ones, point by point, over several of each.

Read from the margins that evaluation.privacy.run=[margins] leaves in each run folder; no model is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidun.base.errors import ArtifactError, DataError
from rapidun.base.files import read_json
from rapidun.report.sweep.cells import Cell, key_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Margins = NDArray[np.float64]

# models of each kind below which a distribution over models is none
FEWEST = 3
BINS, EPSILON, LIMIT = 20, 1e-5, 100.0
# ways of dealing out the models that are tried for the value by chance
MOST_DEALS = 200
ROLES = ("unlearned", "poisoned")
# beside `seed`, what models of one setting differ in: the poisoned and the retrained one depend on this alone
SEEDS = ("poison.seed",)


def klom(
    models: Margins, retrained: Margins, *, bins: int = BINS, eps: float = EPSILON, limit: float = LIMIT
) -> Margins:
    """KL(margins of models || margins of retrained models) of each point, from histograms; [P] nats.

    Margins are cut to [-limit, limit]. The bins are equal parts of the range that both have at this point; shares of
    models in a bin are p and q, and the sum of p ln(p / q) runs over the bins with p > 0, q being at least eps. The
    last bin holds its upper end. A point where all margins are one value has 0. The largest value is ln(1 / eps),
    about 11.5.

    Args: models: [N, P]. retrained: [M, P]; N, M >= 3, all finite.
    Raises: ValueError for fewer, or where the points differ.
    Source: Georgiev et al. 2024, "Attribute-to-Delete" (arXiv 2410.23232), as the authors' public benchmark (Rinberg et
        al., arXiv 2602.16400) computes it: 20 bins, limit 100, eps 1e-5, the unlearned models' distribution first.
    """
    import numpy as np  # brings what the other commands need not wait for

    one, other = (np.clip(np.asarray(part, dtype=np.float64), -limit, limit) for part in (models, retrained))
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1] or min(len(one), len(other)) < FEWEST:
        raise ValueError(f"need margins of at least {FEWEST} models of each kind, got {one.shape} and {other.shape}")
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise ValueError("need margins that are finite numbers")
    low = np.minimum(one.min(axis=0), other.min(axis=0))
    width = np.maximum(one.max(axis=0), other.max(axis=0)) - low
    scale = np.where(width > 0, width, 1.0)

    def shares(values: Margins) -> Margins:
        # [N, P] -> [bins, P]; the last bin holds its upper end
        places = np.minimum(((values - low) / scale * bins).astype(int), bins - 1)
        counts = (places[None, :, :] == np.arange(bins)[:, None, None]).sum(axis=1)
        found: Margins = counts / len(values)
        return found

    p, q = shares(one), np.maximum(shares(other), eps)
    found: Margins = np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0) / q), 0.0).sum(axis=0)
    return found


def by_chance(models: Margins, retrained: Margins) -> Margins:
    """What klom would be, point by point, if models were dealt out to the two kinds at random: [P], a mean over deals.

    A few models fill a few bins, so that two draws from one distribution are far from 0 as well. Every way to deal them
    out counts where there are at most 200, else 200 of them, drawn by a fixed seed.
    """
    import numpy as np  # see klom

    pool, size = np.concatenate([models, retrained]), len(models)
    if comb(len(pool), size) <= MOST_DEALS:
        deals = [list(deal) for deal in combinations(range(len(pool)), size)]
    else:
        rng = np.random.default_rng(0)
        deals = [list(rng.permutation(len(pool))[:size]) for _ in range(MOST_DEALS)]
    total = np.zeros(pool.shape[1])
    for deal in deals:
        rest = np.setdiff1d(np.arange(len(pool)), deal)
        total += klom(pool[deal], pool[rest])
    found: Margins = total / len(deals)
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class KlomRow:
    """One set of points of one setting: KLOM of the unlearned, or of the poisoned models, to the retrained ones."""

    label: str
    role: str
    points: str
    num_points: int
    num_models: int
    num_retrained: int
    mean: float
    median: float
    # 95 % of the points are below
    high: float
    # mean over the points if models were dealt out at random
    chance: float


def klom_rows(cells: Sequence[Cell]) -> list[KlomRow]:
    """KLOM of every setting over its seeds (`seed`, `poison.seed`), from the run folders.

    A model that several runs share counts once. Points are those that all models of a setting were asked, with the same
    tokens.

    Raises: DataError where a setting has fewer than 3 different unlearned or retrained models, or no points in common;
        ArtifactError where a file is damaged.
    """
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        if cell.state == "done":
            settings = tuple(one for one in cell.settings if key_of(one) not in SEEDS)
            groups.setdefault(settings, []).append(cell)
    if not groups:
        raise DataError("klom: need finished runs, found none. Pass rapidun klom DIR...")
    rows = []
    shared = set.intersection(*map(set, groups))
    for settings in sorted(groups):
        label = " ".join(one for one in settings if one not in shared) or "all runs"
        rows += _group_rows(label, groups[settings])
    return rows


def _group_rows(label: str, cells: Sequence[Cell]) -> list[KlomRow]:
    import numpy as np  # see klom

    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for cell in cells:
        for role, values in read_margins(cell.path).items():
            found.setdefault(role, {})[values["model"]] = values["points"]
    for role in ("unlearned", "retrain"):
        if len(found.get(role, {})) < FEWEST:
            raise DataError(
                f"klom: {label}: need at least {FEWEST} different {'retrained' if role == 'retrain' else role} models "
                f"(one distribution over models against another), got {len(found.get(role, {}))} of {len(cells)} runs. "
                "Pass evaluation.privacy.run=[margins] poison.retrain=true and more seeds, as -m poison.seed=1,2,3"
            )
    rows = []
    retrained = list(found["retrain"].values())
    for role in ROLES:
        models = list(found.get(role, {}).values())
        if len(models) < FEWEST:
            continue
        for points in models[0]:
            tables = [
                {(one["id"], one["tokens"]): float(one["margin"]) for one in model.get(points, [])}
                for model in (*models, *retrained)
            ]
            common = sorted(set.intersection(*map(set, tables)))
            if not common:
                raise DataError(
                    f"klom: {label}: need points ({points}) that all models were asked with the same tokens, got none. "
                    "Compare runs of one pack, with one evaluation.privacy.seed, tokenizer and max_length"
                )
            margins = np.array([[table[key] for key in common] for table in tables])
            ours, theirs = margins[: len(models)], margins[len(models) :]
            values = klom(ours, theirs)
            rows.append(
                KlomRow(
                    label=label, role=role, points=points, num_points=len(common), num_models=len(models),
                    num_retrained=len(theirs), mean=float(values.mean()), median=float(np.median(values)),
                    high=float(np.quantile(values, 0.95)), chance=float(by_chance(ours, theirs).mean()),
                )
            )  # fmt: skip
    return rows


def read_margins(run_dir: Path) -> dict[str, Any]:
    """{role: {"model", "points"}} of a run folder's evaluation/margins.json.

    Raises: DataError where there is none, ArtifactError where it is damaged.
    """
    path = run_dir / "evaluation" / "margins.json"
    if not path.is_file():
        raise DataError(
            f"{run_dir}: need evaluation/margins.json, found none. Run it with evaluation.privacy.run=[margins] and "
            "poison.retrain=true"
        )
    value = read_json(path)
    is_sound = isinstance(value, dict) and all(
        isinstance(one, dict) and isinstance(one.get("model"), str) and isinstance(one.get("points"), dict)
        for one in value.values()
    )
    if not is_sound:
        raise ArtifactError(f"{path}: need the margins of each model by set, got something else. Run it again")
    found: dict[str, Any] = value
    return found
