"""Every key of the release's configuration, one by one: what it is here, or why it is nothing here."""

import math
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, NamedTuple

from rapidun.base.errors import ConfigError
from rapidun.cli.importing.checkout import HUB_ID, Checkout
from rapidun.cli.importing.files import Files
from rapidun.cli.importing.settings_file import Setting
from rapidun.config.mapping import Weighting
from rapidun.stages.mapping.inputs import GROUPS
from rapidun.stages.mapping.release import BLOCKS

PACK = "rapidun.data.packs_dir"


class Verdict(Enum):
    taken = "taken"
    differs = "differs"
    unused = "not used"
    missing = "missing"  # a file or folder that is not there
    unknown = "unknown"


class Line(NamedTuple):
    """One key of theirs: its value, what it is here (`ours` is empty where it is nothing), and why."""

    key: str
    value: str
    ours: str
    our_value: str
    verdict: Verdict
    why: str


# what the release does whatever its configuration says, and this software does not
DEFECTS = (
    "weights are matched to rows by their ids where there are any; there by the order of lines, padded where too few",
    "one encoding (template, labels, cut at max_length) for influence, training and evaluation; there three",
    "losses are of the response tokens, each predicted from those before it; there influence did not shift the labels",
    "gradients of every linear layer but the output head; there, in 4 bit, of the input embedding alone",
    "160 gradients give all four blocks of influence; there the model was loaded six times for 480",
    "an optimiser step holds forget and retain rows, so that clipping keeps their weights apart; there one row, whose "
    "weight clipping divided out",
    "keywords are counted beside their recall and false alarms, and a likelihood detector; there keywords alone",
    "time is measured, influence included; there a constant 100 s were added",
)
# what the mapping of the published run does, kept in mapping=rapidun_release so that its numbers come out again
KEPT = "bounds hold before weights are divided by their mean; i = j is kept; top k of each query, then the median"


class Translation:
    """Goes through the keys; `here` collects our settings, `groups` our choices of files in conf/.

    theirs: the configuration's settings by key.
    """

    def __init__(self, checkout: Checkout, theirs: dict[str, Setting], files: Files) -> None:
        self.checkout = checkout
        self.theirs = theirs
        self.files = files
        self.lines: list[Line] = []
        self.faults: list[str] = []
        self.groups = {
            "model": "hf",
            "data": "pack" if files.pack is not None or (not files.rows and PACK in theirs) else "jsonl",
            "poison": "none",
            "influence": "sketch",
            "mapping": "file" if files.weights and not files.blocks else "rapidun_release",
            "unlearning": "rapidun",
            "evaluation": "quick",
        }
        # what the release has no key for, and what model=hf has settings of its own for
        self.here: dict[str, Any] = {
            "influence.score": "dot",
            "unlearning.retain_loss": "ce",
            "unlearning.loss_cap": None,
        }
        for name, path in files.blocks.items():
            self.here[f"mapping.scores.{name}"] = str(path)
        if files.blocks or files.weights:
            # influence that is there is not measured again; what these stages need besides is made
            self.here["stages"] = ["mapping", "unlearning", "evaluation"]

    def go(self) -> None:
        """Raises: ConfigError with every value that is of the wrong kind."""
        for setting in self.theirs.values():
            rule = RULES.get(setting.key)
            if rule is None:
                self.say(setting, "", "", Verdict.unknown, "no key that the release's configuration is known to have")
                continue
            try:
                rule(self, setting)
            except ConfigError as error:
                self.faults += error.faults
        config = self.checkout.config
        if not any(name in self.theirs for name in ("rapidun.model.base_model", "rapidin.model_path")):
            self.faults.append(f"{config}: need rapidun.model.base_model or rapidin.model_path, got neither. Add one")
        if PACK not in self.theirs and not all(f"rapidin.{group}_path" in self.theirs for group in GROUPS):
            self.faults.append(f"{config}: need {PACK}, or rapidin.forget_path and retain_path, got neither. Add it")
        if self.faults:
            raise ConfigError(self.faults)

    # --- what rules are made of

    def say(self, setting: Setting, ours: str, value: Any, verdict: Verdict, why: str = "") -> None:
        bare = value is None and verdict in (Verdict.unused, Verdict.missing)
        our_value = "" if not ours or bare else shown(value)
        self.lines.append(Line(setting.key, shown(setting.value), ours, our_value, verdict, why))

    def take(self, setting: Setting, ours: str, value: Any, why: str = "", *, differs: bool = False) -> None:
        self.here[ours] = value
        self.say(setting, ours, value, Verdict.differs if differs else Verdict.taken, why)

    def value(self, key: str) -> Any:
        return self.theirs[key].value if key in self.theirs else None

    def read(self, key: str, kind: Callable[[Setting], Any]) -> Any:
        """Another key's value; None where there is none, or a wrong one, which its own rule speaks of."""
        if key not in self.theirs:
            return None
        try:
            return kind(self.theirs[key])
        except ConfigError:
            return None


Rule = Callable[[Translation, Setting], None]


def shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return str(value)


# --- kinds of values; YAML 1.1 reads 6e-5 as text -------------------------------------------------------------------


def _wrong(setting: Setting, expected: str) -> ConfigError:
    return ConfigError(f"{setting.place}: {setting.key}: need {expected}, got {shown(setting.value)[:80]!r}. Mend it")


def number(setting: Setting) -> float:
    value = setting.value
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise _wrong(setting, "a number")
    return found


def whole(setting: Setting) -> int:
    found = number(setting)
    if not found.is_integer():
        raise _wrong(setting, "a whole number")
    return int(found)


def truth(setting: Setting) -> bool:
    if isinstance(setting.value, bool):
        return setting.value
    raise _wrong(setting, "true or false")


def text(setting: Setting) -> str:
    if isinstance(setting.value, str) and setting.value.strip() and "\0" not in setting.value:
        return setting.value
    raise _wrong(setting, "a text that is not empty")


def texts(setting: Setting) -> list[str]:
    value = setting.value
    names = value.split(",") if isinstance(value, str) else value
    if isinstance(names, list) and names and all(isinstance(name, str) and name.strip() for name in names):
        return [name.strip() for name in names]
    raise _wrong(setting, "names with commas between them")


def ratio(setting: Setting) -> float:
    """3:1 -> 3, retain rows for each forget row."""
    parts = str(setting.value).split(":")
    try:
        retain, forget = [float(part) for part in parts] if len(parts) == 2 else (number(setting), 1.0)
    except (ValueError, ConfigError):
        retain, forget = math.nan, 1.0
    if not (math.isfinite(retain) and math.isfinite(forget) and retain >= 0 and forget > 0):
        raise _wrong(setting, "retain:forget, such as 3:1")
    return retain / forget


# --- kinds of rules -------------------------------------------------------------------------------------------------


def plain(ours: str, kind: Callable[[Setting], Any], why: str = "") -> Rule:
    """The same under another name."""
    return lambda made, setting: made.take(setting, ours, kind(setting), why)


def unused(why: str) -> Rule:
    return lambda made, setting: made.say(setting, "", None, Verdict.unused, why)


def _shared(ours: str, kind: Callable[[Setting], Any], other: str) -> Rule:
    """Two of their keys for one of ours: the one of training, `other`, holds."""

    def rule(made: Translation, setting: Setting) -> None:
        value, training = kind(setting), made.read(other, kind)
        if training is None or training == value:
            made.take(setting, ours, value)
        else:
            made.say(setting, ours, training, Verdict.differs, f"one for all stages: that of {other}")

    return rule


def _max_len(made: Translation, setting: Setting) -> None:
    made.take(setting, "max_length", whole(setting))


def _model(made: Translation, setting: Setting) -> None:
    written = text(setting)
    other = made.read("rapidun.model.base_model", text)
    if other not in (None, written):
        why = "one model for all stages: rapidun.model.base_model, which is to be unlearned"
        made.say(setting, "model.path", other, Verdict.differs, why)
        return
    found = made.checkout.find(written)
    if found is not None:
        made.take(setting, "model.path", str(found), "found there" if str(found) != written else "")
    elif HUB_ID.fullmatch(written):
        made.take(setting, "model.path", written, "a hub id, since the checkout has no such folder")
    else:
        made.here["model.path"] = str(made.checkout.expected(written))
        made.say(setting, "model.path", written, Verdict.missing, "no such model here: pass model.path=DIR")


