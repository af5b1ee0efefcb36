"""`rapidun certify DIR`: certificate.html and certificate.json of one run, refused where its files do not fit."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rapidun.base.errors import DataError
from rapidun.base.limits import refusal
from rapidun.cli.commands import FOLDER, Parser
from rapidun.pipeline.evidence.ledger import Ledger
from rapidun.pipeline.evidence.run import verify_run
from rapidun.report.certificate.document import make_document, read_certifiable
from rapidun.report.certificate.page import HTML_FILE, JSON_FILE, write_certificate
from rapidun.report.read import is_run
from rapidun.report.sweep.cells import cell_folders

SHOWN = 6


def parser() -> argparse.ArgumentParser:
    made = Parser(
        prog="rapidun certify",
        description="A certificate of a finished run: what was forgotten and how it was chosen, every attack and its "
        "result beside retrain's, what was kept, what was not tried, commands and hashes. Its verdict follows from the "
        "numbers by rules (docs/certificate.md). Written into DIR; refused where rapidun verify DIR finds a fault.",
    )
    made.add_argument("path", type=FOLDER, metavar="DIR", help="the folder of a run that was evaluated")
    made.add_argument("--out", type=FOLDER, metavar="FOLDER", help="write the two files here instead")
    return made


def main(argv: Sequence[str]) -> int:
    """Write the certificate, print its verdict and where it is; 0, or 1 where the run's files do not fit.

    Raises: DataError for what is no finished, evaluated run; ArtifactError for a damaged file; nothing is written then.
    """
    found = parser().parse_args(argv)
    path, out = found.path, found.out or found.path
    _check_is_run(path)
    faults, verified = _verify(path)
    if faults:
        return _refuse(path, out, faults)
    run = read_certifiable(path)
    document = make_document(run, verified=verified, in_sweep=_cells_beside(path))
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        files = write_certificate(document, out, text=text)
    except OSError as error:
        said = f"certify: need a folder that can be written, got {out} ({error.strerror}). Pass --out"
        raise refusal(error) or DataError(said) from None
    print(document["verdict"]["sentence"])
    print(document["verdict"]["kept_sentence"])
    for file in files:
        print(f"certificate: {file}")
    return 0


def _verify(path: Path) -> tuple[list[str], dict[str, Any]]:
    """What `rapidun verify` finds: the faults; and what it read, with its notes."""
    ledger = Ledger()
    verify_run(path, ledger)
    read = {
        "artifacts": ledger.num_artifacts,
        "files": len(ledger.hashes),
        "bytes": ledger.num_bytes,
        "digest": ledger.digest,
        "notes": list(ledger.notes),
    }
    return ledger.faults, read


def _check_is_run(path: Path) -> None:
    if path.is_dir() and is_run(path):
        return
    cells = sorted(folder.name for folder in cell_folders(path))
    if cells:
        more = f" and {len(cells) - SHOWN} more" if len(cells) > SHOWN else ""
        raise DataError(
            f"certify: need one run, got a sweep folder, {path}. Pass one of its runs: "
            f"{', '.join(str(path / name) for name in cells[:SHOWN])}{more}"
        )
    got = "a folder without status.json and result.json" if path.is_dir() else "no folder"
    raise DataError(f"certify: need the folder of a run, got {path}, {got}. Pass rapidun certify DIR")


def _refuse(path: Path, out: Path, faults: Sequence[str]) -> int:
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    print(f"rapidun: certify: {path} is not what its run made, {count}; no certificate is written", file=sys.stderr)
    for fault in faults:
        print(f"  {fault}", file=sys.stderr)
    old = [name for name in (HTML_FILE, JSON_FILE) if (out / name).is_file()]
    if old:
        print(f"  {' and '.join(old)} in {out} are from before: do not hand them on", file=sys.stderr)
    return 1


def _cells_beside(path: Path) -> int:
    """Cells of the sweep that a run is one of; 0 = of none."""
    sweep = path.resolve().parent
    return len(cell_folders(sweep)) if (sweep / "sweep.json").is_file() else 0
