"""benchmarks/lds_bank.py: each way of compressing against the whole product, and the public bank's folder."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from rapidun.stages.influence.gradients.params import select_parameters

FOLDER = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def bank():
    names = ("quality", "lds", "lds_bank")
    for name in names:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    yield sys.modules["lds_bank"]
    for name in names:
        del sys.modules[name]


def _scores(bank, data, size, p_of, draws=1):
    return {
        (way, kind.name): matrices
        for way, kind, _, matrices in bank.scores_of(
            data, [size], p_of=p_of, draws=draws, seed=3, tokens=40, whole=True, tell=lambda _: None
        )
    }


@pytest.fixture
def data(bank, make_model, rows):
    model = make_model(dtype=torch.float32)
    members = np.random.default_rng(0).integers(0, 2, (12, 5)).astype(float)
    return bank.Data(model, rows[:5], rows[5:], 0, members, np.zeros((12, 2)))


def test_a_projection_that_cuts_nothing_gives_the_whole_score(bank, data):
    """Sides no longer than p are kept: K-FAC fitted on what is projected is K-FAC, and so it is applied before."""
    parameters = select_parameters(data.model, bank.ParameterSet.all_linear)
    size = bank.projected_size(parameters, 64)
    assert size == sum(q.numel for q in parameters)
    found = _scores(bank, data, size, {size: 64})
    for kind in ("kfac", "ekfac"):
        (whole,) = found["whole", kind]
        for way in ("projected", "applied"):
            (scores,) = found[way, kind]
            torch.testing.assert_close(scores, whole, rtol=2e-3, atol=2e-4 * float(whole.abs().max()))


def test_sketches_are_unbiased_and_half_on_either_side_errs_less(bank, data):
    found = _scores(bank, data, 512, {}, draws=12)
    for kind in ("kfac", "ekfac"):
        (whole,) = found["whole", kind]
        errors = {}
        for way in ("sketched", "halved"):
            draws = torch.stack(found[way, kind])
            off = (draws.mean(dim=0) - whole).abs() / (draws.std(dim=0) / 12**0.5)
            assert off.max() < 5, (way, off)
            errors[way] = float((draws - whole).square().mean().sqrt())
        assert errors["halved"] < errors["sketched"]


def test_a_score_that_foretells_everything_has_an_lds_of_one(bank, data):
    scores = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    judged = bank.judge(
        data._replace(measured=data.members @ scores.double().numpy()), [scores, -scores], bootstrap=50, seed=0
    )
    np.testing.assert_allclose(judged.per_query, [[1, 1], [-1, -1]])
    assert judged.draws.min() < 0 < judged.draws.max()


def _public(bank, folder: Path, tokenizer: Any) -> dict[str, str]:
    """A GPT-2 of 3,600 numbers, 20 chunks, three queries, 12 subsets; the losses follow from whole K-FAC scores."""
    torch.manual_seed(0)
    size = len(tokenizer)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=size, n_positions=32, n_embd=12, n_layer=1, n_head=2, initializer_range=0.3)
    )
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    generator = np.random.default_rng(1)
    (folder / "chunks").mkdir()
    for split, number in (("train", 20), ("test", 4)):
        rows = [{"input_ids": generator.integers(0, 250, 12).tolist()} for _ in range(number)]
        (folder / "chunks" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "bank").mkdir()
    subsets = [sorted(generator.choice(20, 5, replace=False).tolist()) for _ in range(12)]
    (folder / "bank" / "subsets.json").write_text(json.dumps(subsets))
    lines = [f"{s},{q},0,0\n" for s in range(12) for q in range(3)]
    (folder / "bank" / "validation.csv").write_text("subset,query,diff,score_sum\n" + "".join(lines))
    given = {name: str(folder / name) for name in ("bank", "chunks", "model")}
    data = bank.public(given["bank"], given["chunks"], given["model"])
    whole = next(
        matrices[0]
        for way, kind, _, matrices in bank.scores_of(
            data, [], p_of={}, draws=1, seed=0, tokens=64, whole=True, tell=lambda _: None
        )
        if (way, kind.name) == ("whole", "kfac")
    )
    measured = (data.members @ whole.double().numpy()).tolist()
    lines = [f"{s},{q},{measured[s][q]},0\n" for s in range(12) for q in range(3)]
    (folder / "bank" / "validation.csv").write_text("subset,query,diff,score_sum\n" + "".join(lines))
    return given


def test_the_public_bank_is_scored_from_folders(bank, tiny_tokenizer, tmp_path, monkeypatch, capsys):
    given = _public(bank, tmp_path, tiny_tokenizer)
    words = ["lds_bank.py", "--no-tiny", "--k", "8192", "--draws", "1", "--bootstrap", "20"]
    words += [word for name, value in given.items() for word in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", words)
    assert bank.main() == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert (found["rows"], found["queries"], found["subsets"]) == (20, 3, 12)
    by_way = {(one["way"], one["kind"]): one["lds"] for one in found["table"]}
    assert by_way["halved", "kfac"] > 0.9 and by_way["sketched", "kfac"] > 0.6
    (tmp_path / "bank" / "validation.csv").write_text("subset,diff\n0,1\n")
    assert bank.main() == 2
    assert "need validation.csv with columns subset, query, diff, got ['subset', 'diff']" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--bank", "nobody/nothing", "--model", "nowhere"]])
def test_without_the_public_bank_it_says_so_and_ends_well(bank, monkeypatch, capsys, more):
    monkeypatch.setattr(sys, "argv", ["lds_bank.py", "--no-tiny", *more])
    assert bank.main() == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["bank"] == "gpt2_wikitext" and found["published"]["kfac, projected, 64 x 64 a layer"] == 0.103
    assert ("no folder nobody/nothing" if more else "no --bank and --model") in found["skipped"]
