"""`rapidun trace`: from a few bad outputs to the training rows to blame."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rapidun.base.errors import ConfigError
from rapidun.cli.commands import FOLDER, MODEL, Parser
from rapidun.cli.flags import add_setting, count, positive
from rapidun.config import keys
from rapidun.config.data import FieldsConfig, MultiTurn
from rapidun.config.index import RESPONSES
from rapidun.config.trace import Signal, TraceSettings

SETTINGS = {setting.name: setting for setting in dataclasses.fields(TraceSettings)}
DEFAULT = (Signal.repsim,)
AUTO = "auto"


def main(argv: Sequence[str]) -> int:
    """The command line. Returns 0."""
    args = parser().parse_args(argv)
    _check(args)
    # torch, which faults of the command line need not wait for
    from rapidun.cli.tracing.work import run_trace

    return run_trace(args, _settings(args))


def parser() -> Parser:
    made = Parser(
        prog="rapidun trace",
        description="Rank training rows by how likely they are behind some bad outputs, show what in them was found, "
        "and write the first of them as a pack that can be unlearned. Example: "
        "rapidun trace bad.jsonl --rows train.jsonl --model DIR --out TRACE --pack PACK",
    )
    made.add_argument("queries", type=Path, metavar="QUERIES",
                      help="the bad outputs: rows of a prompt and the bad answer (docs/packs.md: formats)")  # fmt: skip
    made.add_argument("--rows", type=Path, nargs="+", default=[], metavar="FILE",
                      help="the training rows: files, or a pack's folder (its training rows)")  # fmt: skip
    made.add_argument("--index", type=FOLDER, metavar="DIR",
                      help="for gradients: the rapidun index of these rows; without it one is built in OUT/index. "
                      "Without --rows its ids alone are ranked")  # fmt: skip
    made.add_argument("--model", type=MODEL, metavar="DIR",
                      help="the model with the bad outputs: a folder or hub id (bm25 alone needs none)")  # fmt: skip
    made.add_argument("--adapter", type=FOLDER, metavar="DIR", help="a PEFT adapter on it")
    made.add_argument("--out", type=FOLDER, required=True, metavar="DIR", help="trace.jsonl, .csv, .html go there")
    default = " ".join(signal.name for signal in DEFAULT)
    made.add_argument("--by", nargs="+", metavar="SIGNAL", choices=[s.name for s in Signal], default=default.split(),
                      help="repsim: hidden states; bm25: words; gradients: what training on the row does to the query; "
                      f"of several their agreement ranks (default {default})")  # fmt: skip
    made.add_argument("--top", type=positive, default=1000, metavar="N", help="rows of the table (default 1000)")
    made.add_argument("--explain", type=count, default=10, metavar="N",
                      help="rows shown token by token in trace.html (default 10)")  # fmt: skip
    made.add_argument("--pack", type=FOLDER, metavar="DIR", help="also write the first rows as a pack to unlearn")
    made.add_argument("--num-forget", type=_number_or_auto, default=AUTO, metavar="N|auto",
                      help="rows to forget; auto: the upper of two clusters of scores, if there are two")  # fmt: skip
    made.add_argument("--retain-ratio", type=positive, default=3, metavar="N",
                      help="rows to keep for each row to forget (default 3)")  # fmt: skip
    made.add_argument("--seed", type=count, default=42, help="of the draw of rows to keep (default 42)")
    made.add_argument("--response", choices=list(RESPONSES),
                      help="of the rows: poisoned = response_poisoned where a row has one (default response; rows of a "
                      "pack's folder as a run trains them)")  # fmt: skip
    for of, flag in (("rows", "--field"), ("queries", "--query-field")):
        made.add_argument(flag, action="append", default=[], metavar="FIELD=COLUMN",
                          help=f"a column of the {of} by its name, as data.fields.FIELD")  # fmt: skip
    made.add_argument("--multi-turn", choices=list(MultiTurn.__members__), default=MultiTurn.refuse.name,
                      help="rows of several turns")  # fmt: skip
    for name in SETTINGS:
        add_setting(made, TraceSettings, name, show_default=True)
    return made


def _settings(args: argparse.Namespace) -> TraceSettings:
    hints = keys.hints(TraceSettings)
    given = {name: getattr(args, name) for name in SETTINGS}
    return TraceSettings(**{n: hints[n][v] if keys.choices(hints[n]) else v for n, v in given.items()})


def _check(args: argparse.Namespace) -> None:
    """Raises: ConfigError with every fault of options that do not go together."""
    args.by = [Signal[name] for name in dict.fromkeys(args.by)]
    faults = []
    if not args.rows and args.index is None:
        faults.append("need the training rows, got none. Pass --rows FILE..., or --index DIR")
    if args.index is not None and Signal.gradients not in args.by:
        faults.append("need --by gradients with --index, got none. Leave --index out, or add gradients to --by")
    if not args.rows and args.index is not None and args.by != [Signal.gradients]:
        faults.append("need --by gradients alone where an index without its rows is given. Pass --rows as well")
    if not args.rows and args.pack is not None:
        faults.append("need --rows with --pack: an index holds no texts. Pass the rows that it was made of")
    if args.model is None and args.by != [Signal.bm25]:
        faults.append("need --model DIR for repsim and gradients, got none. Pass it, or --by bm25")
    if args.adapter is not None and args.model is None:
        faults.append("need --model DIR with --adapter, got none. Pass the model that it sits on")
    for flag, given in (("--field", args.field), ("--query-field", args.query_field)):
        known = list(FieldsConfig.__slots__)
        for text in given:
            name, equals, column = text.partition("=")
            if not equals or name not in known or not column:
                faults.append(f"need {flag} FIELD=COLUMN with one of {', '.join(known)}, got {text!r}")
    if faults:
        raise ConfigError([f"trace: {fault}" for fault in faults])


def _number_or_auto(text: str) -> int | str:
    return AUTO if text == AUTO else positive(text)
