"""`rapidun wandb sync DIR`: uploads every offline W&B run below a folder."""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rapidun.base.errors import ConfigError, DataError
from rapidun.cli.commands import FOLDER, Parser
from rapidun.pipeline.tracking.packages import need_package
from rapidun.pipeline.tracking.wandb.mode import answers, has_key, server_address

# W&B takes many runs in one command; this bounds the length of it
AT_ONCE = 50
# the head of W&B's files; a run that was killed in its first seconds has nothing more, and W&B refuses it
HEAD_BYTES = 7


def parser() -> argparse.ArgumentParser:
    made = Parser(prog="rapidun wandb", description="Work on W&B runs that were made offline.")
    actions = made.add_subparsers(dest="action", required=True)
    sync = actions.add_parser("sync", help="upload every offline run below DIR")
    sync.add_argument("folder", type=FOLDER, metavar="DIR", help="a run, a sweep, or all of outputs")
    sync.add_argument("--dry-run", action="store_true", help="say which runs would go up")
    return made


def main(argv: Sequence[str]) -> int:
    """Sync; 1 where the server does not answer or an upload failed.

    Raises: ConfigError without a key, DataError where there is nothing to sync (both: exit status 2).
    """
    args = parser().parse_args(argv)
    if not args.folder.is_dir():
        raise DataError(f"wandb sync: need a folder, got {args.folder}")
    runs = offline_runs(args.folder)
    waiting = [run for run in runs if not is_synced(run)]
    print(f"{len(runs)} offline runs below {args.folder}, {len(runs) - len(waiting)} of them synced before")
    if args.dry_run:
        for run in waiting:
            print(f"would sync {run}")
        return 0
    return _sync(waiting) if waiting else 0


def offline_runs(folder: Path) -> list[Path]:
    """The folders of offline runs, oldest first: an attempt before the one that went on from it."""
    found = []
    # followed links would lead into the store and back
    for root, names, _ in os.walk(folder):
        here = [name for name in names if name.startswith("offline-run-")]
        found += [Path(root) / name for name in here if _has_records(Path(root) / name)]
        names[:] = [name for name in names if name not in here]
    return sorted(found, key=lambda path: (path.name, path))


def _has_records(run: Path) -> bool:
    return any(file.stat().st_size > HEAD_BYTES for file in run.glob("run-*.wandb"))


def is_synced(run: Path) -> bool:
    """Whether W&B left its mark that this run went up."""
    return any(run.glob("run-*.wandb.synced"))


def _sync(runs: Sequence[Path]) -> int:
    need_package("wandb")
    address = server_address()
    if not has_key(address):
        raise ConfigError("wandb sync: need a W&B key, got none. Run `wandb login` once, or set WANDB_API_KEY")
    if not answers(address):
        print("rapidun wandb: the W&B server does not answer; nothing was uploaded, the runs are kept", file=sys.stderr)
        return 1
    for start in range(0, len(runs), AT_ONCE):
        part = [str(run) for run in runs[start : start + AT_ONCE]]
        subprocess.run([sys.executable, "-m", "wandb", "sync", *part], stdin=subprocess.DEVNULL, check=False)
    # its exit status is 0 whatever happens, its mark is not
    left = [run for run in runs if not is_synced(run)]
    print(f"{len(runs) - len(left)} of {len(runs)} runs uploaded")
    for run in left:
        print(f"not uploaded: {run}", file=sys.stderr)
    return 1 if left else 0
