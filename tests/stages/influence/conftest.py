"""Tiny models, random rows, and the slow obvious gradient: one row at a time through autograd."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from rapidun.stages.influence.batches import RowBatch
from rapidun.stages.influence.gradients.params import TrackedParameter
from rapidun.stages.rows.encode import Encoded, collate

PAD = 0
VOCAB = 40


@pytest.fixture
def make_model() -> Callable[..., nn.Module]:
    def make(*, tied: bool = False, dtype: torch.dtype = torch.float64, **sizes: int) -> nn.Module:
        torch.manual_seed(1)
        settings = {
            "vocab_size": VOCAB,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
        }
        config = LlamaConfig(**settings | sizes, tie_word_embeddings=tied, pad_token_id=PAD, initializer_range=0.3)
        model = LlamaForCausalLM(config)
        # Llama's own norm computes in float32 whatever the model's dtype, too coarse for an oracle
        for name, module in list(model.named_modules()):
            if type(module).__name__ == "LlamaRMSNorm":
                norm = nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon)
                model.set_submodule(name, norm)
        return model.to(dtype).eval()

    return make


@pytest.fixture
def rows() -> list[Encoded]:
    """Seven rows of 4 to 13 tokens; the last third or so of each is the response. Two hold the pad token inside."""
    generator = torch.Generator().manual_seed(3)
    encoded = []
    for length in (9, 4, 13, 6, 9, 11, 5):
        ids = torch.randint(1, VOCAB, (length,), generator=generator).tolist()
        if length == 9:
            ids[2] = PAD
        prompt = length - max(2, length // 3)
        encoded.append(Encoded(ids, [-100] * prompt + ids[prompt:]))
    return encoded


@pytest.fixture
def batches_of() -> Callable[..., list[RowBatch]]:
    """Cut rows into padded batches; `extra` adds padding behind every row."""

    def make(rows: Sequence[Encoded], groups: Sequence[Sequence[int]], *, extra: int = 0) -> list[RowBatch]:
        made = []
        for group in groups:
            batch = dict(collate([rows[i] for i in group], pad_token_id=PAD))
            fill = {"input_ids": PAD, "attention_mask": 0, "labels": -100}
            padded = {key: F.pad(value, (0, extra), value=fill[key]) for key, value in batch.items()}
            made.append(RowBatch(list(group), padded))
        return made

    return make


@pytest.fixture
def autograd_gradients() -> Callable[..., Tensor]:
    """[N, D]: each row alone, without padding, its own loss written out, torch.autograd.grad on the weights."""

    def compute(
        model: nn.Module, parameters: Sequence[TrackedParameter], rows: Sequence[Encoded], *, reduction: str = "mean"
    ) -> Tensor:
        weights = [parameter.modules[0].weight for parameter in parameters]
        flags = [weight.requires_grad for weight in weights]
        for weight in weights:
            weight.requires_grad_(True)
        gradients = []
        for row in rows:
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0]
            loss = logits.new_zeros(())
            count = 0
            for t in range(1, len(row.input_ids)):
                if row.labels[t] != -100:
                    loss = loss - torch.log_softmax(logits[t - 1], dim=0)[row.labels[t]]
                    count += 1
            if reduction == "mean":
                loss = loss / count
            grads = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
            gradients.append(torch.cat([grad.flatten() for grad in grads]))
        for weight, flag in zip(weights, flags, strict=True):
            weight.requires_grad_(flag)
        return torch.stack(gradients)

    return compute


@pytest.fixture(scope="module")
def other_model(tmp_path_factory, make_tiny_model, tiny_tokenizer) -> Path:
    """Another model beside the same tokenizer."""
    folder: Path = tmp_path_factory.mktemp("other") / "model"
    make_tiny_model(seed=1).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder
