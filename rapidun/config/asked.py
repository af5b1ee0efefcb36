"""Settings that were typed and that nothing reads: refused where something else would be used instead, else said once.

What a file of conf/ or a preset of the user's holds is no question: presets hold more than one choice reads. In a sweep
a setting counts as read where one cell reads it (influence=exact,sketch influence.k=1024,4096).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from rapidun.base.nested import leaves
from rapidun.config import keys
from rapidun.config.attacks import Attack
from rapidun.config.data import Source
from rapidun.config.detectors import Detector
from rapidun.config.influence import ParameterSet
from rapidun.config.overrides import parse
from rapidun.config.parts import OptimiserSettings
from rapidun.config.poison import PoisonMethod
from rapidun.config.privacy import Measure
from rapidun.config.run import STAGES, RunConfig
from rapidun.config.tracking import TrackerKind
from rapidun.config.training import Keep, Target
from rapidun.config.unlearning import Objective, TokenWeights

# a cluster's settings and a job's limits are for jobs, those of one tracker for that tracker
OF_A_JOB = ("resources.mem_gb", "resources.timeout_min", "resources.max_timeouts", "resources.cells_per_job")
TRACKERS = {
    "project": (TrackerKind.wandb, TrackerKind.trackio),
    "entity": (TrackerKind.wandb,),
    "mode": (TrackerKind.wandb,),
    "tags": (TrackerKind.wandb,),
    "log_artifacts": (TrackerKind.wandb,),
}
# what unlearning.eval_asr shares with the evaluation stage
OF_ATTACKS = tuple(f"evaluation.{name}" for name in ("max_new_tokens", "min_keywords", "seed", "tokens_per_batch"))
# what unlearning.token_weights=influence takes from the influence stage, whatever its method
OF_TOKENS = tuple(f"influence.{name}" for name in ("params", "regex", "lora", "seed", "tokens_per_batch"))
# typed behind a key whose entries are free, it takes none away
NOTHING = "={}"


class Unread(NamedTuple):
    """Why nothing reads a setting, and how it would be read. `refused`: something else would be used instead."""

    why: str
    remedy: str = ""
    refused: bool = False


class Rule(NamedTuple):
    """`find` says why settings at or below `keys` are not read; None where they are."""

    keys: tuple[str, ...]
    find: Callable[[RunConfig, str], Unread | None]


class Asked:
    """Collects, over the cells of a sweep or for one run, what was typed and is not read.

    Args: launcher: who starts the cells of a sweep; None for one run.
    """

    def __init__(self, launcher: str | None = None) -> None:
        self._launcher = launcher
        self._read: set[str] = set()
        self._unread: dict[str, Unread] = {}
        self._tiny: dict[str, None] = {}
        self._num_looked = 0
        # cells that have an empty {} at a key: one of several values of a sweep stands for the entries of the preset
        self._empty: Counter[str] = Counter()

    def look(self, overrides: Iterable[str], cfg: RunConfig, choices: Mapping[str, str | None]) -> None:
        """One run or cell: its overrides as Hydra takes them, what they compose to, the file of each config group."""
        self._num_looked += 1
        for text in overrides:
            for key in typed(text):
                if key.endswith(NOTHING):
                    self._empty[key] += 1
                if key in self._read:
                    continue
                found = self._why(key, cfg)
                if found is None:
                    self._read.add(key)
                    self._unread.pop(key, None)
                else:
                    self._unread.setdefault(key, found)
        if cfg.model.path is not None and choices.get("model") == "tiny":
            self._tiny[cfg.model.path] = None

    def _why(self, key: str, cfg: RunConfig) -> Unread | None:
        if key.endswith(NOTHING):
            name = key.removesuffix(NOTHING)
            held = [f"~{name}.{entry}" for entry in _entries(cfg, name)]
            remedy = f"take entries out one by one ({' '.join(held[:3])}{' ...' if held[3:] else ''})"
            # of data.families other triggers would be planted and measured than were asked for
            return Unread("an empty {}, which takes no entry away", remedy, refused=True) if held else None
        if key.startswith("cluster.") and self._launcher != "rapidun_slurm":
            where = "one run, which starts here" if self._launcher is None else f"hydra/launcher={self._launcher}"
            return Unread(where)
        if key in OF_A_JOB and self._launcher is None:
            return Unread("one run (it is a limit of a sweep's jobs)")
        for rule in RULES:
            if any(key == name or key.startswith(f"{name}.") for name in rule.keys):
                found = rule.find(cfg, key)
                if found is not None:
                    return found
        return None

    @property
    def faults(self) -> list[str]:
        """What is refused, settings with the same reason together."""
        faults = [
            f"{', '.join(named)}: need something that reads {_it(named)}, got {found.why}. "
            f"{_sentence(found.remedy or 'leave it out')}"
            for found, named in self._grouped(refused=True)
        ]
        return faults + [
            f"model.path: need model=hf (settings by the model's size) or a preset made for it, got {path} with "
            f"model=tiny, whose learning rates are those of a tiny model made from scratch. Pass model=hf"
            for path in self._tiny
        ]

    @property
    def warnings(self) -> list[str]:
        """What is said once, settings with the same reason together."""
        return [
            f"{', '.join(named)}: typed, but nothing reads {_it(named)} with {found.why}"
            + (f"; {found.remedy}" if found.remedy else "")
            for found, named in self._grouped(refused=False)
        ]  # fmt: skip

    def _grouped(self, *, refused: bool) -> list[tuple[Unread, list[str]]]:
        groups: dict[Unread, list[str]] = {}
        for key, found in self._unread.items():
            if found.refused is refused and self._empty.get(key, self._num_looked) == self._num_looked:
                groups.setdefault(found, []).append(key)
        return list(groups.items())


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _it(named: Sequence[str]) -> str:
    return "it" if len(named) == 1 else "them"


@lru_cache(maxsize=4096)
def typed(text: str) -> tuple[str, ...]:
    """The keys that one override sets to something; no group choices, nothing of Hydra's own."""
    override = parse(text)
    key = override.key_or_group
    if override.is_delete() or override.is_hydra_override() or override.is_sweep_override():
        return ()
    kind, value = keys.required(keys.find(key)), override.value()
    # the choice of a file from a group is no setting
    if kind is None or (is_dataclass(kind) and not isinstance(value, dict)):
        return ()
    found = leaves({key: value})
    return tuple(f"{name}{NOTHING}" if value == {} else name for name, value in found if value is not None)


