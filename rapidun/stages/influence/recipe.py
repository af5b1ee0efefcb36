"""The influence stage to the rest: the scores of every row for every row."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rapidun.base.errors import DataError
from rapidun.base.machine import available_memory
from rapidun.config.influence import (
    VAL,
    WITHOUT_GRADIENTS,
    InfluenceConfig,
    InfluenceMethod,
    ParameterSet,
    Precondition,
)
from rapidun.config.plain import plain
from rapidun.config.unlearning import Objective, TokenWeights
from rapidun.stages.architecture import lora_of
from rapidun.stages.checks import device_faults, missing_package
from rapidun.stages.context import Context, Stage
from rapidun.stages.influence.queries import VAL_SPLITS, need_own_ids, need_triggers, read_query_file, read_val_queries
from rapidun.stages.room import FEW_ROWS, bytes_needed, no_room
from rapidun.stages.rows.records import read_records

from rapidun.stages.recipe import ADAPTER, ADAPTER_FAULTS, DATA, POISONED, SCORES, START, START_FACTS  # isort: skip
from rapidun.stages.recipe import CURVATURE, ROW_LOSSES, TOKEN_SCORES, Recipe, without  # isort: skip


def _scores(ctx: Context) -> Recipe:
    cfg, model, adapter = ctx.cfg, ctx.get(POISONED), ctx.get(ADAPTER)
    influence = cfg.influence
    if influence.params is ParameterSet.lora and influence.method not in WITHOUT_GRADIENTS:
        influence = replace(influence, lora=lora_of(ctx, influence.lora, section="influence"))

    def build(out: Path, work: Path) -> dict[str, Any]:
        from rapidun.stages.influence.stage import InfluenceFiles, run_influence  # brings torch

        files = InfluenceFiles(
            model=model.folder,
            adapter=adapter.folder if adapter else None,
            forget=ctx.data.path / "forget.jsonl",
            retain=ctx.data.path / "retain.jsonl",
            out=out,
            **_query_files(ctx),
        )
        return run_influence(
            influence,
            files,
            loader=ctx.loader,
            max_length=cfg.max_length,
            seed=cfg.influence.seed,
            tracker=ctx.tracker,
        )

    inputs: dict[str, Any] = {"forget": ctx.split("forget"), "retain": ctx.split("retain")}
    inputs["settings"] = settings_that_count(influence)
    if influence.query_file is not None:
        inputs["queries"] = {"file": ctx.file_hash(Path(influence.query_file).expanduser())}
    elif influence.queries == VAL:
        _need_val_splits(ctx)
        inputs["queries"] = {group: ctx.split(split) for group, split in VAL_SPLITS.items()}
    if cfg.influence.method is not InfluenceMethod.bm25:  # the rows' words decide
        inputs |= {"model": model.identity, "adapter": adapter.identity if adapter else None, **ctx.numerics}
    else:
        inputs["words"] = 2  # raised when the same rows have other words
    if influence.precondition is not Precondition.none and influence.method is not InfluenceMethod.exact:
        inputs["sketched"] = "half of F^-1 on either side"  # it was all of it on the query's
    needs = (ctx.get(DATA), *model.needs)
    return Recipe("influence", STAGE.key("influence", inputs), "influence", build, needs=needs)


def settings_that_count(cfg: InfluenceConfig) -> dict[str, Any]:
    """The settings that the scores of this method depend on; the queries stand there by their content."""
    # left as they are these two change nothing: earlier results keep their names
    as_before = ("queries",) if cfg.contrast else ("queries", "contrast")
    return without(plain(cfg), "tokens_per_batch", "memory_gb", *as_before, *cfg.unread)


def _query_files(ctx: Context) -> dict[str, Path]:
    """The files that the queries come from, where they are not the training rows."""
    influence = ctx.cfg.influence
    if influence.query_file is not None:
        return {"queries": Path(influence.query_file).expanduser()}
    if influence.queries == VAL:
        return {f"val_{group}": ctx.data.path / f"{split}.jsonl" for group, split in VAL_SPLITS.items()}
    return {}


def _token_scores(ctx: Context) -> Recipe:
    """What unlearning.token_weights is made from."""
    cfg, model, adapter, how = ctx.cfg, ctx.get(POISONED), ctx.get(ADAPTER), ctx.cfg.unlearning.token_weights
    start = ctx.get(START) if how is TokenWeights.likelihood_ratio else None
    influence = cfg.influence
    if influence.params is ParameterSet.lora:
        influence = replace(influence, lora=lora_of(ctx, influence.lora, section="influence"))

    def build(out: Path, work: Path) -> dict[str, Any]:
        from rapidun.stages.influence.token_scores import TokenScoreFiles, run_token_scores  # brings torch

        files = TokenScoreFiles(
            model=model.folder,
            adapter=adapter.folder if adapter else None,
            start=start.folder if start else None,
            forget=ctx.data.path / "forget.jsonl",
            out=out,
        )
        return run_token_scores(
            how, influence, files, loader=ctx.loader, max_length=cfg.max_length, tracker=ctx.tracker
        )  # fmt: skip

    inputs: dict[str, Any] = {
        "how": how.name,
        "forget": ctx.split("forget"),
        "model": model.identity,
        "adapter": adapter.identity if adapter else None,
        **ctx.numerics,
    }
    needs = (ctx.get(DATA), *model.needs)
    if start is not None:
        inputs["start"] = start.identity
        needs += start.needs
    else:
        inputs["params"] = influence.params.name
        inputs |= {"regex": influence.regex} if influence.params is ParameterSet.regex else {}
        if influence.params is ParameterSet.lora:
            inputs |= {"lora": plain(influence.lora), "seed": influence.seed}
    return Recipe("influence", STAGE.key("tokens", inputs), "tokens", build, needs=needs, implicit=True)


def _row_losses(ctx: Context) -> Recipe:
    """What the LoReUn weightings are made from: of the forget rows alone, whatever method influence has."""
    cfg, model, adapter = ctx.cfg, ctx.get(POISONED), ctx.get(ADAPTER)

    def build(out: Path, work: Path) -> dict[str, Any]:
        from rapidun.stages.influence.row_losses import RowLossFiles, run_row_losses  # brings torch

        files = RowLossFiles(
            model=model.folder,
            adapter=adapter.folder if adapter else None,
            forget=ctx.data.path / "forget.jsonl",
            out=out,
        )
        return run_row_losses(
            files,
            loader=ctx.loader,
            max_length=cfg.max_length,
            tokens_per_batch=cfg.influence.tokens_per_batch,
            tracker=ctx.tracker,
        )

    inputs = {
        "forget": ctx.split("forget"),
        "model": model.identity,
        "adapter": adapter.identity if adapter else None,
        **ctx.numerics,
    }
    needs = (ctx.get(DATA), *model.needs)
    return Recipe("influence", STAGE.key("losses", inputs), "losses", build, needs=needs, implicit=True)


def _curvature(ctx: Context) -> Recipe:
    """What unlearning=influence_step divides its gradients by; its damping is no part of it."""
    cfg, model, step = ctx.cfg, ctx.get(POISONED), ctx.cfg.unlearning.influence_step
    regex = step.regex if step.params is ParameterSet.regex else None

    def build(out: Path, work: Path) -> dict[str, Any]:
        from rapidun.stages.influence.retain_curvature import CurvatureFiles, run_curvature  # brings torch

        return run_curvature(
            step.precondition,
            CurvatureFiles(model=model.folder, retain=ctx.data.path / "retain.jsonl", out=out),
            params=step.params,
            regex=regex,
            tokens_per_batch=cfg.influence.tokens_per_batch,
            loader=ctx.loader,
            max_length=cfg.max_length,
            seed=cfg.seed,
            tracker=ctx.tracker,
        )

    inputs: dict[str, Any] = {
        "kind": step.precondition.name,
        "params": step.params.name,
        "retain": ctx.split("retain"),
        "model": model.identity,
        "seed": cfg.seed,
        **ctx.numerics,
    }
    inputs |= {} if regex is None else {"regex": regex}
    needs = (ctx.get(DATA), *model.needs)
    return Recipe("influence", STAGE.key("curvature", inputs), "curvature", build, needs=needs, implicit=True)


def _makes(ctx: Context) -> list[Recipe]:
    wanted = ctx.cfg.unlearning.token_weights is not TokenWeights.none
    steps = ctx.cfg.unlearning.objective is Objective.influence_step
    # whatever stages follow in this process: a sweep's job makes one artifact of a stage and runs no other
    losses = ctx.cfg.mapping.method.traits.losses
    more = [p for p, asked in ((TOKEN_SCORES, wanted), (ROW_LOSSES, losses), (CURVATURE, steps)) if asked]
    own = [] if "influence" in ctx.cfg.idle else [SCORES]
    return [ctx.get(product) for product in (*own, *more)]


def _check(ctx: Context) -> list[str]:
    cfg, facts = ctx.cfg.influence, ctx.get(START_FACTS)
    faults = [*facts.faults, *ctx.get(ADAPTER_FAULTS)]
    faults += _query_faults(ctx)
    if not ctx.asked("influence"):
        return faults
    if cfg.method is InfluenceMethod.bm25:
        remedy = "pip install 'rapidun[bm25]', or choose another influence=..."
        return faults + missing_package("bm25s", "influence=bm25", remedy, ctx)
    # the embeddings, then the blocks
    num_states = None if facts.num_layers is None else facts.num_layers + 1
    if cfg.method is InfluenceMethod.repsim and num_states and not -num_states <= cfg.layer < num_states:
        faults.append(
            f"influence: need {-num_states} <= layer < {num_states} for this model, got layer={cfg.layer}. "
            "Change conf/influence/repsim.yaml or pass influence.layer=..."
        )
    return faults + device_faults(ctx)


def _need_val_splits(ctx: Context) -> None:
    """Raises: DataError where the pack lacks them."""
    missing = [split for split in VAL_SPLITS.values() if not ctx.counts.get(split)]
    if missing:
        raise DataError(
            f"influence.queries: need the splits {' and '.join(VAL_SPLITS.values())} for queries=val, got a pack "
            f"without {' and '.join(missing)}. Pass data.val_clean=FILE (triggered rows are made of it), or "
            "influence.queries=FILE or influence.queries=forget_retain"
        )


def _query_faults(ctx: Context) -> list[str]:
    """What is wrong with the file of the queries."""
    influence = ctx.cfg.influence
    if influence.query_file is None:
        return []
    path = Path(influence.query_file).expanduser()

    def look() -> list[str]:
        if not path.is_file():
            return [
                f"influence.queries: need forget_retain, val or a JSONL file, got {influence.query_file!r}, which is "
                "no file. Pass influence.queries=..."
            ]
        try:
            queries = read_query_file(path)
            if influence.contrast:
                need_triggers(queries.forget)
        except DataError as error:
            return [str(error)]
        return []

    found: list[str] = ctx.memo.get(("queries", path, influence.contrast), look)
    return found


def _check_rows(ctx: Context) -> list[str]:
    """Whether the pack has the queries that are asked for, and the memory takes its rows."""
    influence = ctx.cfg.influence
    if not influence.own_queries:
        return _no_room(ctx)
    try:
        if influence.query_file is not None:
            queries = read_query_file(Path(influence.query_file).expanduser())
            rows = [row for group in ("forget", "retain") for row in read_records(ctx.data.path / f"{group}.jsonl")]
            need_own_ids(queries, rows)
            forget = queries.forget
        elif influence.queries == VAL:
            forget = read_val_queries(*(ctx.data.path / f"{split}.jsonl" for split in VAL_SPLITS.values())).forget
        else:
            forget = read_records(ctx.data.path / "forget.jsonl")
        if influence.contrast:
            need_triggers(forget)
    except DataError as error:
        return [str(error)]
    return []


def _no_room(ctx: Context) -> list[str]:
    """Whether the scores of all rows for all rows find room here, where they are yet to be made."""
    num_rows = ctx.counts.get("forget", 0) + ctx.counts.get("retain", 0)
    # a few rows fit everywhere: a sweep's cells need not ask
    if num_rows < FEW_ROWS or not ctx.asked("influence") or ctx.store.find(ctx.get(SCORES).key) is not None:
        return []
    mem_gb = ctx.cfg.resources.mem_gb
    there = available_memory() if ctx.here else None if mem_gb is None else int(mem_gb * 1e9)
    fault = no_room(num_rows, partial(bytes_needed, ctx.cfg.influence), there, stage="influence")
    return [fault] if fault else []


STAGE = Stage(
    name="influence",
    versions={"influence": 5, "tokens": 1, "losses": 1, "curvature": 1},
    makes=_makes,
    check=_check,
    check_rows=_check_rows,
    provides={
        SCORES: _scores,
        TOKEN_SCORES: _token_scores,
        ROW_LOSSES: _row_losses,
        CURVATURE: _curvature,
    },
)
