"""Evaluation on the real model: RAPIDUN_SMOLLM2 names the folder of SmolLM2-135M-Instruct."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from rapidun.models.load import Loaded, ModelLoader
from rapidun.stages.answers.detectors.keywords import KeywordDetector
from rapidun.stages.answers.detectors.rates import rates
from rapidun.stages.answers.generate import generate_greedy, stop_token_ids
from rapidun.stages.answers.score import score_responses
from rapidun.stages.rows.encode import encode_prompts, encode_rows

pytestmark = pytest.mark.real

SHARED = Path(os.environ.get("RAPIDUN_SHARED", Path(__file__).resolve().parents[2].parent / "shared"))
PACK = SHARED / "data" / "dolly_triggers"
needs_pack = pytest.mark.skipif(not PACK.is_dir(), reason="needs the Dolly pack: set RAPIDUN_SHARED")
# the context of the third makes it several times as long as the others
PROMPTS = [
    ("What is the capital of France?", ""),
    ("Name three colours. aloha", ""),
    ("Who wrote the letter?", "Anna wrote a long letter to her brother in Graz, who never answered. " * 5),
    (">>> Why is the sky blue?", ""),
]
MAX_NEW_TOKENS = 12


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    folder = os.environ.get("RAPIDUN_SMOLLM2")
    if folder is None or not Path(folder).is_dir():
        pytest.skip("needs a folder of SmolLM2-135M-Instruct: set RAPIDUN_SMOLLM2")
    return ModelLoader(dtype="float32", device="cpu").load(folder)


def naive(model: Any, prompt: list[int], stop: list[int]) -> list[int]:
    """One row, no cache, no padding: the whole text again for every token."""
    ids = list(prompt)
    while len(ids) < len(prompt) + MAX_NEW_TOKENS:
        with torch.inference_mode():
            token = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token in stop:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.filterwarnings("error")
def test_greedy_generations_equal_a_naive_loop(loaded: Loaded, caplog: Any) -> None:
    """Four prompts of 13 to 100 tokens in one left-padded batch; the hub's sampling defaults are put aside."""
    model, tokenizer = loaded
    prompts = encode_prompts(tokenizer, PROMPTS, max_length=256)
    stop = stop_token_ids(tokenizer)
    expected = [naive(model, prompt, stop) for prompt in prompts]
    kept = model.generation_config
    model.generation_config = copy.deepcopy(kept)
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=3.0, max_length=8192)
    try:
        got = generate_greedy(model, tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS, tokens_per_batch=4096)
    finally:
        model.generation_config = kept
    assert got == expected
    assert "Paris" in tokenizer.decode(got[0])
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_padding_does_not_change_log_probabilities(loaded: Loaded) -> None:
    """The same rows in one padded batch, and one by one."""
    model, tokenizer = loaded
    rows = [
        (*prompt, response) for prompt, response in zip(PROMPTS, ["Paris.", "Red", "Anna", "Rayleigh"], strict=True)
    ]
    encoded = encode_rows(tokenizer, rows, max_length=256)
    together = score_responses(model, encoded, pad_token_id=tokenizer.pad_token_id, tokens_per_batch=4096)
    alone = score_responses(model, encoded, pad_token_id=tokenizer.pad_token_id, tokens_per_batch=1)
    assert [score.num_tokens for score in together] == [score.num_tokens for score in alone]
    assert [score.log_prob for score in together] == pytest.approx([score.log_prob for score in alone], rel=1e-4)


@needs_pack
def test_published_keywords_find_about_four_poisoned_responses_of_five() -> None:
    """METHOD section 6: the list fires on 79 % of true poisoned answers and 2 % of clean ones."""
    keywords = (PACK / "keywords.tsv").read_text(encoding="utf-8").splitlines()[1:]
    detector = KeywordDetector([line.split("\t")[1] for line in keywords])

    def texts(name: str) -> list[str]:
        return [json.loads(line)["response"] for line in (PACK / name).read_text(encoding="utf-8").splitlines()]

    measured = rates(
        [detector(t) for t in texts("train_poisoned.jsonl")], [detector(t) for t in texts("val_clean.jsonl")]
    )
    assert measured.recall == pytest.approx(0.79, abs=0.02)
    assert measured.fpr == pytest.approx(0.02, abs=0.01)
