"""A PEFT adapter's folder, from its settings and the head of its file: whether it fits a base. No weight is read."""

import json
from pathlib import Path
from typing import Any

from rapidun.base.errors import ConfigError, ModelError
from rapidun.base.text import short_message
from rapidun.models.weights import Header, read_header, shapes_by_name

SETTINGS, FACTORS = "adapter_config.json", "adapter_model.safetensors"
# written beside an adapter that stands on a base with another adapter: which that is
STANDS_ON = "start_adapter.json"
PICKLES = ("adapter_model.bin", "adapter_model.pt", "pytorch_model.bin")
# LoRA settings whose every value is served as peft serves it; any other that is set is refused by name
SERVED = (
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora",
    "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
    "megatron_core", "eva_config", "use_dora", "qalora_group_size", "runtime_config",
    "ensure_weight_tying",
)  # fmt: skip
# initial factors beside which the base's weights stay as they are; pissa, olora, corda, loftq, lora_ga change them
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


def section_of(key: str) -> str:
    return key.partition(".")[0]


def adapter_files(folder: Path, *, key: str) -> list[Path]:
    """The two files of an adapter. Args: key: the setting that names the folder.

    Raises: ConfigError for a folder without them.
    """
    files = [folder / SETTINGS, folder / FACTORS]
    if all(file.is_file() for file in files):
        return files
    pickled = next((name for name in PICKLES if (folder / name).is_file()), None)
    what = f"{folder} with {pickled}, a pickle, which is never read" if pickled else f"{folder}"
    what += "" if pickled or folder.is_dir() else ", which is not there" if not folder.exists() else ", no folder"
    mend = "Save it in safetensors (peft's save_pretrained does), or change" if pickled else "Change"
    raise ConfigError(f"{section_of(key)}: need a PEFT folder ({SETTINGS}, {FACTORS}), got {what}. {mend} {key}=...")


def read_settings(folder: Path, *, key: str) -> dict[str, Any]:
    """adapter_config.json of a LoRA adapter. Raises: ConfigError for one that cannot be read, or another kind."""
    section, where = section_of(key), f"Change {key}=..."
    try:
        config = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{section}: need {SETTINGS} of a PEFT adapter, got {folder} ({short_message(error)}). {where}"
        ) from error
    if not isinstance(config, dict) or "peft_type" not in config:
        raise ConfigError(f"{section}: need {SETTINGS} with a peft_type, got {folder} without. {where}")
    if str(config["peft_type"]).upper() != "LORA":
        # prompts, scalings and other factors are no low-rank update: neither trained, measured nor merged as one
        use = "continue" if section == "unlearning" else "start from"
        raise ConfigError(
            f"{section}: need a LoRA adapter to {use}, got {folder} of peft_type {config['peft_type']}. {where}"
        )
    return config


def adapter_faults(folder: Path, base: Path | None, *, key: str) -> list[str]:
    """Hold a LoRA adapter's folder against the headers of a model folder.

    Args: base: None where it is not there yet. key: the setting that names the adapter.
    Raises: ModelError for files of the base that cannot be read.
    """
    section, where = section_of(key), f"Change {key}=..."
    try:
        read_settings(folder, key=key)
        factors = read_header(folder / FACTORS, key=key)
    except ConfigError as error:
        return list(error.faults)
    except ModelError as error:
        return [str(error)]
    inputs = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): entry["shape"][-1]
        for name, entry in factors.items()
        if name.endswith(".lora_A.weight")
    }
    if base is None or not inputs:
        return []
    stored = {
        name: tuple(entry["shape"])
        for file in sorted(base.glob("*.safetensors"))
        for name, entry in read_header(file).items()
        if name.endswith(".weight")
    }
    weights = {name.removesuffix(".weight"): shape for name, shape in shapes_by_name(stored, folder=base).items()}
    # prefixes differ between a model and its checkpoint
    shapes = {module: weights[name] for module in inputs for name in _endings(module) if name in weights}
    if not shapes:
        shown = ", ".join(sorted(inputs)[:2])
        # a tied head is in no file
        if set(inputs) == {"lm_head"}:
            return []
        return [
            f"{section}: need an adapter made for {base}, got {folder} for {shown}, which it does not have. {where}"
        ]
    for module, shape in shapes.items():
        # packed weights have one number a row
        if len(shape) == 2 and shape[1] > 1 and inputs[module] not in shape:
            return [
                f"{section}: need an adapter made for {base}, got {folder}, whose factors for {module} take "
                f"{inputs[module]} numbers where its weight has {shape[0]} x {shape[1]}. {where}"
            ]
    return []


