"""Whether rows fit the model: its window of positions, and its vocabulary. No torch here."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rapidun.base.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# what architectures call the most positions they have
_WINDOWS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length")
# positions that start behind the padding's, in a table that is no larger for it
_SHIFTED = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text", "roberta-prelayernorm")


def window_of(config: Any) -> int | None:
    """The most tokens that a model of this transformers config takes at once; None where nothing limits them."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = (value for name in _WINDOWS if type(value := getattr(text, name, None)) is int and value > 0)
    window = next(found, None)
    if window is not None and getattr(text, "model_type", None) in _SHIFTED:
        window -= (text.pad_token_id or 0) + 1
    return window


def check_window(stage: str, config: Any, *, max_length: int, lengths: Iterable[int]) -> None:
    """Whether every row fits into the model's window. The rows' real lengths count, and are asked for only where
    `max_length` is beyond the window.

    Args:
        lengths: tokens of each row, as encoded at `max_length`; a generator is not run in vain.
    Raises: ConfigError naming max_length, the window and the number of rows.
    """
    window = window_of(config)
    if window is None or max_length <= window:
        return
    known = list(lengths)
    long = sum(length > window for length in known)
    if long:
        raise ConfigError(
            f"{stage}: need rows that fit into the model's window of {window} tokens, got {long} of {len(known)} that "
            f"do not, with max_length={max_length}. Pass max_length={window} or less (they are cut), or choose another "
            "model"
        )


def check_rows(
    stage: str, model: Any, tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Sequence[int]], *, max_length: int
) -> None:
    """Whether a loaded model takes the token ids of every row. Raises: as `check_window` and `check_tokens`."""
    check_window(stage, model.config, max_length=max_length, lengths=map(len, rows))
    check_tokens(stage, tokenizer, int(model.get_input_embeddings().weight.shape[0]), rows)


def vocabulary_of(config: Any) -> int | None:
    """The number of tokens that a model of this transformers config knows; None where it does not say."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    size = getattr(text, "vocab_size", None)
    return size if type(size) is int and size > 0 else None


def check_tokens(
    stage: str, tokenizer: "PreTrainedTokenizerBase", size: int | None, rows: Iterable[Sequence[int]]
) -> None:
    """Whether the model knows every token of the rows.

    Args:
        size: rows of its embedding, or what `vocabulary_of` says.
    Raises: ModelError naming the first token that it does not know, both sizes and the number of rows.
    """
    if size is None:
        return
    known = list(rows)
    worst = [max(ids, default=0) for ids in known]
    num_rows = sum(token >= size for token in worst)
    if not num_rows:
        return
    first = next(token for ids in known for token in ids if token >= size)
    raise ModelError(
        f"{stage}: need tokens that the model knows, got {tokenizer.convert_ids_to_tokens(first)!r} (id {first}) in "
        f"{num_rows} of {len(known)} rows: the tokenizer has {len(tokenizer)} tokens, the model {size}. It was never "
        "resized for its tokenizer. Change model.path=..., or resize its embeddings and train them"
    )
