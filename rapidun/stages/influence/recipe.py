"""The influence stage to the rest: the scores of every row for every row."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rapidun.config.influence import WITHOUT_GRADIENTS, InfluenceConfig, InfluenceMethod, ParameterSet
from rapidun.config.plain import plain
from rapidun.config.unlearning import TokenWeights
from rapidun.stages.architecture import lora_of
from rapidun.stages.checks import device_faults, missing_package
from rapidun.stages.context import Context, Stage

from rapidun.stages.recipe import ADAPTER, ADAPTER_FAULTS, DATA, POISONED, SCORES, START, START_FACTS  # isort: skip
from rapidun.stages.recipe import TOKEN_SCORES, Recipe, without


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
    if cfg.influence.method is not InfluenceMethod.bm25:  # the rows' words decide
        inputs |= {"model": model.identity, "adapter": adapter.identity if adapter else None, **ctx.numerics}
    else:
        inputs["words"] = 2  # raised when the same rows have other words
    needs = (ctx.get(DATA), *model.needs)
    return Recipe("influence", STAGE.key("influence", inputs), "influence", build, needs=needs)


def settings_that_count(cfg: InfluenceConfig) -> dict[str, Any]:
    """The settings that the scores of this method depend on."""
    return without(plain(cfg), "tokens_per_batch", "memory_gb", *cfg.unread)


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


def _makes(ctx: Context) -> list[Recipe]:
    wanted = ctx.cfg.unlearning.token_weights is not TokenWeights.none
    return [ctx.get(SCORES), *([ctx.get(TOKEN_SCORES)] if wanted else [])]


def _check(ctx: Context) -> list[str]:
    cfg, facts = ctx.cfg.influence, ctx.get(START_FACTS)
    faults = [*facts.faults, *ctx.get(ADAPTER_FAULTS)]
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


STAGE = Stage(
    name="influence",
    versions={"influence": 5, "tokens": 1},
    makes=_makes,
    check=_check,
    provides={SCORES: _scores, TOKEN_SCORES: _token_scores},
)
