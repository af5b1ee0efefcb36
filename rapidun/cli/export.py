"""`rapidun export RUN OUT`: the unlearned model of a run as a folder that loads by itself."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rapidun.base.errors import DataError
from rapidun.cli.commands import FOLDER, Parser
from rapidun.pipeline.evidence.ledger import Ledger
from rapidun.pipeline.evidence.run import verify_run
from rapidun.report.certificate.card import make_card
from rapidun.report.read import is_run, read_run

# by the form of what was written
WHAT = {
    "adapter": "A LoRA adapter over {base}, trained to make it forget. It is of no use over another model.",
    "merged": "A language model with a LoRA adapter, trained to make it forget, merged into its weights.",
    "whole": "A language model whose weights were changed to make it forget.",
}


def parser() -> argparse.ArgumentParser:
    made = Parser(
        prog="rapidun export",
        description="Write the unlearned model of a finished run into OUT, which AutoPeftModelForCausalLM (an adapter) "
        "or AutoModelForCausalLM (--merge) loads anywhere: weights, tokenizer, and a model card of what was measured. "
        "Read back before it gets its name; refused where rapidun verify RUN finds a fault.",
    )
    made.add_argument("run", type=FOLDER, metavar="RUN", help="the folder of a finished run")
    made.add_argument("out", type=FOLDER, metavar="OUT", help="a folder that is not there yet")
    made.add_argument("--merge", action="store_true", help="put the adapter into the weights: one folder, no base")
    return made


def main(argv: Sequence[str]) -> int:
    """Write the folder and say what is in it; 0, or 1 where the run's files are not what it made.

    Raises: RapidunError; nothing is written then.
    """
    found = parser().parse_args(argv)
    # late: brings torch
    from rapidun.pipeline.export import Exported, Form, export_run

    # what the run's settings name is looked for where the run was started
    path, out = (Path(os.path.abspath(one.expanduser())) for one in (found.run, found.out))
    if not path.is_dir() or not is_run(path):
        got = "a folder without status.json and result.json" if path.is_dir() else "no folder"
        raise DataError(f"export: need the folder of a run, got {path}, {got}. Pass rapidun export RUN OUT")
    ledger = Ledger()
    verify_run(path, ledger)
    if ledger.faults:
        print(f"rapidun: export: {path} is not what its run made; nothing is written", file=sys.stderr)
        for fault in ledger.faults:
            print(f"  {fault}", file=sys.stderr)
        return 1
    run = read_run(path)

    def card(made: Exported) -> str:
        what = WHAT[made.form.value].format(base=f"`{made.base}`")
        return make_card(run, what=what, base=made.base, verified={"digest": ledger.digest})

    made = export_run(path, out, merge=found.merge, card=card, say=lambda text: print(f"note: {text}"))
    if found.merge and made.form is Form.whole:
        print("note: unlearning changed all weights: there was no adapter to merge")
    over = f" over {made.base}" if made.base else ""
    print(f"{made.form.value}{over}, read back: loss {made.loss:.4f} on forget rows, as in the run")
    print(f"exported: {out}")
    return 0
