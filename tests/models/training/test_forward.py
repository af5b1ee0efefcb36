"""A training pass gives what the plain one gives, whatever it leaves out: padding, prompts met twice, most logits."""

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rapidun.config.parts import OptimiserSettings
from rapidun.models.load import peft_renaming
from rapidun.models.losses import IGNORE
from rapidun.models.packed import Packed, cross_entropy, pack
from rapidun.models.packing import can_switch, forward_only, lay_out, switched
from rapidun.models.training import forward
from rapidun.models.training.forward import (
    UNBOUNDED,
    Layout,
    bfloat16_copies,
    forward_packed,
    forward_parts,
    layout_of,
)
from rapidun.models.training.trainer import ResponseTrainer, training_arguments

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PACKED, PICKED = Layout(UNBOUNDED, True, True), Layout(0, True, True)
# architecture -> class, config class, what is special, the layout it should be found to take
MODELS: dict[str, tuple[str, dict[str, Any], Layout]] = {
    "llama, tied": ("Llama", {**SIZES, "tie_word_embeddings": True}, PACKED),
    "qwen3": ("Qwen3", {**SIZES, "head_dim": 4}, PACKED),
    "cohere, logit scale": ("Cohere", {**SIZES, "logit_scale": 0.3}, Layout(UNBOUNDED, True)),
    "gpt2, learned positions": (
        "GPT2",
        {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2},
        PACKED,
    ),
    "mixtral, experts": ("Mixtral", {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}, PACKED),
    # no row may be longer than the window
    "mistral, window": ("Mistral", {**SIZES, "sliding_window": 16}, Layout(16, True, True)),
    # its attention layers cap their scores, which sdpa cannot
    "gemma2, capped logits": ("Gemma2", {**SIZES, "head_dim": 4, "final_logit_softcapping": 3.0}, Layout(0, True)),
    # a convolution mixes neighbours, whosever they are
    "lfm2, convolution": ("Lfm2", {**SIZES, "layer_types": ["conv", "full_attention"]}, PICKED),
    "bloom, biased by position": ("Bloom", {"vocab_size": 40, "hidden_size": 16, "n_layer": 2, "n_head": 4}, PICKED),
}  # fmt: skip


