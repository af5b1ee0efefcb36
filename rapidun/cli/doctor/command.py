"""`rapidun doctor [key=value ...]`: what this machine has, what will not work on it, why, and what to do."""

import argparse
import json
from collections.abc import Callable, Sequence

from rapidun.cli.commands import OVERRIDE, Parser
from rapidun.cli.doctor.findings import Findings, as_json, bounded, shown, verdict
from rapidun.cli.doctor.inputs import look_at_inputs
from rapidun.cli.doctor.machine import PROBE_S, Probe, look_at_machine
from rapidun.cli.doctor.request import read_request
from rapidun.cli.doctor.services import look_at_slurm, look_at_wandb
from rapidun.cli.doctor.software import look_at_software
from rapidun.cli.doctor.storage import look_at_storage


def parser() -> argparse.ArgumentParser:
    made = Parser(
        prog="rapidun doctor",
        description="Say what this machine has, and what of a run or a sweep will not work on it,\n"
        "why, and what to do. Without overrides: the default configuration.",
        epilog="before a long run:\n"
        "  rapidun doctor model=smollm2_135m data=dolly_triggers data.dir=PACK\n"
        "before a sweep:\n"
        "  rapidun doctor -m mapping.tau_f=0.3,0.7 hydra/launcher=rapidun_slurm\n\n"
        "Exit status: 0 all that was asked for works, 1 something will not.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("overrides", nargs="*", metavar="key=value", type=OVERRIDE, help="as for a run")
    made.add_argument("--multirun", "-m", action="store_true", help="the overrides are those of a sweep")
    made.add_argument("--json", action="store_true", help="the same for programs")
    return made


def main(argv: Sequence[str]) -> int:
    """Print section by section as they are found; 1 if something that was asked for will not work."""
    options = parser().parse_intermixed_args(argv)
    # torch is asked while the rest is looked at
    probe = Probe()
    request = read_request(options.overrides, multirun=options.multirun)
    checks: dict[str, tuple[Callable[[], Findings], float]] = {
        "software": (lambda: look_at_software(request), 15.0),
        "storage": (lambda: look_at_storage(request), 10.0),
        "configuration": (lambda: look_at_inputs(request), 60.0),
        "machine": (lambda: look_at_machine(request, probe), PROBE_S + 10.0),
        "W&B": (lambda: look_at_wandb(request), 20.0),
        "SLURM": (lambda: look_at_slurm(request), 20.0),
    }
    sections: dict[str, Findings] = {}
    for title, (check, seconds) in checks.items():
        sections[title] = bounded(check, title=title, seconds=seconds)
        if not options.json:
            print(shown(title, sections[title]), end="\n\n", flush=True)
    result = as_json(sections)
    problems = [problem for found in sections.values() for problem in found.problems]
    print(json.dumps(result, indent=2) if options.json else verdict(problems, overrides=bool(options.overrides)))
    return 0 if result["ok"] else 1
