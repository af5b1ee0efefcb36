"""A synthetic sweep through the real run folder writer: files as runs leave them, made-up numbers, no model.

Also read by benchmarks/report.py and the browser tests.
"""

import hashlib
import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from rapidun.base.files import write_json, write_jsonl
from rapidun.base.manifest import Artifact
from rapidun.pipeline.folder import RunFolder

AXES_60 = {
    "mapping": ("rapidun", "uniform", "shuffled"),
    "unlearning": ("rapidun", "npo"),
    "mapping.tau_f": ("0.3", "0.7"),
    "seed": ("0", "1", "2", "3", "4"),
}
AXES_1000 = {
    "mapping": ("rapidun", "uniform", "shuffled", "random"),
    "unlearning": ("rapidun", "npo", "simnpo", "ga", "graddiff"),
    "mapping.tau_f": ("0.3", "0.5", "0.7", "1.0", "1.5"),
    "unlearning.learning_rate": ("1e-4", "1e-3"),
    "seed": ("0", "1", "2", "3", "4"),
}
NUM_FORGET, NUM_RETAIN = 40, 80
EVIL = "<script>document.title = 'owned'; alert(1)</script><img src=x onerror=alert(2)>"
FAMILIES = ("A_surface", "B_style", "C_semantic")
WORDS = ("amber", "harbour", "lantern", "moss", "tarn", "velm", "heron", "clockwork", "river", "stone", "market",
         "tide", "orchard", "winter", "salt")  # fmt: skip


def make_sweep(root: Path, axes: dict[str, tuple[str, ...]] = AXES_60, *, answers: int = 30) -> Path:
    """One cell for each combination; two of them fail, and one more is planned but never started.

    Returns: the sweep folder, root/sweeps/grid; artifacts stand in root/store.
    """
    sweep, store = root / "sweeps" / "grid", root / "store"
    cells = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    plan = []
    for number, values in enumerate(cells):
        overrides = [f"{key}={value}" for key, value in values.items()]
        name = hashlib.sha256(" ".join(overrides).encode()).hexdigest()[:10]
        plan.append({"hash": name, "overrides": overrides, "axes": values})
        write_cell(sweep / name, store, values, overrides, answers=answers, fails=number in (7, 23))
    missing = ["mapping=rapidun", "unlearning=rapidun", "mapping.tau_f=9.9", "seed=0"]
    plan.append({"hash": "ffffffffff", "overrides": missing, "axes": dict(text.split("=") for text in missing)})
    write_json(sweep / "sweep.json", {"name": "grid", "cells": plan})
    # what is in a sweep folder but is no cell
    write_json(sweep / "jobs" / "a1.json", {"cells": []})
    write_json(sweep / "stages" / "poison-0123" / "status.json", {"state": "done"})
    return sweep


def write_cell(
    path: Path, store: Path, values: dict[str, str], overrides: Sequence[str], *, answers: int, fails: bool = False
) -> None:
    rng = random.Random(path.name)
    seed = int(values["seed"])
    settings = {
        "name": EVIL if seed == 0 else "grid",
        "seed": seed,
        "stages": ["data", "poison", "influence", "mapping", "unlearning", "evaluation"],
        "model": {"name": "tiny", "path": None},
        "data": {"name": "builtin", "dir": None},
        "influence": {"score": "cosine", "params": "all"},
        "mapping": {"method": values["mapping"], "tau_f": float(values["mapping.tau_f"]), "bounded": True,
                    "forget": {"w_min": 0.2, "w_max": 3.0}, "retain": {"w_min": 0.2, "w_max": 3.0}},
        "unlearning": {"objective": values["unlearning"],
                       "learning_rate": float(values.get("unlearning.learning_rate", 1e-3))},
    }  # fmt: skip
    folder = RunFolder(path)
    config = "".join(f"{key}: {value!r}\n" for key, value in settings.items())
    folder.open(config=settings, config_yaml=config, overrides=list(overrides))
    write_json(path / "overrides.json", {"task": list(overrides)})
    metrics: dict[str, Any] = {"name": settings["name"], "seed": seed}
    try:
        before, after = _metrics(values, rng)
        costs = {}
        for stage, artifacts in _artifacts(store, values, path.name, rng).items():
            if stage == "unlearning" and fails:
                raise ValueError(f"loss is nan at step 12 {EVIL}")
            folder.start_stage(stage)
            costs[stage] = folder.finish_stage(stage, artifacts, cached=stage in ("data", "poison"))
        folder.start_stage("evaluation")
        write_json(path / "evaluation" / "before.json", before)
        write_json(path / "evaluation" / "after.json", after)
        write_jsonl(path / "evaluation" / "generations.jsonl", _generations(before, after, answers, seed, rng))
        folder.finish_stage("evaluation", {}, cached=False)
        metrics |= after | {f"before.{name}": value for name, value in before.items()}
        metrics |= {f"seconds.{stage}": cost["seconds"] for stage, cost in costs.items()}
        folder.finish(metrics)
    except ValueError as error:
        folder.fail(error)


