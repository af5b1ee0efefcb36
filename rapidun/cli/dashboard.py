"""`rapidun dashboard DIR`: a W&B workspace and report of a sweep or a run, or their specification to publish later."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rapidun.base.errors import RapidunError
from rapidun.base.files import write_json
from rapidun.base.redact import hide
from rapidun.base.text import first_line
from rapidun.cli.commands import SWEEP, Parser
from rapidun.pipeline.tracking.packages import need_package
from rapidun.pipeline.tracking.wandb.mode import choose_connection
from rapidun.pipeline.tracking.wandb.workspace import counted, publish
from rapidun.pipeline.tracking.wandb.workspace_spec import dashboard_spec

FILE = "dashboard.json"


def parser() -> argparse.ArgumentParser:
    made = Parser(prog="rapidun dashboard", description=__doc__)
    made.add_argument("folder", type=SWEEP, metavar="DIR", help="a sweep's folder, outputs/sweeps/NAME, or a run's")
    made.add_argument("--publish", action="store_true", help="save workspace and report in W&B")
    made.add_argument("--project", help="W&B project (default: that of the runs)")
    made.add_argument("--entity", help="W&B user or team (default: that of the runs, else the key's own)")
    return made


def main(argv: Sequence[str]) -> int:
    """Write DIR/dashboard.json; with --publish save it in W&B. 1 where W&B cannot be reached or refuses."""
    args = parser().parse_args(argv)
    spec = dashboard_spec(args.folder, project=args.project, entity=args.entity)
    path = args.folder / FILE
    write_json(path, spec)
    panels = sum(len(section["panels"]) for section in spec["sections"])
    print(f"{path}: {counted(spec)}, {panels} panels in {len(spec['sections'])} sections")
    if not args.publish:
        print(f"to save it in W&B: rapidun dashboard {args.folder} --publish")
        print(f"after its runs are there: rapidun wandb sync {args.folder}")
        return 0
    return _publish(spec, args.folder)


def _publish(spec: dict[str, object], folder: Path) -> int:
    need_package("wandb")
    connection = choose_connection("online")
    if connection.mode != "online":
        why = connection.warning.removeprefix("tracking: ").removesuffix(": offline")
        print(
            f"rapidun dashboard: nothing was published: {why}. The specification is kept; run this again",
            file=sys.stderr,
        )
        return 1
    try:
        if not spec["entity"]:
            import wandb

            spec = {**spec, "entity": wandb.Api(timeout=20).default_entity}
        addresses = publish(spec)
    except RapidunError:
        raise
    except Exception as error:  # W&B's errors have no common base
        print(f"rapidun dashboard: W&B refused: {hide(first_line(error))}", file=sys.stderr)
        return 1
    print(f"workspace: {addresses.workspace}\nreport: {addresses.report}")
    return 0
