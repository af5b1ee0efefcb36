"""What a checkout holds of what its configuration names: the pack, the influence files, the weights."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from rapidun.base.errors import DataError
from rapidun.base.tracker import Tracker
from rapidun.cli.importing.checkout import Checkout
from rapidun.config.data import DataConfig, Source
from rapidun.config.mapping import MappingConfig
from rapidun.stages.data.named import meta_file, pack_folders
from rapidun.stages.data.stage import find_files
from rapidun.stages.mapping.inputs import GROUPS, MappingFiles
from rapidun.stages.mapping.release import BLOCKS, read_release, release_blocks
from rapidun.stages.mapping.stage import run_mapping
from rapidun.stages.rows.records import Record, read_records
from rapidun.stages.weights_file import read_lines, read_weights

# the last letters of influence_results_<rows>_<these>.json: training rows, T, queries
ENDINGS = {"ff": "FTF", "fr": "FTR", "rf": "RTF", "rr": "RTR"}
# of float64 arithmetic in another order
TOLERANCE = 1e-12


class Files(NamedTuple):
    """What was found.

    pack: the folder of the pack. rows: forget and retain rows in single files, where there is no pack. blocks: all four
    influence files, or none. weights: both weights files, or none. num_forget: rows to forget, None = unknown.
    facts, warnings: lines for the user.
    """

    pack: Path | None
    rows: dict[str, Path]
    blocks: dict[str, Path]
    weights: dict[str, Path]
    num_forget: int | None
    facts: list[str]
    warnings: list[str]


def look(checkout: Checkout, paths: Mapping[str, str]) -> Files:
    """Args: paths: the configuration's paths by key.

    Raises: DataError for files that are there and wrong: rows, influence or weights that cannot be read.
    """
    facts: list[str] = []
    warnings: list[str] = []

    def found(*keys: str) -> Path | None:
        return next((at for key in keys if key in paths and (at := checkout.find(paths[key])) is not None), None)

    pack = found("rapidun.data.packs_dir")
    rows = {group: path for group in GROUPS if (path := found(f"rapidin.{group}_path")) is not None}
    rows = rows if len(rows) == len(GROUPS) else {}
    if pack is not None:
        try:
            splits = find_files(DataConfig(source=Source.pack, dir=str(pack)))
        except DataError as error:
            warnings.append(f"the pack is not taken: {error}")
            pack = None
        else:
            meta = meta_file(pack_folders(pack))
            named = f"; trigger families of {meta.name}" if meta is not None else ""
            facts.append(f"pack {pack}: {', '.join(splits)}{named}")
    records: dict[str, list[Record]] = {}
    strange: list[str] = []
    if pack is not None or rows:
        sources = {group: splits[group] for group in GROUPS} if pack is not None else rows
        records = {group: read_records(path) for group, path in sources.items()}
        if pack is not None:
            for group, path in rows.items():
                strange += _same_rows(path, [record.texts for record in read_records(path)], records[group], group)
    blocks, others = _influence(found("rapidin.outdir"), records, facts, warnings)
    strange += others
    warnings += strange
    if others:
        warnings.append("the influence files are not taken: they are about other rows")
    weights = {
        group: path
        for group in GROUPS
        if (path := found(f"rapidun.data.rapidin_{group}_weights", f"rapidin.out_{group}")) is not None
    }
    if records and not blocks and len(weights) == len(GROUPS) and (why := _foreign(weights, records, strange)):
        warnings.append(f"the weights are not taken: {why} (the run makes its own)")
        weights = {}
    num_forget = len(records["forget"]) if records else None
    if blocks and num_forget is None:
        num_forget = len(read_release(blocks["ff"]).entries)
    return Files(
        pack,
        rows if pack is None else {},
        blocks,
        weights if len(weights) == len(GROUPS) else {},
        num_forget,
        facts,
        warnings,
    )


def _influence(
    folder: Path | None, records: Mapping[str, Sequence[Record]], facts: list[str], warnings: list[str]
) -> tuple[dict[str, Path], list[str]]:
    """The four influence files of a folder; none where one is missing.

    Returns: the files; lines that say which of them are about other rows, where none is taken either.
    """
    if folder is None or not folder.is_dir():
        return {}, []
    blocks: dict[str, Path] = {}
    for name, ending in ENDINGS.items():
        files = sorted(folder.glob(f"influence_results_*_{ending}.json"))
        if len(files) > 1:
            shown = ", ".join(file.name for file in files)
            raise DataError(f"{folder}: need one influence file for {name} (*_{ending}.json), got {shown}. Keep one")
        blocks.update({name: files[0]} if files else {})
    missing = [f"influence_results_*_{ENDINGS[name]}.json" for name in BLOCKS if name not in blocks]
    if missing:
        if blocks:
            warnings.append(f"the influence files are not taken: {', '.join(missing)} missing in {folder}")
        return {}, []
    read = {name: read_release(path) for name, path in blocks.items()}
    release_blocks(read)
    others = []
    for name, path in blocks.items():
        group = GROUPS[0] if name.endswith("f") else GROUPS[1]
        if group in records:
            others += _same_rows(path, _asked(path), records[group], group, num_rows=len(read[name].entries))
    if others:
        return {}, others
    facts.append(f"influence {folder}: {', '.join(f'{name} {path.name}' for name, path in blocks.items())}")
    return blocks, []


def _foreign(weights: Mapping[str, Path], records: Mapping[str, Sequence[Record]], strange: Sequence[str]) -> str:
    """Why weights cannot be those of the rows; empty where nothing speaks against it.

    Lines without ids mean rows by their place, so that what else was made from other rows speaks against them as well.

    Args: strange: lines on files that are about other rows.
    Raises: DataError for a weights file that cannot be read.
    """
    for group, path in weights.items():
        ids = [record.id for record in records[group]]
        lines = read_lines(path)
        if strange and any(line.id is None for line in lines):
            return f"{path} knows rows by their place, and what was made beside it is about other rows"
        try:
            read_weights(path, ids)
        except DataError as error:
            return str(error)
    return ""


def _asked(path: Path) -> list[tuple[str, str, str]]:
    """The texts of each query, where the file has them; a file in JSON Lines is taken at its word."""
    try:
        whole = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        return []
    entries = [whole[str(number)] for number in range(len(whole)) if str(number) in whole]
    texts = [entry.get("test_data") for entry in entries]
    if not all(isinstance(text, dict) for text in texts):
        return []
    return [(str(text.get("instruction")), str(text.get("input") or ""), str(text.get("output"))) for text in texts]


def _same_rows(
    path: Path, texts: Sequence[tuple[str, str, str]], rows: Sequence[Record], group: str, num_rows: int | None = None
) -> list[str]:
    """A line where a file is not about these rows in this order; the release knows rows by their place alone."""
    count = len(texts) if num_rows is None else num_rows
    if count != len(rows):
        return [f"{path}: {count} {group} rows, but the pack has {len(rows)}"]
    for place, (text, row) in enumerate(zip(texts, rows, strict=False)):
        instruction, context, _ = row.texts
        prompts = (instruction, row.instruction_poisoned)
        answers = (row.forget_target, row.response) if group == GROUPS[0] else (row.response,)
        if text[0] not in prompts or text[1].strip() != context.strip() or text[2] not in answers:
            return [f"{path}: row {place} is another one than {group} row {place} of the pack (id {row.id})"]
    return []


def compare_weights(cfg: MappingConfig, files: Files) -> list[str]:
    """Make the weights from the influence files and hold them against the checkout's own; a line for each group.

    Raises: DataError for a weights file that cannot be read.
    """
    lines = []
    with TemporaryDirectory() as folder:
        run_mapping(cfg, MappingFiles(out=Path(folder)), seed=0, tracker=Tracker())
        for group in GROUPS:
            made = {line.row: line.weight for line in read_lines(Path(folder) / f"{group}_weights.jsonl")}
            theirs = read_lines(files.weights[group])
            path = files.weights[group]
            if len(theirs) != len(made) or {line.row for line in theirs} != set(made):
                lines.append(f"DIFFERENT: {path} has {len(theirs)} rows, the influence files have {len(made)}")
                continue
            worst = max(abs(line.weight - made[line.row]) for line in theirs)
            if worst <= TOLERANCE:
                lines.append(f"the mapping gives the {len(made)} weights of {path} (largest difference {worst:.1g})")
            else:
                lines.append(
                    f"DIFFERENT: the mapping's weights and those of {path} differ by up to {worst:.3g}: other files or "
                    "settings made them; mapping=file mapping.forget=... mapping.retain=... takes them as they are"
                )
    return lines
