"""Decoding in buffers that rows join and leave: the tokens are those of transformers' `generate`, one prompt by one."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from rapidun.models.batching import neutral_generation_config
from rapidun.models.fused import fused
from rapidun.models.losses import IGNORE
from rapidun.models.packing import Group
from rapidun.stages.answers import decode
from rapidun.stages.answers.decode import Decoding, decoding
from rapidun.stages.answers.generate import generate_greedy
from rapidun.stages.answers.running import Block, Room, Running, bytes_a_token, groups_of
from rapidun.stages.answers.score import Scores, score_responses
from rapidun.stages.rows.encode import Encoded

PAD, EOS = 257, 256
SMALL = {
    "vocab_size": 264, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "pad_token_id": PAD, "eos_token_id": EOS,
    "bos_token_id": None, "num_local_experts": 4, "num_experts_per_tok": 2, "kv_lora_rank": 8, "q_lora_rank": 8,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4, "moe_intermediate_size": 16,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1,
}  # fmt: skip
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
HERE: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "gpt2": GPT,
    "gpt_neox": {},
    "phi": {},
    "mistral": {"sliding_window": None},
    "gemma2": {},
    "gemma3_text": {},
    "mixtral": {},
    # keys wider than values
    "deepseek_v2": {"num_key_value_heads": 4},
    # no positions, a bias from the mask
    "bloom": {"n_layer": 2, "n_head": 4},
    # layers that keep less than others
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
}
ELSEWHERE: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 4},
    "rwkv": {},
    "qwen3_next": {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
                   "linear_value_head_dim": 8, "num_hidden_layers": 4, "shared_expert_intermediate_size": 16,
                   "num_experts": 4},
    "openai-gpt": GPT,
}  # fmt: skip
PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5, 4, 3, 2], [30, 31, 32], [77] * 12, [1, 2], [100, 4, 9, 12, 60, 61], [5, 6, 7]]
NEW = 9


def build(kind: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(SMALL | settings)))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            # as large as trained ones: what leaks from row to row would be lost in rounding else
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def one_by_one(model: Any, stop: Sequence[int] = (EOS,)) -> list[list[int]]:
    """transformers' own, each prompt alone."""
    found = []
    config = GenerationConfig(do_sample=False, max_new_tokens=NEW, eos_token_id=list(stop), pad_token_id=PAD)
    with torch.no_grad(), neutral_generation_config(model):
        for prompt in PROMPTS:
            ids = torch.tensor([prompt])
            output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
            new = output[0, len(prompt) :].tolist()
            found.append(new[: next((place for place, token in enumerate(new) if token in stop), len(new))])
    return found


def run(model: Any, tokenizer: Any, **settings: Any) -> list[list[int]]:
    how = {"prompts": PROMPTS, "max_new_tokens": NEW, "tokens_per_batch": 60, **settings}
    return generate_greedy(model, tokenizer, **how)


@pytest.fixture
def no_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("this was to be decoded here")

    monkeypatch.setattr("rapidun.stages.answers.generate._by_generate", refused)


@pytest.fixture(scope="module")
def llama() -> Any:
    return build("llama")


def fed(model: Any) -> list[tuple[int, int]]:
    """Shapes of what goes through the model from now on."""
    shapes: list[tuple[int, int]] = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, out: shapes.append(tuple(args[0].shape)))
    return shapes


@pytest.mark.parametrize("kind", HERE)
def test_the_tokens_are_those_of_generate(kind: str, tiny_tokenizer: Any, no_generate: None, monkeypatch: Any) -> None:
    """All at once, alone, and with rows that join when others leave at stop tokens that the model says."""
    model = build(kind, **HERE[kind])
    assert decoding(model, pad_token_id=PAD).longest > 100
    free = one_by_one(model)
    assert run(model, tiny_tokenizer, tokens_per_batch=10**6) == free == run(model, tiny_tokenizer, tokens_per_batch=1)
    assert len({tuple(tokens) for tokens in free}) > 3, "one answer to all would show nothing"
    one, other = sorted(free, key=len)[-2:]
    stop = [one[2], other[4], EOS]
    monkeypatch.setattr("rapidun.stages.answers.generate.stop_token_ids", lambda tokenizer: stop)
    expected = one_by_one(model, stop)
    assert len({len(tokens) for tokens in expected}) > 1
    assert run(model, tiny_tokenizer, tokens_per_batch=60) == expected
    assert run(model, tiny_tokenizer, max_rows=2) == expected


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_what_keeps_other_things_than_keys_and_values_is_left_to_generate(kind: str, tiny_tokenizer: Any) -> None:
    model = build(kind, **ELSEWHERE[kind])
    assert decoding(model, pad_token_id=PAD) == Decoding(0)
    assert run(model, tiny_tokenizer) == one_by_one(model)