def _endings(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[start:]) for start in range(len(parts) - 1)]


def start_faults(folder: Path, *, key: str, quantised: str = "") -> list[str]:
    """Why an adapter cannot be part of a start model, whatever its base.

    Args: quantised: what the base is quantised as where the adapter stays beside its weights; empty where it is merged.
    Raises: ConfigError as `read_settings`.
    """
    config, where = read_settings(folder, key=key), f"or change {key}=..."
    faults = []

    def fault(need: str, got: str, mend: str) -> None:
        faults.append(f"{section_of(key)}: need {need}, got {folder} with {got}. {mend}, {where}")

    merge = "Merge it into its base with the tool that made it and pass that folder as model.path=..."
    unknown = [f"{name}={value!r}" for name, value in config.items() if name not in SERVED and value]
    if unknown:
        fault("a LoRA adapter whose settings are known here", ", ".join(unknown[:3]), merge)
    if config.get("bias") not in (None, "none"):
        fault("an adapter of weights alone", f"bias={config['bias']}, biases of the base that were trained", merge)
    start = config.get("init_lora_weights", True)
    if start not in PLAIN_STARTS:
        fault(
            "an adapter over the weights of its base as they are",
            f"init_lora_weights={start}, which changed them before training",
            "Convert it to plain LoRA (save_pretrained with path_initial_model_for_weight_conversion)",
        )
    if quantised and config.get("use_dora"):
        fault(
            "plain LoRA beside quantised weights",
            f"use_dora=true, over a base in {quantised}",
            "Pass model.adapter_as=merged (over a base that is not quantised yet), model.quantisation=none",
        )
    if (folder / STANDS_ON).is_file():
        name = stands_on(folder).get("adapter")
        fault(
            "an adapter over a base alone",
            f"{STANDS_ON}, so that it was made over a base with another adapter ({name})",
            "Merge that one first (its README.md says how), pass unlearning.adapter=... to continue it",
        )
    return faults


def stands_on(folder: Path) -> dict[str, Any]:
    """What an adapter of ours says of the one below it; empty where there is none, or nobody can read it."""
    try:
        found = json.loads((folder / STANDS_ON).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def whole_faults(folder: Path, headers: dict[str, Header], *, base: Path, key: str) -> list[str]:
    """Whole matrices in an adapter's file (modules_to_save, embeddings) of another shape than the base's.

    Args: headers: of the base, as `read_headers` gives them.
    """
    shapes = shapes_by_name({name: header.shape for name, header in headers.items()}, folder=base)
    faults = []
    for name, entry in sorted(read_header(folder / FACTORS, key=key).items()):
        if ".lora_" in name:
            continue
        module = name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        known = shapes.get(module, shapes.get(module.removeprefix("model.")))
        if known is None and module == "lm_head.weight":
            known = shapes.get("model.embed_tokens.weight")
        shape = tuple(entry["shape"])
        if known is None or shape == known:
            continue
        resized = len(shape) == 2 == len(known) and shape[1] == known[1]
        why = ", a vocabulary that was resized for it" if resized else ""
        faults.append(
            f"{section_of(key)}: need whole matrices of the shapes of {base}, got {folder} with {module} of "
            f"{list(shape)} where it has {list(known)}{why}. Merge the adapter into its resized base with the tool "
            f"that made it and pass that folder as model.path=..., or change {key}=..."
        )
    return faults[:1]


def named_base(folder: Path) -> str | None:
    """The last component of the hub id or path that adapter_config.json names as its base; None where it has none."""
    try:
        config = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        name = config.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    text = str(name).replace("\\", "/").rstrip("/") if name else ""
    return text.rpartition("/")[2] or None