def build(kind: str) -> Any:
    import transformers

    name, settings, _ = MODELS[kind]
    config_name, suffix = f"{name}Config", "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}{suffix}")(getattr(transformers, config_name)(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                # as large as trained ones: what leaks from row to row would be lost in rounding else
                parameter.normal_(std=0.3)
    # torch groups the products of experts in float32 at most
    return model.eval() if name == "Mixtral" else model.double().eval()


@pytest.fixture(scope="module")
def llama() -> Any:
    return build("llama, tied")


def batch_of(rows: list[tuple[list[int], list[int]]], *, padding: int = 0) -> dict[str, Tensor]:
    """(prompt, response) of each row, padded on the right."""
    width = max(len(prompt) + len(response) for prompt, response in rows) + padding
    batch = {name: torch.zeros(len(rows), width, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    batch["labels"] = torch.full((len(rows), width), IGNORE)
    for place, (prompt, response) in enumerate(rows):
        length = len(prompt) + len(response)
        batch["input_ids"][place, :length] = torch.tensor(prompt + response)
        batch["attention_mask"][place, :length] = 1
        batch["labels"][place, len(prompt) : length] = torch.tensor(response)
    return batch


# the third row has a response of one token, the last one the first's prompt
ROWS = [([5, 9, 3], [7, 8, 30, 2]), ([11, 4, 6, 21, 13], [22, 2]), ([31], [2]), ([5, 9, 3], [17, 3, 19, 21, 2])]
NUM_TOKENS, NUM_SHARED = 24, 3


def plain(model: nn.Module, batch: dict[str, Tensor]) -> Packed:
    return pack(model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits, batch["labels"])


def gradients(model: nn.Module, run: Callable[[], Packed]) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses of the rows, and the gradients of their weighted sum."""
    model.zero_grad(set_to_none=True)
    with switched(model):
        losses = cross_entropy(run())
        (losses * torch.arange(1, len(losses) + 1)).sum().backward()
    return losses.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_same(model: Any, batch: dict[str, Tensor]) -> None:
    """In float64 to 1e-10; RMSNorm and the like go through float32, which flips its last bits."""
    own = model.get_base_model() if hasattr(model, "get_base_model") else model
    tolerance = {"gpt2": 1e-10, "bloom": 1e-10, "mixtral": 1e-4}.get(own.config.model_type, 1e-6)
    truth, wanted = gradients(model, lambda: plain(model, batch))
    losses, found = gradients(model, lambda: forward_packed(model, batch))
    assert float((losses - truth).abs().max()) < tolerance
    assert found.keys() == wanted.keys() and len(found) > 0
    scale = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).abs().max()) < tolerance * scale, name


@pytest.mark.parametrize("kind", MODELS)
def test_losses_and_gradients_are_those_of_the_plain_pass(kind: str) -> None:
    model = build(kind)
    assert layout_of(model) == MODELS[kind][2]
    check_same(model, batch_of(ROWS))


def seen_by(model: Any, batch: dict[str, Tensor]) -> tuple[tuple[int, ...], int]:
    """Shape of what the body is given, number of positions that the head is."""
    shapes: list[tuple[int, ...]] = []
    handles = [
        model.get_input_embeddings().register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape))),
        model.get_output_embeddings().register_forward_hook(lambda _, args, out: shapes.append(tuple(out.shape[:-1]))),
    ]
    forward_packed(model, batch)
    for handle in handles:
        handle.remove()
    return shapes[0], shapes[1][0] * shapes[1][1]


def test_neither_padding_nor_a_prompt_met_twice_nor_the_logits_of_prompts_are_computed(llama: Any) -> None:
    assert seen_by(llama, batch_of(ROWS, padding=3)) == ((1, NUM_TOKENS - NUM_SHARED), 12)


@pytest.mark.parametrize("kind", ["llama, tied", "cohere, logit scale", "lfm2, convolution"])
def test_parts_side_by_side_are_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five tokens' logits at a time where the head is the last thing that a model does, else all at once."""
    model, batch = build(kind), batch_of(ROWS)
    monkeypatch.setattr(forward, "PART", 5 * SIZES["vocab_size"])
    with torch.no_grad():
        truth = forward_packed(model, batch)
        assert len(list(forward_parts(model, batch))) == 1
        with forward_only():
            parts = list(forward_parts(model, batch))
    assert [len(part.targets) for part in parts] == ([len(truth.targets)] if "scale" in kind else [5, 5, 2])
    for name in ("logits", "targets", "rows"):
        whole = torch.cat([getattr(part, name) for part in parts])
        torch.testing.assert_close(whole, getattr(truth, name))
    assert all(part.num_rows == len(ROWS) for part in parts)


def test_rows_beyond_the_window_are_padded() -> None:
    model = build("mistral, window")
    rows = [([5, 9, 3], list(range(3, 20))), ([7, 4], [8, 2])]
    assert seen_by(model, batch_of(rows)) == ((2, 20), 19)
    check_same(model, batch_of(rows))
    assert seen_by(model, batch_of(ROWS))[0] == (1, NUM_TOKENS - NUM_SHARED)


def test_padding_order_and_split_change_nothing() -> None:
    model = build("gpt2, learned positions")
    with torch.no_grad():
        losses = cross_entropy(forward_packed(model, batch_of(ROWS)))
        padded = cross_entropy(forward_packed(model, batch_of(ROWS[::-1], padding=5))).flip(0)
        alone = torch.cat([cross_entropy(forward_packed(model, batch_of([row]))) for row in ROWS])
    assert float((padded - losses).abs().max()) < 1e-10
    assert float((alone - losses).abs().max()) < 1e-10


def test_segments_by_hand() -> None:
    """Rows 1 and 3 share the prompt (5, 9): the last row has two tokens of its own, at positions 2 and 3."""
    batch = batch_of([([5, 9], [7]), ([4], [6, 8]), ([5, 9], [3, 2])])
    rows, columns = (batch["labels"] != IGNORE).nonzero(as_tuple=True)
    laid = lay_out(batch["input_ids"], batch["attention_mask"], rows, columns)
    assert laid.input_ids.tolist() == [[5, 9, 7, 4, 6, 8, 3, 2]]
    assert laid.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 2, 3]]
    assert [tuple(segment) for segment in laid.segments] == [(3, 0, 0), (3, 1, 0), (2, 0, 2)]
    assert laid.places.tolist() == [1, 3, 4, 1, 6]


@pytest.mark.parametrize("head", ["untouched", "saved beside", "adapted"])
def test_under_an_adapter(head: str) -> None:
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "down_proj", *(["lm_head"] if head == "adapted" else [])]
    saved = ["lm_head"] if head == "saved beside" else None
    config = LoraConfig(r=2, target_modules=targets, modules_to_save=saved, task_type="CAUSAL_LM")
    with peft_renaming():
        model = get_peft_model(build("qwen3"), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dim() > 1:
                parameter.normal_(std=0.3)
    model = model.double().eval()
    assert layout_of(model) == PACKED
    check_same(model, batch_of(ROWS))


@pytest.mark.parametrize("copies", [False, True])
def test_under_ddp_each_gradient_is_exchanged(tmp_path: Path, copies: bool) -> None:
    """A group of one process: a hook that halves what is exchanged halves every gradient."""
    model = build("llama, tied").float()
    in_copies = bfloat16_copies if copies else contextlib.nullcontext
    found = []
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(model))

        def hook(_: Any, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
            done: torch.futures.Future[Tensor] = torch.futures.Future()
            done.set_result(bucket.buffer() / 2)
            return done

        wrapped.register_comm_hook(None, hook)
        for one in (model, wrapped):
            with in_copies():
                cross_entropy(forward_packed(one, batch_of(ROWS))).sum().backward()
            found.append([parameter.grad for parameter in one.parameters()])
    finally:
        torch.distributed.destroy_process_group()
    for alone, exchanged in zip(*found, strict=True):
        assert alone.abs().max() > 0
        torch.testing.assert_close(exchanged, alone / 2)


def test_parameters_stand_in_for_the_models_own(llama: Any) -> None:
    other = copy.deepcopy(llama)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.mul_(2.0)
    name = "model.layers.0.mlp.up_proj.weight"
    found = forward_packed(llama, batch_of(ROWS), parameters={name: dict(other.named_parameters())[name]})
    torch.testing.assert_close(found.logits, plain(other, batch_of(ROWS)).logits)


@pytest.mark.parametrize("kind", ["llama, tied", "gemma2, capped logits"])
def test_hidden_states_of_a_layer_stand_beside_the_logits(kind: str) -> None:
    model, batch = build(kind), batch_of(ROWS)
    output = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True, use_cache=False
    )
    wanted = pack(output.logits, batch["labels"], output.hidden_states[1])
    found = forward_packed(model, batch, hidden_layer=0)
    assert found.hidden is not None
    torch.testing.assert_close(found.hidden, wanted.hidden)
    torch.testing.assert_close(found.logits, wanted.logits)


def test_layers_run_again_in_the_backward_pass_see_the_same_rows(llama: Any) -> None:
    model = copy.deepcopy(llama).train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    with switched(model):
        assert seen_by(model, batch_of(ROWS))[0] == (1, NUM_TOKENS - NUM_SHARED)
    check_same(model, batch_of(ROWS))
    # where nobody holds the switch until the backward pass is through, rows are padded
    assert seen_by(model, batch_of(ROWS))[0] == (4, 8)


def test_a_model_that_mixes_neighbours_is_padded() -> None:
    """Each layer sees the token before as well: rows laid end to end would leak into each other."""
    model = build("llama, tied")
    shift = lambda module, args: (args[0] + args[0].roll(1, dims=1), *args[1:])  # noqa: E731
    model.model.layers[0].mlp.register_forward_pre_hook(shift)
    forward._known.clear()
    assert can_switch(model) and layout_of(model) == PICKED
    forward._known.clear()


def test_a_head_that_is_not_called_gives_all_logits() -> None:
    model = build("qwen3")
    model.get_output_embeddings = lambda: nn.Linear(2, 2)  # type: ignore[method-assign]
    forward._known.clear()
    assert layout_of(model) == Layout(UNBOUNDED, False)
    check_same(model, batch_of(ROWS))
    forward._known.clear()


def test_attention_is_the_models_own_before_and_after(llama: Any) -> None:
    forward_packed(llama, batch_of(ROWS))
    assert llama.config._attn_implementation == "sdpa"
    with pytest.raises(KeyError), switched(llama):
        assert llama.config._attn_implementation == "rapidun_packed"
        # padded batches in between are what they were
        torch.testing.assert_close(
            plain(llama, batch_of(ROWS)).logits, forward_packed(llama, batch_of(ROWS)).logits
        )  # fmt: skip
        raise KeyError("inside")
    assert llama.config._attn_implementation == "sdpa"


def test_bfloat16_copies_are_the_bfloat16_model_with_gradients_of_float32() -> None:
    """To the bit: the same products, the gradients only written out as float32."""
    masters = build("llama, tied").float()
    halves = copy.deepcopy(masters).bfloat16()

    def on_copies() -> Packed:
        with bfloat16_copies():
            return forward_packed(masters, batch_of(ROWS))

    losses, found = gradients(masters, on_copies)
    wanted_losses, wanted = gradients(halves, lambda: forward_packed(halves, batch_of(ROWS)))
    assert torch.equal(losses, wanted_losses)
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        assert torch.equal(gradient, wanted[name].float()), name
    assert all(parameter.dtype == torch.float32 for parameter in masters.parameters())


def test_bfloat16_is_as_near_to_the_truth_as_the_plain_pass() -> None:
    """Relative errors of the gradient against float64, at most 1.5 times those of the stock kernels."""
    exact = build("llama, tied")
    halves = copy.deepcopy(exact).bfloat16()
    exact.load_state_dict(halves.state_dict())
    batch = batch_of(ROWS)
    _, truth = gradients(exact, lambda: plain(exact, batch))
    errors = []
    for run in (lambda: forward_packed(halves, batch), lambda: plain(halves, batch)):
        _, found = gradients(halves, run)
        difference = torch.cat([(found[name].double() - truth[name]).flatten() for name in truth])
        errors.append(float(difference.norm() / torch.cat([one.flatten() for one in truth.values()]).norm()))
    assert errors[0] < 1.5 * errors[1] and errors[1] < 0.1


@pytest.mark.parametrize(("autocast", "checkpointing", "copies"), [(1, 0, True), (0, 0, False), (1, 1, False)])
def test_when_the_trainer_makes_copies(tmp_path: Path, autocast: int, checkpointing: int, copies: bool) -> None:
    """Not for layers that are run again in the backward pass: those would find the float32 weights."""
    settings = OptimiserSettings(gradient_checkpointing=bool(checkpointing))
    args = training_arguments(
        settings, work=tmp_path, batch_size=2, seed=1, device=torch.device("cpu"), autocast=bool(autocast)
    )
    trainer = ResponseTrainer.__new__(ResponseTrainer)
    trainer.args, trainer.is_fsdp_enabled = args, False
    with trainer.compute_loss_context_manager():
        assert forward._copies.get() == copies
        assert torch.is_autocast_enabled("cpu") == bool(autocast)
    assert not forward._copies.get() and not torch.is_autocast_enabled("cpu")
