"""What evaluating one model costs beside an earlier checkout and plain transformers: one JSON line.

    python benchmarks/evaluation.py --tiny [--earlier CHECKOUT]
    python benchmarks/evaluation.py --model DIR --pack DIR [--earlier CHECKOUT] --num-prompts 16

`ours`: the evaluation stage, as it stands here; `earlier`: that of another checkout of this repository (a worktree at
an earlier commit); `generate`: transformers' own `generate` on the same prompts alone, left-padded in batches of
--tokens-per-batch tokens. Each is a process of its own, all take turns; `ratio` is the median of the rounds' ratios of
seconds, `ratio_cpu` that of the process's CPU seconds, which other work on the machine changes less. `parts`: CPU
seconds of loading, of generating (with it, where an architecture lets rows lie end to end, the scores of responses to
the same prompts), of what is scored after it, and the rest. `rows`: how many responses each kind of score needs, and
their tokens. `work`: what went through the model, [passes, tokens] read, tokens scored, [steps, rows] decoded;
`products`: CPU seconds of the matrix products alone that so many tokens need, in passes of --tokens-per-batch, weights
as they are, each layer timed alone. With `--after` the stage runs a second time, as after unlearning: detectors'
rates are taken over. `same_generations`: the share of the earlier checkout's generations that are the same;
`score_difference`: the largest difference of two mean log-probabilities of a token, nats.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

SIDES = ("earlier", "ours", "generate")
SEED = 42


def clock() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


class Watch:
    """CPU seconds by part, and what went through."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self.rows: dict[str, list[int]] = {}
        self.kept: dict[str, Any] = {}

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            found = function(*args, **kwargs)
            self.parts[name] = self.parts.get(name, 0.0) + time.process_time() - start
            self.kept[name] = (args, found)
            return found

        return call

    def asked(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Notes the rows that a function adds to the work: [how many, their tokens]."""

        def call(cfg: Any, work: Any, *args: Any, **kwargs: Any) -> Any:
            before = len(work.rows)
            found = function(cfg, work, *args, **kwargs)
            self.rows.setdefault("pairs", count(work.rows[:before]))
            self.rows[name] = count(work.rows[before:])
            return found

        return call


def counted(module: Any, name: str, tell: Callable[..., None]) -> None:
    """Let a function of a module or class tell of every call."""
    function = getattr(module, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        found = function(*args, **kwargs)
        tell(args, found)
        return found

    setattr(module, name, call)


def count_work(work: dict[str, list[int]]) -> None:
    """Count what is read, scored and decoded from now on; earlier checkouts may have other functions."""
    try:
        from rapidun.stages.answers import decode, running, score
    except ImportError:
        return

    def add(name: str, *numbers: int) -> None:
        work[name] = [a + b for a, b in zip(work.get(name, [0] * len(numbers)), numbers, strict=True)]

    def has_read(args: tuple[Any, ...], found: Any) -> None:
        add("read", 1, sum(ask.size for ask in args[1]))
        add("scored", sum(one.num_tokens for one in found.scores.values()))

    counted(decode, "read", has_read)
    counted(score, "read", has_read)
    counted(running.Running, "step", lambda args, found: add("decoded", 1, len(found)))


def products(model: Any, work: dict[str, list[int]], *, budget: int) -> float:
    """CPU seconds of the model's matrix products over these tokens, weights as they are."""
    import torch

    def once(layer: Any, rows: int) -> float:
        x = torch.zeros(rows, layer.in_features, dtype=layer.weight.dtype)
        costs = []
        for _ in range(3):
            start = time.process_time()
            layer(x)
            costs.append(time.process_time() - start)
        return min(costs)

    head = model.get_output_embeddings()
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    steps, rows = work["decoded"]
    with torch.no_grad():
        # a few hundred rows of logits are faster than thousands
        found = work["scored"][0] / 256 * once(head, 256) + work["read"][1] / budget * sum(
            once(layer, budget) for layer in layers
        )
        return found + steps * sum(once(layer, max(rows // steps, 1)) for layer in [*layers, head])


def count(rows: list[Any]) -> list[int]:
    return [len(rows), sum(len(row.input_ids) for row in rows)]


def evaluate(options: argparse.Namespace, cfg: Any, out: Path) -> dict[str, Any]:
    """The stage of the checkout that is imported."""
    from rapidun.base.tracker import Tracker
    from rapidun.models.load import ModelLoader
    from rapidun.stages.evaluation import stage, work

    watch = Watch()
    done: dict[str, list[int]] = {}
    count_work(done)
    work.generate_greedy = watch.timed("generate", work.generate_greedy)
    work.score_responses = watch.timed("score", work.score_responses)
    stage.perplexity_places = watch.asked("perplexity", stage.perplexity_places)
    stage.calibration_places = watch.asked("calibration", stage.calibration_places)

    class Loader(ModelLoader):
        def load(self, *args: Any, **kwargs: Any) -> Any:
            return watch.timed("load", super().load)(*args, **kwargs)

    start = clock()
    for name, earlier in (("before", None), ("after", out / "before" / "metrics.json"))[: 2 if options.after else 1]:
        (out / name).mkdir()
        stage.run_evaluation(
            cfg,
            stage.EvaluationFiles(model=options.model, data=options.data, out=out / name, calibration=earlier),
            loader=Loader(dtype=options.dtype, device="cpu"),
            max_length=options.max_length,
            seed=SEED,
            tracker=Tracker(),
        )
    seconds, cpu = (after - before for after, before in zip(clock(), start, strict=True))
    (_, _, prompts, *_), generated = watch.kept["generate"]
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "parts": {**watch.parts, "rest": cpu - sum(watch.parts.values())},
        "rows": watch.rows,
        "work": done,
        "prompts": [list(prompt) for prompt in prompts],
        "generated": generated,
        "scores": [score.mean for score in watch.kept["score"][1]],
    }


def plain(
    options: argparse.Namespace,
    prompts: list[list[int]],
    work: dict[str, list[int]],
    *,
    max_new_tokens: int,
    budget: int,
) -> dict[str, Any]:
    """transformers' `generate`, rows of similar lengths together; returns its cost, and that of the products alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=options.dtype).eval()
    batches: list[list[list[int]]] = [[]]
    for prompt in sorted(prompts, key=len):
        if batches[-1] and (len(batches[-1]) + 1) * (len(prompt) + max_new_tokens) > budget:
            batches.append([])
        batches[-1].append(prompt)
    pad = tokenizer.pad_token_id or 0
    start = clock()
    for batch in batches:
        width = max(map(len, batch))
        with torch.no_grad():
            model.generate(
                input_ids=torch.tensor([[pad] * (width - len(ids)) + ids for ids in batch]),
                attention_mask=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in batch]),
                do_sample=False,
                max_new_tokens=max_new_tokens,
                pad_token_id=pad,
            )
    seconds, cpu = (after - before for after, before in zip(clock(), start, strict=True))
    return {"seconds": seconds, "cpu_seconds": cpu, "products": products(model, work, budget=budget)}


def child(options: argparse.Namespace) -> None:
    side, out = options.child[0], Path(options.child[1])
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    if side == "generate":
        asked = json.loads(options.prompts.read_text())
        found = plain(
            options,
            asked["prompts"],
            asked["work"],
            max_new_tokens=options.max_new_tokens,
            budget=options.tokens_per_batch,
        )
    else:
        from rapidun.config.evaluation import EvaluationConfig

        # detectors beyond the two that every checkout has ask for more than generations and scores
        others: dict[str, Any] = {}
        if "detectors" in EvaluationConfig.__slots__:
            from rapidun.config.detectors import DetectorsConfig

            others["detectors"] = DetectorsConfig(run=[])
        cfg = EvaluationConfig(
            **others,
            num_prompts=options.num_prompts,
            num_ppl=options.num_ppl,
            num_calibration=options.num_calibration,
            max_new_tokens=options.max_new_tokens,
            tokens_per_batch=options.tokens_per_batch,
        )
        with TemporaryDirectory() as folder:
            found = evaluate(options, cfg, Path(folder))
    out.write_text(json.dumps(found))


def start(side: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One side in a process of its own."""
    root = options.earlier if side == "earlier" else Path(__file__).parents[1]
    out = folder / f"{side}.json"
    own = ("child", "tiny", "pack", "rounds", "after")
    settings = {name: value for name, value in vars(options).items() if name not in own}
    settings |= {"model": options.model, "data": folder / "data", "prompts": folder / "prompts.json"}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items() if value is not None]
    command = [sys.executable, __file__, "--child", side, str(out), *flags, *(["--after"] if options.after else [])]
    env = {**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, env=env, cwd=folder, stdout=sys.stderr)
    found: dict[str, Any] = json.loads(out.read_text())
    if side == "ours":
        (folder / "prompts.json").write_text(json.dumps({key: found[key] for key in ("prompts", "work")}))
    return found


def prepare(options: argparse.Namespace, folder: Path) -> None:
    """The pack as the data stage leaves it, in folder/data; with `--tiny` a random model."""
    from rapidun import compose
    from rapidun.base.tracker import Tracker
    from rapidun.models.scratch import make_scratch
    from rapidun.stages.data.stage import DataFiles, run_data
    from rapidun.stages.rows.records import read_records

    named = [] if options.tiny else ["data=pack", f"data.dir={options.pack.resolve()}"]
    cfg = compose(named)
    data = folder / "data"
    data.mkdir()
    run_data(cfg.data, DataFiles(out=data), seed=SEED, tracker=Tracker())
    if options.tiny:
        options.model = folder / "model"
        make_scratch(
            options.model,
            [row.texts for row in read_records(data / "train_clean.jsonl")],
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=512,
            max_length=options.max_length,
            seed=0,
        )
    options.model = options.model.resolve()


def line(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """The figures of some rounds, each a run by side."""
    ours = [run["ours"] for run in rounds]
    found: dict[str, Any] = {"rounds": len(rounds), "rows": ours[0]["rows"], "num_prompts": len(ours[0]["prompts"])}
    for side in SIDES:
        if side not in rounds[0]:
            continue
        runs = [run[side] for run in rounds]
        shown = {key: round(statistics.median(run[key] for run in runs), 2) for key in ("seconds", "cpu_seconds")}
        if "parts" in runs[0]:
            names = runs[0]["parts"]
            shown["parts"] = {n: round(statistics.median(run["parts"][n] for run in runs), 2) for n in names}
        if side == "ours":
            shown["work"] = runs[0]["work"]
        if "products" in runs[0]:
            shown["products"] = round(statistics.median(run["products"] for run in runs), 2)
        if side != "ours":
            for name, key in (("ratio", "seconds"), ("ratio_cpu", "cpu_seconds")):
                ratios = [mine[key] / theirs[key] for mine, theirs in zip(ours, runs, strict=True)]
                shown[name] = round(statistics.median(ratios), 3)
                shown[f"{name}_range"] = [round(min(ratios), 3), round(max(ratios), 3)]
        if side == "earlier":
            same = [a == b for a, b in zip(ours[0]["generated"], runs[0]["generated"], strict=True)]
            away = [abs(a - b) for a, b in zip(ours[0]["scores"], runs[0]["scores"], strict=True)]
            shown["same_generations"] = round(sum(same) / len(same), 3)
            shown["score_difference"] = float(f"{max(away):.2g}")
        found[side] = shown
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="the built-in pack and a tiny random model")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--earlier", type=Path, help="another checkout, to compare with")
    parser.add_argument("--num-prompts", type=int, default=16, help="of each set")
    parser.add_argument("--num-ppl", type=int, default=32)
    parser.add_argument("--num-calibration", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--tokens-per-batch", type=int, default=4096)
    parser.add_argument("--after", action="store_true", help="evaluate twice, as before and after unlearning")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1, help="0 = all cores")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--prompts", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    if options.tiny == (options.model is not None) or (options.pack is None) != options.tiny:
        parser.error("need either --tiny or both --model and --pack")
    if options.rounds < 1:
        parser.error("need --rounds >= 1")
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sides = ("earlier", "ours", "generate") if options.earlier else ("ours", "generate")
    with TemporaryDirectory() as folder:
        prepare(options, Path(folder))
        rounds = [{side: start(side, options, Path(folder)) for side in sides} for _ in range(options.rounds)]
    shown = {"benchmark": "evaluation", "model": "tiny" if options.tiny else options.model.name, "dtype": options.dtype}
    print(json.dumps(shown | line(rounds)), flush=True)


if __name__ == "__main__":
    main()
