"""What the two quality benchmarks share: every way of scoring, and how to judge a score."""

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from rapidun.config.influence import InfluenceConfig, InfluenceMethod, ParameterSet, Precondition, Score  # noqa: E402
from rapidun.stages.influence.batches import RowBatch, make_batches  # noqa: E402
from rapidun.stages.influence.bm25 import bm25_scores  # noqa: E402
from rapidun.stages.influence.fisher import fit_curvature  # noqa: E402
from rapidun.stages.influence.gradients.params import select_parameters  # noqa: E402
from rapidun.stages.influence.gram import estimated_gram, exact_gram  # noqa: E402
from rapidun.stages.influence.precondition import Preconditioner  # noqa: E402
from rapidun.stages.influence.repsim import repsim_gram  # noqa: E402
from rapidun.stages.influence.scores import influence_scores  # noqa: E402
from rapidun.stages.influence.stage import SKETCHES  # noqa: E402
from rapidun.stages.rows.encode import Encoded, encode_rows  # noqa: E402

Text = tuple[str, str, str]  # instruction, context, response
ALL_METHODS = (
    "cosine",
    "dot",
    "kfac",
    "kfac_cosine",
    "ekfac",
    "ekfac_cosine",
    "tensorsketch",
    "sketch",
    "repsim",
    "bm25",
    "random",
)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model, its training rows, and the rows it is asked about."""

    model: Any
    tokenizer: Any
    train: Sequence[Text]
    queries: Sequence[Text]
    max_length: int = 256
    tokens_per_batch: int = 2048
    memory_gb: float = 4.0
    params: ParameterSet = ParameterSet.all_linear
    seed: int = 0

    @property
    def texts(self) -> list[Text]:
        return [*self.train, *self.queries]

    def encode(self) -> list[Encoded]:
        return encode_rows(self.tokenizer, self.texts, max_length=self.max_length)

    def batches(self, rows: list[Encoded]) -> list[RowBatch]:
        return make_batches(
            rows,
            [f"row {i}" for i in range(len(rows))],
            tokens_per_batch=self.tokens_per_batch,
            pad_token_id=self.tokenizer.pad_token_id,
            device=next(self.model.parameters()).device,
        )


def all_scores(
    task: Task, methods: Sequence[str], *, tell: Callable[[str], None] = lambda _: None
) -> dict[str, Tensor]:
    """Method -> [num_train, num_queries] float64: the larger, the more a training row is said to help a query."""
    found: dict[str, Tensor] = {}
    train, queries = slice(0, len(task.train)), slice(len(task.train), None)
    rows = task.encode()
    batches = task.batches(rows)
    parameters = select_parameters(task.model, task.params)
    names = [f"row {i}" for i in range(len(rows))]
    if {"cosine", "dot"} & set(methods):
        tell("exact")
        exact = exact_gram(task.model, parameters, batches, row_names=names, memory_bytes=task.memory_gb * 1e9)
        for score in (Score.cosine, Score.dot):
            found[score.name] = influence_scores(exact.gram, score=score)[train, queries]
    for kind in (Precondition.kfac, Precondition.ekfac):
        if not {kind.name, f"{kind.name}_cosine"} & set(methods):
            continue
        tell(kind.name)
        # of the training rows alone
        curvatures = fit_curvature(
            task.model,
            parameters,
            task.batches(rows[: len(task.train)]),
            kind=kind,
            row_names=names[: len(task.train)],
            seed=task.seed,
        )
        result = exact_gram(
            task.model,
            parameters,
            batches,
            row_names=names,
            memory_bytes=task.memory_gb * 1e9,
            preconditioner=Preconditioner(curvatures, damping_factor=InfluenceConfig().damping_factor),
        )
        for suffix, score in (("", Score.dot), ("_cosine", Score.cosine)):
            scores = influence_scores(result.gram, score=score, norms=result.norms, query_norms=result.query_norms)
            found[kind.name + suffix] = scores[train, queries]
    for method in (InfluenceMethod.tensorsketch, InfluenceMethod.sketch):
        if method.name in methods:
            tell(method.name)
            sketch = SKETCHES[method](InfluenceConfig(method=method), parameters, task.seed)
            estimate = estimated_gram(task.model, parameters, batches, sketch, row_names=names)
            found[method.name] = influence_scores(estimate.gram, score=Score.cosine)[train, queries]
    if "repsim" in methods:
        tell("repsim")
        cfg = InfluenceConfig()
        similar = repsim_gram(task.model, batches, row_names=names, layer=cfg.layer, pooling=cfg.pooling)
        found["repsim"] = influence_scores(similar.gram, score=Score.cosine)[train, queries]
    if "bm25" in methods:
        found["bm25"] = bm25_scores(["\n".join(text) for text in task.texts])[train, queries].double()
    if "random" in methods:
        generator = torch.Generator().manual_seed(task.seed)
        found["random"] = torch.rand(len(task.train), len(task.queries), generator=generator, dtype=torch.float64)
    return {name: found[name] for name in methods}


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties counting half (Mann-Whitney U); [N], [N] bool."""
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    rank_sum = rankdata(scores)[positive].sum()
    return float((rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Sum of precision times the gain in recall over the distinct thresholds: rows that tie come in together."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    found, taken = hits[last_of_tie], np.flatnonzero(last_of_tie) + 1
    gained = np.diff(found, prepend=0)
    return float((gained * found / taken).sum() / positive.sum())


def recall_at(k: int, scores: np.ndarray, positive: np.ndarray) -> float:
    """Share of the positives among the k highest, rows that tie at the border counting in proportion."""
    k = min(k, len(scores))
    border = np.sort(scores)[::-1][k - 1]
    above, tied = scores > border, scores == border
    share = (k - above.sum()) / tied.sum()
    return float((positive[above].sum() + share * positive[tied].sum()) / positive.sum())


def interval(values: np.ndarray, *, draws: int, seed: int) -> list[float]:
    """95 % percentile bootstrap interval of the mean; [n] -> [low, high]."""
    generator = np.random.default_rng(seed)
    means = values[generator.integers(0, len(values), (draws, len(values)))].mean(axis=1)
    return [round(float(x), 4) for x in np.percentile(means, (2.5, 97.5))]


def train(
    model: Any, rows: list[Encoded], *, pad_token_id: int, epochs: int, batch_size: int, lr: float, seed: int
) -> Any:
    """A copy of the model after AdamW with linear decay on the mean of the rows' losses; order drawn from `seed`."""
    from rapidun.models.losses import example_cross_entropy
    from rapidun.stages.rows.encode import collate

    model = copy.deepcopy(model).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    steps_per_epoch = -(-len(rows) // batch_size)
    schedule = torch.optim.lr_scheduler.LinearLR(
        optimizer, start_factor=1.0, end_factor=0.05, total_iters=epochs * steps_per_epoch
    )
    for _ in range(epochs):
        for chosen in torch.randperm(len(rows), generator=generator).split(batch_size):
            batch = collate([rows[i] for i in chosen.tolist()], pad_token_id=pad_token_id)
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
            example_cross_entropy(logits, batch["labels"]).mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
    return model.eval()


@torch.no_grad()
def losses_of(model: Any, rows: list[Encoded], *, pad_token_id: int, batch_size: int = 64) -> np.ndarray:
    """[n] mean loss of each row's response tokens, nats a token."""
    from rapidun.models.losses import example_cross_entropy
    from rapidun.stages.rows.encode import collate

    out = []
    for start in range(0, len(rows), batch_size):
        batch = collate(rows[start : start + batch_size], pad_token_id=pad_token_id)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        out.append(example_cross_entropy(logits, batch["labels"]).double().numpy())
    return np.concatenate(out)
