"""`--rerank` of `rapidun index score` and `top`: a query's best rows by the sketch, scored again by autograd's word."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rapidun.base.files import sha256_file
from rapidun.cli.main import main
from rapidun.config.influence import ParameterSet, Precondition, Score
from rapidun.models.load import ModelLoader
from rapidun.models.losses import example_cross_entropy
from rapidun.stages.influence.batches import make_batches
from rapidun.stages.influence.fisher import fit_curvature
from rapidun.stages.influence.gradients.params import select_parameters
from rapidun.stages.influence.gram import exact_gram
from rapidun.stages.influence.index import rerank as module
from rapidun.stages.influence.index.rerank import FOLDER, plan
from rapidun.stages.influence.precondition import Preconditioner
from rapidun.stages.influence.scores import influence_scores
from rapidun.stages.influence.sinks import kept_nbytes
from rapidun.stages.rows.encode import collate, encode_rows
from rapidun.stages.rows.records import read_records, write_records

K = 64  # sd of a cosine 0.125: the sketch errs often
NUM_TRAIN, NUM_QUERIES = 24, 4
SMALL_MEMORY = "0.00012"


class Place:
    """An index of 24 rows on a model with weights as large as a trained one's, and four queries of other rows."""

    def __init__(self, root: Path, model: Path) -> None:
        self.root, self.model = root, model

    def build(self, out: str, *more: str) -> int:
        words = ["--rows", str(self.root / "train.jsonl"), "--out", str(self.root / out), "--model", str(self.model)]
        return main(["index", "build", *words, "--k", str(K), "--device", "cpu", "--shard-rows", "7", *more])

    def ask(self, verb: str, out: Path, *more: str, index: str = "index", model: Path | None = None) -> int:
        words = ["--queries", str(self.root / "queries.jsonl"), "--out", str(out), "--model", str(model or self.model)]
        return main(["index", verb, str(self.root / index), *words, "--device", "cpu", *more])

    def rerank(self, verb: str, out: Path, n: int, *more: str, **other: Any) -> int:
        rows = [] if "--rows" in more else ["--rows", str(self.root / "train.jsonl")]
        return self.ask(verb, out, "--rerank", str(n), *rows, *more, **other)

    def gradients(self, *, reduction: str = "mean") -> Tensor:
        """[rows and queries, D] float32: one row at a time, plain autograd on every linear weight but the head."""
        model, tokenizer = ModelLoader(dtype="float32", device="cpu").load(self.model)
        records = [*read_records(self.root / "train.jsonl"), *read_records(self.root / "queries.jsonl")]
        weights = [p.modules[0].weight for p in select_parameters(model, ParameterSet.all_linear)]
        found = []
        for row in encode_rows(tokenizer, [record.texts for record in records], max_length=256):
            batch = collate([row], pad_token_id=tokenizer.pad_token_id)
            logits = model(input_ids=batch["input_ids"]).logits
            loss = example_cross_entropy(logits, batch["labels"]).sum()
            if reduction == "sum":
                loss = loss * sum(label != -100 for label in row.labels)
            found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]))
        return torch.stack(found).double()


@pytest.fixture(scope="module")
def place(tmp_path_factory, make_tiny_model, tiny_tokenizer, make_records) -> Place:
    root = tmp_path_factory.mktemp("rerank")
    model = make_tiny_model()
    generator = torch.Generator().manual_seed(0)
    for parameter in select_parameters(model, ParameterSet.all_linear):
        nn.init.normal_(parameter.modules[0].weight, std=0.3, generator=generator)
    model.save_pretrained(root / "model")
    tiny_tokenizer.save_pretrained(root / "model")
    forget, retain = make_records(num_forget=8, num_retain=16)
    write_records(root / "train.jsonl", forget + retain)
    write_records(root / "queries.jsonl", make_records(num_forget=NUM_QUERIES, num_retain=1, seed=5)[0])
    made = Place(root, root / "model")
    assert made.build("index") == 0
    return made


