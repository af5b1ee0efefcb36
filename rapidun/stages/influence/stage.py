"""The influence stage: one gradient pass over forget and retain rows, four blocks of scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rapidun.base.errors import DataError, MachineError, ModelError
from rapidun.base.files import write_json, write_tensors
from rapidun.base.machine import available_memory
from rapidun.base.tracker import Tracker
from rapidun.config.influence import (
    VAL,
    WITHOUT_GRADIENTS,
    InfluenceConfig,
    InfluenceMethod,
    LossReduction,
    ParameterSet,
    Precondition,
)
from rapidun.models.adapters import add_lora
from rapidun.models.batching import batching
from rapidun.models.curvature import curvature_tensors
from rapidun.models.load import ModelLoader
from rapidun.models.losses import IGNORE
from rapidun.stages.influence.batches import make_batches
from rapidun.stages.influence.bm25 import bm25_scores
from rapidun.stages.influence.fisher import fit_curvature
from rapidun.stages.influence.gradients.params import (
    TrackedParameter,
    num_numbers,
    other_weights,
    parameter_groups,
    select_parameters,
    untracked_of_adapter,
)
from rapidun.stages.influence.gram import GramResult, estimated_gram, exact_gram
from rapidun.stages.influence.precondition import Preconditioner, num_fitting_passes
from rapidun.stages.influence.queries import Layout, Queries, Text, lay_out, read_query_file, read_val_queries
from rapidun.stages.influence.repsim import repsim_gram
from rapidun.stages.influence.scores import (
    QueryPairs,
    gradient_norms,
    influence_scores,
    query_blocks,
    split_blocks,
    strongest_pairs,
)
from rapidun.stages.influence.sinks import Sketch
from rapidun.stages.influence.sketches.factored import FactoredProjection
from rapidun.stages.influence.sketches.rapidgrad import RapidGrad
from rapidun.stages.influence.sketches.sketch import CountSketch
from rapidun.stages.influence.sketches.tensorsketch import TensorSketch
from rapidun.stages.influence.tokenwise import write_tokens
from rapidun.stages.room import bytes_needed, no_room, worth_saying
from rapidun.stages.rows.cuts import Cuts, cut_warning
from rapidun.stages.rows.encode import Encoded, encode_rows
from rapidun.stages.rows.fit import check_rows
from rapidun.stages.rows.lost import check_triggers
from rapidun.stages.rows.records import Record, read_records

MakeSketch = Callable[[InfluenceConfig, Sequence[TrackedParameter], int], Sketch]
# the methods that keep a few numbers a row in one pass
SKETCHES: dict[InfluenceMethod, MakeSketch] = {
    InfluenceMethod.sketch: lambda cfg, parameters, seed: CountSketch(k=cfg.k, seed=seed),
    InfluenceMethod.tensorsketch: lambda cfg, parameters, seed: TensorSketch(k=cfg.k, buckets=cfg.buckets, seed=seed),
    InfluenceMethod.factored: lambda cfg, parameters, seed: FactoredProjection(parameters, p=cfg.p, q=cfg.q, seed=seed),
    InfluenceMethod.rapidgrad: lambda cfg, parameters, seed: RapidGrad(
        parameters, k=cfg.k, pad_multiple=cfg.pad_multiple, num_shuffles=cfg.num_shuffles, seed=seed
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class InfluenceFiles:
    """What the stage reads (a model folder, an adapter to put on it, two packs) and the folder it fills.

    queries: the file of cfg.queries=FILE. val_forget, val_retain: the splits of cfg.queries=val.
    """

    model: Path
    adapter: Path | None
    forget: Path
    retain: Path
    out: Path
    queries: Path | None = None
    val_forget: Path | None = None
    val_retain: Path | None = None


def run_influence(
    cfg: InfluenceConfig,
    files: InfluenceFiles,
    *,
    loader: ModelLoader,
    max_length: int,
    seed: int,
    tracker: Tracker,
) -> dict[str, Any]:
    """Score every forget and retain row as training example for every forget and retain row as query.

    The gradient of a forget row is that of its poisoned response (what the model should lose), else of its
    response; of a retain row, that of its response. With params=lora and no adapter a fresh one is attached, seeded:
    its lora_B is zero, so the gradients of lora_A are zero and only lora_B speaks. `repsim` and `bm25` compare the same
    texts without gradients.

    The queries are the training rows themselves, or with cfg.queries the rows of val_forget (the poisoned answer) and
    val_retain, or those of a file; cfg.contrast takes off each forget query's score that of the same query without
    its trigger, and leaves out those that have none. A row that is its own query has the same id there.

    Writes, forget rows before retain rows, rows = training examples, columns = queries:
        scores.safetensors: ff, fr, rf, rr float32 in cfg.score; gram [N, N] inner products, norms [N],
            losses [N] (not for bm25), all float32; query_norms [N] where queries are preconditioned. With queries of
            their own: ff and rf have a column for each forget query, fr and rr for each retain query, query_norms is
            theirs, and there is no gram.
        rows.safetensors: what a score is to be held against: loss [N], nats a response token, whatever cfg.loss; norm
            [N], that of the gradient of cfg.loss, where gradients are taken (of its sketch where it is sketched). Not
            for bm25.
        precondition.safetensors: the eigenvectors and eigenvalues of each weight, where queries are preconditioned.
        ids.json: {"forget": [...], "retain": [...]} in row order; where rows are too long to be encoded, and so have
            no scores, their ids as well: {"left_out": {"forget": [...], "retain": [...]}}; with queries of their own
            "queries": {"forget": [...], "retain": [...]} in the order of the columns.
        tokens.json: the strongest pairs of cfg.num_token_queries queries, token by token and exact; not for repsim,
            bm25 and preconditioned queries.
        parameters.json: the tracked weights, {name: [rows, columns]}; none for repsim and bm25.
    Returns: counts, what was tracked, the rows' mean losses (nats per token, for loss=mean).
    Raises: DataError for bad packs, ConfigError for an empty parameter set, ModelError if a gradient is not
        finite (names the rows).
    """
    forget, retain = read_records(files.forget), read_records(files.retain)
    summary: dict[str, Any] = {
        "num_forget": len(forget),
        "num_retain": len(retain),
        "method": cfg.method.name,
        "score": cfg.score.name,
    }
    _need_room(cfg, len(forget) + len(retain), tracker)
    if cfg.method is InfluenceMethod.bm25:
        layout = _laid_out(cfg, files, forget, retain, tracker=tracker)
        texts, added = ["\n".join(text) for text in _texts(forget, retain)], layout.texts if layout else []
        scores = bm25_scores(texts, [*texts, *("\n".join(text) for text in added)])
        _write(files.out, GramResult(scores, None, 0), cfg=cfg, forget=forget, retain=retain, layout=layout)
        return summary | _counts(layout)
    model, tokenizer = loader.load(files.model, adapter=files.adapter)
    has_gradients = cfg.method not in WITHOUT_GRADIENTS
    if has_gradients and cfg.params is ParameterSet.lora and files.adapter is None:
        model = add_lora(model, cfg.lora, seed=seed, section="influence")
    parameters = select_parameters(model, cfg.params, regex=cfg.regex) if has_gradients else []
    forget, retain, encoded, left_out = _encoded(tokenizer, forget, retain, max_length=max_length, tracker=tracker)
    num_rows = len(encoded)
    encode = partial(encode_rows, tokenizer, max_length=max_length)
    layout = _laid_out(cfg, files, forget, retain, fits=lambda text: encode([text])[0] is not None, tracker=tracker)
    if layout is not None:
        encoded = [*encoded, *(row for row in encode(layout.texts) if row is not None)]
        if message := cut_warning("influence", Cuts.of(encoded[num_rows:]), max_length=max_length):
            tracker.warn(f"{message} (queries)")
    check_rows("influence", model, tokenizer, [row.input_ids for row in encoded], max_length=max_length)
    names = [f"forget row {r.id}" for r in forget] + [f"retain row {r.id}" for r in retain]
    names += layout.names if layout else []
    summary |= {"num_forget": len(forget), "num_retain": len(retain), **_counts(layout)}
    padded = batching(model, pad_token_id=tokenizer.pad_token_id).right
    if not padded:
        tracker.warn("influence: padding changes this model's logits: rows go one by one, and none token by token")
    to_batches = partial(
        make_batches,
        tokens_per_batch=cfg.tokens_per_batch,
        pad_token_id=tokenizer.pad_token_id,
        device=next(model.parameters()).device,
        # whole gradients, one at a time
        max_rows=1 if cfg.method is InfluenceMethod.rapidgrad or not padded else None,
    )
    batches = to_batches(encoded, names)
    if parameters:
        _warn_of_others(model, cfg.params, tracker)
        summary |= _announce(parameters, num_batches=len(batches), tracker=tracker)
    shared: dict[str, Any] = {
        "row_names": names,
        "reduction": cfg.loss.name,
        "on_batch": partial(_progress, tracker, describe(parameters)),
    }
    preconditioner: Preconditioner | None = None
    try:
        if cfg.precondition is not Precondition.none:
            curvatures = fit_curvature(
                model,
                parameters,
                # of the training rows alone
                batches if layout is None else to_batches(encoded[:num_rows], names[:num_rows]),
                kind=cfg.precondition,
                row_names=names[:num_rows],
                seed=seed,
                on_batch=shared["on_batch"],
            )
            preconditioner = Preconditioner(curvatures, damping_factor=cfg.damping_factor)
        if cfg.method is InfluenceMethod.repsim:
            result = repsim_gram(model, batches, layer=cfg.layer, pooling=cfg.pooling, **shared)
        elif cfg.method is InfluenceMethod.exact:
            result = exact_gram(
                model, parameters, batches, memory_bytes=cfg.memory_gb * 1e9, preconditioner=preconditioner, **shared
            )
            summary["numbers_per_row"] = num_numbers(parameters)
        else:
            sketch = SKETCHES[cfg.method](cfg, parameters, seed)
            result = estimated_gram(model, parameters, batches, sketch, preconditioner=preconditioner, **shared)
            summary["numbers_per_row"] = sketch.num_numbers
    except ArithmeticError as error:
        raise ModelError(f"{error}. Pass model.dtype=float32, or mend the rows or the model") from error
    norms = gradient_norms(result.gram) if result.norms is None else result.norms
    num_zero = int((norms == 0).sum())
    if num_zero:
        tracker.warn(
            f"influence: the gradients of {num_zero} of {len(names)} rows are zero, their scores are 0. "
            "Choose another influence.params"
        )
    losses, num_passes = result.losses, result.num_passes
    assert losses is not None  # every method with a model has them
    by_token = bool(parameters and preconditioner is None and cfg.num_token_queries and padded and layout is None)
    pairs = _write(
        files.out, result, cfg=cfg, forget=forget, retain=retain, left_out=left_out, layout=layout,
        num_token_queries=cfg.num_token_queries if by_token else 0,
    )  # fmt: skip
    num_tokens = torch.tensor([sum(label != IGNORE for label in row.labels[1:]) for row in encoded[:num_rows]])
    of_rows = {"loss": losses[:num_rows] / (num_tokens if cfg.loss is LossReduction.sum else 1)}
    if has_gradients:
        of_rows["norm"] = norms[:num_rows]
    write_tensors(files.out / "rows.safetensors", {name: t.float().contiguous() for name, t in of_rows.items()})
    if preconditioner is not None:
        write_tensors(files.out / "precondition.safetensors", curvature_tensors(preconditioner.curvatures))
    if parameters:
        write_json(files.out / "parameters.json", {p.name: list(p.shape) for p in parameters})
    if by_token:
        ids = [row.id for row in (*forget, *retain)]
        write_tokens(
            files.out / "tokens.json",
            model,
            parameters,
            tokenizer,
            [(ids[q], encoded[q], [ids[t] for t in train], [encoded[t] for t in train]) for q, train in pairs],
            score=cfg.score,
            reduction=cfg.loss.name,
        )
    return summary | {
        "num_tokens": sum(len(row.input_ids) for row in encoded),
        "num_batches": len(batches),
        "num_passes": num_passes + num_fitting_passes(cfg.precondition),
        "precondition": cfg.precondition.name,
        "num_zero_gradients": num_zero,
        "params": cfg.params.name if parameters else None,
        "loss_forget": losses[: len(forget)].mean().item(),
        "loss_retain": losses[len(forget) : num_rows].mean().item(),
    }


def _need_room(cfg: InfluenceConfig, num_rows: int, tracker: Tracker) -> None:
    """Say what many rows take of memory, before the model is loaded.

    Raises: MachineError where there is less.
    """
    if cfg.own_queries:
        return
    there, needed = available_memory(), partial(bytes_needed, cfg)
    fault = no_room(num_rows, needed, there, stage="influence")
    if fault:
        raise MachineError(fault)
    said = worth_saying(num_rows, needed(num_rows), there)
    if said:
        tracker.note(said)


def describe(parameters: list[TrackedParameter]) -> str:
    """`14 weights, 3,840 numbers` or, where nothing is tracked, nothing."""
    return f"{len(parameters)} weights, {num_numbers(parameters):,} numbers" if parameters else ""


def _announce(parameters: list[TrackedParameter], *, num_batches: int, tracker: Tracker) -> dict[str, Any]:
    """Say what gradients are taken of before the first one is; return the same for the result."""
    groups = parameter_groups(parameters)
    sizes = ", ".join(f"{g.name} {g.num_weights} x [{g.shape[0]}, {g.shape[1]}]" for g in groups)
    tracker.progress(0, num_batches, f"{describe(parameters)}: {sizes}")
    tracker.log({"num_modules": len(parameters), "num_parameters": num_numbers(parameters)})
    return {
        "num_modules": len(parameters),
        "num_parameters": num_numbers(parameters),
        "parameters": [
            {"name": g.name, "num_weights": g.num_weights, "shape": list(g.shape), "num_numbers": g.numel}
            for g in groups
        ],
    }


def _warn_of_others(model: Any, params: ParameterSet, tracker: Tracker) -> None:
    left_out = other_weights(model) if params in (ParameterSet.all_linear, ParameterSet.mlp) else {}
    if left_out:
        tracker.warn(
            f"influence: no gradients are taken of {sum(left_out.values()):,} numbers of the model, which are in "
            f"{len(left_out)} tensors that are no layer's weight: {_first_of(left_out)}"
        )
    trained = untracked_of_adapter(model) if params is ParameterSet.lora else {}
    if trained:
        tracker.warn(
            f"influence: no gradients are taken of {sum(trained.values()):,} numbers of the adapter, which are in "
            f"{len(trained)} tensors that are no LoRA factor of a layer: {_first_of(trained)}"
        )


def _first_of(names: dict[str, int]) -> str:
    return f"{', '.join(list(names)[:3])}{', ...' if len(names) > 3 else ''}"


def _progress(tracker: Tracker, sizes: str, done: int, total: int, note: str) -> None:
    tracker.progress(done, total, ", ".join(filter(None, (sizes, note))))


def _texts(forget: list[Record], retain: list[Record]) -> list[tuple[str, str, str]]:
    """Instruction, context and the response that counts, forget rows first."""
    return [r.forget_texts for r in forget] + [r.texts for r in retain]


def _encoded(
    tokenizer: Any, forget: list[Record], retain: list[Record], *, max_length: int, tracker: Tracker
) -> tuple[list[Record], list[Record], list[Encoded], dict[str, list[str]]]:
    """The rows that can be encoded and their encodings, forget rows first, and the ids of those left out.

    A row that no stage trains on has no influence to measure: it is neither a training example nor a query.
    """
    encoded = encode_rows(tokenizer, _texts(forget, retain), max_length=max_length)
    groups = {"forget": (forget, encoded[: len(forget)]), "retain": (retain, encoded[len(forget) :])}
    kept = {group: [r for r, row in zip(*both, strict=True) if row is not None] for group, both in groups.items()}
    left_out = {group: [r.id for r, row in zip(*both, strict=True) if row is None] for group, both in groups.items()}
    for group, records in kept.items():
        if not records:
            raise DataError(
                f"influence: need {group} rows whose instruction leaves room for a response in max_length={max_length} "
                f"tokens, got {len(left_out[group])} rows and none that does. Pass max_length=..."
            )
    changed = (row is not None and row.asked_otherwise for row in encoded)
    check_triggers("influence", tokenizer, [*forget, *retain], changed)
    if message := cut_warning("influence", Cuts.of(encoded), max_length=max_length):
        tracker.warn(message)
    return kept["forget"], kept["retain"], [row for row in encoded if row is not None], left_out


def _laid_out(
    cfg: InfluenceConfig,
    files: InfluenceFiles,
    forget: list[Record],
    retain: list[Record],
    *,
    fits: Callable[[Text], bool] = lambda text: True,
    tracker: Tracker,
) -> Layout | None:
    """The queries where they are not the training rows, each once; what is left out of them is said."""
    if not cfg.own_queries:
        return None
    queries: Queries | None = None
    if cfg.query_file is not None:
        assert files.queries is not None
        queries = read_query_file(files.queries)
    elif cfg.queries == VAL:
        assert files.val_forget is not None and files.val_retain is not None
        queries = read_val_queries(files.val_forget, files.val_retain)
    layout = lay_out(queries, forget=forget, retain=retain, contrast=cfg.contrast, fits=fits)
    kept = _counts(layout)
    tracker.log(kept)
    tracker.progress(0, 1, f"{kept['num_forget_queries']} forget queries, {kept['num_retain_queries']} retain queries")
    for count, why in (
        (layout.without_trigger, "hold no trigger that could be taken off (influence.contrast)"),
        (layout.too_long, "leave no room for a response in max_length"),
    ):
        if count:
            tracker.warn(f"influence: {count} of {count + sum(kept.values())} queries {why}: they are left out")
    return layout


def _counts(layout: Layout | None) -> dict[str, float]:
    return {} if layout is None else {f"num_{group}_queries": len(ids) for group, ids in layout.ids.items()}


def _write(
    out: Path,
    result: GramResult,
    *,
    cfg: InfluenceConfig,
    forget: list[Record],
    retain: list[Record],
    left_out: dict[str, list[str]] | None = None,
    layout: Layout | None = None,
    num_token_queries: int = 0,
) -> list[QueryPairs]:
    """Write scores and ids; return the strongest pairs of that many queries. The products are used up."""
    gram, num_rows = result.gram, len(forget) + len(retain)
    tensors = {"norms": (gradient_norms(gram) if result.norms is None else result.norms)[:num_rows]}
    if layout is None:  # with queries of their own no gram: who reads one takes its rows for the queries
        tensors["gram"] = gram.float()
    # in float64 there is one matrix of this size, no more
    scores = influence_scores(
        gram, score=cfg.score, norms=result.norms, query_norms=result.query_norms, overwrite=True
    )  # fmt: skip
    if layout is None:
        blocks = split_blocks(scores, num_forget=len(forget))
    else:
        blocks = query_blocks(scores[:num_rows], layout.columns, num_forget=len(forget))
    tensors |= {name: block.float().contiguous() for name, block in blocks._asdict().items()}
    if result.query_norms is not None:
        chosen = slice(None) if layout is None else [*layout.columns.forget, *layout.columns.retain]
        tensors["query_norms"] = result.query_norms[chosen]
    if result.losses is not None:
        tensors["losses"] = result.losses[:num_rows]
    pairs = []
    if num_token_queries:
        pairs = strongest_pairs(scores, num_forget=len(forget), num_queries=num_token_queries)
    del blocks
    gram.set_()  # type: ignore[call-overload]
    write_tensors(out / "scores.safetensors", {name: t.float().contiguous() for name, t in tensors.items()})
    ids: dict[str, Any] = {"forget": [r.id for r in forget], "retain": [r.id for r in retain]}
    if left_out is not None and any(left_out.values()):
        ids["left_out"] = left_out
    if layout is not None:
        ids["queries"] = layout.ids
    write_json(out / "ids.json", ids)
    return pairs
