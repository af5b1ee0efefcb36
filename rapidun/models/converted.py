"""A model made from something else, saved as a folder: what is read back gives the losses that the source gave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rapidun.models.load import ModelLoader

# what a converted model reads before it is saved and after
TEXTS = ("The capital of France is Paris, and that of Italy is Rome.", "def add(a, b):\n    return a + b\n")


def save_converted(
    source: Any,
    tokenizer: Any,
    convert: Callable[[Any], Any],
    out: Path,
    *,
    loader: ModelLoader,
    texts: Sequence[str] = TEXTS,
) -> float:
    """Write what `convert` makes of a model, with its tokenizer, and read it back with `loader`.

    Args: source: the model as it computes before. convert: may change it in place.
    Returns: the mean loss of the texts under `source`.
    Raises: ModelError where the folder gives another one.
    """
    from rapidun.models.selfcheck import confirm, mean_loss  # brings torch

    rows = [(ids, ids) for ids in (list(tokenizer(text)["input_ids"]) for text in texts)]
    before = mean_loss(source, rows)
    model = convert(source)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    confirm(
        lambda: loader.load(out).model,
        rows,
        before=before,
        dtype=model.dtype,
        folder=out,
        section="model",
        say=loader.say,
    )
    return before
