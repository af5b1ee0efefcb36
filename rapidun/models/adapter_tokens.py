"""Which tokenizer goes with a base and an adapter over it: the base's, or the one that the adapter's folder brings."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from rapidun.models.adapter_folder import section_of

# files of an adapter's folder that belong to a tokenizer
FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
# what of tokenizer_config.json changes which tokens a text becomes, or where an answer ends
TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "add_bos_token", "add_eos_token", "add_prefix_space")


class TokenizerChoice(NamedTuple):
    """What encodes the texts of a base with an adapter."""

    # the folder that it is read from
    folder: Path
    # what to say where it is the adapter's; why there is none
    note: str = ""
    faults: tuple[str, ...] = ()


def tokenizer_files(folder: Path) -> list[Path]:
    return [file for name in FILES if (file := folder / name).is_file()]


def choose_tokenizer(adapter: Path, base: Path, *, key: str) -> TokenizerChoice:
    """The base's tokenizer where the adapter's folder brings none, or the same; else the adapter's, with which it was
    trained. Nothing is loaded.

    A vocabulary that reaches beyond the base's embeddings is refused: the base was resized for the adapter.
    """
    if not tokenizer_files(adapter):
        return TokenizerChoice(base)
    mine, theirs = _read(base), _read(adapter)
    differs = [name for name in theirs if theirs[name] is not None and theirs[name] != mine.get(name)]
    if not any((adapter / name).is_file() for name in VOCABULARIES):
        if not differs:
            return TokenizerChoice(base)
        return TokenizerChoice(
            base,
            faults=(
                f"{section_of(key)}: need a whole tokenizer beside the adapter or none, got {adapter} with other "
                f"{' and '.join(differs)} than {base} and without a vocabulary. Copy tokenizer.json into it, or take "
                f"away {', '.join(file.name for file in tokenizer_files(adapter))}",
            ),
        )
    if not differs:
        return TokenizerChoice(base)
    size, top = _embeddings(base), _largest(theirs)
    if size is not None and top is not None and top >= size:
        return TokenizerChoice(
            adapter,
            faults=(
                f"{section_of(key)}: need a tokenizer whose tokens {base} has embeddings for, got {adapter} with token "
                f"ids up to {top} where the base knows {size}: it was resized for the adapter. Merge the adapter into "
                f"its resized base with the tool that made it and pass that folder as model.path=..., or change "
                f"{key}=...",
            ),
        )
    return TokenizerChoice(
        adapter,
        note=(
            f"{section_of(key)}: the adapter's folder {adapter} brings a tokenizer with other {' and '.join(differs)} "
            f"than {base}: the adapter's is used"
        ),
    )


def _read(folder: Path) -> dict[str, Any]:
    """The parts of a folder's tokenizer that matter; None for one that its files do not speak of."""
    core, config = _json(folder / "tokenizer.json"), _json(folder / "tokenizer_config.json")
    template: Any = config.get("chat_template") or _json(folder / "chat_template.json").get("chat_template")
    file = folder / "chat_template.jinja"
    if file.is_file():
        template = file.read_text(encoding="utf-8", errors="replace")
    added = core.get("added_tokens")
    tokens = {one["id"]: one["content"] for one in added if isinstance(one, dict)} if isinstance(added, list) else None
    if tokens is None and (extra := _json(folder / "added_tokens.json")):
        tokens = {place: token for token, place in extra.items()}
    text = {name: core[name] for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder") if name in core}
    return {
        "vocabulary": core.get("model"),
        "added tokens": tokens,
        "rules of its text": text or None,
        "special tokens": {name: _content(config[name]) for name in TOKENS if name in config} or None,
        "chat template": template or None,
    }


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _largest(parts: dict[str, Any]) -> int | None:
    """The largest token id; None where it is in no file that is read."""
    model = parts["vocabulary"]
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    found = list(parts["added tokens"] or ())
    if isinstance(vocabulary, dict):
        found += vocabulary.values()
    elif isinstance(vocabulary, list):
        found.append(len(vocabulary) - 1)
    return max((int(one) for one in found), default=None)


def _embeddings(base: Path) -> int | None:
    config = _json(base / "config.json")
    inner = config.get("text_config")
    sizes = [part.get("vocab_size") for part in (config, inner) if isinstance(part, dict)]
    return next((size for size in sizes if isinstance(size, int)), None)


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