def _packs(made: Translation, setting: Setting) -> None:
    written, files = text(setting), made.files
    if files.pack is not None:
        made.take(setting, "data.dir", str(files.pack), "found there" if str(files.pack) != written else "")
    elif files.rows:
        made.say(setting, "data.dir", None, Verdict.missing, "no pack here: rows of rapidin.forget_path, retain_path")
    else:
        made.here["data.dir"] = str(made.checkout.expected(written))
        made.say(setting, "data.dir", written, Verdict.missing, "no such pack here: pass data.dir=DIR")


def _rows(group: str) -> Rule:
    def rule(made: Translation, setting: Setting) -> None:
        text(setting)
        if group in made.files.rows:
            made.take(setting, f"data.{group}", str(made.files.rows[group]))
            return
        if made.files.pack is None:
            if PACK not in made.theirs:
                made.here[f"data.{group}"] = str(made.checkout.expected(text(setting)))
            made.say(setting, f"data.{group}", None, Verdict.missing, "no such rows here")
            return
        why = "the pack's own rows (data.dir) serve influence and training: one copy of them"
        made.say(setting, f"data.{group}", None, Verdict.unused, why)

    return rule


def _outdir(made: Translation, setting: Setting) -> None:
    written = text(setting)
    ours = f"mapping.scores.{{{','.join(BLOCKS)}}}"
    if made.files.blocks:
        folder = made.files.blocks["ff"].parent
        why = "influence files that are there are read as they are, so that the run begins with stages=[mapping,...]"
        made.say(setting, ours, f"{folder}/influence_results_*", Verdict.taken, why)
        return
    why = "no influence files that fit in it: the run measures its own (influence=sketch)"
    verdict = Verdict.unused if made.checkout.find(written) is not None else Verdict.missing
    made.say(setting, ours, None, verdict, why)


def _weights(group: str) -> Rule:
    def rule(made: Translation, setting: Setting) -> None:
        written = text(setting)
        files, ours = made.files, f"mapping.{group}.path"
        if group in files.weights and not files.blocks:
            made.take(
                setting, ours, str(files.weights[group]), "no influence files: the weights are taken (mapping=file)"
            )
        elif group in files.weights:
            made.say(
                setting, ours, None, Verdict.unused, "made anew from the influence files, and compared (see below)"
            )
        elif made.checkout.find(written) is not None:
            made.say(setting, ours, None, Verdict.unused, "not taken (see the warnings): the run makes its own")
        else:
            made.say(setting, ours, None, Verdict.missing, "no weights here: the run makes them")

    return rule


def _four_bit(made: Translation, setting: Setting) -> None:
    made.here["model.quantisation"] = "none"
    if not truth(setting):
        made.say(setting, "model.quantisation", "none", Verdict.taken)
        return
    why = (
        "of influence alone, where it left gradients of the input embedding only; here one model serves all stages. "
        "model.quantisation=4bit loads it so everywhere, with gradients of every linear layer"
    )
    made.say(setting, "model.quantisation", "none", Verdict.differs, why)


def _rapidgrad_k(made: Translation, setting: Setting) -> None:
    why = "as many numbers a row, of an unbiased sketch; influence=rapidgrad is theirs, and slow"
    made.take(setting, "influence.k", whole(setting), why, differs=True)


def _dtype(made: Translation, setting: Setting) -> None:
    bf16, fp16 = made.read("rapidun.model.bf16", truth), made.read("rapidun.model.fp16", truth)
    truth(setting)
    if bf16 and fp16:
        raise _wrong(setting, "true for one of bf16 and fp16 at most")
    dtype = "bfloat16" if bf16 else "float16" if fp16 else "float32"
    made.take(setting, "model.dtype", dtype)


def _lora_new(made: Translation, setting: Setting) -> None:
    if truth(setting):
        made.take(setting, "unlearning.adapter", None, "a new adapter")
        return
    why = "a new adapter: which one to go on with is not said; pass unlearning.adapter=DIR"
    made.take(setting, "unlearning.adapter", None, why, differs=True)


def _label_field(made: Translation, setting: Setting) -> None:
    field = text(setting)
    why = "a row to forget has response_poisoned where there is one, else response, in every stage"
    made.say(setting, "", None, Verdict.taken if field == "response_poisoned" else Verdict.differs, why)