def test_rows_longer_than_a_window_are_left_to_generate(tiny_tokenizer: Any, monkeypatch: Any) -> None:
    """Layers that keep the last 16 tokens: with nine new ones, prompts of up to seven are decoded here."""
    model = build("mistral", sliding_window=16)
    assert decoding(model, pad_token_id=PAD).longest == 16
    told: list[int] = []
    real = decode.decode_greedy

    def watched(model: Any, prompts: Any, **settings: Any) -> Any:
        told.extend(map(len, prompts))
        return real(model, prompts, **settings)

    monkeypatch.setattr("rapidun.stages.answers.generate.decode_greedy", watched)
    assert run(model, tiny_tokenizer) == one_by_one(model)
    assert sorted(told) == [2, 3, 3, 6]


def test_frequencies_that_depend_on_the_longest_row_are_left_to_generate() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    assert decoding(build("llama", rope_parameters=rope), pad_token_id=PAD) == Decoding(0)


def test_a_step_with_other_logits_than_the_whole_text_is_found(monkeypatch: Any) -> None:
    """Steps that forget the last token's place: seen when an architecture is tried."""
    real = Running.step

    def wrong(self: Running, tokens: Any) -> Any:
        self.lengths = self.lengths + 1
        found = real(self, tokens)
        self.lengths = self.lengths - 1
        return found

    monkeypatch.setattr(Running, "step", wrong)
    assert decoding(build("llama", rms_norm_eps=1.5e-6), pad_token_id=PAD) == Decoding(0)


def test_how_many_tokens_may_be_kept(llama: Any) -> None:
    """264 logits of 4 bytes for the keys and values of 2 layers, 2 heads, 8 numbers of 4 bytes: 1,056 / 256 = 4."""
    assert decoding(llama, pad_token_id=PAD).tokens_for_logits == 4
    pair = (torch.zeros(3, 2, 5, 8), torch.zeros(3, 2, 5, 4))
    assert bytes_a_token(Block([0, 1, 2], torch.tensor([5, 2, 1]), [pair, None])) == 2 * (8 + 4) * 4


@pytest.mark.parametrize(("tokens", "most"), [(1, 1), (8, 2), (22, 4), (10**6, 6)])
def test_no_more_rows_than_fit(tiny_tokenizer: Any, tokens: int, most: int) -> None:
    """4 x 22 tokens: four rows of 12 + 9; never fewer than one row; equal prompts are one."""
    model = build("llama")
    decoding(model, pad_token_id=PAD)
    shapes = fed(model)
    run(model, tiny_tokenizer, tokens_per_batch=tokens)
    steps = [rows for rows, width in shapes if width == 1]
    assert max(steps) == most
    assert sum(steps) >= 6 * (NEW - 1)


def test_rows_that_have_ended_leave_and_others_join(tiny_tokenizer: Any, monkeypatch: Any) -> None:
    """Two rows at once; of the six prompts one ends early, and the next one does not wait for the other."""
    model = build("llama")
    stop = [one_by_one(model)[3][1]]
    monkeypatch.setattr("rapidun.stages.answers.generate.stop_token_ids", lambda tokenizer: stop)
    expected = one_by_one(model, stop)
    steps: list[list[int]] = []
    done: list[int] = []
    shapes = fed(model)
    assert run(model, tiny_tokenizer, max_rows=2, on_step=steps.append, on_batch=done.extend) == expected
    # each prompt is told as often as it gets a token, what stops it counted; equal prompts together
    assert [sum(index in step for step in steps) for index in range(7)] == [min(len(x) + 1, NEW) for x in expected]
    assert sorted(done) == list(range(7))
    # no step of a row that has ended
    distinct = [x for index, x in enumerate(expected) if index != 6]
    assert sum(rows for rows, width in shapes if width == 1) == sum(min(len(x) + 1, NEW) - 1 for x in distinct)