def _entries(cfg: RunConfig, key: str) -> Sequence[str]:
    value: object = cfg
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else getattr(value, part, None)
    return list(value) if isinstance(value, dict) else []


# --- who reads what ----------------------------------------------------------------------------------------------


def _stage(cfg: RunConfig, key: str) -> Unread | None:
    """Settings of stages that the run has nothing of."""
    section = key.partition(".")[0]
    involved = cfg.involved
    of: dict[str, tuple[str, ...]] = {
        "model": ("poison", "influence", "unlearning", "evaluation"),
        "max_length": ("poison", "influence", "unlearning", "evaluation"),
        "seed": ("mapping", "unlearning"),
        # it is part of the model before unlearning
        "unlearning.adapter": ("influence", "unlearning", "evaluation"),
        **dict.fromkeys(OF_ATTACKS, ("evaluation", *(["unlearning"] if cfg.unlearning.measures_asr else []))),
    }
    named = ".".join(key.split(".")[:2])
    if named in OF_TOKENS and cfg.unlearning.token_weights is TokenWeights.influence:
        of[named] = ("influence", "unlearning")
    readers = of.get(named) or of.get(section, (section,))
    if any(name in involved for name in readers):
        return None
    if section in cfg.idle:
        return Unread(cfg.idle[section])
    others = ", ".join(f"{name}.seed" for name in involved if name in ("data", "poison", "influence", "evaluation"))
    hint = f" (there, {others} count)" if section == "seed" and others else ""
    return Unread(f"stages=[{','.join(cfg.stages)}]{hint}")


def _seed(cfg: RunConfig, key: str) -> Unread | None:
    objective = cfg.unlearning.objective
    unlearns = "unlearning" in cfg.involved and not objective.traits.retrains
    draws = "mapping" in cfg.involved and cfg.mapping.draws
    if (unlearns and objective.traits.seed) or draws:
        return None
    if unlearns:
        return Unread(f"mapping.method={cfg.mapping.method.name} and unlearning.objective={objective.name}")
    return Unread(f"mapping.method={cfg.mapping.method.name} and stages=[{','.join(cfg.stages)}]")


def _pack_file(cfg: RunConfig, key: str) -> Unread | None:
    if cfg.data.source is not Source.builtin:
        return None
    return Unread(
        "data.source=builtin, whose own rows would be used",
        "pass data=jsonl (of a pack's folder data=pack data.dir=DIR)",
        refused=True,
    )


def _builtin_size(cfg: RunConfig, key: str) -> Unread | None:
    if cfg.data.source is Source.builtin:
        return None
    sizes = "data.max_train_clean, data.max_train_poisoned thin a pack out"
    return Unread(f"data.source={cfg.data.source.name} ({sizes})", "pass data=builtin, or leave it out", refused=True)


def _moved_from_test(cfg: RunConfig, key: str) -> Unread | None:
    if cfg.data.source is Source.builtin:
        return Unread("data.source=builtin, which has clean training rows")
    return Unread("a pack with clean training rows (data.train_clean)") if cfg.data.train_clean else None