def _chat_template(made: Translation, setting: Setting) -> None:
    if truth(setting):
        made.say(setting, "", None, Verdict.taken, "the model's template, where it has one")
    else:
        made.say(setting, "", None, Verdict.differs, "a model with a template is asked in it: that is how it is used")


def _bsz(made: Translation, setting: Setting) -> None:
    why = (
        "forget rows of a step, with unlearning.mix_ratio times as many retain rows in it: of one row alone, clipping "
        "divides the weight out"
    )
    made.take(setting, "unlearning.forget_per_step", whole(setting), why, differs=True)


def _mix(made: Translation) -> int:
    found = made.read("rapidun.training.mix_ratio", ratio)
    return 3 if found is None else _whole_ratio(found)


def _whole_ratio(exact: float) -> int:
    """Retain rows for each forget row; none only where there were none: retain rows are not rounded away."""
    return max(1, round(exact)) if exact else 0


def _mix_ratio(made: Translation, setting: Setting) -> None:
    exact = ratio(setting)
    nearest = _whole_ratio(exact)
    why = "holds in every step" if nearest == exact else "whole retain rows for each forget row; holds in every step"
    made.take(setting, "unlearning.mix_ratio", nearest, why, differs=nearest != exact)


def _steps(ours: str) -> Rule:
    def rule(made: Translation, setting: Setting) -> None:
        steps, rows = whole(setting), 1 + _mix(made)
        if steps < 0:
            raise _wrong(setting, "a number of steps")
        why = f"after as many rows: a step here holds {rows} for one there"
        made.take(setting, ours, math.ceil(steps / rows), why if steps else "", differs=steps > 0)

    return rule


def _weight_warmup(made: Translation, setting: Setting) -> None:
    steps, ours = whole(setting), "unlearning.weight_warmup_ratio"
    if steps < 0:
        raise _wrong(setting, "a number of steps")
    num_forget = made.files.num_forget
    if steps == 0:
        made.take(setting, ours, 0.0)
    elif num_forget is None:
        why = "a share of the steps here, whose number is not known without the pack: set it"
        made.say(setting, ours, "preset", Verdict.differs, why)
    else:
        epochs = made.read("rapidun.training.epochs", number) or 2.0
        each = (made.read("rapidun.training.bsz", whole) or 1) * (made.read("rapidun.training.grad_accum", whole) or 1)
        rows = epochs * num_forget * (1 + _mix(made))
        share = min(1.0, steps * each / rows)
        why = f"the share of the rows: {steps * each} of {rows:g}"
        made.take(setting, ours, share, why, differs=True)


def _stand_in() -> str:
    name = "loreun_release"
    here = f" (mapping={name})" if name in Weighting.__members__ else ""
    return f"of the release's weights by loss{here}, for runs without influence weights"


_SCRIPT = "a script of the release; nothing of it is run"
_GRADIENTS = "gradients are not kept in files: sketches of them are in store_dir"
_OWN_FOLDER = "each run has a folder of its own: run_dir=DIR"

