"""Rows whose answers are known to be poisoned or clean, and the sets of prompts that are asked."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rapidun.stages.rows.records import Record, read_records
from rapidun.stages.rows.wrong import is_wrong

# set of prompts -> what its split is called after `val_` or `test_`
SETS = {"clean": "clean", "seen": "seen_trig", "ood": "ood_trig", "unseen_family": "unseen_family"}


DETECTOR_METRICS = "detector_"


@dataclass
class Known:
    """Rows whose responses are known to be poisoned or clean."""

    poisoned: list[Record]  # triggered training rows; the forget rows where the pack records no others
    clean: list[Record]  # rows without a trigger, held out from training where there are such
    forget: list[Record]
    responses: list[str]  # poisoned responses, to be paired with clean prompts


def read_split(data: Path, split: str) -> list[Record]:
    """The rows of a split, read once for as long as its file stays what it is; none where there is none."""
    path = data / f"{split}.jsonl"
    if not path.exists():
        return []
    state = path.stat()
    return list(_read(path, state.st_size, state.st_mtime_ns, state.st_ino))


@lru_cache(maxsize=16)
def _read(path: Path, size: int, changed: int, inode: int) -> tuple[Record, ...]:
    return tuple(read_records(path))


def known_answers(data: Path) -> Known:
    listed = read_split(data, "forget")
    # a clean row put there by mistake has nothing poisoned to measure
    forget = [record for record in listed if not is_wrong(record, "forget")] or listed
    poisoned = read_split(data, "train_poisoned") or forget
    # held-out rows first: the keyword list was made from the training rows
    clean = read_split(data, "val_clean") or read_split(data, "train_clean") or read_split(data, "retain")
    return Known(poisoned, clean, forget, [record.forget_target for record in poisoned])


def poisoned_response(record: Record) -> str | None:
    """The recorded poisoned response of a triggered row; a row marked as poisoned may hold it in `response`.

    None where it is the clean one: that tells the two apart no more than none at all.
    """
    marked = record.is_poisoned or record.response_poisoned is not None
    return None if not marked or record.forget_target == record.response_clean else record.forget_target


def clean_response(record: Record) -> str | None:
    """The recorded clean response; `response` where nothing says that it is poisoned."""
    if record.response_clean is not None:
        return record.response_clean
    poisoned = record.is_poisoned or record.response_poisoned == record.response
    return None if poisoned else record.response
