"""The files of a pack: which one each split is read from, and reading them all."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from rapidun.base.errors import DataError
from rapidun.config.data import DataConfig, Source
from rapidun.stages.data.named import pack_folders
from rapidun.stages.rows.formats.columnar import splits_of
from rapidun.stages.rows.formats.detect import LINES, all_endings, is_there, local
from rapidun.stages.rows.formats.hub import is_hub
from rapidun.stages.rows.formats.words import listed
from rapidun.stages.rows.records import Record, read_file
from rapidun.stages.rows.spelling import IN_EVERY_FILE, Spelling

SPLITS = (
    "forget",
    "retain",
    "train_poisoned",
    "train_clean",
    "val_clean",
    "val_seen_trig",
    "val_ood_trig",
    "val_unseen_family",
    "test_clean",
    "test_seen_trig",
    "test_ood_trig",
    "test_unseen_family",
    # what is to be forgotten, asked otherwise; TOFU's two sets of facts that nobody trained on
    "probe",
    "real_authors",
    "world_facts",
)
# what a split's file inside a pack is called, the first that exists; then .jsonl or any other ending, or none (a folder
# written by `datasets`)
STEMS = {split: (split,) for split in SPLITS} | {
    "forget": ("forget", "forget_set", "forget_set_supervised"),
    "retain": ("retain", "retain_set"),
}


class ReadPack(NamedTuple):
    """notes: what was read otherwise than its name says."""

    pack: dict[str, list[Record]]
    notes: list[str]


def find_files(cfg: DataConfig) -> dict[str, Path]:
    """The file of each split that the settings name or the pack's folder holds.

    Raises: DataError where a named file, the folder, or the forget or retain rows are not there, or a split has files
        of two formats.
    """
    if cfg.source is Source.builtin:
        return {}
    found: dict[str, Path] = {}
    folder = None if cfg.dir is None else Path(cfg.dir).expanduser()
    named = {split: path for split in SPLITS if (path := getattr(cfg, split, None)) is not None}
    if folder is not None:
        if not folder.is_dir():
            raise DataError(f"data.dir: need the folder of a pack, got {folder}, which is no folder. Pass data.dir=...")
        for split in SPLITS:
            files = [] if split in named else _files_of(folder, split)
            if files:
                found[split] = _one_of(files, split)
    for split, name in named.items():
        path = local(name)
        if not is_there(path):
            state = "which is a folder that `datasets` did not write" if path.is_dir() else "which is no file"
            raise DataError(f"data.{split}: need a file of rows, got {path}, {state}. Pass data.{split}=...")
        found[split] = path
    for split in ("forget", "retain"):
        if split not in found:
            where = "no data.dir" if folder is None else f"none in {folder}"
            names = " or ".join(f"{stem}{LINES[0]}" for stem in STEMS[split][:2])
            raise DataError(
                f"data: need {names} in the pack or data.{split}=FILE, of any format of docs/packs.md, got {where}"
            )
    return {split: found[split] for split in SPLITS if split in found}


def splits_in(folder: Path) -> dict[str, Path]:
    """The files of all splits that a folder holds, whether or not they make a pack.

    Raises: DataError for a split with files of two formats.
    """
    found = {split: _files_of(folder, split) for split in SPLITS}
    return {split: _one_of(files, split) for split, files in found.items() if files}


def shadowed(cfg: DataConfig) -> list[str]:
    """Lines on files of a pack beside the one that is read: of another format, or under a split's other name."""
    if cfg.source is Source.builtin or cfg.dir is None:
        return []
    lines = []
    for split in SPLITS:
        if getattr(cfg, split, None) is None:
            files = _files_of(Path(cfg.dir).expanduser(), split)
            others = [*files[1:], *(_other_names(files[0], split) if files else [])]
            if others:
                left = listed([path.name for path in others])
                lines.append(f"data: {split} is read from {files[0].name}, not from {left} beside it")
    return lines


def read_pack(
    files: Mapping[str, Path], spelling: Spelling, *, on_file: Callable[[int, Path], None] = lambda done, path: None
) -> ReadPack:
    """Every split's rows; `on_file` hears of each file, with the number of those before it.

    Raises: DataError as `read_records`; for a column that is named for rows of one kind and stands in no file at all.
    """
    pack: dict[str, list[Record]] = {}
    notes: list[str] = []
    columns: set[str] = set()
    for done, (split, path) in enumerate(files.items()):
        on_file(done, path)
        read = read_file(path, spelling)
        pack[split] = read.records
        notes += read.notes
        columns |= read.columns
    for name, column in spelling.fields.items():
        if name not in IN_EVERY_FILE and column not in columns:
            raise DataError(
                f"data.fields.{name}: need a column that one of the pack's files has, got {column!r}, which is in none "
                f"of {listed([path.name for path in files.values()])}. Change data.fields.{name}=..."
            )
    return ReadPack(pack, notes)


def named_on_hub(cfg: DataConfig) -> bool:
    """Whether a file has to be asked of the hub."""
    return any(is_hub(path) for split in SPLITS if (path := getattr(cfg, split, None)) is not None)


def _files_of(folder: Path, split: str) -> list[Path]:
    """The files that could be the split's, the one to be taken first: by folder, then by stem, then by format."""
    for place in pack_folders(folder):
        for stem in STEMS[split]:
            files = [path for ending in all_endings() if (path := place / f"{stem}{ending}").is_file()]
            files += [place / stem] if is_there(place / stem) and (place / stem).is_dir() else []
            if files:
                return files
        for stem in STEMS[split]:
            if stem in splits_of(place):
                return [place / stem]
    return []


def _other_names(chosen: Path, split: str) -> list[Path]:
    """Files beside the chosen one that have another name of the split.

    Of the release forget_set_supervised holds the rows of forget_set once more.
    """
    stem = next((stem for stem in STEMS[split] if chosen.name.partition(".")[0] == stem), STEMS[split][-1])
    stems = [other for other in STEMS[split][STEMS[split].index(stem) + 1 :] if other != "forget_set_supervised"]
    found = [chosen.parent / f"{other}{ending}" for other in stems for ending in all_endings()]
    return [path for path in found if path.is_file()]


def _one_of(files: list[Path], split: str) -> Path:
    if len(files) > 1 and not files[0].name.endswith(LINES[0]):
        raise DataError(
            f"data.{split}: need one file for the split, got {listed([path.name for path in files])} in "
            f"{files[0].parent}. Delete the others, or pass data.{split}=FILE"
        )
    return files[0]
