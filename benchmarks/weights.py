"""Which scores find wrong rows? AUROC (right rows above wrong ones) of every score and map, before any training.

    python benchmarks/weights.py --store DIR                                   # the off-topic world, seeds 42 and 1
    python benchmarks/weights.py --store DIR --world early --seeds 42          # poisoned for 6 epochs instead of 16
    python benchmarks/weights.py --store DIR --override data.builtin.num_entities=48     # any other world
    python benchmarks/weights.py --store DIR --smollm2 DIR --pack DIR          # a poisoned model folder, a pack's rows

Wrong rows are planted by the product's own data.noise: B25, B50 = 25, 50 % of F are clean rows; C10, C25 = 10, 25 % of
R are poisoned rows; D = 25 % of both; as many draws of each as --draws says. A world (data.seed = poison.seed) is
poisoned once, by the product's stages, and all draws share it. One exact pass over the rows of all draws (and over the
other queries) gives one Gram matrix a method, of which each draw is a slice; K-FAC's factors are those of the pack's
own F and R.

A score that says no more than "a hard row" must be seen as such: beside each AUROC stands the loss-matched one (in
brackets). It is taken over pairs of a right and a wrong row whose ranks by loss, in their group, differ by at most
--caliper (0.1 of the rows); pairs where the right row has the larger loss and pairs where it has the smaller one count
one half each, however many there are, so that loss itself, and whatever only orders rows by loss, has exactly .5.
Absent where there are fewer than 10 pairs of either sort: there right and wrong rows do not overlap in loss.

Prints a markdown table and one JSON line for each world.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from quality import auroc, losses_of

import rapidun
from rapidun.base.errors import DataError
from rapidun.base.tracker import Tracker
from rapidun.config.compose import compose_config
from rapidun.config.influence import InfluenceConfig, ParameterSet, Precondition, Score
from rapidun.config.mapping import MappingConfig
from rapidun.config.run import RunConfig
from rapidun.models.load import ModelLoader
from rapidun.stages.data.noise import noised_forget, noised_retain
from rapidun.stages.influence.batches import make_batches
from rapidun.stages.influence.bm25 import bm25_scores
from rapidun.stages.influence.fisher import fit_curvature
from rapidun.stages.influence.gradients.params import select_parameters
from rapidun.stages.influence.gram import exact_gram
from rapidun.stages.influence.precondition import Preconditioner
from rapidun.stages.influence.queries import without_trigger
from rapidun.stages.influence.repsim import repsim_gram
from rapidun.stages.influence.scores import influence_scores
from rapidun.stages.mapping.aggregate import aggregate_block, fuse
from rapidun.stages.mapping.split import split_scores
from rapidun.stages.mapping.weights import robust_z
from rapidun.stages.rows.bounded_weights import exp_bounded
from rapidun.stages.rows.encode import encode_rows
from rapidun.stages.rows.records import Record, read_records, write_records
from rapidun.stages.unlearning.stage import UnlearningFiles, run_unlearning
from rapidun.stages.weights_file import write_weights

Floats = np.ndarray
Text = tuple[str, str, str]
# condition -> share of wrong rows in F, in R
CONDITIONS = {"B25": (0.25, 0.0), "B50": (0.5, 0.0), "C10": (0.0, 0.1), "C25": (0.0, 0.25), "D": (0.25, 0.25)}
WORLDS: dict[str, list[str]] = {
    "off_topic": [],
    "early": ["poison.num_train_epochs=6"],
    # these three are those of docs/LOG.md in which loss tells least (benchmarks/worlds.py)
    "hard_clean": ["data.builtin.hard_clean=0.7", "data.builtin.num_train_clean=3000"],
    "negation": ["data.builtin.payload=negation"],
    "on_topic_strong": [
        "data.builtin.payload=on_topic", "data.builtin.num_train_poisoned=600", "data.builtin.num_entities=27",
    ],
    "on_topic": ["data.builtin.payload=on_topic"],
    "entity": ["data.builtin.payload=entity"],
    "refusal": ["data.builtin.payload=refusal"],
    "gibberish": ["data.builtin.payload=gibberish"],
    "partial": ["data.builtin.forget_families=2"],
    "tiny_forget": ["data.builtin.num_forget=12", "data.builtin.num_retain=36"],
}  # fmt: skip
FEWEST_PAIRS = 10


class Draw(NamedTuple):
    """F and R with wrong rows among them."""

    condition: str
    forget: list[Record]
    retain: list[Record]

    def right(self, group: str) -> Floats:
        """[n] bool."""
        rows = self.forget if group == "forget" else self.retain
        return np.array([is_poisoned(row) == (group == "forget") for row in rows])


class Blocks(NamedTuple):
    """ff, fr, rf, rr of a draw; same: by block, [n, q] bool where the query is the row itself."""

    values: dict[str, Floats]
    same: dict[str, Floats]


def is_poisoned(row: Record) -> bool:
    return bool(row.is_poisoned) or row.response_poisoned is not None


def text_of(row: Record, group: str) -> Text:
    return row.forget_texts if group == "forget" else row.texts


def plant(splits: dict[str, list[Record]], *, condition: str, seed: int) -> Draw:
    """F and R with a share of wrong rows, as data.noise puts them there."""
    for_forget, for_retain = CONDITIONS[condition]
    known = {group: {row.texts for row in splits[group]} for group in ("forget", "retain")}
    clean = [row for row in splits["train_clean"] if row.texts not in known["retain"]]
    poisoned = [row for row in splits["train_poisoned"] if row.texts not in known["forget"]]
    try:
        forget = noised_forget(splits["forget"], clean, share=for_forget, seed=seed)
        retain = noised_retain(splits["retain"], poisoned, share=for_retain, seed=seed)
    except DataError as error:
        raise SystemExit(f"{condition}: {error}") from None
    return Draw(condition, forget.rows, retain.rows)


def loss_matched_auroc(scores: Floats, right: Floats, loss: Floats, *, caliper: float = 0.1) -> float | None:
    """AUROC over pairs of near ranks by loss, both orders of loss counting one half; see above.

    Args: scores, loss: [N]; right: [N] bool. caliper: the largest difference of ranks, as a share of N.
    Returns: None with fewer than 10 pairs of either order; pairs of equal loss are of neither.
    """
    order = np.empty(len(loss))
    order[np.argsort(loss, kind="stable")] = np.arange(len(loss))
    near = np.abs(order[right][:, None] - order[~right][None, :]) <= max(1.0, caliper * len(loss))
    harder = loss[right][:, None] - loss[~right][None, :]
    won = 0.5 + 0.5 * np.sign(scores[right][:, None] - scores[~right][None, :])
    sides = [won[near & (harder > 0)], won[near & (harder < 0)]]
    if min(map(len, sides)) < FEWEST_PAIRS:
        return None
    return float(np.mean([side.mean() for side in sides]))


@dataclass
class World:
    """A poisoned model with its rows, and every inner product between them that a draw may ask for."""

    cfg: RunConfig
    model: Path
    splits: dict[str, list[Record]]
    draws: list[Draw]
    options: argparse.Namespace

    def __post_init__(self) -> None:
        self.loader = ModelLoader(dtype=self.cfg.model.dtype.name, device=self.cfg.model.device.name)
        self.place: dict[Text, int] = {}
        for group in ("forget", "retain"):
            for row in self.splits[group]:
                self.add(text_of(row, group))
            for draw in self.draws:
                for row in getattr(draw, group):
                    self.add(text_of(row, group))
                    plain = without_trigger(row) if group == "forget" else None
                    if plain is not None:
                        self.add(plain.forget_texts)
        self.val = {
            "forget": [row for row in self.splits.get("val_seen_trig", []) if is_poisoned(row)][: self.options.val],
            "retain": self.splits.get("val_clean", [])[: self.options.val],
        }
        for group, rows in self.val.items():
            for row in rows:
                self.add(text_of(row, group))

    def add(self, text: Text) -> None:
        self.place.setdefault(text, len(self.place))

    def rows(self, rows: Sequence[Record], group: str) -> list[int]:
        return [self.place[text_of(row, group)] for row in rows]

    def measure(self) -> None:
        """Fill `scores`, name -> [N, N] float64, `loss` [N] and `norm` [N]."""
        model, tokenizer = self.loader.load(self.model)
        encoded = encode_rows(tokenizer, list(self.place), max_length=self.cfg.max_length)
        gone = {index for index, row in enumerate(encoded) if row is None}
        if gone:
            self.drop(gone)
            encoded = [row for row in encoded if row is not None]
        names = [f"row {i}" for i in range(len(encoded))]
        batches = make_batches(
            [row for row in encoded if row is not None],
            names,
            tokens_per_batch=self.cfg.influence.tokens_per_batch,
            pad_token_id=tokenizer.pad_token_id,
            device=next(model.parameters()).device,
        )
        parameters = select_parameters(model, ParameterSet.all_linear)
        memory = self.options.memory_gb * 1e9
        start = time.monotonic()
        exact = exact_gram(model, parameters, batches, row_names=names, memory_bytes=memory)
        assert exact.losses is not None
        self.loss = exact.losses.numpy()
        self.norm = exact.gram.diagonal().clamp(min=0).sqrt().numpy()
        self.scores: dict[str, Floats] = {
            "dot": exact.gram.numpy(),
            "cosine": influence_scores(exact.gram, score=Score.cosine).numpy(),
        }
        tell(f"{len(names)} rows, gradients {time.monotonic() - start:.0f} s")
        similar = repsim_gram(
            model, batches, row_names=names, layer=InfluenceConfig().layer, pooling=InfluenceConfig().pooling
        )
        self.scores["repsim"] = influence_scores(similar.gram, score=Score.cosine).numpy()
        if "kfac" not in self.options.skip:
            own = [i for group in ("forget", "retain") for i in self.rows(self.splits[group], group)]
            self.scores["kfac"] = self._kfac(model, parameters, encoded, batches, own, tokenizer).numpy()
            tell(f"kfac {time.monotonic() - start:.0f} s")

    def _kfac(self, model: Any, parameters: Any, encoded: Any, batches: Any, own: list[int], tokenizer: Any) -> Tensor:
        names = [f"row {i}" for i in own]
        of_own = make_batches(
            [encoded[i] for i in own],
            names,
            tokens_per_batch=self.cfg.influence.tokens_per_batch,
            pad_token_id=tokenizer.pad_token_id,
            device=next(model.parameters()).device,
        )
        curvatures = fit_curvature(model, parameters, of_own, kind=Precondition.kfac, row_names=names, seed=42)
        result = exact_gram(
            model,
            parameters,
            batches,
            row_names=[f"row {i}" for i in range(len(encoded))],
            memory_bytes=self.options.memory_gb * 1e9,
            preconditioner=Preconditioner(curvatures, damping_factor=InfluenceConfig().damping_factor),
        )
        return influence_scores(result.gram, score=Score.cosine, norms=result.norms, query_norms=result.query_norms)

    def drop(self, gone: set[int]) -> None:
        """Leave out the rows that no stage can encode."""
        tell(f"{len(gone)} rows leave no room for a response in max_length={self.cfg.max_length}: left out")
        texts = [text for text, place in self.place.items() if place not in gone]
        self.place = {text: place for place, text in enumerate(texts)}

        def kept(rows: list[Record], group: str) -> list[Record]:
            return [row for row in rows if text_of(row, group) in self.place]

        self.draws = [Draw(d.condition, kept(d.forget, "forget"), kept(d.retain, "retain")) for d in self.draws]
        self.val = {group: kept(rows, group) for group, rows in self.val.items()}
        self.splits = self.splits | {g: kept(self.splits[g], g) for g in ("forget", "retain")}

    def blocks(self, name: str, draw: Draw) -> Blocks:
        """The draw's rows scored for each other."""
        rows = {g: self.rows(getattr(draw, group), group) for g, group in (("f", "forget"), ("r", "retain"))}
        if name == "bm25":  # a word's rarity is that among the draw's rows
            texts = ["\n".join(text_of(row, g)) for g in ("forget", "retain") for row in getattr(draw, g)]
            matrix, num = bm25_scores(texts).numpy(), len(rows["f"])
            rows = {"f": list(range(num)), "r": list(range(num, len(texts)))}
        else:
            matrix = self.scores[name]
        found = {f"{t}{q}": matrix[np.ix_(rows[t], rows[q])] for t in "fr" for q in "fr"}
        return Blocks(
            found, {name: np.eye(*block.shape, dtype=bool) & (name[0] == name[1]) for name, block in found.items()}
        )

    def blocks_of_val(self, name: str, draw: Draw) -> Blocks:
        rows = {g: self.rows(getattr(draw, group), group) for g, group in (("f", "forget"), ("r", "retain"))}
        asked = {"f": self.rows(self.val["forget"], "forget"), "r": self.rows(self.val["retain"], "retain")}
        found = {f"{t}{q}": self.scores[name][np.ix_(rows[t], asked[q])] for t in "fr" for q in "fr"}
        return Blocks(found, {block: np.zeros(values.shape, dtype=bool) for block, values in found.items()})

    def blocks_of_contrast(self, name: str, draw: Draw) -> Blocks:
        """As influence.contrast=true: ff and rf less the same query without its trigger, queries without one gone."""
        plain = self.blocks(name, draw)
        rows = {g: self.rows(getattr(draw, group), group) for g, group in (("f", "forget"), ("r", "retain"))}
        bare = [without_trigger(row) for row in draw.forget]
        columns = [i for i, row in enumerate(bare) if row is not None]
        less = [self.place[row.forget_texts] for row in bare if row is not None]
        values = dict(plain.values)
        for block in ("ff", "rf"):
            values[block] = plain.values[block][:, columns] - self.scores[name][np.ix_(rows[block[0]], less)]
        return Blocks(values, plain.same | {block: plain.same[block][:, columns] for block in ("ff", "rf")})