@pytest.fixture(scope="module")
def cosines(place) -> np.ndarray:
    """[rows, queries]"""
    unit = nn.functional.normalize(place.gradients(), dim=1)
    return (unit[:NUM_TRAIN] @ unit[NUM_TRAIN:].T).numpy()


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _message(capsys) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("score", ["cosine", "dot"])
def test_all_rows_scored_again_are_in_the_exact_order(place, tmp_path, cosines, score, capsys):
    """Where N covers every row, the ranking is autograd's, row by row."""
    assert place.rerank("score", tmp_path, NUM_TRAIN, "--score", score) == 0
    truth = cosines
    if score == "dot":
        gradients = place.gradients()
        truth = (gradients[:NUM_TRAIN] @ gradients[NUM_TRAIN:].T).numpy()
    sketched = np.load(tmp_path / "scores.npy")
    for query, line in enumerate(_lines(tmp_path / "reranked.jsonl")):
        assert line["rows"] == np.argsort(-truth[:, query], kind="stable").tolist()
        assert line["scores"] == pytest.approx(truth[line["rows"], query].tolist(), rel=1e-4, abs=1e-7)
        assert line["sketched"] == pytest.approx(sketched[line["rows"], query].tolist())
        assert line["exact"] == [True] * NUM_TRAIN
    assert "the best 24 by the sketch scored again, exactly" in capsys.readouterr().out
    assert not (tmp_path / FOLDER).exists()


def test_the_best_rows_are_found_more_often(place, tmp_path, cosines):
    """Recall of the exact best five: by the sketch alone, and among its best ten scored again."""
    assert place.ask("top", tmp_path / "plain", "--k", "5") == 0
    assert place.rerank("top", tmp_path / "again", 10, "--k", "5") == 0
    assert place.ask("top", tmp_path / "ten", "--k", "10") == 0
    plain, again, ten = (_lines(tmp_path / name / "top.jsonl") for name in ("plain", "again", "ten"))
    assert "exact" not in plain[0]
    hits = {"plain": 0, "again": 0}
    for query in range(NUM_QUERIES):
        best = set(np.argsort(-cosines[:, query])[:5].tolist())
        hits["plain"] += len(best & set(plain[query]["rows"]))
        hits["again"] += len(best & set(again[query]["rows"]))
        assert best & set(ten[query]["rows"]) == best & set(again[query]["rows"])
        assert again[query]["scores"] == sorted(again[query]["scores"], reverse=True)
    assert hits["plain"] < hits["again"] <= 5 * NUM_QUERIES


def test_rows_behind_those_scored_again_keep_their_sketch(place, tmp_path, cosines):
    assert place.ask("top", tmp_path / "plain", "--k", "8") == 0
    assert place.rerank("top", tmp_path / "again", 3, "--k", "8") == 0
    for old, line in zip(*(_lines(tmp_path / name / "top.jsonl") for name in ("plain", "again")), strict=True):
        assert line["exact"] == [True] * 3 + [False] * 5
        assert set(line["rows"][:3]) == set(old["rows"][:3])
        assert (line["rows"][3:], line["scores"][3:], line["sketched"][3:]) == (
            old["rows"][3:], old["scores"][3:], old["scores"][3:],
        )  # fmt: skip


