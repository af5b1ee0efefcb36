"""Quantisation: weights rounded to a few bits may fall back to what they were before unlearning."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rapidun.base.errors import ArtifactError
from rapidun.base.files import broken, fits_its_seal, read_json, seal_of, sealed, write_json
from rapidun.base.tracker import Tracker
from rapidun.config.attacks import Format
from rapidun.config.detectors import Detector
from rapidun.models.adapters import is_quantised, save_merged
from rapidun.models.load import ModelLoader
from rapidun.models.selfcheck import a_few
from rapidun.stages.evaluation.attacks.asking import CHUNK, Answer, Asked, Asker, kept, shares
from rapidun.stages.evaluation.chunks import in_chunks

UNQUANTISED = "unquantised"
ENDINGS = [detector.ending for detector in Detector]
QUANTISATIONS = {Format.nf4: "4bit", Format.int8: "8bit"}


def attack_by_quantisation(
    asker_of: Callable[[Any], Asker],
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

    Returns: {"metrics": ..., "answers": `kept`}.
    Raises: ModelError for a folder that is quantised already.
    """
    ways = ["merged", "unmerged"] if adapter is not None else ["merged"]
    plan = [(UNQUANTISED, "none", way) for way in ways[-1:]]
    plan += [(one.name, QUANTISATIONS[one], way) for one in formats for way in ways]
    found: dict[str, dict[str, float]] = {}
    lines: list[dict[str, Any]] = []
    for number, (name, quantisation, way) in enumerate(plan):
        tracker.progress(number, len(plan), f"{name}, {way}")
        found[f"{name}.{way}"], answers = _measured(
            asker_of, asked_of, loader=loader, model=model, adapter=adapter, quantisation=quantisation, way=way,
            name=name, work=work, tell=tracker.warn,
        )  # fmt: skip
        lines += answers
    tracker.progress(len(plan), len(plan), "quantisation")
    return {"metrics": figures(found), "answers": lines}


def figures(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The figures of the formats from those of each measurement.

    Args: found: `<name>.<way>` -> `asr`, `asr_likelihood`, ...
    """
    metrics: dict[str, float] = {}
    names = list(dict.fromkeys(part.rpartition(".")[0] for part in found))
    for name in names:
        of_ways = {part.rpartition(".")[2]: values for part, values in found.items() if part.rpartition(".")[0] == name}
        for ending in sorted({key.removeprefix("asr") for values in of_ways.values() for key in values}):
            shares_of = {way: values[f"asr{ending}"] for way, values in of_ways.items() if f"asr{ending}" in values}
            metrics[f"asr_{name}{ending}"] = max(shares_of.values())
            if len(of_ways) > 1:
                metrics |= {f"asr_{name}{ending}.{way}": share for way, share in shares_of.items()}
    for name in names:
        for ending in ENDINGS:
            before, after = (metrics.get(f"asr_{one}{ending}") for one in (UNQUANTISED, name))
            if name != UNQUANTISED and before and after is not None:
                metrics[f"asr_{name}{ending}_ratio"] = after / before
    return metrics


def _measured(
    asker_of: Callable[[Any], Asker],
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
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Attack success in one format, and its answers (`kept`); finished chunks are read back, no model loaded twice."""
    folder, over = model, adapter
    if way == "merged" and adapter is not None:
        folder = _merged(asker_of, asked_of, loader=loader, model=model, adapter=adapter, work=work, tell=tell)
        over = None
    plain = dataclasses.replace(loader, keep=False, quantisation=quantisation)
    loaded, tokenizer = plain.load(folder, adapter=over)
    asker, asked = asker_of(tokenizer), asked_of(loaded, tokenizer)
    values = in_chunks(
        work,
        f"{name}-{way}",
        asked,
        lambda chunk: [list(answer) for answer in asker.ask(loaded, chunk)],
        size=CHUNK,
        tell=tell,
    )
    answers = [Answer(*value) for value in values]
    return shares("asr", asker.verdicts(answers)), kept(f"{name}.{way}", asked, answers)


def _merged(
    asker_of: Callable[[Any], Asker],
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
