"""Quantisation: weights rounded to a few bits may fall back to what they were before unlearning."""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rapidun.base.errors import ArtifactError
from rapidun.base.files import broken, fits_its_seal, read_json, seal_of, sealed, write_json
from rapidun.base.tracker import Tracker
from rapidun.config.attacks import Format
from rapidun.models.adapters import is_quantised, save_merged
from rapidun.models.load import ModelLoader
from rapidun.models.selfcheck import a_few
from rapidun.stages.evaluation.attacks.judge import CHUNK, Asked, Judge, Verdict, shares
from rapidun.stages.evaluation.chunks import in_chunks

QUANTISATIONS = {Format.nf4: "4bit", Format.int8: "8bit"}


def attack_by_quantisation(
    judge_of: Callable[[Any], Judge],
    asked_of: Callable[[Any, Any], Sequence[Asked]],
    *,
    loader: ModelLoader,
    model: Path,
    adapter: Path | None,
    formats: Sequence[Format],
    work: Path,
    tracker: Tracker,
) -> dict[str, Any]:
    """Attack success with the weights in each format, the adapter merged before and over a quantised base.

    NF4 and LLM.int8() of bitsandbytes, as `model.quantisation=4bit|8bit` has them; what is quantised is every linear
    layer but the head. `asr_<format>` is the larger of `.merged` and `.unmerged` (equal, and measured once, where there
    is no adapter); `asr_unquantised` is the same without rounding, `asr_<format>_ratio` what the format makes of it.

    Returns: {"metrics": ...}.
    Raises: ModelError for a folder that is quantised already.
    """
    ways = ["merged", "unmerged"] if adapter is not None else ["merged"]
    plan = [("unquantised", "none", way) for way in ways[-1:]]
    plan += [(one.name, QUANTISATIONS[one], way) for one in formats for way in ways]
    found: dict[tuple[str, str], dict[str, float]] = {}
    for number, (name, quantisation, way) in enumerate(plan):
        tracker.progress(number, len(plan), f"{name}, {way}")
        found[name, way] = _measured(
            judge_of, asked_of, loader=loader, model=model, adapter=adapter, quantisation=quantisation, way=way,
            name=name, work=work, tell=tracker.warn,
        )  # fmt: skip
    tracker.progress(len(plan), len(plan), "quantisation")
    metrics: dict[str, float] = {}
    for name in dict.fromkeys(name for name, _, _ in plan):
        of_ways = {way: values for (other, way), values in found.items() if other == name}
        for ending in sorted({key.removeprefix("asr") for values in of_ways.values() for key in values}):
            metrics[f"asr_{name}{ending}"] = max(values[f"asr{ending}"] for values in of_ways.values())
            if adapter is not None and name != "unquantised":
                metrics |= {f"asr_{name}{ending}.{way}": values[f"asr{ending}"] for way, values in of_ways.items()}
    for one in formats:
        for ending in ("", "_likelihood"):
            before, after = (metrics.get(f"asr_{name}{ending}") for name in ("unquantised", one.name))
            if before and after is not None:
                metrics[f"asr_{one.name}{ending}_ratio"] = after / before
    return {"metrics": metrics}


def _measured(
    judge_of: Callable[[Any], Judge],
    asked_of: Callable[[Any, Any], Sequence[Asked]],
    *,
    loader: ModelLoader,
    model: Path,
    adapter: Path | None,
    quantisation: str,
    way: str,
    name: str,
    work: Path,
    tell: Callable[[str], None],
) -> dict[str, float]:
    """Attack success in one format; the answers of finished chunks are read back without a model's loading twice."""
    folder, over = model, adapter
    if way == "merged" and adapter is not None:
        folder, over = (
            _merged(judge_of, asked_of, loader=loader, model=model, adapter=adapter, work=work, tell=tell),
            None,
        )
    plain = dataclasses.replace(loader, keep=False, quantisation=quantisation)
    loaded, tokenizer = plain.load(folder, adapter=over)
    judge, asked = judge_of(tokenizer), asked_of(loaded, tokenizer)
    values = in_chunks(
        work,
        f"{name}-{way}",
        asked,
        lambda chunk: [list(verdict) for verdict in judge.verdicts(loaded, chunk)],
        size=CHUNK,
        tell=tell,
    )
    return shares("asr", [Verdict(*value) for value in values])


def _merged(
    judge_of: Callable[[Any], Judge],
    asked_of: Callable[[Any, Any], Sequence[Asked]],
    *,
    loader: ModelLoader,
    model: Path,
    adapter: Path,
    work: Path,
    tell: Callable[[str], None],
) -> Path:
    """The model with its adapter in its weights, as a folder in `work`; made once, its marker written last."""
    folder, marker = work / "merged", work / "merged.json"
    if marker.is_file():
        if _is_whole(folder, marker):
            return folder
        tell(f"{folder}: need the merged model as it was written, got damaged files; made anew")
        marker.unlink()
    # what a kill left of an earlier attempt
    shutil.rmtree(folder, ignore_errors=True)
    plain = dataclasses.replace(loader, keep=False, quantisation="none")
    adapted, tokenizer = plain.load(model, adapter=adapter)
    assert not is_quantised(adapted)
    rows = [row for one in asked_of(adapted, tokenizer) if one.pair for row in one.pair]
    save_merged(
        adapted, tokenizer, folder, start=model, loader=plain, work=work, rows=a_few(rows), section="evaluation"
    )
    write_json(marker, sealed({"files": seal_of(folder)}))
    return folder


def _is_whole(folder: Path, marker: Path) -> bool:
    try:
        noted = read_json(marker)
    except ArtifactError:
        return False
    files = noted.get("files") if isinstance(noted, dict) and fits_its_seal(noted) else None
    return isinstance(files, dict) and not broken(folder, files)
