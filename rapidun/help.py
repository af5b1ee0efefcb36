"""What `rapidun --help` prints; needs neither Hydra nor torch."""

import textwrap
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

from rapidun.paths import config_groups

GROUPS = {
    "model": "which language model, its dtype, quantisation and device",
    "data": "the rows: built-in pack, a folder of JSONL, or single files",
    "poison": "how the backdoor is trained in (none = the model has it already)",
    "influence": "how the influence of training rows is measured",
    "mapping": "how influence becomes a weight for each row",
    "unlearning": "the objective that removes the backdoor",
    "evaluation": "how much is generated and measured",
    "tracking": "where numbers go besides the run folder",
    "resources": "what one run may use",
    "cluster": "where SLURM jobs go (conf/cluster/local/site.yaml is yours)",
    "experiment": "a whole table, ready to run: +experiment=NAME",
    "debug": "tiny sizes, to see whether things fit together: debug=fast",
}

HEAD = """\
rapidun: remove a backdoor from a language model, weighting each training row by its influence.

usage: rapidun [key=value ...]            one run           (python sweep.py ... is the same)
       rapidun -m key=value1,value2 ...   a sweep: every combination
       rapidun SUB-COMMAND ...

Stages, in order:
  data        read the pack, check it, make the triggered prompts
  poison      train the backdoor into the model
  influence   score how much each forget and retain row helps each other row
  mapping     turn the scores into a weight for each row
  unlearning  train the backdoor out again, with those weights
  evaluation  attack success rate and clean quality, before and after
A stage whose settings and inputs have not changed is reused from outputs/store.

Groups (one file each in conf/; GROUP=NAME picks it, GROUP.KEY=VALUE changes one key):
"""

TAIL = """
Keys used most:
  stages=[influence,mapping]        any run of consecutive stages, or one alone
  seed=1  max_length=256            of the whole run
  run_dir=DIR  store_dir=DIR        default outputs/runs/<date>_<time>_<name>, outputs/store
  data.dir=DIR  model.path=PATH     a pack of yours, a model folder, hub id or .gguf file
  mapping.tau_f=0.5                 flatter (larger) or sharper (smaller) forget weights
  unlearning.learning_rate=2e-4     rapidun --cfg job lists every key with its value

Sub-commands:
  report DIR...                     write report.html of runs, the summary of sweeps
  doctor                            versions, devices, memory; what will not work here, and why
  pack build|check                  make a pack from clean instructions; look at one
  model fetch NAME [DIR]            a small real model without access to the hub
  store list|verify|prune           the stages' results in outputs/store

Examples:
  rapidun                                                       built-in pack, tiny model, about a minute or two
  rapidun debug=fast                                            the same in seconds; the numbers mean nothing
  rapidun mapping=uniform seed=3
  rapidun model=smollm2_135m data=dolly_triggers data.dir=PACK
  rapidun -m mapping=rapidun,uniform,shuffled seed=0,1,2
  rapidun +experiment=dolly_smollm2 data.dir=PACK

Flags:
  --cfg job  --info defaults        the composed configuration; where each part comes from
  --config-dir DIR                  more config groups of your own
  --version  --hydra-help

Exit status: 0 all well; 1 a stage or some sweep cells failed; 2 the configuration or an input is wrong.
HYDRA_FULL_ERROR=1 shows tracebacks. The run folder's report.html shows the result.
"""


def help_text() -> str:
    """The groups' choices are read from conf/, so that the text cannot lag behind."""
    known = config_groups()
    lines = []
    for group in [*GROUPS, *(name for name in known if name not in GROUPS)]:
        if group not in known:
            continue
        lines.append(f"  {group:<11} {GROUPS.get(group, '')}".rstrip())
        lines += textwrap.wrap(", ".join(known[group]), 104, initial_indent=" " * 16, subsequent_indent=" " * 16)
    return HEAD + "\n".join(lines) + "\n" + TAIL


def version() -> str:
    """The installed version, or `unknown` in a checkout that was never installed."""
    try:
        return installed_version("rapidun")
    except PackageNotFoundError:
        return "unknown (not installed)"
