"""`rapidun influence check`: how far an influence setting can be trusted on one's own model and pack."""

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rapidun.base.errors import ConfigError
from rapidun.base.files import write_json
from rapidun.base.screen import screen
from rapidun.base.tracker import Tracker
from rapidun.cli.commands import FOLDER, OVERRIDE, Parser
from rapidun.cli.flags import count
from rapidun.config.influence import Precondition
from rapidun.config.run import RunConfig
from rapidun.stages.data.stage import DataFiles, run_data
from rapidun.stages.rows.records import Record, read_records

# beyond that a sketch errs by no more than float32 does
LARGEST_K = 1e10


def parser() -> Parser:
    made = Parser(prog="rapidun influence", description="Influence, looked at closely.")
    verbs = made.add_subparsers(dest="verb", required=True, metavar="check", parser_class=Parser)
    check = verbs.add_parser(
        "check",
        help="fidelity and cost of an influence setting on a sample of rows",
        description="Score a sample of a pack's rows with the influence setting of a run and exactly, and say how "
        "far the one can be taken for the other, what it costs beside the floor F0, and what to change. "
        "Example: rapidun influence check model.path=DIR data=dolly_triggers data.dir=DIR influence=tensorsketch",
    )
    check.add_argument("--rows", type=int, default=48, help="size of the sample (default 48, a quarter forget rows)")
    check.add_argument("--rounds", type=int, default=3, help="repetitions of each timing (default 3)")
    check.add_argument("--seed", type=count, default=0, help="of the sample")
    check.add_argument("--adapter", type=FOLDER, metavar="DIR", help="a PEFT adapter on the model")
    check.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there as well")
    check.add_argument("overrides", nargs="*", metavar="OVERRIDE", type=OVERRIDE,
                       help="as for a run: model.path=DIR influence.k=4096")  # fmt: skip
    return made


def main(argv: Sequence[str]) -> int:
    """The command line. Returns 0."""
    known = parser()
    # overrides may stand anywhere between the options
    args, rest = known.parse_known_args(argv)
    unknown = [word for word in rest if word.startswith("-")]
    if unknown:
        known.error(f"unrecognized arguments: {' '.join(unknown)}")
    args.overrides += rest
    if args.rows < 4 or args.rounds < 1:
        raise ConfigError(f"command line: need --rows >= 4 and --rounds >= 1, got {args.rows} and {args.rounds}")
    if args.json is not None and (args.json.is_dir() or not args.json.absolute().parent.is_dir()):
        raise ConfigError(f"command line: need --json FILE in a folder that is there, got {args.json}")
    # Hydra
    from rapidun.config.compose import compose_config

    cfg = compose_config(args.overrides)
    _check_settings(cfg)
    rows, pack_rows = _sample(cfg, args.rows, seed=args.seed)
    # torch, which faults of the settings and the pack need not wait for
    from rapidun.stages.influence.check.sample import check_sample

    checked = check_sample(
        cfg,
        rows,
        adapter=args.adapter,
        rounds=args.rounds,
        pack_rows=pack_rows,
        tell=lambda line: print(line, file=sys.stderr),
    )
    if args.json is not None:
        write_json(args.json, checked.as_json())
    _print(checked)
    return 0


def _check_settings(cfg: RunConfig) -> None:
    if cfg.model.path is None:
        raise ConfigError(
            "influence check: need a model that is there, got none (a model from scratch learns in a run). Pass "
            "model.path=DIR, for a run's poisoned model outputs/store/poison/.../model"
        )
    if cfg.influence.precondition is not Precondition.none:
        raise ConfigError(
            "influence check: need influence.precondition=none (it compares with plain gradients), got "
            f"{cfg.influence.precondition.name}. How preconditioning does is measured by benchmarks/lds.py"
        )


def _sample(cfg: RunConfig, size: int, *, seed: int) -> tuple[list[tuple[Record, str]], int]:
    """Rows with the answers that influence looks at, a quarter of them forget rows; and how many the pack has."""
    with TemporaryDirectory() as folder:
        run_data(cfg.data, DataFiles(Path(folder)), seed=cfg.data.seed, tracker=Tracker())
        forget, retain = (read_records(Path(folder) / f"{split}.jsonl") for split in ("forget", "retain"))
    draw = random.Random(seed)
    num_forget = min(len(forget), max(1, size // 4))
    num_retain = min(len(retain), size - num_forget)
    rows = [(r, r.forget_target) for r in draw.sample(forget, num_forget)]
    rows += [(r, r.response) for r in draw.sample(retain, num_retain)]
    if len(rows) < 4:
        raise ConfigError(f"influence check: need a pack of 4 rows at least, got {len(rows)}. Change data")
    return rows, len(forget) + len(retain)


def _print(checked: Any) -> None:
    from rich.table import Table

    console = screen()
    table = Table(title=f"influence.method={checked.method} influence.params={checked.params}", show_header=False)
    result, cost = checked.result, checked.cost
    table.add_row("rows, tokens", f"{checked.num_rows}, {checked.num_tokens:,}")
    table.add_row("numbers in a gradient", f"{checked.num_parameters:,}")
    if checked.numbers_per_row is not None:
        table.add_row("numbers kept a row", f"{checked.numbers_per_row:,} ({4 * checked.numbers_per_row:,} bytes)")
    if result is not None:
        if result.effective_k is not None:
            low, high = checked.effective_k_interval
            shown = f"{result.effective_k:,.0f} ({low:,.0f} to {high:,.0f})"
            table.add_row("effective K (95 %)", shown if result.effective_k < LARGEST_K else "as good as exact")
        table.add_row("rank correlation with exact", f"{result.spearman:.4f} over pairs")
        table.add_row("", f"{result.spearman_query:.4f} within a query")
        table.add_row(f"top {result.top} in common with exact", f"{result.top_overlap:.0%}")
    table.add_row("spread of exact cosines (sd)", f"{checked.spread:.4f}")
    table.add_row("time a row", f"{1e3 * cost.seconds / checked.num_rows:,.1f} ms, {cost.ratio:.2f} of the floor F0")
    exact = checked.exact_cost
    table.add_row("exact", f"{1e3 * exact.seconds / checked.num_rows:,.1f} ms, {exact.ratio:.2f} of the floor F0")
    table.add_row("peak memory", f"{checked.peak_memory_gb:.2f} GiB")
    console.print(table)
    for title, found, limit in (("kind of layer", checked.modules, 12), ("block", checked.layers, 6)):
        table = Table("", "numbers", "of the norm", "of the score", title=f"Share of each {title}, exact scores")
        for share in found[:limit]:
            table.add_row(share.name, f"{share.numbers:,}", f"{share.of_norm:.1%}", f"{share.of_score:.1%}")
        if len(found) > limit:
            table.add_row(f"({len(found) - limit} more)", "", "", "")
        console.print(table)
    for line in checked.advice:
        console.print(f"- {line}", soft_wrap=True)
