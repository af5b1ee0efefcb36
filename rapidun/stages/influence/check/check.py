"""How far an influence setting can be trusted on a model and a pack, and what it costs, measured on some rows."""

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rapidun.base.machine import Measured
from rapidun.config.influence import WITHOUT_GRADIENTS, InfluenceConfig, InfluenceMethod, Score
from rapidun.models.losses import example_cross_entropy
from rapidun.stages.influence.batches import RowBatch
from rapidun.stages.influence.bm25 import bm25_scores
from rapidun.stages.influence.check.fidelity import Fidelity, Share, effective_k_interval, fidelity, shares
from rapidun.stages.influence.gradients.capture import frozen
from rapidun.stages.influence.gradients.params import TrackedParameter, num_numbers
from rapidun.stages.influence.gram import estimated_gram, exact_gram
from rapidun.stages.influence.repsim import repsim_gram
from rapidun.stages.influence.scores import gradient_norms, influence_scores
from rapidun.stages.influence.stage import SKETCHES

# rows of a query's best; of a small sample a quarter, since half of it would be found by chance
TOP = 10
# a sketch whose effective K is at least this share of its numbers does what it can
GOOD_SHARE = 0.5
# rank correlation with exact scores that rankings can be trusted at
GOOD_SPEARMAN = 0.95
# one group of weights that makes up more of the score than this speaks for all
DOMINANT = 0.7


class Cost(NamedTuple):
    """Medians over the rounds."""

    seconds: float
    floor_seconds: float
    ratio: float  # of the ratios of neighbours, not of the medians: machines drift


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was found; `as_json` is what `rapidun influence check --json` writes."""

    method: str
    params: str | None
    num_rows: int
    num_tokens: int
    num_zero: int
    num_truncated: int
    numbers_per_row: int | None  # kept of each row; None where nothing is
    num_parameters: int
    spread: float  # standard deviation of the exact cosines over pairs: what errors are to be held against
    norm_ratio: float  # largest norm of a gradient over the median one
    result: Fidelity | None  # None for exact
    effective_k_interval: tuple[float, float] | None
    modules: list[Share]  # by kind of layer, the largest first
    layers: list[Share]  # by block
    cost: Cost
    exact_cost: Cost
    peak_memory_gb: float
    pack_rows: int  # rows of the whole pack, of which the sample was drawn
    advice: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain numbers, lists and strings."""
        made = asdict(self)
        for name in ("result", "cost", "exact_cost"):
            part = getattr(self, name)
            made[name] = None if part is None else part._asdict()
        for name in ("modules", "layers"):
            made[name] = [share._asdict() for share in getattr(self, name)]
        made["seconds_per_row"] = self.cost.seconds / self.num_rows
        made["bytes_per_row"] = None if self.numbers_per_row is None else 4 * self.numbers_per_row
        return made


