"""What each stage's result depends on: the inputs that its fingerprint is taken of.

Settings that change only speed, memory or logging are left out, so that they never cause work to be done again.
"""

from typing import Any

from rapidun.config.influence import OWN_SETTINGS, WITHOUT_GRADIENTS, InfluenceMethod, ParameterSet, Precondition
from rapidun.config.mapping import Weighting
from rapidun.config.plain import plain
from rapidun.config.poison import PoisonMethod
from rapidun.config.run import RunConfig


def _without(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in names}


def scratch_inputs(cfg: RunConfig, corpus: list[str]) -> dict[str, Any]:
    """A model made from scratch: its sizes, its seed, the splits that train its tokenizer."""
    return {
        "scratch": plain(cfg.model.scratch),
        "seed": cfg.poison.seed,
        "max_length": cfg.max_length,
        "corpus": corpus,
    }


def poison_inputs(cfg: RunConfig, *, start: str, splits: list[str], dtype: str) -> dict[str, Any]:
    settings = _without(plain(cfg.poison), "retrain", "save_steps", "gradient_checkpointing")
    quantisation = cfg.model.quantisation.name
    if cfg.poison.method is PoisonMethod.full:
        settings.pop("lora")
    return {
        "start": start,
        "splits": splits,
        "settings": settings,
        "max_length": cfg.max_length,
        "dtype": dtype,
        "quantisation": quantisation,
    }


def influence_inputs(
    cfg: RunConfig, *, model: str, forget: str, retain: str, adapter: str | None, dtype: str
) -> dict[str, Any]:
    method = cfg.influence.method
    settings = _without(plain(cfg.influence), "tokens_per_batch", "memory_gb")
    own = {name for names in OWN_SETTINGS.values() for name in names} - set(OWN_SETTINGS[method])
    preconditions = cfg.influence.precondition is not Precondition.none
    has_lora = cfg.influence.params is ParameterSet.lora and method not in WITHOUT_GRADIENTS
    if has_lora or preconditions:
        own -= {"seed"}
    if not has_lora:
        own |= {"lora"}
    if not preconditions:
        own |= {"precondition", "damping_factor"}
    if cfg.influence.params is not ParameterSet.regex:
        own |= {"regex"}
    if method in WITHOUT_GRADIENTS:
        own |= {"params", "regex", "num_token_queries"}
    settings = _without(settings, *own)
    if method is InfluenceMethod.bm25:
        # the rows' words decide
        return {"forget": forget, "retain": retain, "settings": _without(settings, "loss")}
    return {
        "model": model,
        "forget": forget,
        "retain": retain,
        "adapter": adapter,
        "settings": settings,
        "max_length": cfg.max_length,
        "dtype": dtype,
        "quantisation": cfg.model.quantisation.name,
    }


def mapping_inputs(
    cfg: RunConfig, *, scores: dict[str, str] | None, rows: dict[str, str] | None, files: dict[str, str] | None
) -> dict[str, Any]:
    """`scores`: fingerprint or hashes of the influence; `rows`: of the splits with the ids; `files`: given weights."""
    method = cfg.mapping.method
    settings = _without(plain(cfg.mapping), "scores")
    for group in ("forget", "retain"):
        settings[group] = _without(settings[group], "path")
    if method in (Weighting.uniform, Weighting.file):
        settings = {"method": method.name}
    seed = cfg.seed if method in (Weighting.shuffled, Weighting.random) else None
    return {"scores": scores, "rows": rows, "files": files, "settings": settings, "seed": seed}


def unlearning_inputs(
    cfg: RunConfig, *, model: str, splits: dict[str, str], mapping: str, adapter: str | None, dtype: str
) -> dict[str, Any]:
    settings = _without(plain(cfg.unlearning), "save_steps", "gradient_checkpointing", "adapter")
    return {
        "model": model,
        "splits": splits,
        "mapping": mapping,
        "adapter": adapter,
        "settings": settings,
        "seed": cfg.seed,
        "max_length": cfg.max_length,
        "dtype": dtype,
        "quantisation": cfg.model.quantisation.name,
    }


def evaluation_inputs(
    cfg: RunConfig,
    *,
    model: str,
    adapter: str | None,
    splits: dict[str, str],
    keywords: str,
    calibration: str | None,
    dtype: str,
) -> dict[str, Any]:
    settings = _without(plain(cfg.evaluation), "tokens_per_batch")
    return {
        "model": model,
        "adapter": adapter,
        "splits": splits,
        "keywords": keywords,
        "calibration": calibration,
        "settings": settings,
        "max_length": cfg.max_length,
        "dtype": dtype,
        "quantisation": cfg.model.quantisation.name,
    }


def needs_scores(cfg: RunConfig) -> bool:
    """Whether the chosen weighting looks at influence at all."""
    return cfg.mapping.method not in (Weighting.uniform, Weighting.file)


def score_files(cfg: RunConfig) -> dict[str, str]:
    """The influence files made elsewhere that the configuration names, by block; empty when there are none."""
    scores = cfg.mapping.scores
    named = {"path": scores.path, "ff": scores.ff, "fr": scores.fr, "rf": scores.rf, "rr": scores.rr}
    return {name: path for name, path in named.items() if path}