def _noise_seed(cfg: RunConfig, key: str) -> Unread | None:
    return None if cfg.data.noise.is_on else Unread("data.noise.forget=0 and data.noise.retain=0, which draw no rows")


def _scratch(cfg: RunConfig, key: str) -> Unread | None:
    if cfg.model.path is None:
        return None
    return Unread(f"model.path={cfg.model.path}, a model that is there", "leave out one of the two", refused=True)


def _adapter_as(cfg: RunConfig, key: str) -> Unread | None:
    return None if cfg.model.adapter is not None else Unread("model.adapter=null", "pass model.adapter=DIR")


def _revision(cfg: RunConfig, key: str) -> Unread | None:
    path = cfg.model.path
    remedy = "pass model.path=HUB_ID, or leave it out"
    if path is None:
        return Unread("a model made from scratch (model.path=null)", remedy, refused=True)
    if path.endswith(".gguf") or Path(path).expanduser().is_dir():
        return Unread(f"model.path={path}, which is on this machine", remedy, refused=True)
    return None


def _poison(cfg: RunConfig, key: str) -> Unread | None:
    name = key.removeprefix("poison.")
    # where poisoning is done elsewhere nothing is trained; the yardstick needs a method
    if cfg.poison.method is PoisonMethod.none and name not in ("method", "retrain"):
        return Unread("poison.method=none")
    if cfg.poison.method is PoisonMethod.full and name.startswith("lora."):
        return Unread("poison.method=full")
    return _optimiser(cfg.poison, "poison", name)


def _unlearning(cfg: RunConfig, key: str) -> Unread | None:
    name = key.removeprefix("unlearning.")
    objective: Objective = cfg.unlearning.objective
    why = f"unlearning.objective={objective.name}"
    # the adapter is part of the model before unlearning
    if objective.traits.retrains and name not in ("objective", "adapter"):
        return Unread(f"{why} (it trains by the settings of poison)")
    if name in objective.traits.unread:
        return Unread(why)
    owner = name.partition(".")[0]
    if owner in Objective.__members__ and owner != objective.name:
        return Unread(why, f"pass unlearning={owner} for what it is read by")
    own: dict[str, str] = getattr(cfg.unlearning.hyperparameters, "unread", {})
    if owner == objective.name and (by := own.get(name.partition(".")[2])):
        return Unread(f"unlearning.{by}")
    if objective.traits.edits and owner not in ("objective", "adapter", objective.name, *objective.traits.reads):
        return Unread(f"{why}, which does no such training")
    if name in ("retain_loss", "retain_coeff") and cfg.unlearning.mix_ratio == 0:
        return Unread("unlearning.mix_ratio=0")
    if name == "num_eval_rows" and cfg.unlearning.eval_steps == 0 and not cfg.unlearning.measures_asr:
        return Unread("unlearning.eval_steps=0")
    if name == "num_eval_prompts" and not cfg.unlearning.measures_asr:
        return Unread("unlearning.eval_asr=0")
    if name == "criterion" and cfg.unlearning.keep is Keep.last:
        return Unread("unlearning.keep=last")
    if name.startswith("lora.") and cfg.unlearning.target is Target.full:
        return Unread("unlearning.target=full")
    if name.startswith("lora.") and cfg.unlearning.adapter is not None:
        return Unread("unlearning.adapter, whose own LoRA settings hold")
    return _optimiser(cfg.unlearning, "unlearning", name)


def _optimiser(settings: OptimiserSettings, section: str, name: str) -> Unread | None:
    if name == "num_train_epochs" and settings.max_steps > 0:
        return Unread(f"{section}.max_steps={settings.max_steps}, which ends training")
    if name == "warmup_ratio" and settings.lr_scheduler_type == "constant":
        return Unread(f"{section}.lr_scheduler_type=constant")
    if name == "momentum" and not settings.optimizer.traits.momentum:
        return Unread(f"{section}.optimizer={settings.optimizer.name}")
    return None


def _influence(cfg: RunConfig, key: str) -> Unread | None:
    name = key.split(".")[1]
    why = cfg.influence.unread.get(name) if name != "precondition" else None
    if f"influence.{name}" in OF_TOKENS and cfg.unlearning.token_weights is TokenWeights.influence:
        is_lora = cfg.influence.params is ParameterSet.lora
        read = {"params": True, "regex": cfg.influence.params is ParameterSet.regex, "lora": is_lora, "seed": is_lora}
        why = None if read.get(name) else why
    if why is None and name == "lora" and cfg.unlearning.adapter is not None:
        why = "unlearning.adapter, whose gradients are taken"
    return None if why is None else Unread(why)