def test_scores_on_the_way(llama: Any, tiny_tokenizer: Any) -> None:
    """Responses behind prompts that are answered are scored when these are read, no prompt twice; the rest later."""
    asked = [*PROMPTS[:4], PROMPTS[0], [200, 201]]
    answers = [[40, 41], [50, 51, 52], [60], [], [61, 62, 63, 64], [70, 71]]
    rows = [Encoded([*p, *a], [IGNORE] * len(p) + a) for p, a in zip(asked, answers, strict=True)]
    apart = score_responses(llama, rows, pad_token_id=PAD, tokens_per_batch=100)
    told: list[int] = []
    scores = Scores(rows, on_batch=told.extend)
    model = build("llama")
    decoding(model, pad_token_id=PAD)
    shapes = fed(model)
    found = run(model, tiny_tokenizer, tokens_per_batch=10**6, scores=scores)
    assert found == run(llama, tiny_tokenizer, tokens_per_batch=10**6)
    # 3 + 8 + 3 + 12 + 2 + 6 of the prompts, 2 + 3 + 1 + 4 of the responses
    assert shapes[0] == (1, 44) and sorted(told) == [0, 1, 2, 4]
    assert scores.missing == [((200, 201, 70, 71), 2)]
    together = score_responses(model, rows, pad_token_id=PAD, tokens_per_batch=100, scores=scores)
    assert sorted(told) == [0, 1, 2, 4, 5]
    assert [s.num_tokens for s in together] == [2, 3, 1, 0, 4, 2]
    assert [s.log_prob for s in together] == pytest.approx([s.log_prob for s in apart], rel=1e-5)


def test_the_same_again_in_bfloat16(tiny_tokenizer: Any) -> None:
    """Whatever the order of the prompts: which rows go together does not depend on it."""
    model = build("llama").bfloat16()
    assert decoding(model, pad_token_id=PAD).longest > 0
    expected = run(model, tiny_tokenizer)
    assert run(model, tiny_tokenizer, prompts=PROMPTS[::-1]) == expected[::-1]


def test_a_step_copies_nothing_of_what_is_there() -> None:
    keys = torch.arange(48.0).view(1, 2, 6, 4)
    layer = Room((keys.clone(), -keys), room=2)
    assert layer.get_seq_length() == 4
    place = layer.keys.data_ptr()
    new = torch.full((1, 2, 1, 4), 99.0)
    found, values = layer.update(new, -new)
    assert found.data_ptr() == place and found.shape == (1, 2, 5, 4) and layer.get_seq_length() == 5
    assert torch.equal(found, torch.cat([keys[:, :, :4], new], dim=2)) and torch.equal(values, -found)
    layer.update(new, new)
    with pytest.raises(AssertionError):
        layer.update(new, new)


def test_blocks_side_by_side(llama: Any) -> None:
    """Rows end together, the longest first; columns that no row needs any more are gone."""

    def block(number: int, *lengths: int) -> Block:
        width = max(lengths)
        keys = torch.full((len(lengths), 2, width, 8), float(number))
        pairs: list[Any] = [(keys + layer, -keys - layer) for layer in (0, 10)]
        return Block([10 * number + row for row in range(len(lengths))], torch.tensor(lengths), pairs)

    running = Running(llama, [block(1, 2, 4), block(2, 3)], room=2)
    assert running.numbers == [11, 20, 10] and running.order.tolist() == [1, 2, 0] and running.width == 4
    keys = running._cache.layers[1].keys
    assert keys.shape == (3, 2, 4, 8)
    assert keys[1, 0, :, 0].tolist() == [0, 12, 12, 12] and keys[0, 0, :, 0].tolist() == [11] * 4
    rest = Running(llama, [running.only([2])], room=1)
    assert rest.width == 2 and rest._cache.layers[0].values[0, 1, :, 3].tolist() == [-1, -1]


def test_groups_by_hand() -> None:
    """Down to .7 of the longest: 20, 14 | 13, 10 | 2; each begins where its longest row does."""
    assert groups_of([20, 14, 13, 10, 2]) == [Group(0, 2, 0), Group(2, 4, 7), Group(4, 5, 18)]


def test_rows_that_attend_by_group(tiny_tokenizer: Any, no_generate: None, monkeypatch: Any) -> None:
    """Fused, in bfloat16: the logits of every step are those of all rows attending together but for rounding."""
    model = build("llama", num_hidden_layers=1).bfloat16()
    steps: dict[bool, list[Any]] = {True: [], False: []}
    for apart in (True, False):
        with monkeypatch.context() as patched, fused(model):
            if not apart:
                patched.setattr("rapidun.stages.answers.running.groups_of", lambda lengths: [])

            def kept(self: Running, tokens: Any, seen: Any = steps[apart], real: Any = Running.step) -> Any:
                seen.append((len(self._groups), real(self, tokens)))
                return seen[-1][1]

            patched.setattr(Running, "step", kept)
            run(model, tiny_tokenizer, max_new_tokens=2, tokens_per_batch=10**6)
    ((several, ours),), ((none, truth),) = (steps[apart][-1:] for apart in (True, False))
    assert several > 1 and none == 0 and ours.shape == truth.shape == (6, 264)
    assert float((ours - truth).norm()) < 0.02 * float(truth.norm())
