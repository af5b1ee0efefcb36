"""The model's window and vocabulary as its config says them, under every architecture's name for them."""

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import (
    BloomConfig,
    CTRLConfig,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MptConfig,
    OPTConfig,
    RobertaConfig,
)

from rapidun.base.errors import ConfigError, ModelError
from rapidun.stages.rows.fit import check_tokens, check_window, vocabulary_of, window_of


@pytest.mark.parametrize(
    ("config", "window"),
    [
        (GPT2Config(n_positions=64), 64),
        (CTRLConfig(n_positions=32), 32),
        (GPTNeoConfig(max_position_embeddings=48), 48),
        (GPTNeoXConfig(max_position_embeddings=2048), 2048),
        (OPTConfig(max_position_embeddings=96), 96),
        (LlamaConfig(max_position_embeddings=4096), 4096),
        (MptConfig(max_seq_len=80), 80),
        (Gemma3Config(text_config=Gemma3TextConfig(max_position_embeddings=777)), 777),
        # positions begin behind the padding's: of 514 two are never used
        (RobertaConfig(max_position_embeddings=514, pad_token_id=1), 512),
        # no positions to run out of
        (BloomConfig(seq_length=8), None),
        (MambaConfig(), None),
        (SimpleNamespace(max_position_embeddings=None), None),
        (SimpleNamespace(max_position_embeddings=-1, n_ctx=16), 16),
    ],
    ids=lambda value: type(value).__name__,
)
def test_window(config: Any, window: int | None) -> None:
    assert window_of(config) == window


def test_rows_beyond_the_window_are_refused_and_their_real_lengths_count() -> None:
    """n_positions 64, max_length 96: 70 tokens are too many, 64 are not; lengths are asked for where it matters."""
    config = GPT2Config(n_positions=64)
    with pytest.raises(ConfigError) as caught:
        check_window("poison", config, max_length=96, lengths=[64, 70, 3])
    assert str(caught.value) == (
        "poison: need rows that fit into the model's window of 64 tokens, got 1 of 3 that do not, with max_length=96. "
        "Pass max_length=64 or less (they are cut), or choose another model"
    )
    check_window("poison", config, max_length=96, lengths=[64, 3])

    def never() -> Any:
        raise AssertionError("not needed")
        yield 1

    check_window("poison", config, max_length=64, lengths=never())
    check_window("poison", MambaConfig(), max_length=96, lengths=never())


def test_tokens_beyond_the_vocabulary_are_refused_by_name(tiny_tokenizer: Any) -> None:
    assert vocabulary_of(GPT2Config(vocab_size=300)) == 300
    assert vocabulary_of(Gemma3Config(text_config=Gemma3TextConfig(vocab_size=400))) == 400
    assert vocabulary_of(SimpleNamespace()) is None
    start = tiny_tokenizer.convert_tokens_to_ids("<|im_start|>")
    rows = [[1, 2], [3, start, 256], []]
    check_tokens("influence", tiny_tokenizer, start + 1, rows)
    check_tokens("influence", tiny_tokenizer, None, rows)
    with pytest.raises(ModelError) as caught:
        check_tokens("influence", tiny_tokenizer, 256, rows)
    assert str(caught.value).startswith(
        f"influence: need tokens that the model knows, got '<|im_start|>' (id {start}) in 1 of 3 rows: "
        "the tokenizer has 259 tokens, the model 256."
    )