def _weights_file(cfg: RunConfig, key: str) -> Unread | None:
    if cfg.mapping.method.traits.files:
        return None
    return Unread(f"mapping.method={cfg.mapping.method.name}, whose own weights would be used", "pass mapping=file",
                  refused=True)  # fmt: skip


def _mapping(cfg: RunConfig, key: str) -> Unread | None:
    traits, why = cfg.mapping.method.traits, f"mapping.method={cfg.mapping.method.name}"
    name = key.removeprefix("mapping.")
    if name == "method" or key in WEIGHTS_FILES:
        return None
    if name.startswith("scores.") and not traits.scores:
        return Unread(why)
    unread = cfg.mapping.unread
    if reason := next((unread[part] for part in (name, name.partition(".")[0]) if part in unread), None):
        by_split = traits.settings and reason == "mapping.map=split"
        return Unread(reason, "pass mapping=rapidun, say, whose weights it changes" if by_split else "")
    if not traits.settings and name.partition(".")[0] not in ("null", "scores", *traits.own):
        return Unread(why)
    if name.endswith("_harm") and not cfg.mapping.use_harmful:
        return Unread("mapping.use_harmful=false")
    return None


def _judge(cfg: RunConfig, key: str) -> Unread | None:
    if Detector.judge in cfg.evaluation.detectors.asked:
        return None
    run = ",".join(cfg.evaluation.detectors.run)
    return Unread(f"evaluation.detectors.run=[{run}]", "put judge into evaluation.detectors.run")


def _attacks(cfg: RunConfig, key: str) -> Unread | None:
    attacks, name = cfg.evaluation.attacks, key.removeprefix("evaluation.attacks.")
    if not attacks.run and name != "run":
        return Unread("evaluation.attacks.run=[]", "pass evaluation=attacks")
    owner = name.partition(".")[0]
    if owner in Attack.__members__ and owner not in attacks.run:
        return Unread(f"evaluation.attacks.run=[{','.join(attacks.run)}]")
    if name.startswith("relearning.lora.") and attacks.relearning.target is Target.full:
        return Unread("evaluation.attacks.relearning.target=full")
    return None


def _privacy(cfg: RunConfig, key: str) -> Unread | None:
    privacy, name = cfg.evaluation.privacy, key.removeprefix("evaluation.privacy.")
    if not privacy.run and name != "run":
        return Unread("evaluation.privacy.run=[]", "pass evaluation=attacks, or evaluation.privacy.run=[membership]")
    if name in ("min_k", "num_resamples") and Measure.membership not in privacy.asked:
        return Unread(f"evaluation.privacy.run=[{','.join(privacy.run)}]")
    return None


def _lm_eval(cfg: RunConfig, key: str) -> Unread | None:
    if not cfg.evaluation.lm_eval.tasks and key != "evaluation.lm_eval.tasks":
        return Unread("evaluation.lm_eval.tasks=[]", "pass evaluation.lm_eval.tasks=[NAME]")
    return None


def _tracking(cfg: RunConfig, key: str) -> Unread | None:
    kind = cfg.tracking.kind
    readers = TRACKERS.get(key.split(".")[1], tuple(TrackerKind))
    if (kind is TrackerKind.none and key != "tracking.kind") or kind not in readers:
        return Unread(f"tracking.kind={kind.name}")
    return None


WEIGHTS_FILES = ("mapping.forget.path", "mapping.retain.path")
PACK_FILES = tuple(
    f"data.{split}"
    for split in (
        "forget", "retain", "train_poisoned", "train_clean", "val_clean", "test_clean", "test_seen_trig",
        "test_ood_trig", "test_unseen_family", "probe", "real_authors", "world_facts", "fields", "multi_turn",
    )
)  # fmt: skip
# of two rules for a key the first one that has something to say
RULES = (
    Rule(("model", *STAGES, "max_length", "seed"), _stage),
    Rule(("seed",), _seed),
    Rule(PACK_FILES, _pack_file),
    Rule(("data.builtin",), _builtin_size),
    Rule(("data.num_clean_from_test",), _moved_from_test),
    Rule(("data.noise.seed",), _noise_seed),
    Rule(("model.scratch",), _scratch),
    Rule(("model.revision",), _revision),
    Rule(("model.adapter_as",), _adapter_as),
    Rule(("poison",), _poison),
    Rule(("influence",), _influence),
    Rule(WEIGHTS_FILES, _weights_file),
    Rule(("mapping",), _mapping),
    Rule(("unlearning",), _unlearning),
    Rule(("evaluation.detectors.judge",), _judge),
    Rule(("evaluation.attacks",), _attacks),
    Rule(("evaluation.privacy",), _privacy),
    Rule(("evaluation.lm_eval",), _lm_eval),
    Rule(("tracking",), _tracking),
)
