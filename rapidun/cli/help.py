"""What `rapidun --help` prints; needs neither Hydra nor torch."""

import textwrap
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

from rapidun.cli.commands import SUBCOMMANDS
from rapidun.config import extensions
from rapidun.config.paths import config_groups

GROUPS = {
    "model": "which language model, its dtype, quantisation and device",
    "data": "the rows: built-in pack, a folder (pack), or single files (jsonl) of any format",
    "poison": "how the backdoor is trained in (none = the model has it already)",
    "influence": "how the influence of training rows is measured",
    "mapping": "how influence becomes a weight for each row",
    "unlearning": "the objective that removes the backdoor",
    "evaluation": "how much is generated and measured",
    "tracking": "where numbers go besides the run folder",
    "resources": "what one run may use",
    "cluster": "where SLURM jobs go (conf/cluster/local/site.yaml is yours)",
    "experiment": "a whole table, ready to run (+experiment=NAME; yours: +experiment=DIR/experiment/NAME.yaml)",
    "debug": "tiny sizes, to see whether things fit together",
}

HEAD = """\
rapidun: remove a backdoor from a language model, weighting each training row by its influence.

usage: rapidun [key=value ...]            one run           (python sweep.py ... is the same)
       rapidun -m key=value1,value2 ...   a sweep: every combination
       rapidun SUB-COMMAND ...            --help after it says more

Stages, in order: data (read the pack, check it, make the triggered prompts), poison (train the backdoor in), influence
(score how much each forget and retain row helps each other row), mapping (turn the scores into a weight for each row),
unlearning (train the backdoor out again, with those weights), evaluation (attack success and clean quality, before and
after). What has not changed is reused from outputs/store.

Groups (one file each in conf/; GROUP=NAME picks it, GROUP.KEY=VALUE changes one key):
"""

EXAMPLES = """\
First steps:
  rapidun                                                     # built-in pack, tiny model: about a minute or two
  rapidun debug=fast                                          # the same in seconds; the numbers mean nothing
  rapidun mapping=uniform seed=3
  rapidun model=smollm2_135m data=dolly_triggers data.dir=PACK
  rapidun +experiment=dolly_smollm2 data.dir=PACK
Sweeps (outputs/sweeps/NAME; the same command again runs only what is missing):
  rapidun -m mapping=rapidun,uniform,shuffled seed=0,1,2
  rapidun -m mapping=rapidun mapping.tau_f=0.3,0.7 mapping.tau_r=0.5,1.2 'sweep.where=mapping.tau_f <= mapping.tau_r'
  rapidun -m mapping=rapidun mapping.tau_f=0.3,0.7 mapping.tau_r=0.5,1.2 'sweep.zip=[mapping.tau_f,mapping.tau_r]'
  rapidun -m 'seed=range(8)' sweep.dry_run=true               # cells, jobs, script, hours; runs nothing
  rapidun -m seed=0,1,2,3 hydra/launcher=joblib sweep.max_parallel=2
On SLURM (conf/cluster/local/site.yaml is yours: partition, account, modules):
  rapidun -m seed=0,1,2 hydra/launcher=rapidun_slurm resources=gpu cluster.partition=gpu
  rapidun -m 'seed=range(50)' hydra/launcher=rapidun_slurm resources.cells_per_job=5 sweep.detach=true
Tuning by optuna:
  rapidun -m hydra/sweeper=rapidun_optuna mapping=rapidun 'mapping.tau_f=interval(0.1,2)' hydra.sweeper.n_trials=30
Tracking:
  rapidun tracking=wandb                                      # offline where no key is set or no server answers
  rapidun tracking=tensorboard
"""

KEYS = """
Keys used most:
  stages=[influence,mapping]        any run of consecutive stages, or one alone
  seed=1  max_length=256            of the whole run
  run_dir=DIR  store_dir=DIR        default outputs/runs/<date>_<time>_<name>, outputs/store
  model=hf model.path=PATH          a model of yours: a folder, hub id or .gguf file
  model.adapter=DIR                 a LoRA adapter over it, as part of the model
  data=pack data.dir=DIR            a pack of yours
  mapping=rapidun mapping.tau_f=0.5 flatter (larger) or sharper (smaller) forget weights
  unlearning.learning_rate=2e-4     rapidun --cfg job lists every key with its value

Sub-commands:
"""

FLAGS = """
Flags: --extend FILE.py (objectives, weightings, metrics, readers and launchers of your own, docs/extending.md; for
sub-commands too), --cfg job (the composed configuration), --info defaults (where each part comes from),
--config-dir DIR (more config groups of your own), --version, --hydra-help.
Exit status: 0 all well, 1 a stage or some sweep cells failed, 2 the configuration or an input is wrong, 130 Ctrl-C,
143 SIGTERM, 129 SIGHUP.
HYDRA_FULL_ERROR=1 shows tracebacks. The run folder's report.html shows the result.
"""


def help_text() -> str:
    """Read from conf/ and the table of sub-commands, so that the text cannot lag behind."""
    known = config_groups()
    lines = []
    for group in [*GROUPS, *(name for name in known if name not in GROUPS)]:
        if group not in known:
            continue
        text = f"{GROUPS[group]}: " if group in GROUPS else ""
        text += " | ".join(known[group])
        lines += textwrap.wrap(text, 119, initial_indent=f"  {group:<11} ", subsequent_indent=" " * 14)
    added = [f"  {line}" for line in extension_lines()]
    added = ["", "Added by extensions:", *added] if added else []
    commands = [f"  {f'{name} {command.usage}':<32}  {command.help}" for name, command in SUBCOMMANDS.items()]
    return HEAD + "\n".join([*lines, *added]) + "\n\n" + EXAMPLES + KEYS + "\n".join(commands) + "\n" + FLAGS


def extension_lines() -> list[str]:
    """`halved   objective, unlearning=halved   of /home/me/mine.py`: what was added, one a line."""
    return [
        f"{one.name:<16} {one.kind.name}, {one.kind.value.replace('NAME', one.name)}, of {one.origin.name}"
        for one in extensions.everything()
    ]


def version() -> str:
    """The installed version, or `unknown` in a checkout that was never installed."""
    try:
        return installed_version("rapidun")
    except PackageNotFoundError:
        return "unknown (not installed)"