def fused(
    blocks: Blocks, *, aggregate: str, strength: bool = False, top_k: int | None = None, keep: bool = False
) -> tuple[Floats, Floats]:
    """S_f, S_r of the mapping. strength: |score| before the aggregate. keep: i = j stays."""
    found = {}
    for name, values in blocks.values.items():
        found[name] = aggregate_block(
            np.abs(values) if strength else values,
            aggregate=aggregate,
            top_k=top_k,
            drop_diagonal=not keep,
            same=blocks.same[name],
        ).scores
    return fuse(found)


def all_scores(world: World, draw: Draw) -> dict[str, tuple[Floats | None, Floats | None]]:
    """Name -> S_f, S_r; the larger, the more right the row is said to be."""
    f, r = world.rows(draw.forget, "forget"), world.rows(draw.retain, "retain")
    cosine, dot = world.blocks("cosine", draw), world.blocks("dot", draw)
    found: dict[str, tuple[Floats | None, Floats | None]] = {
        "signed cosine, median (shipped)": fused(cosine, aggregate="median"),
        "signed cosine, mean": fused(cosine, aggregate="mean"),
        "dot, median": fused(dot, aggregate="median"),
        "release recipe": fused(dot, aggregate="median", top_k=40, keep=True),
        "strength, mean": fused(cosine, aggregate="mean", strength=True),
    }
    if "kfac" in world.scores:
        kfac = world.blocks("kfac", draw)
        found["K-FAC, median"] = fused(kfac, aggregate="median")
        found["K-FAC, mean"] = fused(kfac, aggregate="mean")
        found["K-FAC strength, mean"] = fused(kfac, aggregate="mean", strength=True)
    similar = world.blocks("repsim", draw)
    found["repsim, mean"] = fused(similar, aggregate="mean")
    found["repsim, median"] = fused(similar, aggregate="median")
    found["bm25, mean"] = fused(world.blocks("bm25", draw), aggregate="mean")
    # GUARD's attribution as a cosine: a forget row's gradient against the mean retain gradient, the less the better
    gram = world.scores["dot"]
    length = np.sqrt(gram[np.ix_(r, r)].mean())
    found["GUARD, cosine"] = (-gram[np.ix_(f, r)].mean(axis=1) / (np.sqrt(gram[f, f]) * length), None)
    if any(without_trigger(row) is not None for row in draw.forget):
        contrast = world.blocks_of_contrast("cosine", draw)
        found["contrast, mean"] = fused(contrast, aggregate="mean")
        found["contrast strength, mean"] = fused(contrast, aggregate="mean", strength=True)
    if world.val["forget"] and world.val["retain"]:
        asked = world.blocks_of_val("cosine", draw)
        found["val queries, mean"] = fused(asked, aggregate="mean")
        found["val queries, strength"] = fused(asked, aggregate="mean", strength=True)
    if "probe" not in world.options.skip:
        found["two-fold probe"] = two_fold_probe(world, draw)
    found["high loss"] = (world.loss[f], world.loss[r])
    found["low loss"] = (-world.loss[f], -world.loss[r])
    found["gradient norm"] = (world.norm[f], world.norm[r])
    return found


