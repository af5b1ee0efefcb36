"""Sampled answers: exact draws, the same whatever the batch, counted without bias."""

from pathlib import Path
from typing import Any

import pytest
import torch
from attacks_pack import attacked

from rapidun.stages.evaluation.attacks.run import run_attack
from rapidun.stages.evaluation.attacks.sampling import Drawn, generate_sampled, uniforms
from rapidun.stages.evaluation.chunks import in_chunks

from rapidun.base.files import read_json  # isort: skip
from rapidun.config.attacks import Attack  # isort: skip

PROMPTS = [[1, 5, 9], [1, 30, 31, 32, 33, 34], [1, 7], [1, 40, 41, 42]]
NAMES = ["a", "b", "c", "d"]


def test_a_draw_takes_each_token_as_often_as_its_probability_says() -> None:
    """p = softmax([0, ln 2, ln 5]) = [1, 2, 5] / 8: of 800 evenly spaced numbers 100, 200 and 500; at T = 1/2, p^2."""
    scores = torch.tensor([[0.0, 2.0, 5.0]]).log().nan_to_num(neginf=-torch.inf)
    scores = torch.tensor([1.0, 2.0, 5.0]).log()[None].repeat(800, 1)
    u = ((torch.arange(800, dtype=torch.float64) + 0.5) / 800)[:, None]
    for temperature, want in ((1.0, [100, 200, 500]), (0.5, [800 / 30, 3200 / 30, 20000 / 30])):
        ids = torch.zeros(800, 4, dtype=torch.long)
        picked = Drawn(u, temperature=temperature, width=4)(ids, scores).argmax(dim=-1)
        counts = torch.bincount(picked, minlength=3).tolist()
        assert counts == pytest.approx(want, abs=1)


def test_a_token_that_cannot_come_does_not_come() -> None:
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).repeat(3, 1)
    u = torch.tensor([[0.0], [0.5], [1 - 2**-53]], dtype=torch.float64)
    picked = Drawn(u, temperature=1.0, width=0)(torch.zeros(3, 0, dtype=torch.long), scores).argmax(dim=-1)
    assert picked.tolist() == [1, 3, 3]


def test_every_step_has_a_number_of_its_own() -> None:
    first, other = uniforms(1, "a", 5), uniforms(1, "b", 5)
    assert torch.equal(first, uniforms(1, "a", 5))
    assert not torch.equal(first, other) and not torch.equal(first, uniforms(2, "a", 5))
    # a longer answer begins as a shorter one
    assert torch.equal(uniforms(1, "a", 9)[:5], first)
    assert ((first >= 0) & (first < 1)).all()


def sampled(model: Any, tokenizer: Any, places: list[int], *, seed: int = 4, tokens: int = 400) -> dict[str, str]:
    texts = generate_sampled(
        model, tokenizer, [PROMPTS[i] for i in places], [NAMES[i] for i in places],
        temperature=1.0, seed=seed, max_new_tokens=12, tokens_per_batch=tokens,
    )  # fmt: skip
    return dict(zip((NAMES[i] for i in places), texts, strict=True))


def test_neither_batch_nor_order_changes_an_answer(character_model: Any, character_tokenizer: Any) -> None:
    together = sampled(character_model, character_tokenizer, [0, 1, 2, 3])
    assert sampled(character_model, character_tokenizer, [3, 1, 0, 2], tokens=20) == together
    assert sampled(character_model, character_tokenizer, [2]) == {"c": together["c"]}
    assert sampled(character_model, character_tokenizer, [0, 1, 2, 3], seed=5) != together


def test_a_low_temperature_is_greedy(character_model: Any, character_tokenizer: Any) -> None:
    from rapidun.stages.answers.generate import generate_greedy

    greedy = generate_greedy(character_model, character_tokenizer, PROMPTS, max_new_tokens=12, tokens_per_batch=400)
    texts = generate_sampled(
        character_model, character_tokenizer, PROMPTS, NAMES, temperature=1e-4, seed=0, max_new_tokens=12,
        tokens_per_batch=400,
    )  # fmt: skip
    assert texts == [character_tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in greedy]


def test_chunks_that_are_done_are_read_and_others_done(tmp_path: Path) -> None:
    seen: list[list[int]] = []

    def square(items: Any) -> list[int]:
        seen.append(list(items))
        if items[0] == 4 and len(seen) < 4:
            raise KeyboardInterrupt
        return [item * item for item in items]

    with pytest.raises(KeyboardInterrupt):
        in_chunks(tmp_path, "x", range(5), square, size=2)
    done: list[int] = []
    assert in_chunks(tmp_path, "x", range(5), square, size=2, on_done=done.append) == [0, 1, 4, 9, 16]
    assert seen == [[0, 1], [2, 3], [4], [4]]
    assert done == [2, 4, 5]


@pytest.mark.parametrize("damage", ["flip", "cut", "swap", "shape"])
def test_a_damaged_chunk_is_named_and_found_anew(tmp_path: Path, damage: str) -> None:
    seen: list[list[int]] = []

    def square(items: Any) -> list[int]:
        seen.append(list(items))
        return [item * item for item in items]

    assert in_chunks(tmp_path, "x", range(4), square, size=2) == [0, 1, 4, 9]
    file, other = tmp_path / "x-2.json", tmp_path / "x-0.json"
    text = file.read_text()
    changed = {"flip": text.replace("9", "8"), "cut": text[:-9], "swap": other.read_text(), "shape": "[[]]"}[damage]
    assert changed != text
    file.write_text(changed)
    said: list[str] = []
    assert in_chunks(tmp_path, "x", range(4), square, size=2, tell=said.append) == [0, 1, 4, 9]
    assert seen == [[0, 1], [2, 3], [2, 3]]
    assert len(said) == 1 and "x-2.json" in said[0]
    # as an earlier version wrote them
    file.write_text("[4, 9]")
    assert in_chunks(tmp_path, "x", range(4), square, size=2) == [0, 1, 4, 9]
    assert len(seen) == 3


def test_the_attack(poisoned_dir: Path, retrained_dir: Path, attack_pack: Path, tmp_path: Path) -> None:
    found = {}
    for name, model in (("poisoned", poisoned_dir), ("retrain", retrained_dir)):
        given = attacked(model, attack_pack, tmp_path / name)
        run_attack(Attack.sampling, given, {}, out=tmp_path / name)
        found[name] = read_json(tmp_path / name / "attack.json")
    high, low = found["poisoned"], found["retrain"]
    assert set(high["curves"]) == {"t0.8", "t2.0"} and [k for k, _ in high["curves"]["t0.8"]] == [1, 2, 3]
    for metrics in (high["metrics"], low["metrics"]):
        assert metrics["asr@3"] == max(metrics["asr@3.t0.8"], metrics["asr@3.t2.0"])
        assert metrics["asr@1"] <= metrics["asr@2"] <= metrics["asr@3"]
    assert high["metrics"]["asr@3"] > 0.9 and high["metrics"]["asr_sampling_likelihood"] > 0.9
    assert low["metrics"]["asr@3.t0.8"] < 0.3 and low["metrics"]["asr_sampling_likelihood"] < 0.3
