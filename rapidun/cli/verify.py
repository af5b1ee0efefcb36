"""`rapidun verify RUN|SWEEP`: whether a result follows from the bytes that are stored, and from which."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rapidun.base.errors import DataError
from rapidun.base.store import package_versions
from rapidun.cli.commands import FOLDER, Parser
from rapidun.pipeline.evidence.ledger import Ledger
from rapidun.pipeline.evidence.run import verify_run
from rapidun.pipeline.evidence.sweep import verify_sweep
from rapidun.report.read import is_run
from rapidun.report.sweep.summary import is_sweep


def parser() -> argparse.ArgumentParser:
    made = Parser(
        prog="rapidun verify",
        description="Read every file that a result rests on and compare it with the hash of when it was made: the "
        "artifacts of the run and what these were made from, the inputs (packs, models, adapters) as they are now, the "
        "numbers of result.json, the tables of a sweep. Status: 0 all follows, 1 something does not, 2 no such folder.",
    )
    made.add_argument("path", type=FOLDER, metavar="DIR", help="a run folder or a sweep folder")
    made.add_argument("--json", action="store_true", help="print one JSON object")
    return made


def main(argv: Sequence[str]) -> int:
    """Print what was read and what does not match; 0 or 1. Raises: DataError for a folder that is neither."""
    found = parser().parse_args(argv)
    path: Path = found.path
    if not path.is_dir() or not (is_run(path) or is_sweep(path)):
        raise DataError(
            f"{path}: need a run folder (with status.json or result.json) or a sweep folder of such, got "
            f"{'a folder without either' if path.is_dir() else 'no folder'}. Pass rapidun verify DIR"
        )
    ledger = Ledger()
    if is_run(path):
        verify_run(path, ledger)
    else:
        verify_sweep(path, ledger)
    notes = [*ledger.notes, *ledger.code_notes(package_versions())]
    if found.json:
        print(json.dumps(_as_json(ledger, notes), indent=2, ensure_ascii=False))
        return 1 if ledger.faults else 0
    for fault in ledger.faults:
        print(fault)
    for note in notes:
        print(f"note: {note}")
    read = (
        f"{ledger.num_runs} {'run' if ledger.num_runs == 1 else 'runs'}, {ledger.num_artifacts} artifacts, "
        f"{len(ledger.hashes)} files, {ledger.num_bytes:,} bytes"
    )
    if ledger.faults:
        faults = f"{len(ledger.faults)} {'fault' if len(ledger.faults) == 1 else 'faults'}"
        print(f"{path}: does not follow from what is stored: {faults} ({read} are as they were)")
        return 1
    print(f"this table follows from these bytes: {read}, sha256 {ledger.digest}")
    return 0


def _as_json(ledger: Ledger, notes: Sequence[str]) -> dict[str, object]:
    return {
        "follows": not ledger.faults,
        "faults": ledger.faults,
        "notes": list(notes),
        "runs": ledger.num_runs,
        "artifacts": ledger.num_artifacts,
        "bytes": ledger.num_bytes,
        "files": dict(sorted(ledger.hashes.items())),
        "digest": ledger.digest,
    }