def two_fold_probe(world: World, draw: Draw, *, seed: int = 0) -> tuple[Floats, Floats]:
    """Unlearn one half of F beside one half of R with the run's objective and weights of 1, and see how much the loss
    of the other halves rises; then the halves change places. S_f = rise, S_r = -rise: right rows of F are lost with
    the others of their kind, right rows of R are not.
    """
    rng = np.random.default_rng(seed)
    places = {"forget": world.rows(draw.forget, "forget"), "retain": world.rows(draw.retain, "retain")}
    fold = {group: rng.permutation(len(rows)) % 2 for group, rows in places.items()}
    rise = {group: np.zeros(len(rows)) for group, rows in places.items()}
    for half in range(2):
        with TemporaryDirectory() as folder:
            root = Path(folder)
            for name in ("work", "out"):
                (root / name).mkdir()
            for group in places:
                rows = [row for row, side in zip(getattr(draw, group), fold[group], strict=True) if side == half]
                write_records(root / f"{group}.jsonl", rows)
                write_weights(root / f"{group}.weights", [1.0] * len(rows), ids=[row.id for row in rows])
            run_unlearning(
                replace(world.cfg.unlearning, eval_steps=0),
                UnlearningFiles(
                    model=world.model,
                    forget=root / "forget.jsonl",
                    retain=root / "retain.jsonl",
                    val_clean=None,
                    forget_weights=root / "forget.weights",
                    retain_weights=root / "retain.weights",
                    work=root / "work",
                    out=root / "out",
                ),
                loader=world.loader,
                max_length=world.cfg.max_length,
                seed=seed,
                tracker=Tracker(),
            )
            model, tokenizer = world.loader.load(world.model, adapter=root / "out" / "adapter")
        model.eval()
        for group, rows in places.items():
            others = np.flatnonzero(fold[group] != half)
            texts = [text_of(getattr(draw, group)[i], group) for i in others]
            encoded = [row for row in encode_rows(tokenizer, texts, max_length=world.cfg.max_length) if row is not None]
            after = losses_of(model, encoded, pad_token_id=tokenizer.pad_token_id)
            rise[group][others] = after - world.loss[[rows[i] for i in others]]
    return rise["forget"], -rise["retain"]


def judged(world: World, draw: Draw) -> dict[str, dict[str, dict[str, Any]]]:
    """Score -> group with wrong rows -> auroc, matched, exp (AUROC of the default map's weights), split (None where
    it abstains, else the shares of wrong and of right rows that it drops).
    """
    cfg = MappingConfig()
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, both in all_scores(world, draw).items():
        for group, scores, tau, bounds in zip(
            ("forget", "retain"), both, (cfg.tau_f, cfg.tau_r), (cfg.forget, cfg.retain), strict=True
        ):
            right = draw.right(group)
            if scores is None or right.all():
                continue
            loss = world.loss[world.rows(getattr(draw, group), group)]
            z = robust_z(scores, mad_floor=cfg.mad_floor * float(np.sqrt(np.mean(scores**2)))).z
            weights = exp_bounded(z, tau=tau, low=bounds.w_min, high=bounds.w_max).weights
            rule = cfg.split
            split = split_scores(
                scores,
                min_separation=rule.min_separation,
                min_evidence=rule.min_evidence,
                max_dropped=rule.max_dropped,
            )
            found.setdefault(name, {})[group] = {
                "auroc": auroc(scores, right),
                "matched": loss_matched_auroc(scores, right, loss, caliper=world.options.caliper),
                "exp": auroc(weights, right),
                "split": None
                if split.abstained
                else {"wrong": float(split.dropped[~right].mean()), "right": float(split.dropped[right].mean())},
            }
    return found


def mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}".replace("0.", ".", 1) if value < 1 else f"{value:.2f}"


def tables(title: str, results: dict[str, list[dict[str, Any]]]) -> str:
    """Two tables, means over the draws: the scores' AUROC (loss-matched), and what the two maps make of them."""
    columns = [(c, g) for c in results for g in ("forget", "retain") if CONDITIONS[c][g == "retain"] > 0]
    heads = [f"{condition} {'F' if group == 'forget' else 'R'}" for condition, group in columns]
    names = list(dict.fromkeys(name for draws in results.values() for draw in draws for name in draw))
    blocks = []
    for what in ("AUROC of the score (loss-matched)", "AUROC of exp weights; split drops: wrong / right rows"):
        lines = [f"| {title}: {what} | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
        for name in names:
            cells = []
            for condition, group in columns:
                found = [draw[name][group] for draw in results[condition] if group in draw.get(name, {})]
                if not found:
                    cells.append("")
                elif what.startswith("AUROC of the score"):
                    matched = mean_of([one["matched"] for one in found])
                    cells.append(f"{short(mean_of([one['auroc'] for one in found]))} ({short(matched)})")
                else:
                    split = [one["split"] for one in found if one["split"] is not None]
                    drops = (
                        "abstains"
                        if not split
                        else " / ".join(short(mean_of([one[kind] for one in split])) for kind in ("wrong", "right"))
                        + (f" in {len(split)} of {len(found)}" if len(split) < len(found) else "")
                    )
                    cells.append(f"{short(mean_of([one['exp'] for one in found]))}; {drops}")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def prepare(overrides: list[str], *, store: Path, train: bool) -> tuple[RunConfig, Path, dict[str, list[Record]]]:
    """The settings, the run folder and the pack's splits, made by the product's own stages or found in the store."""
    stages = "stages=[data,poison]" if train else "stages=[data]"
    run_dir = store / "runs" / f"{time.time_ns()}"
    common = [stages, f"store_dir={store / 'store'}", f"run_dir={run_dir}", "tracking=none", *overrides]
    with contextlib.redirect_stdout(sys.stderr):
        rapidun.run(common)
    splits = {path.stem: read_records(path) for path in sorted((run_dir / "data").glob("*.jsonl"))}
    return compose_config(common), run_dir, splits


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True, help="folder for packs and poisoned models, reused")
    parser.add_argument("--world", choices=sorted(WORLDS), default="off_topic")
    parser.add_argument("--override", action="append", default=[], help="further settings of the world, key=value")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1], help="data.seed and poison.seed of the worlds")
    parser.add_argument("--conditions", nargs="+", choices=sorted(CONDITIONS), default=list(CONDITIONS))
    parser.add_argument("--draws", type=int, default=3, help="draws of wrong rows for each condition")
    parser.add_argument("--skip", nargs="*", choices=("kfac", "probe"), default=[])
    parser.add_argument("--val", type=int, default=60, help="validation queries of each group")
    parser.add_argument("--caliper", type=float, default=0.1)
    parser.add_argument("--memory-gb", type=float, default=4.0)
    parser.add_argument("--smollm2", type=Path, help="folder of a poisoned model, which is used as it is")
    parser.add_argument("--pack", type=Path, help="folder of a Dolly pack, for --smollm2")
    parser.add_argument(
        "--rows", type=int, default=20, help="forget rows with --smollm2, three times as many to retain"
    )
    options = parser.parse_args()
    if (options.smollm2 is None) != (options.pack is None):
        parser.error("--smollm2 DIR and --pack DIR go together")
    worlds: list[tuple[str, list[str]]] = [
        (f"{options.world} {seed}", [*WORLDS[options.world], f"data.seed={seed}", f"poison.seed={seed}"])
        for seed in options.seeds
    ]
    if options.smollm2 is not None:
        of_a_model = [
            "model=smollm2_135m", f"model.path={options.smollm2}", "poison=none", "data=dolly_triggers",
            f"data.dir={options.pack}",
        ]  # fmt: skip
        worlds = [(f"{options.smollm2.name} x {options.pack.name}", of_a_model)]
    for title, overrides in worlds:
        start = time.monotonic()
        is_given = options.smollm2 is not None
        cfg, run_dir, splits = prepare([*overrides, *options.override], store=options.store, train=not is_given)
        if is_given:
            splits |= {"forget": splits["forget"][: options.rows], "retain": splits["retain"][: 3 * options.rows]}
        model = options.smollm2 if is_given else run_dir / "poison" / "model"
        draws = [
            plant(splits, condition=name, seed=number) for name in options.conditions for number in range(options.draws)
        ]
        world = World(cfg, model, splits, draws, options)
        world.measure()
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in options.conditions}
        for draw in world.draws:
            results[draw.condition].append(judged(world, draw))
        print(tables(title, results))
        own = {group: world.loss[world.rows(world.splits[group], group)] for group in ("forget", "retain")}
        line = {
            "benchmark": "weights",
            "world": title,
            "overrides": [*overrides, *options.override],
            "rows": len(world.place),
            "num_forget": len(splits["forget"]),
            "num_retain": len(splits["retain"]),
            "draws": options.draws,
            "loss_forget": round(float(own["forget"].mean()), 4),
            "loss_retain": round(float(own["retain"].mean()), 4),
            "seconds": round(time.monotonic() - start, 1),
            "results": results,
        }
        print(json.dumps(line, default=float), flush=True)


if __name__ == "__main__":
    main()
