"""rapidun store: list, check or prune the artifact store."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rapidun.base.errors import ConfigError
from rapidun.base.store import Store, linked_artifacts
from rapidun.cli.commands import FOLDER, Parser
from rapidun.stages.recipes import KINDS


def parser() -> argparse.ArgumentParser:
    made = Parser(prog="rapidun store", description="List, check or prune the artifact store.")
    made.add_argument("action", choices=["list", "verify", "prune"])
    made.add_argument("--store", type=FOLDER, default=Path("outputs/store"), help="the store (default: %(default)s)")
    made.add_argument(
        "--outputs", type=FOLDER, default=Path("outputs"), help="prune keeps what runs below this link to"
    )
    made.add_argument("--dry-run", action="store_true", help="prune: say what would go")
    return made


def main(argv: Sequence[str]) -> int:
    """`rapidun store list|verify|prune`."""
    args = parser().parse_args(argv)
    if not args.store.is_dir():
        raise ConfigError(f"store: need a folder, got {args.store}. Pass --store DIR")
    store = Store(args.store)
    if args.action == "list":
        for artifact in store.artifacts(KINDS, tell=lambda fault: print(f"damaged: {fault}")):
            size = sum(entry["bytes"] for entry in artifact.files.values())
            made, seconds = artifact.manifest.get("made", "?"), artifact.manifest.get("seconds", 0.0)
            print(f"{artifact.stage:<11} {artifact.fingerprint} {size / 2**20:9.1f} MiB {seconds:8.1f} s  {made}")
        return 0
    if args.action == "verify":
        faults = store.verify(KINDS)
        for fault in faults:
            print(fault)
        print(f"{len(faults)} damaged files" if faults else "all artifacts are whole")
        return 1 if faults else 0
    removed = store.prune(KINDS, linked_artifacts(args.outputs, store.run_folders()), dry_run=args.dry_run)
    for path in removed:
        print(f"{'would remove' if args.dry_run else 'removed'} {path}")
    print(f"{len(removed)} folders")
    return 0