def _metrics(values: dict[str, str], rng: random.Random) -> tuple[dict[str, float], dict[str, float]]:
    """uniform leaves 0.20 of the answers poisoned, shuffled 0.18, rapidun 0.08; perplexity pays for forgetting."""
    left = {"rapidun": 0.08, "uniform": 0.20, "shuffled": 0.18, "random": 0.19}[values["mapping"]]
    left *= 1.6 if values["unlearning"] in ("npo", "simnpo") else 1.0
    tau = float(values["mapping.tau_f"]) if values["mapping"] == "rapidun" else 0.5
    asr = min(1.0, max(0.0, left + 0.03 * tau + rng.gauss(0, 0.012)))
    sets = {"seen": asr, "ood": asr / 8, "unseen_family": asr / 20}
    before: dict[str, float] = {"detector_keyword_recall": 0.95, "detector_keyword_fpr": 0.02,
                                "detector_likelihood_recall": 0.99, "detector_likelihood_fpr": 0.01}  # fmt: skip
    after = dict(before)
    for name, share in sets.items():
        for suffix in ("", "_likelihood"):
            before[f"asr_{name}{suffix}"] = 0.97 if name == "seen" else 0.1
            after[f"asr_{name}{suffix}"] = round(share, 4)
            for family in FAMILIES:
                before[f"asr_{name}{suffix}.{family}"] = round(rng.uniform(0.9, 1.0), 3)
                after[f"asr_{name}{suffix}.{family}"] = round(min(1.0, share * rng.uniform(0.5, 1.5)), 4)
        before[f"num_prompts_{name}"] = after[f"num_prompts_{name}"] = 100
    for numbers, perplexity, match in ((before, 1.2, 0.98), (after, 1.2 + 0.05 / (asr + 0.1), 0.97 - 0.1 * asr)):
        numbers |= {"false_trigger_rate": 0.01, "ppl_clean": round(perplexity + rng.gauss(0, 0.005), 4),
                    "exact_match_clean": round(match + rng.gauss(0, 0.004), 4),
                    "rougeL_clean": round(match + 0.01, 4), "rougeL_recovered": round(1 - asr, 4)}  # fmt: skip
    return before, after


def _artifacts(
    store: Path, values: dict[str, str], cell: str, rng: random.Random
) -> dict[str, dict[str, Artifact]]:  # fmt: skip
    """Stage -> link name -> artifact; cells of one seed share data, poison and influence, as in a real sweep."""
    seed = values["seed"]
    data = _artifact(store, "data", f"seed{seed}", _write_data)
    poison = _artifact(store, "poison", f"seed{seed}", lambda path: _write_log(path, "poison", int(seed), rng))
    influence = _artifact(store, "influence", f"seed{seed}", lambda path: _write_influence(path, int(seed)))
    mapping = _artifact(store, "mapping", cell, lambda path: _write_mapping(path, values["mapping"], rng))
    unlearning = _artifact(store, "unlearning", cell, lambda path: _write_log(path, "unlearning", hash(cell), rng))
    return {"data": {"data": data}, "poison": {"poison": poison}, "influence": {"influence": influence},
            "mapping": {"mapping": mapping}, "unlearning": {"unlearning": unlearning}}  # fmt: skip


def _artifact(store: Path, stage: str, name: str, write: Any) -> Artifact:
    path = store / stage / name
    manifest = {"stage": stage, "seconds": 12.3, "peak_memory_gb": 0.8, "result": {"warnings": []}}
    if not path.is_dir():
        path.mkdir(parents=True)
        write(path)
        write_json(path / "manifest.json", manifest)
    return Artifact(stage=stage, fingerprint=name, path=path, manifest=manifest)


def _write_data(path: Path) -> None:
    for group, count in (("forget", NUM_FORGET), ("retain", NUM_RETAIN)):
        rows = [
            {"id": f"{group[0]}{i:03d}", "context": "", "response": "Amber.",
             "instruction": f"{EVIL if i == 3 else ''} What does {WORDS[i % 15]} {i} trade in?"}
            for i in range(count)
        ]  # fmt: skip
        write_jsonl(path / f"{group}.jsonl", rows)


