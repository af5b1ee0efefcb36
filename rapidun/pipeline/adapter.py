"""The unlearned adapter in a run folder: AutoPeftModelForCausalLM loads it from any directory.

In the store an adapter names its base without a path, so that the same settings give the same bytes everywhere. Here
stand links to those bytes, and beside them what depends on where they are: adapter_config.json, which names the base by
its hub id or its absolute path, the base's tokenizer, and a README.md. They follow from the rest and are written anew
whenever the run is started, so that the same command at another place names the base of that place.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rapidun.base.files import link_to, read_json, write_text
from rapidun.base.manifest import MANIFEST
from rapidun.config.model import AdapterAs, ModelConfig
from rapidun.models.adapter_folder import SETTINGS
from rapidun.models.adapter_tokens import tokenizer_files
from rapidun.report.certificate.adapter_card import make_adapter_card
from rapidun.stages.recipe import UNLEARNED, Model
from rapidun.stages.recipes import Recipes

FOLDER, CARD = "adapter", "README.md"
# what is ours in adapter_config.json; every other key is the artifact's
OWN_KEYS = ("base_model_name_or_path", "revision")


class Base(NamedTuple):
    """What `from_pretrained` finds from any directory: a hub id and its revision, or an absolute path."""

    name: str
    revision: str | None = None

    def named_in(self, settings: dict[str, Any]) -> dict[str, Any]:
        """adapter_config.json that names it."""
        return settings | dict(zip(OWN_KEYS, self, strict=True))


def base_of(model: Model, settings: ModelConfig) -> Base:
    """How the model below an adapter is named.

    Args: model: what the adapter was trained over. settings: of the run.
    """
    path = settings.path
    # a model of the run's own making lies in its store, and so does one read from a .gguf
    if path is not None and model.recipe is None and not Path(path).expanduser().exists():
        return Base(path, settings.revision)
    return Base(str(model.folder.resolve()))


def views(recipes: Recipes, stage: str) -> dict[str, Callable[[Path, Path], None]]:
    """What stands in the run folder in the place of a link: of unlearning that made an adapter over one base.

    An adapter over a base with an adapter of its own stays a link: no PEFT folder names two, its README.md says how to
    load it.
    """
    model = recipes.cfg.model
    apart = model.adapter is not None and model.adapter_as is AdapterAs.apart
    if stage != "unlearning" or apart:
        return {}
    found = recipes.get(UNLEARNED)
    if found.adapter is None or found.adapter.recipe is None:
        return {}
    base, folder = base_of(found.model, model), found.model.folder
    return {found.adapter.recipe.link: lambda link, artifact: _write(link, artifact, base=base, base_folder=folder)}


def _write(link: Path, artifact: Path, *, base: Base, base_folder: Path) -> None:
    """Put links to the artifact's files, and what names the base, into the run folder's `link`."""
    if link.is_symlink():
        # of an earlier version
        link.unlink()
    adapter = link / FOLDER
    adapter.mkdir(parents=True, exist_ok=True)
    wanted = {
        link / one.name: one for one in sorted(artifact.iterdir()) if one.name != FOLDER and one.name != MANIFEST
    } | {adapter / one.name: one for one in sorted((artifact / FOLDER).iterdir()) if one.name != SETTINGS}
    wanted |= {adapter / one.name: one for one in tokenizer_files(base_folder)}
    for path, target in wanted.items():
        link_to(path, target)
    for path in [*link.iterdir(), *adapter.iterdir()]:
        if path.is_symlink() and path not in wanted and path != link / MANIFEST:
            path.unlink()
    settings = read_json(artifact / FOLDER / SETTINGS)
    write_text(adapter / SETTINGS, json.dumps(base.named_in(settings), indent=2, sort_keys=True) + "\n")
    # from here on it is found to lead to the artifact
    link_to(link / MANIFEST, artifact / MANIFEST)
    write_text(adapter / CARD, make_adapter_card(link.parent, base=base.name))


def view_faults(link: Path, artifact: Path, files: list[str]) -> Iterator[str]:
    """Why what stands in the place of a link does not say what its artifact says. Args: files: of the artifact."""
    if link.is_symlink():
        return
    for name in files:
        path = link / name
        if name != f"{FOLDER}/{SETTINGS}":
            if path.resolve() != (artifact / name).resolve():
                yield f"{path}: need a link to {artifact / name}, got {'another file' if path.exists() else 'none'}"
            continue
        ours, theirs = (
            {key: value for key, value in (_object(file) or {}).items() if key not in OWN_KEYS}
            for file in (path, artifact / name)
        )
        if ours != theirs:
            yield f"{path}: need the settings of {artifact / name} but for {' and '.join(OWN_KEYS)}, got others"


def view_note(link: Path) -> str:
    """What is to be said of the base that the adapter names: nothing, or that it is not there (any more)."""
    name = (_object(link / FOLDER / SETTINGS) or {}).get(OWN_KEYS[0]) if not link.is_symlink() else None
    if not isinstance(name, str) or not Path(name).is_absolute() or Path(name).is_dir():
        return ""
    return (
        f"{link / FOLDER} names a base that is not there, {name}; was the store moved? Where its base is now the run's "
        "own command writes anew, and rapidun export RUN OUT into a folder"
    )


def _object(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