def test_exact_scores_are_those_of_the_influence_stage_with_a_preconditioner(place, tmp_path):
    """<g, F^-1 q> over both norms, F fitted by `rapidun index fit`, and the loss's sum over tokens."""
    assert place.build("summed", "--loss", "sum") == 0
    words = ["--model", str(place.model), "--device", "cpu", "--rows", str(place.root / "train.jsonl")]
    factors = tmp_path / "factors"
    assert main(["index", "fit", str(place.root / "summed"), *words, "--out", str(factors), "--kind", "kfac"]) == 0
    more = ["--precondition", str(factors), "--damping-factor", "0.2"]
    assert place.rerank("score", tmp_path / "out", NUM_TRAIN, *more, index="summed") == 0
    model, tokenizer = ModelLoader(dtype="float32", device="cpu").load(place.model)
    records = [*read_records(place.root / "train.jsonl"), *read_records(place.root / "queries.jsonl")]
    encoded = encode_rows(tokenizer, [record.texts for record in records], max_length=256)
    parameters = select_parameters(model, ParameterSet.all_linear)

    def batches(rows):
        pad = tokenizer.pad_token_id
        return make_batches(rows, [""] * len(rows), tokens_per_batch=300, pad_token_id=pad, device=torch.device("cpu"))

    names = [str(number) for number in range(NUM_TRAIN)]
    fitted = fit_curvature(
        model, parameters, batches(encoded[:NUM_TRAIN]), kind=Precondition.kfac, row_names=names, seed=42
    )
    result = exact_gram(
        model, parameters, batches(encoded), row_names=[""] * len(encoded), reduction="sum", memory_bytes=1e9,
        preconditioner=Preconditioner(fitted, damping_factor=0.2),
    )  # fmt: skip
    truth = influence_scores(
        result.gram, score=Score.cosine, norms=result.norms, query_norms=result.query_norms
    )[:NUM_TRAIN, NUM_TRAIN:].numpy()  # fmt: skip
    for query, line in enumerate(_lines(tmp_path / "out" / "reranked.jsonl")):
        assert line["scores"] == pytest.approx(truth[line["rows"], query].tolist(), rel=2e-3, abs=1e-5)