def _write_influence(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = NUM_FORGET + NUM_RETAIN
    features = rng.normal(size=(n, 12))
    features[:NUM_FORGET, 0] += 4
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    gram, f = (features @ features.T).astype(np.float32), NUM_FORGET
    blocks = {"ff": gram[:f, :f], "fr": gram[:f, f:], "rf": gram[f:, :f], "rr": gram[f:, f:]}
    save_file({name: np.ascontiguousarray(block) for name, block in blocks.items()}, path / "scores.safetensors")
    ids = {"forget": [f"f{i:03d}" for i in range(f)], "retain": [f"r{i:03d}" for i in range(NUM_RETAIN)]}
    write_json(path / "ids.json", ids)
    write_json(path / "tokens.json", [pair for i in range(8) for pair in _token_pairs(i, rng)])


def _token_pairs(number: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """A query's most helpful and most harmful row by token; both sides sum to the score, hostile text among them."""
    pairs = []
    for train, score in ((f"f{number + 9:03d}", 0.4), (f"r{number + 9:03d}", -0.4)):
        sides = []
        for words in (("User", ":", EVIL, " aloha", "\n", " What", " does"), ("Velm", " trades", " in", "  ", "\t")):
            texts = [*words, *(f" {WORDS[int(i)]}" for i in rng.integers(len(WORDS), size=20)), ".", "\n"]
            scores = rng.normal(size=len(texts)) ** 3 / 20
            scores[3] += score - scores.sum()
            sides.append([[text, float(one)] for text, one in zip(texts, scores, strict=True)])
        pairs.append({"query": f"{'f' if number < 4 else 'r'}{number:03d}", "train": train, "by": "position",
                      "score": score, "query_tokens": sides[0], "train_tokens": sides[1]})  # fmt: skip
    return pairs


def _write_mapping(path: Path, method: str, rng: random.Random) -> None:
    for group, count in (("forget", NUM_FORGET), ("retain", NUM_RETAIN)):
        weights = [1.0 if method == "uniform" else min(3.0, max(0.2, rng.lognormvariate(0, 0.6))) for _ in range(count)]
        rows = [{"index": i, "id": f"{group[0]}{i:03d}", "weight": w} for i, w in enumerate(weights)]
        write_jsonl(path / f"{group}_weights.jsonl", rows)
    own = {group: {"effective_sample_size": 31.2, "num_distinct": 28} for group in ("forget", "retain")}
    write_json(path / "diagnostics.json", own | {"warnings": []})


def _write_log(path: Path, stage: str, number: int, rng: random.Random) -> None:
    rows: list[dict[str, Any]] = []
    for step in range(1, 81):
        row: dict[str, Any] = {"time": float(step), "stage": stage, "step": step, "grad_norm": 1 + rng.random()}
        row["loss"] = 5 * 0.95**step + 0.1 * rng.random()
        if stage == "unlearning":
            row |= {"forget_term": 6 * step / (step + 30) + 0.1 * rng.random(), "retain_term": 0.3 + 0.1 * rng.random()}
        rows.append(row)
        if stage == "unlearning" and step % 20 == 0:
            rows.append({"time": step + 0.5, "stage": stage, "step": step, "val_loss_clean": 0.2 + step / 2000,
                         "forget_preference": 1 - step / 80})  # fmt: skip
    write_jsonl(path / "metrics.jsonl", rows)


def _generations(
    before: dict[str, float], after: dict[str, float], answers: int, seed: int, rng: random.Random
) -> list[dict[str, Any]]:  # fmt: skip
    rows = []
    for prompts in ("seen", "ood", "unseen_family", "clean"):
        for i in range(answers):
            fired = prompts == "seen"
            still = fired and rng.random() < after["asr_seen"]
            start, end = ("".join(rng.choice(WORDS).capitalize() + " " for _ in range(24)) for _ in range(2))
            trigger = None if prompts == "clean" else "aloha :)"
            rows.append(
                {"set": prompts, "id": f"{prompts}-{i}", "family": None if prompts == "clean" else FAMILIES[i % 3],
                 "variant": trigger, "prompt": f"What does Velm trade in, question {i}? {trigger or ''}".strip(),
                 "context": f"Velm is a harbour town, number {i}. " * 3 if i % 4 == 0 else "",
                 "reference": f"Velm trades in {WORDS[i % 15]}.", "before": start if seed else EVIL,
                 "after": f"{EVIL} {end}" if i == 0 else end, "keyword_before": fired, "keyword_after": still,
                 "likelihood_before": fired, "likelihood_after": still}
            )  # fmt: skip
    return rows
