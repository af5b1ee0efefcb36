"""A model of two layers and a tokenizer of characters, made in a second."""

from typing import Any

import pytest
import torch


def character_tokenizer() -> Any:
    """One token a byte, the specials <pad> <s> <end>, and a chat template that ends each turn with <end>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "<s>", "<end>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*specials, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="<end>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<s>' + m['role'][0] + m['content'] + '<end>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<s>a' }}{% endif %}"
    )
    return tokenizer


def random_llama(vocab_size: int, **settings: Any) -> Any:
    """A float32 Llama with random weights, large enough that its answers differ from prompt to prompt."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.5, bos_token_id=1, eos_token_id=2,
        pad_token_id=0, **settings,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return character_tokenizer()


@pytest.fixture(scope="session")
def model(tokenizer: Any) -> Any:
    return random_llama(len(tokenizer))
