"""What influence costs and how true it is: one JSON line for each way of measuring it.

    python benchmarks/influence.py --tiny
    python benchmarks/influence.py --model DIR --pack DIR --rows 160 --dtype bfloat16

F0 is the floor: a plain forward pass with all logits and the gradient of the loss with respect to the embeddings alone,
no hooks. Machines drift, so modes and F0 take turns (F0, mode, F0, mode, ...) on the same batches; `ratio_f0` is the
median over the rounds of a mode's time over the mean of its two neighbours. The training steps it is compared with are
forward and backward only (no optimiser), likewise against F0. `effective_k` = 1 / variance of (cosine - exact cosine)
over all pairs of rows, of what estimates it; `spearman` over the same pairs, `spearman_query` the mean over queries.
`bytes_per_row`: what an index would keep in float32, null where nothing is kept. `peak_memory_gb` is the process's (or
the GPU's), models included (three: plain, with a new adapter, with a trained one). `--rapidgrad` takes minutes: one row
at a time.
`--peers` runs bergson (PyPI; not a dependency) through its Python API on the same batches.
"""

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from rapidun.base.errors import DataError, RapidunError  # noqa: E402
from rapidun.base.machine import Measured  # noqa: E402
from rapidun.config.data import BuiltinConfig  # noqa: E402
from rapidun.config.influence import InfluenceConfig, InfluenceMethod, ParameterSet, Score  # noqa: E402
from rapidun.config.parts import LoraSettings  # noqa: E402
from rapidun.models.adapters import add_lora  # noqa: E402
from rapidun.models.load import ModelLoader  # noqa: E402
from rapidun.models.losses import example_cross_entropy  # noqa: E402
from rapidun.models.scratch import make_scratch  # noqa: E402
from rapidun.stages.data.builtin import builtin_pack  # noqa: E402
from rapidun.stages.data.triggers import FAMILIES  # noqa: E402
from rapidun.stages.influence.batches import RowBatch, make_batches  # noqa: E402
from rapidun.stages.influence.bm25 import bm25_scores  # noqa: E402
from rapidun.stages.influence.check.check import floor_pass  # noqa: E402
from rapidun.stages.influence.check.fidelity import fidelity  # noqa: E402
from rapidun.stages.influence.gradients.params import TrackedParameter, num_numbers, select_parameters  # noqa: E402
from rapidun.stages.influence.gram import estimated_gram, exact_gram  # noqa: E402
from rapidun.stages.influence.repsim import repsim_gram  # noqa: E402
from rapidun.stages.influence.scores import influence_scores  # noqa: E402
from rapidun.stages.influence.stage import SKETCHES  # noqa: E402
from rapidun.stages.rows.encode import encode_rows  # noqa: E402
from rapidun.stages.rows.records import Record, read_records  # noqa: E402

