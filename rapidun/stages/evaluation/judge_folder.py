"""Where the judge model lies, and whether it can be one: known before anything is loaded. No torch here."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rapidun.base.errors import ModelError
from rapidun.config.detectors import JUDGE, JudgeSettings
from rapidun.models.architecture import inspect
from rapidun.models.load import TOKENIZERS, local_folder


@contextmanager
def about_judge() -> Iterator[None]:
    """Messages about a model folder speak of the judge's."""
    try:
        yield
    except ModelError as error:
        words = str(error).replace("model.path=", f"{JUDGE}.path=").replace(" or a .gguf file", "")
        words = words.removeprefix("model: ").replace("a folder, a .gguf file or a hub id", "a folder or a hub id")
        raise ModelError(words if words.startswith(JUDGE) else f"{JUDGE}: {words}") from error


def judge_folder(settings: JudgeSettings) -> Path:
    """The judge's folder on this machine; a hub id is fetched. Raises: ModelError."""
    with about_judge():
        return local_folder(str(settings.path), revision=settings.revision)


def check_judge(settings: JudgeSettings) -> str:
    """Whether a folder is there, whole, and a causal language model of a class of transformers; no weights are read.

    Returns: what the user should know of it; empty where there is nothing.
    Raises: ModelError.
    """
    folder = judge_folder(settings)
    with about_judge():
        if not any((folder / name).is_file() for name in TOKENIZERS):
            raise ModelError(f"model: need a tokenizer in {folder} (tokenizer.json), got none. Change model.path=...")
        facts = inspect(folder)
        why = facts.not_causal
        if why is None and facts.quantisation is not None and not facts.quantisation.readable:
            why = f"quantised ({facts.quantisation}), which no installed package reads"
        if why is not None:
            raise ModelError(f"model: need a causal language model that can be read, got {folder}, {why}. Change "
                             "model.path=...")  # fmt: skip
    return "; ".join(note.removeprefix("model: ") for note in facts.notes)