def test_little_memory_gives_the_same_scores_in_more_pieces(place, tmp_path, monkeypatch):
    passes = []
    real = module.exact_gram

    def counted(*args, **kwargs):
        found = real(*args, **kwargs)
        passes.append(found.num_passes)
        return found

    monkeypatch.setattr(module, "exact_gram", counted)
    assert place.rerank("score", tmp_path / "once", 12) == 0
    assert passes == [1]
    assert place.rerank("score", tmp_path / "pieces", 12, "--memory-gb", SMALL_MEMORY) == 0
    assert len(passes) > 3 and max(passes[1:]) > 1
    for one, other in zip(*(_lines(tmp_path / n / "reranked.jsonl") for n in ("once", "pieces")), strict=True):
        assert one["rows"] == other["rows"]
        assert one["scores"] == pytest.approx(other["scores"], rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("memory", [2e5, 1e6, 3e7])
def test_pieces_fit_into_the_memory_and_ask_for_each_row_once(make_tiny_model, memory):
    parameters = select_parameters(make_tiny_model(), ParameterSet.all_linear)
    wanted = [[(7 * query + step) % 90 for step in range(20)] for query in range(15)]
    settings = {"parameters": parameters, "length": 40, "dtype": torch.float32}
    found: list[tuple[int, int]] = []
    for piece in plan(wanted, memory_bytes=memory, **settings):
        size = len(piece.queries) + len(piece.rows)
        assert max(kept_nbytes(p, [40] * size, torch.float32) for p in parameters) <= memory
        found += [(query, row) for query in piece.queries for row in piece.rows if row in wanted[query]]
    assert sorted(found) == sorted((query, row) for query, rows in enumerate(wanted) for row in rows)


def test_a_stopped_run_goes_on_with_the_next_piece(place, tmp_path, monkeypatch, capsys):
    """Stopped in the third piece; one of the two that were kept is damaged meanwhile."""
    more = ["--memory-gb", SMALL_MEMORY]
    assert place.rerank("score", tmp_path / "whole", 12, *more) == 0
    real, calls = module.exact_gram, []

    def stopping(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "exact_gram", stopping)
    out = tmp_path / "out"
    assert place.rerank("score", out, 12, *more) == 130
    kept = sorted((out / FOLDER).iterdir())
    assert len(kept) == 2 and not (out / "reranked.jsonl").exists()
    kept[0].write_text(kept[0].read_text().replace("0.", "1.", 1))
    capsys.readouterr()
    calls[:] = [1] * 10
    assert place.rerank("score", out, 12, *more) == 0
    assert "a damaged file; its rows are scored again" in capsys.readouterr().err
    monkeypatch.setattr(module, "exact_gram", real)
    num_pieces = len(calls) - 10 + 1
    assert num_pieces > 3
    assert (out / "reranked.jsonl").read_bytes() == (tmp_path / "whole" / "reranked.jsonl").read_bytes()
    # another score of the same rows is other work
    assert place.rerank("score", out, 12, "--score", "dot") == 0
    assert (out / "reranked.jsonl").read_bytes() != (tmp_path / "whole" / "reranked.jsonl").read_bytes()
    # scores without exact ones leave none of an earlier run beside them
    assert place.ask("score", out) == 0
    assert not (out / "reranked.jsonl").exists()


def test_rows_that_are_gone_or_changed_and_another_model_are_refused(place, other_model, tmp_path, capsys):
    rows = tmp_path / "train.jsonl"
    shutil.copy(place.root / "train.jsonl", rows)
    lines = rows.read_text().splitlines()
    rows.write_text("\n".join(lines[:-1]) + "\n")
    capsys.readouterr()
    for verb in ("score", "top"):
        assert place.rerank(verb, tmp_path / "out", 3, "--rows", str(rows)) == 2
        message = _message(capsys)
        was, now = (sha256_file(path)[:12] for path in (place.root / "train.jsonl", rows))
        assert f"need an index of these rows, got one with data {was}... where {now}... is asked for" in message
        assert place.rerank(verb, tmp_path / "out", 3, "--rows", str(tmp_path / "gone.jsonl")) == 2
        assert "gone.jsonl" in _message(capsys)
        assert place.rerank(verb, tmp_path / "out", 3, model=other_model) == 2
        message = _message(capsys)
        assert "need an index of this model and adapter, got one with model " in message
        assert "... where " in message
        assert place.ask(verb, tmp_path / "out", "--rerank", "3") == 2
        assert f"index {verb}: need the rows of the index for --rerank, got none. Pass --rows FILE" in _message(capsys)
    assert place.ask("score", tmp_path / "out", "--rows", str(rows)) == 2
    assert "need --rerank N with --rows, got none" in _message(capsys)
    assert not (tmp_path / "out").exists()
    assert place.rerank("score", tmp_path / "out", 3, "--memory-gb", "0.00001") == 2
    assert "need at least " in _message(capsys)


def test_a_row_that_the_encoding_leaves_out_has_no_influence(place, tmp_path, capsys):
    """Its header and instruction alone fill the 40 tokens: zeros in the index, 0 exactly."""
    records = read_records(place.root / "train.jsonl")[:5]
    records[2] = records[2].__class__(id="long", instruction="x" * 500, context="", response="y")
    made = Place(tmp_path, place.model)
    write_records(tmp_path / "train.jsonl", records)
    shutil.copy(place.root / "queries.jsonl", tmp_path)
    assert made.build("index", "--max-length", "80") == 0
    assert made.rerank("score", tmp_path / "out", 5) == 0
    for line in _lines(tmp_path / "out" / "reranked.jsonl"):
        at = line["train"].index("long")
        assert (line["scores"][at], line["exact"][at]) == (0.0, True)
        assert sum(score == 0 for score in line["scores"]) == 1


def test_tokens_follow_the_exact_order(place, tmp_path):
    assert place.rerank("top", tmp_path, 10, "--k", "3", "--tokens", "2") == 0
    pairs = json.loads((tmp_path / "tokens.json").read_text())
    best = [(line["query"], train) for line in _lines(tmp_path / "top.jsonl") for train in line["train"][:2]]
    assert [(pair["query"], pair["train"]) for pair in pairs] == best
    exact = [score for line in _lines(tmp_path / "top.jsonl") for score in line["scores"][:2]]
    assert [pair["score"] for pair in pairs] == pytest.approx(exact, rel=1e-4)
