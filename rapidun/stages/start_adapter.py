"""`model.adapter` to the recipes: what speaks against it before anything is loaded, and what identifies it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rapidun.base.errors import ConfigError, RapidunError
from rapidun.base.files import sha256_file, sha256_json
from rapidun.config.model import AdapterAs, ModelConfig
from rapidun.models.adapter_folder import (
    FACTORS,
    adapter_faults,
    adapter_files,
    named_base,
    stands_on,
    start_faults,
    whole_faults,
)
from rapidun.models.adapter_tokens import choose_tokenizer
from rapidun.models.layers import names_like
from rapidun.models.start_adapter import KEY, StartAdapter, identity_files
from rapidun.models.weights import adapter_misfit, read_headers
from rapidun.stages.architecture import start_facts
from rapidun.stages.context import Context


def folder_of(model: ModelConfig) -> Path | None:
    """The folder that `model.adapter` names."""
    return None if model.adapter is None else Path(model.adapter).expanduser()


def start_of(model: ModelConfig, base: Path) -> StartAdapter | None:
    """The adapter as it goes on its base, outside a run. Raises: ConfigError for a folder that is no adapter."""
    folder = folder_of(model)
    if folder is None:
        return None
    return StartAdapter(base=base, folder=folder, identity=_identity(folder, sha256_file))


def identity_of(ctx: Context, folder: Path) -> str:
    """Names an adapter by the contents of its files. Raises: ConfigError for a folder without them."""
    return _identity(folder, ctx.file_hash)


def _identity(folder: Path, file_hash: Callable[[Path], str]) -> str:
    return sha256_json({file.name: file_hash(file) for file in identity_files(folder)})[:16]


def start_adapter_faults(ctx: Context) -> list[str]:
    """Why `model.adapter` cannot go on the base; its files, its settings, and their heads against the base's."""
    model, folder = ctx.cfg.model, folder_of(ctx.cfg.model)
    if folder is None:
        return []
    key = ("start adapter faults", folder, model.path, model.revision, model.quantisation, model.adapter_as, ctx.fetch)

    def look() -> list[str]:
        try:
            return _faults(ctx, folder)
        except ConfigError as error:
            return list(error.faults)
        except RapidunError as error:
            return [str(error)]

    found: list[str] = ctx.memo.get(key, look)
    return found


def _faults(ctx: Context, folder: Path) -> list[str]:
    model = ctx.cfg.model
    adapter_files(folder, key=KEY)
    facts = start_facts(ctx)
    own = None if facts is None else facts.quantisation
    if own is not None and model.adapter_as is AdapterAs.merged:
        return [
            f"model: need unquantised weights to merge an adapter into, got model.adapter_as=merged and {model.path}, "
            f"a folder that is quantised already ({own}). Pass model.adapter_as=apart, or model.path=... of the folder "
            "before it was quantised"
        ]
    asked = "" if model.quantisation.name == "none" else f"model.quantisation={model.quantisation.name}"
    beside = model.adapter_as is AdapterAs.apart
    faults = start_faults(folder, key=KEY, quantised=(asked or str(own or "")) if beside else "")
    base = None if facts is None else facts.folder
    faults = faults or adapter_faults(folder, base, key=KEY)
    if faults or facts is None:
        return faults
    if own is None:
        headers = read_headers(facts.folder)
        if names_like(facts.model_type) is not None and (wrong := _misfit(folder, facts.folder)):
            faults.append(
                f"model: need an adapter made for {model.path} as it is, got {model.adapter} with {wrong}. Save it "
                f"from the unwrapped model, or change {KEY}=..."
            )
        faults += whole_faults(folder, headers, base=facts.folder, key=KEY)
    return faults or list(choose_tokenizer(folder, facts.folder, key=KEY).faults)


def _misfit(folder: Path, base: Path) -> str | None:
    return adapter_misfit(folder, read_headers(base), folder=base, key=KEY)


def start_warnings(ctx: Context) -> list[str]:
    """What the user should know of base and adapter together."""
    model, folder = ctx.cfg.model, folder_of(ctx.cfg.model)
    if folder is None or model.path is None:
        return []
    found = []
    name, base = named_base(folder), Path(model.path).expanduser().name
    if name is not None and name.casefold() != base.casefold():
        found.append(
            f"model: {model.adapter} says that it was made over {name}, model.path is {model.path}; that its matrices "
            "fit does not show that they are the same weights"
        )
    if model.adapter_as is AdapterAs.merged and model.quantisation.name != "none":
        found.append(
            f"model: what {model.adapter} changes is merged before the weights are rounded to "
            f"{model.quantisation.name}, and may be lost in it. Pass model.adapter_as=apart to keep it beside them"
        )
    return found


def continued_faults(ctx: Context, continued: Path) -> list[str]:
    """What speaks against continuing an adapter over this start model: it is in it already, or stands on another."""
    where = "Change unlearning.adapter=..."
    start = folder_of(ctx.cfg.model)
    if start is not None and ctx.file_hash(start / FACTORS) == ctx.file_hash(continued / FACTORS):
        return [
            f"unlearning: need another adapter to continue than model.adapter, got the same factors in {continued} and "
            f"{start}: they would be added twice. Pass unlearning.adapter=null for a new one over it, or "
            "model.adapter=null to train it on"
        ]
    below = stands_on(continued)
    if not below:
        return []
    if start is None:
        return [
            f"unlearning: need the adapter that {continued} stands on ({below.get('adapter')}), got "
            f"model.adapter=null. Pass model.adapter=DIR of it. {where}"
        ]
    if below.get("identity") != identity_of(ctx, start):
        return [
            f"unlearning: need the adapter that {continued} stands on ({below.get('adapter')}, "
            f"{below.get('identity')}), got another one in model.adapter={ctx.cfg.model.adapter}. {where}"
        ]
    return []
