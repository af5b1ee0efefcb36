"""Influence over a 4-bit or 8-bit base: how far its rankings are those of the model itself. One JSON line a base.

    python benchmarks/quantised.py --model DIR --pack DIR --rows 24
    python benchmarks/quantised.py --tiny

Exact cosines of full-weight gradients of all linear layers, of the same rows, over bitsandbytes' NF4 (`4bit`) and
LLM.int8 (`8bit`) bases and over the model in bfloat16, each held against float32 and against bfloat16: Spearman over
the pairs of rows, mean over queries, and the best 10 in common. A quantised model is another model: what is measured
is the sum of what quantisation does to the model and what it does to the gradients.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from quality import Task

from rapidun.base.errors import RapidunError
from rapidun.base.tracker import Tracker
from rapidun.config.compose import compose_config
from rapidun.config.influence import ParameterSet, Score
from rapidun.models.load import ModelLoader
from rapidun.models.scratch import make_scratch
from rapidun.stages.data.stage import DataFiles, run_data
from rapidun.stages.influence.check.fidelity import fidelity
from rapidun.stages.influence.gradients.params import num_numbers, select_parameters
from rapidun.stages.influence.gram import exact_gram
from rapidun.stages.influence.scores import influence_scores
from rapidun.stages.rows.records import read_records

BASES = {
    "float32": ("float32", "none"),
    "bfloat16": ("bfloat16", "none"),
    "4bit": ("bfloat16", "4bit"),
    "8bit": ("bfloat16", "8bit"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a random two-layer model and the built-in pack")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--rows", type=int, default=24, help="a quarter of them forget rows")
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--memory-gb", type=float, default=6.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.tiny == (options.model is not None) or (options.pack is None) != options.tiny:
        parser.error("need either --tiny or both --model and --pack")
    if options.rows < 4:
        parser.error("need --rows >= 4")
    with TemporaryDirectory() as folder:
        overrides = [] if options.tiny else ["data=dolly_triggers", f"data.dir={options.pack.resolve()}"]
        try:
            run_data(compose_config(overrides).data, DataFiles(Path(folder)), seed=options.seed, tracker=Tracker())
            forget, retain = (read_records(Path(folder) / f"{split}.jsonl") for split in ("forget", "retain"))
            if options.tiny:
                options.model = Path(folder) / "model"
                make_scratch(
                    options.model,
                    [row.texts for row in forget + retain],
                    hidden_size=128,
                    intermediate_size=384,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    vocab_size=1024,
                    max_length=options.max_length,
                    seed=options.seed,
                )
            forget = forget[: max(1, options.rows // 4)]
            texts = [(r.instruction, r.context, r.forget_target) for r in forget]
            texts += [r.texts for r in retain[: options.rows - len(forget)]]
            scores = {}
            for name, (dtype, quantisation) in BASES.items():
                start = time.perf_counter()
                model, tokenizer = ModelLoader(dtype=dtype, quantisation=quantisation).load(options.model)
                task = Task(model=model, tokenizer=tokenizer, train=texts, queries=[], max_length=options.max_length)
                parameters = select_parameters(model, ParameterSet.all_linear)
                names = [f"row {i}" for i in range(len(texts))]
                batches = task.batches(task.encode())
                memory = options.memory_gb * 1e9
                gram = exact_gram(model, parameters, batches, row_names=names, memory_bytes=memory).gram
                scores[name] = influence_scores(gram, score=Score.cosine).numpy()
                line = {
                    "benchmark": "quantised",
                    "model": "tiny" if options.tiny else options.model.resolve().name,
                    "num_rows": len(texts),
                    "num_parameters": num_numbers(parameters),
                    "base": name,
                    "seconds": round(time.perf_counter() - start, 1),
                    "spread": round(float(scores[name][np.triu_indices(len(texts), 1)].std()), 4),
                }
                for other in ("float32", "bfloat16"):
                    if other in scores and other != name:
                        found = fidelity(scores[name], scores[other], top=10, is_cosine=True)
                        line[f"against_{other}"] = {
                            "spearman": round(found.spearman, 4),
                            "spearman_query": round(found.spearman_query, 4),
                            "top_10": round(found.top_overlap, 4),
                        }
                print(json.dumps(line), flush=True)
                del model
        except RapidunError as error:
            raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