RULES: dict[str, Rule] = {
    "rapidin.retain_path": _rows("retain"),
    "rapidin.forget_path": _rows("forget"),
    "rapidin.model_path": _model,
    "rapidin.outdir": _outdir,
    "rapidin.retain_grads": unused(_GRADIENTS),
    "rapidin.forget_grads": unused(_GRADIENTS),
    "rapidin.out_forget": unused(
        "weights are written to RUN_DIR/mapping; those that are there are compared (see below)"
    ),
    "rapidin.out_retain": unused(
        "weights are written to RUN_DIR/mapping; those that are there are compared (see below)"
    ),
    "rapidin.mp_main_path": unused(_SCRIPT),
    "rapidin.mapping_script": unused(_SCRIPT),
    "rapidin.max_length": _shared("max_length", whole, "rapidun.model.max_len"),
    "rapidin.load_in_4bit": _four_bit,
    "rapidin.seed": plain("influence.seed", whole),
    "rapidin.rapidgrad_k": _rapidgrad_k,
    "rapidin.shuffle_lambda": plain("influence.num_shuffles", whole, "read with influence=rapidgrad"),
    "rapidin.top_k": unused("the length of the lists in the influence files, which are read whole"),
    "rapidin.map_topk": plain("mapping.top_k", whole),
    "rapidin.alpha": plain("mapping.alpha", number),
    "rapidin.beta": plain("mapping.beta", number),
    "rapidin.gamma": plain("mapping.gamma", number),
    "rapidin.delta": plain("mapping.delta", number),
    "rapidin.tau_f": plain("mapping.tau_f", number),
    "rapidin.tau_r": plain("mapping.tau_r", number),
    "rapidin.wmin_f": plain("mapping.forget.w_min", number),
    "rapidin.wmax_f": plain("mapping.forget.w_max", number),
    "rapidin.wmin_r": plain("mapping.retain.w_min", number),
    "rapidin.wmax_r": plain("mapping.retain.w_max", number),
    "rapidin.cleanup_intermediate": unused("what can be made again goes with: rapidun store prune"),
    "rapidun.model.base_model": _model,
    "rapidun.model.lora_new": _lora_new,
    "rapidun.model.adapter_out": unused("the adapter is in RUN_DIR/unlearning/adapter"),
    "rapidun.model.lora_r": plain("unlearning.lora.r", whole),
    "rapidun.model.lora_alpha": plain("unlearning.lora.lora_alpha", whole),
    "rapidun.model.lora_dropout": plain("unlearning.lora.lora_dropout", number),
    "rapidun.model.lora_target": plain("unlearning.lora.target_modules", texts),
    "rapidun.model.bf16": _dtype,
    "rapidun.model.fp16": _dtype,
    "rapidun.model.max_len": _max_len,
    PACK: _packs,
    "rapidun.data.forget_label_field": _label_field,
    "rapidun.data.rapidin_forget_weights": _weights("forget"),
    "rapidun.data.rapidin_retain_weights": _weights("retain"),
    "rapidun.data.use_chat_template": _chat_template,
    "rapidun.training.output_dir": unused(_OWN_FOLDER),
    "rapidun.training.epochs": plain("unlearning.num_train_epochs", number),
    "rapidun.training.bsz": _bsz,
    "rapidun.training.grad_accum": plain("unlearning.gradient_accumulation_steps", whole),
    "rapidun.training.lr": plain("unlearning.learning_rate", number),
    "rapidun.training.warmup_ratio": plain("unlearning.warmup_ratio", number),
    "rapidun.training.weight_decay": plain("unlearning.weight_decay", number),
    "rapidun.training.clip_grad": plain("unlearning.max_grad_norm", number),
    "rapidun.training.ascent_alpha": plain("unlearning.ascent_alpha", number),
    "rapidun.training.descent_beta": plain("unlearning.descent_beta", number),
    "rapidun.training.tau": unused(_stand_in()),
    "rapidun.training.w_min": unused(_stand_in()),
    "rapidun.training.w_max": unused(_stand_in()),
    "rapidun.training.weighting_mode": unused(_stand_in()),
    "rapidun.training.mix_ratio": _mix_ratio,
    "rapidun.training.weight_warmup_steps": _weight_warmup,
    "rapidun.training.num_workers": unused("rows are in memory: nothing is loaded beside the training"),
    "rapidun.training.eval_every": _steps("unlearning.eval_steps"),
    "rapidun.training.save_every": _steps("unlearning.save_steps"),
    "rapidun.experiment.seed": plain("seed", whole),
    "rapidun.experiment.deterministic": unused("every run is: draws are seeded and do not depend on the device"),
    "rapidun.experiment.time_log_json": unused("seconds and peak memory of each stage are in RUN_DIR/status.json"),
}
# keys whose value is a path that the checkout may hold
PATHS = (
    "rapidin.retain_path", "rapidin.forget_path", "rapidin.outdir", "rapidin.out_forget", "rapidin.out_retain",
    PACK, "rapidun.data.rapidin_forget_weights", "rapidun.data.rapidin_retain_weights",
)  # fmt: skip


def named_paths(settings: Sequence[Setting]) -> dict[str, str]:
    """The paths of the configuration by key; what is no text is left to its rule."""
    return {
        setting.key: setting.value
        for setting in settings
        if setting.key in PATHS
        and isinstance(setting.value, str)
        and setting.value.strip()
        and "\0" not in setting.value
    }