# a pass that takes longer is not worth a warm-up
WARM_UP_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The model, a copy of it with an adapter, and the rows."""

    model: Any
    lora: Any
    trained: Any  # with an adapter whose B is not zero
    texts: list[tuple[str, str, str]]
    batches: list[RowBatch]
    names: list[str]
    memory_gb: float

    def parameters(self, params: ParameterSet = ParameterSet.all_linear) -> list[TrackedParameter]:
        return select_parameters(self.lora if params is ParameterSet.lora else self.model, params)


class Outcome:
    """What a mode gives back: scores [N, N] to hold against the exact ones, numbers it kept of each row."""

    def __init__(self, scores: Tensor | None = None, numbers: int | None = None) -> None:
        self.scores = scores
        self.numbers = numbers


Mode = Callable[[Bench], Outcome]


def floor(bench: Bench) -> Outcome:
    floor_pass(bench.model, bench.batches)
    return Outcome()


def _step(model: nn.Module, batches: Sequence[RowBatch]) -> Outcome:
    for batch in batches:
        t = batch.tensors
        output = model(input_ids=t["input_ids"], attention_mask=t["attention_mask"], use_cache=False)
        example_cross_entropy(output.logits, t["labels"]).mean().backward()
        model.zero_grad(set_to_none=True)
    return Outcome()


def lora_step(bench: Bench) -> Outcome:
    return _step(bench.lora, bench.batches)


def full_step(bench: Bench) -> Outcome:
    bench.model.requires_grad_(True)
    return _step(bench.model, bench.batches)


def exact(bench: Bench, params: ParameterSet = ParameterSet.all_linear) -> Outcome:
    model = bench.lora if params is ParameterSet.lora else bench.model
    return _exact(bench, model, bench.parameters(params))


def lora_trained(bench: Bench) -> Outcome:
    return _exact(bench, bench.trained, select_parameters(bench.trained, ParameterSet.lora))


def _exact(bench: Bench, model: nn.Module, parameters: list[TrackedParameter]) -> Outcome:
    memory = bench.memory_gb * 1e9
    result = exact_gram(model, parameters, bench.batches, row_names=bench.names, memory_bytes=memory)
    return Outcome(influence_scores(result.gram, score=Score.cosine))


def sketched(method: InfluenceMethod, **settings: int) -> Mode:
    def run(bench: Bench) -> Outcome:
        cfg = InfluenceConfig(method=method, **settings)
        faults = cfg.check()
        if faults:
            raise SystemExit("\n".join(faults))
        parameters = bench.parameters()
        sketch = SKETCHES[method](cfg, parameters, cfg.seed)
        batches = bench.batches
        if method is InfluenceMethod.rapidgrad:
            batches = one_row_each(batches)
        result = estimated_gram(bench.model, parameters, batches, sketch, row_names=bench.names)
        return Outcome(influence_scores(result.gram, score=Score.cosine), sketch.num_numbers)

    return run


def repsim(bench: Bench) -> Outcome:
    cfg = InfluenceConfig()
    result = repsim_gram(bench.model, bench.batches, row_names=bench.names, layer=cfg.layer, pooling=cfg.pooling)
    return Outcome(influence_scores(result.gram, score=Score.cosine))


def bm25(bench: Bench) -> Outcome:
    return Outcome(bm25_scores(["\n".join(text) for text in bench.texts]))


def one_row_each(batches: Sequence[RowBatch]) -> list[RowBatch]:
    single = []
    for batch in batches:
        for place, row in enumerate(batch.rows):
            length = int(batch.tensors["attention_mask"][place].sum())
            single.append(RowBatch([row], {name: t[place : place + 1, :length] for name, t in batch.tensors.items()}))
    return single


def modes(options: argparse.Namespace) -> dict[str, Mode]:
    tensor, k = InfluenceMethod.tensorsketch, options.k
    found: dict[str, Mode] = {
        "lora": lambda bench: exact(bench, ParameterSet.lora),
        "lora_trained": lora_trained,
        "sketch": sketched(InfluenceMethod.sketch, k=k),
        "tensorsketch_256": sketched(tensor, k=k, buckets=256),
        "tensorsketch_512": sketched(tensor, k=k, buckets=512),
        "tensorsketch_1024": sketched(tensor, k=k, buckets=1024),
        "tensorsketch_2048": sketched(tensor, k=k, buckets=2048),
        "factored_16": sketched(InfluenceMethod.factored, p=16, q=16),
        "repsim": repsim,
        "bm25": bm25,
    }
    if options.rapidgrad:
        multiple = k if options.tiny else 1 << 24
        found["rapidgrad"] = sketched(InfluenceMethod.rapidgrad, k=k, pad_multiple=multiple)
    if options.modes:
        unknown = sorted(set(options.modes) - set(found))
        if unknown:
            raise SystemExit(f"influence: need modes among {', '.join(found)}, got {', '.join(unknown)}")
        found = {name: found[name] for name in options.modes}
    return found


def measure(modes: Mapping[str, Mode], bench: Bench, *, rounds: int) -> dict[str, tuple[Outcome, dict[str, Any]]]:
    """Round after round, every mode between two passes of F0; where they take moments, after a round of warm-up.

    A mode's ratio of one round is its time over the mean of the F0 before it and the F0 after it.
    """
    start = time.perf_counter()
    floor(bench)
    if time.perf_counter() - start < WARM_UP_SECONDS:
        for mode in modes.values():
            mode(bench)
    outcomes: dict[str, Outcome] = {}
    # (seconds, F0, peak)
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in modes}
    before = seconds_of(floor, bench)
    for number in range(rounds):
        for name, mode in modes.items():
            if name == "exact" and number and before > WARM_UP_SECONDS:
                # takes as long as several of the others, and is compared with nothing
                continue
            with Measured() as measured:
                start = time.perf_counter()
                outcomes[name] = mode(bench)
                seconds = time.perf_counter() - start
            after = seconds_of(floor, bench)
            found[name].append((seconds, (before + after) / 2, measured.peak_memory_gb))
            before = after
            print(f"round {number + 1}: {name} {seconds / found[name][-1][1]:.3f} F0", file=sys.stderr, flush=True)
    costs = {}
    for name, parts in found.items():
        ratios = [seconds / floor_seconds for seconds, floor_seconds, _ in parts]
        costs[name] = {
            "seconds": round(statistics.median(seconds for seconds, _, _ in parts), 4),
            "seconds_f0": round(statistics.median(floor_seconds for _, floor_seconds, _ in parts), 4),
            "ratio_f0": round(statistics.median(ratios), 3),
            "ratio_f0_range": [round(min(ratios), 3), round(max(ratios), 3)],
            "peak_memory_gb": max(peak for _, _, peak in parts),
        }
    return {name: (outcomes[name], costs[name]) for name in modes}


def seconds_of(mode: Mode, bench: Bench) -> float:
    start = time.perf_counter()
    mode(bench)
    return time.perf_counter() - start


def held_against(scores: Tensor, truth: Tensor, *, is_estimate: bool) -> dict[str, float]:
    """Against the exact cosines of the same rows; an effective K where the scores estimate these."""
    found = fidelity(scores.double().numpy(), truth.double().numpy(), top=10, is_cosine=is_estimate)
    line = {
        "spearman": round(found.spearman, 4),
        "spearman_query": round(found.spearman_query, 4),
        "top_10": round(found.top_overlap, 4),
    }
    if found.effective_k is not None:
        line |= {"cosine_error_sd": round(found.effective_k**-0.5, 6), "effective_k": round(found.effective_k)}
    return line


def bergson_mode(projection_dim: int) -> Mode:
    """bergson's in-memory collector: a two-sided projection of each layer, on our batches."""
    import bergson
    import pyarrow
    from datasets import Dataset

    def run(bench: Bench) -> Outcome:
        rows: dict[int, dict[str, list[int]]] = {}
        for batch in one_row_each(bench.batches):
            rows[batch.rows[0]] = {key: batch.tensors[key][0].tolist() for key in ("input_ids", "labels")}
        ordered = [rows[row] | {"length": len(rows[row]["input_ids"])} for row in range(len(rows))]
        data = Dataset(pyarrow.Table.from_pylist(ordered), fingerprint="influence")
        with tempfile.TemporaryDirectory() as folder:
            cfg = bergson.IndexConfig(
                run_path=str(Path(folder) / "run"), projection_dim=projection_dim, loss_reduction="mean"
            )
            # it writes its losses there
            Path(cfg.partial_run_path).mkdir()
            names = {p.name.removesuffix(".weight") for p in bench.parameters()}
            base = bench.model.base_model_prefix + "."
            collector = bergson.InMemoryCollector(
                model=bench.model.base_model,
                data=data,
                cfg=cfg,
                processor=bergson.GradientProcessor(projection_dim=projection_dim),
                target_modules={name.removeprefix(base) for name in names},
            )
            # as bergson's own worker does
            bench.model.requires_grad_(False)
            bench.model.get_input_embeddings().requires_grad_(True)
            bergson.CollectorComputer(
                model=bench.model,
                data=data,
                collector=collector,
                batches=[batch.rows for batch in bench.batches],
                cfg=cfg,
            ).run_with_collector_hooks()
        flat = torch.cat([g.double().flatten(1) for g in collector.gradients.values()], dim=1)
        return Outcome(influence_scores(flat @ flat.T, score=Score.cosine), flat.shape[1])

    return run


