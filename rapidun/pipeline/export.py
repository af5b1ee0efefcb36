"""The model of a finished run as a folder of its own: an adapter that names its base, or whole weights; a tokenizer.

What comes out is read back, and has to give the loss that the run's own files give, before it gets its name.
"""

import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from rapidun.base.errors import ArtifactError, ConfigError, DataError
from rapidun.base.files import write_json, write_text
from rapidun.base.limits import refusal
from rapidun.base.manifest import Artifact, linked_folder, read_artifact
from rapidun.base.parts import part_of
from rapidun.base.store import Store
from rapidun.base.tracker import Tracker
from rapidun.config import extensions
from rapidun.config.plain import from_plain
from rapidun.models.adapter_folder import SETTINGS
from rapidun.models.adapters import confirm_saved, save_merged
from rapidun.models.selfcheck import a_few, confirm, mean_loss
from rapidun.pipeline.adapter import CARD, base_of
from rapidun.pipeline.folder import known_stages
from rapidun.report.read import read_object
from rapidun.stages.recipe import DATA, UNLEARNED, Evaluated, Recipe
from rapidun.stages.recipes import Recipes
from rapidun.stages.rows.encode import encode_rows
from rapidun.stages.rows.records import read_records


class Form(Enum):
    adapter = "adapter"  # a PEFT folder over a base that is elsewhere
    merged = "merged"  # the base with the adapter in its weights
    whole = "whole"  # unlearning changed all weights: there is no adapter


class Exported(NamedTuple):
    """What the folder holds."""

    form: Form
    # of an adapter the hub id, or the absolute path, of its base; else empty
    base: str
    # loss of the run's own model on a few forget rows, nats a token, which the folder's has as well
    loss: float


def export_run(
    run_dir: Path, out: Path, *, merge: bool, card: Callable[[Exported], str], say: Callable[[str], None]
) -> Exported:
    """Write the unlearned model of a run into a new folder.

    Args:
        run_dir: a finished run whose unlearning was run. out: a folder that is not there yet, or empty. merge: put the
            adapter into the weights. card: the text of README.md. say: told what the user should know.
    Raises: DataError for a folder that is taken, or a run without an unlearned model; ConfigError where only merged
        weights would say what the model is; ArtifactError for files that are gone; ModelError where what was written
        does not give the run's loss. Nothing is left then.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"export: need a folder that is not there yet, or empty, got {out}. Pass another OUT")
    with _recipes(run_dir, say) as recipes:
        found = recipes.get(UNLEARNED)
        for model in filter(None, (found.model, found.adapter)):
            if not model.folder.is_dir():
                raise ArtifactError(f"export: need the run's files, found none at {model.folder}. Run it again")
        part = part_of(out)
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            part.mkdir()
        except OSError as error:
            raise refusal(error) or DataError(
                f"export: need a folder that can be made, got {out} ({error.strerror}). Pass another OUT"
            ) from None
        try:
            made = _write(recipes, found, part, merge=merge)
            write_text(part / CARD, card(made))
            if out.is_dir():
                out.rmdir()
            part.rename(out)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return made


def _write(recipes: Recipes, found: Evaluated, part: Path, *, merge: bool) -> Exported:
    loader = dataclasses.replace(recipes.loader, keep=False)
    base, adapter = found.model.folder, found.adapter.folder if found.adapter else None
    apart = loader.over_at(base) is not None
    if apart and adapter is not None and not merge:
        raise ConfigError(
            "export: need --merge for a run over a base with an adapter of its own (model.adapter): no PEFT folder "
            "names two. Pass --merge"
        )
    model, tokenizer = loader.load(base, adapter=adapter)
    rows = _rows(recipes, tokenizer)
    loss = mean_loss(model, rows)
    if adapter is None:
        shutil.copytree(base, part, dirs_exist_ok=True)
        confirm_saved(model, part, before=loss, loader=loader, rows=rows, section="export")
        return Exported(Form.whole, "", loss)
    if merge:
        with tempfile.TemporaryDirectory(prefix="rapidun-") as work:
            save_merged(
                model, tokenizer, part, start=base, loader=loader, work=Path(work), rows=rows, section="export"
            )  # fmt: skip
        return Exported(Form.merged, "", loss)
    shutil.copytree(adapter, part, dirs_exist_ok=True)
    tokenizer.save_pretrained(str(part))
    told = _name_base(recipes, found, part)
    confirm(
        lambda: loader.load(base, adapter=part).model,
        rows,
        before=loss,
        dtype=model.dtype,
        folder=part,
        section="export",
        say=loader.say,
    )
    return Exported(Form.adapter, told, loss)


def _name_base(recipes: Recipes, found: Evaluated, part: Path) -> str:
    """Let adapter_config.json name what `from_pretrained` finds from any directory; what it names."""
    base = base_of(found.model, recipes.cfg.model)
    file = part / SETTINGS
    write_json(file, base.named_in(json.loads(file.read_text(encoding="utf-8"))))
    return base.name


def _rows(recipes: Recipes, tokenizer: Any) -> list[Any]:
    """A few encoded forget rows. Raises: DataError where none can be encoded."""
    records = read_records(recipes.data.path / "forget.jsonl")
    texts = [record.forget_texts for record in records]
    rows = [row for row in encode_rows(tokenizer, texts, max_length=recipes.cfg.max_length) if row is not None]
    if not rows:
        raise DataError(f"export: need a forget row that fits into {recipes.cfg.max_length} tokens, got none")
    return a_few(rows)


@contextlib.contextmanager
def _recipes(run_dir: Path, say: Callable[[str], None]) -> Iterator[Recipes]:
    """The recipes of a run, found in its own store, where it was started. Raises: DataError, ArtifactError."""
    status, settings = (read_object(run_dir / name) for name in ("status.json", "settings.json"))
    stages = known_stages(status)
    if "unlearning" not in stages:
        raise DataError(f"export: need a run whose unlearning is done, got {run_dir} without it. Run it again")
    noted: dict[str, Artifact] = {}
    for entry in stages.values():
        for link in entry["artifacts"]:
            noted[link] = read_artifact(linked_folder(run_dir / link))
    store = Store(next(iter(noted.values())).path.parents[1])

    def find_data(recipe: Recipe) -> Artifact:
        artifact = noted.get(recipe.link) or store.find(recipe.key)
        if artifact is None:
            raise ArtifactError(f"export: need the run's {recipe.id}, found none in {store.root}")
        return artifact

    class Told(Tracker):
        def warn(self, message: str) -> None:
            say(message)

    place = status.get("directory")
    with contextlib.chdir(place if isinstance(place, str) and Path(place).is_dir() else "."):
        extensions.need(status.get("extensions"), what="export")
        recipes = Recipes(from_plain(settings), store, find_data=find_data, tracker=Told(), fetch=True)
        recipes.get(DATA)
        yield recipes
