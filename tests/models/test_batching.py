"""Rows of a batch: which architectures leave them alone, and what is done where they do not."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rapidun.base.errors import ModelError
from rapidun.models import batching as module
from rapidun.models.batching import Batching, batching, check_training
from rapidun.models.losses import IGNORE
from rapidun.stages.answers.generate import generate_greedy
from rapidun.stages.answers.score import score_responses
from rapidun.stages.rows.encode import Encoded
from tests.conftest import build_tiny_model

SMALL = {
    "vocab_size": 264, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "pad_token_id": 257, "eos_token_id": 256,
    "bos_token_id": None, "num_local_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip
LINEAR = ["linear_attention", "full_attention"] * 2
# what their code in transformers 5.24 does to the neighbours in a batch
FOUND = {
    "llama": ({}, Batching(True, True, True, True)),
    "mistral": ({"sliding_window": 8}, Batching(True, True, True, True)),
    "gpt2": ({}, Batching(True, True, True, True)),
    "mixtral": ({}, Batching(True, True, True, True)),
    "mamba": ({"state_size": 4}, Batching(True, True, True, True)),
    "rwkv": ({}, Batching(False, True, True, True)),
    "recurrent_gemma": ({"lru_width": 32}, Batching(False, True, True, True)),
    "minimax": ({"layer_types": LINEAR, "block_size": 4}, Batching(False, True, True, True)),
    "xlstm": ({"num_heads": 4}, Batching(False, True, False, True)),
}
PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5, 4, 3, 2], [30, 31, 32], [77] * 12, [1, 2]]


def build(kind: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(SMALL | settings)))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.mark.parametrize("kind", FOUND)
def test_what_an_architecture_does_to_a_batch(kind: str) -> None:
    settings, expected = FOUND[kind]
    assert batching(build(kind, **settings), pad_token_id=257) == expected
    assert bool(expected.notes) is not all(expected)


@pytest.mark.parametrize("kind", FOUND)
def test_a_prompt_gets_the_answer_that_it_gets_alone(kind: str, tiny_tokenizer: Any) -> None:
    """By an argmax loop over the whole text, without cache, batch or padding."""
    model = build(kind, **FOUND[kind][0])
    expected = []
    for prompt in PROMPTS:
        ids = list(prompt)
        for _ in range(6):
            with torch.no_grad():
                token = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if token == tiny_tokenizer.eos_token_id:
                break
            ids.append(token)
        expected.append(ids[len(prompt) :])
    found = generate_greedy(model, tiny_tokenizer, PROMPTS, max_new_tokens=6, tokens_per_batch=10_000)
    assert found == expected
    assert len({tuple(tokens) for tokens in expected}) > 2, "one answer to all would show nothing"


@pytest.mark.parametrize("kind", FOUND)
def test_a_row_gets_the_score_that_it_gets_alone(kind: str) -> None:
    model = build(kind, **FOUND[kind][0])
    rows = [Encoded([*ids, 40, 41], [IGNORE] * len(ids) + [40, 41]) for ids in PROMPTS]
    together = score_responses(model, rows, pad_token_id=257, tokens_per_batch=10_000)
    alone = [score_responses(model, [row], pad_token_id=257, tokens_per_batch=10_000)[0] for row in rows]
    assert [s.log_prob for s in together] == pytest.approx([s.log_prob for s in alone], abs=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "mixtral", "olmoe", "deepseek_v3", "qwen3_next", "gpt_neox"])
def test_rounding_of_bfloat16_raises_no_alarm(kind: str) -> None:
    experts = {"num_experts": 4, "n_routed_experts": 4, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1}
    latent = {"kv_lora_rank": 8, "q_lora_rank": None, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
    linear = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8}
    more = {"shared_expert_intermediate_size": 16, "linear_value_head_dim": 8, "first_k_dense_replace": 1}
    more |= {"num_key_value_heads": 4} if kind == "deepseek_v3" else {}
    model = build(kind, **experts, **latent, **linear, **more).to(torch.bfloat16)
    assert batching(model, pad_token_id=257) == Batching(True, True, True, True)


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_a_model_that_sees_what_is_behind_a_token_is_refused(kind: str) -> None:
    # an encoder that says of itself that it is none: known from its logits alone
    settings = {"pad_token_id": 1} if kind == "roberta" else {}
    model = build(kind, **settings)
    with pytest.raises(ModelError, match=r"in which a token's logits depend on the tokens behind it"):
        batching(model, pad_token_id=1)
    assert batching(build(kind, is_decoder=True, **settings), pad_token_id=1).causal


@pytest.mark.parametrize(("kind", "settings"), [("bert", {"pad_token_id": 1}), ("rwkv", {})])
def test_eight_bits_round_by_what_stands_beside_a_token_and_no_more_is_forgiven(
    kind: str, settings: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 264)
    model = build(kind, **settings)
    # measured on SmolLM2-135M: .11, .07 and .25 of the spread
    rounded = logits + 0.25 * torch.randn(6, 264)
    assert not module.nearness(model.to(torch.bfloat16))(logits, rounded)
    model.is_loaded_in_8bit = True
    assert module.nearness(model)(logits, rounded)
    assert not module.nearness(model)(logits, torch.randn(6, 264))
    # an encoder, and rows that share their states, are found all the same
    if kind == "bert":
        with pytest.raises(ModelError, match=r"depend on the tokens behind it"):
            batching(model.float(), pad_token_id=1)
    else:
        assert not module._try(model.float(), 257).left


def test_it_is_tried_once_for_an_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(module, "_known", {})
    actual = module._try
    monkeypatch.setattr(module, "_try", lambda model, pad: tried.append(model) or actual(model, pad))
    half = build_tiny_model(hidden_size=32).to(torch.bfloat16)
    for model in (build_tiny_model(), build_tiny_model(seed=3), build_tiny_model(hidden_size=32), half):
        batching(model, pad_token_id=257)
    assert len(tried) == 3


def test_trying_leaves_a_model_and_the_callers_randomness_alone() -> None:
    model = build_tiny_model().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, config = torch.random.get_rng_state(), model.generation_config
    module._try(model, 257)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    assert model.generation_config is config
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Leaky(torch.nn.Module):
    """Adds a little of each row's neighbours, padding and all."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.inner(hidden + 0.5 * hidden.mean(dim=0, keepdim=True) * (len(hidden) > 1))


def test_rows_that_padding_changes_are_scored_one_by_one_and_not_trained_together() -> None:
    model = build("llama", hidden_size=16)
    model.config.leaky = True  # its own entry among what is known
    model.model.layers[0].mlp = Leaky(model.model.layers[0].mlp)
    assert not batching(model, pad_token_id=257).right
    rows = [Encoded([*ids, 40, 41], [IGNORE] * len(ids) + [40, 41]) for ids in PROMPTS]
    together = score_responses(model, rows, pad_token_id=257, tokens_per_batch=10_000)
    alone = [score_responses(model, [row], pad_token_id=257, tokens_per_batch=10_000)[0] for row in rows]
    assert [s.log_prob for s in together] == pytest.approx([s.log_prob for s in alone], abs=1e-4)
    check_training(model, pad_token_id=257, rows_at_once=1, section="poison", mend="")
    with pytest.raises(ModelError, match=r"poison: .* got 4 rows at a time of a LlamaForCausalLM.* Pass x=1"):
        check_training(model, pad_token_id=257, rows_at_once=4, section="poison", mend="Pass x=1")