def load_bench(options: argparse.Namespace, folder: Path) -> Bench:
    if options.tiny:
        sizes = {name: getattr(BuiltinConfig(), name) for name in BuiltinConfig.__slots__}
        pack = builtin_pack(FAMILIES, **sizes, seed=0)
        forget, retain = pack.forget, pack.retain
        model_folder = folder / "model"
        make_scratch(
            model_folder,
            [row.texts for row in pack.train_clean + pack.train_poisoned],
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=1024,
            max_length=options.max_length,
            seed=0,
        )
    else:
        model_folder = options.model
        forget, retain = (_rows(options.pack, split) for split in ("forget", "retain"))
    num_forget = min(len(forget), -(-options.rows // 4))
    forget, retain = forget[:num_forget], retain[: options.rows - num_forget]
    loader = ModelLoader(dtype=options.dtype)
    model, tokenizer = loader.load(model_folder)
    texts = [(r.instruction, r.context, r.forget_target) for r in forget]
    texts += [r.texts for r in retain]
    names = [r.id for r in forget + retain]
    batches = make_batches(
        encode_rows(tokenizer, texts, max_length=options.max_length),
        names,
        tokens_per_batch=options.tokens_per_batch,
        pad_token_id=tokenizer.pad_token_id,
        device=next(model.parameters()).device,
    )
    lora = add_lora(copy.deepcopy(model), LoraSettings(lora_dropout=0.0), seed=0, section="influence")
    trained = copy.deepcopy(lora)
    torch.manual_seed(0)
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.01)
    return Bench(
        model=model, lora=lora, trained=trained, texts=texts, batches=batches, names=names, memory_gb=options.memory_gb
    )


def _rows(pack: Path, split: str) -> list[Record]:
    for name in (f"{split}.jsonl", f"{split}_set.jsonl"):
        if (pack / name).is_file():
            return read_records(pack / name)
    raise DataError(f"influence: need {split}.jsonl or {split}_set.jsonl in {pack}, got neither. Change --pack")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a random two-layer model and the built-in pack")
    parser.add_argument("--model", type=Path, help="a Hugging Face folder")
    parser.add_argument("--pack", type=Path, help="a folder with forget.jsonl and retain.jsonl")
    parser.add_argument("--rows", type=int, default=160, help="a quarter of them forget rows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--modes", nargs="+", help="some of the modes only")
    parser.add_argument("--k", type=int, help="numbers a row: 65,536, or 16,384 with --tiny")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--tokens-per-batch", type=int, default=2048)
    parser.add_argument("--memory-gb", type=float, default=4.0, help="for exact inner products")
    parser.add_argument("--no-steps", action="store_true", help="without the LoRA and the full training step")
    parser.add_argument("--rapidgrad", action="store_true", help="RapidIn's compression as well")
    parser.add_argument("--peers", action="store_true", help="bergson as well, if it is installed")
    options = parser.parse_args()
    if options.tiny == (options.model is not None) or (options.pack is None) != options.tiny:
        parser.error("need either --tiny or both --model and --pack")
    if options.k is None:
        options.k = 16384 if options.tiny else 65536
    if options.rows < 4 or options.rounds < 1:
        parser.error("need --rows >= 4 and --rounds >= 1")
    return options


def main() -> None:
    options = arguments()
    chosen = modes(options)
    steps: dict[str, Mode] = {} if options.no_steps else {"lora_step": lora_step, "full_step": full_step}
    if options.peers:
        try:
            chosen["bergson_16"] = bergson_mode(16)
        except ImportError as error:
            raise SystemExit(f"influence: --peers needs bergson (pip install bergson), got: {error}") from error
    with tempfile.TemporaryDirectory() as folder:
        try:
            bench = load_bench(options, Path(folder))
        except RapidunError as error:
            raise SystemExit(str(error)) from error
        lengths = [int(batch.tensors["attention_mask"].sum()) for batch in bench.batches]
        common = {
            "benchmark": "influence",
            "model": "tiny" if options.tiny else options.model.name,
            "dtype": str(next(bench.model.parameters()).dtype).removeprefix("torch."),
            "device": str(next(bench.model.parameters()).device),
            "threads": torch.get_num_threads(),
            "num_rows": len(bench.names),
            "num_tokens": sum(lengths),
            "num_batches": len(bench.batches),
            "num_parameters": num_numbers(bench.parameters()),
            "rounds": options.rounds,
        }
        found = measure({**steps, "exact": exact, **chosen}, bench, rounds=options.rounds)
        truth = found["exact"][0].scores
        assert truth is not None
        for name, (outcome, cost) in found.items():
            line = {**common, "mode": name, **cost}
            for step in steps:
                line[f"ratio_{step}"] = round(cost["ratio_f0"] / found[step][1]["ratio_f0"], 3)
            line["numbers_per_row"] = outcome.numbers
            line["bytes_per_row"] = None if outcome.numbers is None else 4 * outcome.numbers
            if outcome.scores is not None and name != "exact":
                line |= held_against(outcome.scores, truth, is_estimate=outcome.numbers is not None)
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