def check_influence(
    cfg: InfluenceConfig,
    model: Any,
    parameters: list[TrackedParameter],
    batches: Sequence[RowBatch],
    *,
    texts: Sequence[tuple[str, str, str]],
    row_names: Sequence[str],
    num_truncated: int,
    pack_rows: int,
    rounds: int,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Checked:
    """Compare the scores of `cfg.method` with exact cosines of the gradients of `parameters`, and time both by turns.

    Args:
        texts, row_names: [N] the sample. num_truncated: of them longer than the model was shown.
        pack_rows: rows that a run would score. rounds: repetitions of each timing, F0 between them. on_step: told
            (done, all) of the passes over the sample.
    Raises: ArithmeticError if a loss or a gradient is not finite, naming the row.
    """
    shared: dict[str, Any] = {"row_names": row_names, "reduction": cfg.loss.name}
    kinds, blocks = _Groups(kind_of), _Groups(block_of)

    def note(parameter: TrackedParameter, gram: Tensor) -> None:
        for groups in (kinds, blocks):
            groups.add(parameter, gram.cpu().numpy())

    # exact once, the method once, then rounds of it, and of exact again
    total, done = 2 + (rounds + 1) + (0 if cfg.method is InfluenceMethod.exact else 2), 0

    def step() -> None:
        nonlocal done
        done += 1
        on_step(done, total)

    memory = cfg.memory_gb * 1e9
    exact = exact_gram(model, parameters, batches, memory_bytes=memory, on_parameter=note, **shared)
    step()
    norms = gradient_norms(exact.gram)
    truth = influence_scores(exact.gram, score=Score.cosine).numpy()

    def run_exact() -> None:
        exact_gram(model, parameters, batches, memory_bytes=memory, **shared)

    numbers: int | None = None
    scores: np.ndarray | None = None
    work = run_exact
    if cfg.method is InfluenceMethod.bm25:
        documents = ["\n".join(text) for text in texts]

        def work() -> None:
            bm25_scores(documents)

        scores = bm25_scores(documents).double().numpy()
    elif cfg.method is InfluenceMethod.repsim:

        def work() -> None:
            repsim_gram(model, batches, layer=cfg.layer, pooling=cfg.pooling, **shared)

        similar = repsim_gram(model, batches, layer=cfg.layer, pooling=cfg.pooling, **shared)
        scores = influence_scores(similar.gram, score=Score.cosine).numpy()
    elif cfg.method is not InfluenceMethod.exact:
        sketch = SKETCHES[cfg.method](cfg, parameters, cfg.seed)
        numbers = sketch.num_numbers

        def work() -> None:
            estimated_gram(model, parameters, batches, sketch, **shared)

        estimate = estimated_gram(model, parameters, batches, sketch, **shared)
        scores = influence_scores(estimate.gram, score=Score.cosine).numpy()
    step()
    with Measured() as measured:
        cost = measure_cost(work, model, batches, rounds=rounds, on_round=step)
    exact_cost = cost if work is run_exact else measure_cost(run_exact, model, batches, rounds=1, on_round=step)
    is_cosine = cfg.method not in WITHOUT_GRADIENTS
    i, j = np.triu_indices(len(truth), 1)
    middle = float(norms.median())
    checked = Checked(
        method=cfg.method.name,
        params=cfg.params.name,
        num_rows=len(row_names),
        num_tokens=sum(int(batch.tensors["attention_mask"].sum()) for batch in batches),
        num_zero=int((norms == 0).sum()),
        num_truncated=num_truncated,
        numbers_per_row=numbers,
        num_parameters=num_numbers(parameters),
        spread=float(truth[i, j].std()),
        norm_ratio=float(norms.max()) / middle if middle > 0 else math.inf,
        result=None
        if scores is None
        else fidelity(scores, truth, top=max(1, min(TOP, len(truth) // 4)), is_cosine=is_cosine),
        effective_k_interval=effective_k_interval(scores, truth) if scores is not None and is_cosine else None,
        modules=kinds.shares(),
        layers=blocks.shares(),
        cost=cost,
        exact_cost=exact_cost,
        peak_memory_gb=measured.peak_memory_gb,
        pack_rows=pack_rows,
    )
    checked.advice.extend(advise(checked, cfg))
    return checked


def floor_pass(model: Any, batches: Sequence[RowBatch]) -> None:
    """F0, what every gradient of a loss must cost, once: the floor that influence is measured against.

    A plain forward pass with all logits, and the gradient of the loss with respect to the embedded inputs alone: no
    hooks, no weight gradients, the model's own attention. About 4 (P + H) floating-point operations a token, P the
    parameters of the body and H those of the head.
    """
    with frozen(model):
        for batch in batches:
            t = batch.tensors
            inputs = model.get_input_embeddings()(t["input_ids"]).detach().requires_grad_()
            output = model(inputs_embeds=inputs, attention_mask=t["attention_mask"], use_cache=False)
            torch.autograd.grad(example_cross_entropy(output.logits, t["labels"]).sum(), inputs)


def measure_cost(
    work: Callable[[], object],
    model: Any,
    batches: Sequence[RowBatch],
    *,
    rounds: int,
    on_round: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Cost:
    """Run F0 and `work` by turns, after one round that does not count."""
    seconds, floors = [], []
    for _ in range(rounds + 1):
        start = clock()
        floor_pass(model, batches)
        middle = clock()
        work()
        floors.append(middle - start)
        seconds.append(clock() - middle)
        on_round()
    del seconds[0], floors[0]
    return Cost(median(seconds), median(floors), median(a / b for a, b in zip(seconds, floors, strict=True)))


class _Groups:
    """Inner products added up by group of weights."""

    def __init__(self, group_of: Any) -> None:
        self._group_of = group_of
        self._grams: dict[str, np.ndarray] = {}
        self._sizes: dict[str, int] = {}

    def add(self, parameter: TrackedParameter, gram: np.ndarray) -> None:
        name = self._group_of(parameter.name)
        self._grams[name] = self._grams.get(name, 0) + gram
        self._sizes[name] = self._sizes.get(name, 0) + parameter.numel

    def shares(self) -> list[Share]:
        return sorted(shares(self._grams, self._sizes), key=lambda share: -share.of_score)


def kind_of(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` -> `mlp.up_proj`: the same layer of every block."""
    parts = re.split(r"\.\d+\.", name.removesuffix(".weight"))
    return parts[-1].removesuffix(".default")


def block_of(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` -> `3`; `outside` for what belongs to no block."""
    found = re.search(r"\.(\d+)\.", name)
    return found[1] if found else "outside"


def advise(checked: Checked, cfg: InfluenceConfig) -> list[str]:
    """What the numbers suggest, in whole sentences; nothing that they do not."""
    return [*_about_method(checked, cfg), *_about_gradients(checked)]


def _about_method(checked: Checked, cfg: InfluenceConfig) -> list[str]:
    said = []
    result, method = checked.result, cfg.method
    if result is None:
        return ["These scores are exact: there is nothing to estimate."]
    whole = checked.exact_cost.seconds / checked.num_rows * checked.pack_rows
    if method in WITHOUT_GRADIENTS:
        return [
            f"{method.name} takes no gradients: its rank correlation with them is {result.spearman_query:.2f}. "
            "It is another question, not an estimate of the same one."
        ]
    k, found = checked.numbers_per_row or 1, result.effective_k or 1.0
    noise = found**-0.5
    said.append(
        f"The sketch errs by {noise:.4f} (sd of a cosine), where exact cosines spread by {checked.spread:.4f}: "
        f"{_verdict(result.spearman_query)}."
    )
    if result.spearman_query < GOOD_SPEARMAN and checked.spread > 0:
        # independent errors of variance v blur the ranking like a correlation of 1 / sqrt(1 + v / spread^2)
        wanted = 1 / (checked.spread**2 * (GOOD_SPEARMAN**-2 - 1))
        if found >= GOOD_SHARE * k:
            said.append(
                f"Raise influence.k: about {_power_above(wanted):,} numbers a row would correlate at {GOOD_SPEARMAN}."
            )
        elif method is InfluenceMethod.tensorsketch:
            said.append(
                f"Of {k:,} numbers a row {found:,.0f} count: raise influence.buckets (now {cfg.buckets:,}) before "
                "influence.k, or pass influence.method=sketch."
            )
        else:
            said.append(
                f"Of {k:,} numbers a row {found:,.0f} count: influence.method=tensorsketch or sketch keeps more in as "
                "many numbers."
            )
    if whole < 600:
        said.append(
            f"influence.method=exact takes about {whole:,.0f} s for the pack's {checked.pack_rows} rows on this "
            "machine: a sketch pays where rows are too many, or are kept."
        )
    return said


def _verdict(correlation: float) -> str:
    if correlation >= GOOD_SPEARMAN:
        return f"a query's ranking is as good as exact (rank correlation {correlation:.3f})"
    if correlation >= 0.8:
        return f"a query's ranking is good at its ends and blurred in the middle (rank correlation {correlation:.3f})"
    return f"a query's ranking is not to be trusted (rank correlation {correlation:.3f})"


def _power_above(number: float) -> int:
    return int(2 ** math.ceil(math.log2(max(1.0, number))))


def _about_gradients(checked: Checked) -> list[str]:
    said = []
    if checked.num_zero == checked.num_rows:
        said.append("All gradients are zero: no row influences any other. Choose another influence.params.")
    elif checked.num_zero:
        said.append(f"{checked.num_zero} of {checked.num_rows} rows have a gradient of zero: they score 0 everywhere.")
    if checked.num_truncated:
        said.append(
            f"{checked.num_truncated} of {checked.num_rows} rows are longer than max_length and were cut: raise it."
        )
    if len(checked.modules) > 1 and checked.modules[0].of_score > DOMINANT:
        first = checked.modules[0]
        said.append(
            f"{first.name} alone makes up {first.of_score:.0%} of the score "
            f"({first.numbers / checked.num_parameters:.0%} of the numbers): influence.params=regex with it alone "
            "would be nearly the same, and cheaper."
        )
    if math.isfinite(checked.norm_ratio) and checked.norm_ratio > 20:
        said.append(
            f"The largest gradient is {checked.norm_ratio:.0f} times the median one: influence.score=dot would rank it "
            "first for every query; cosine does not."
        )
    return said
