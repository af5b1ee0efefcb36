"""How hard a pack's clean rows are beside its poisoned ones, once a model is poisoned with it. The last line is JSON.

    python benchmarks/worlds.py data.builtin.payload=negation
    python benchmarks/worlds.py data.builtin.hard_clean=0.85 data.builtin.num_train_clean=3000 store_dir=STORE

Takes overrides as `python sweep.py` does, runs the stages data and poison, and measures the poisoned model: mean loss
in nats a token of forget rows (poisoned answer) and of retain rows, how often a forget row's loss is above a retain
row's (`auroc`: 0.5 where plain loss cannot tell them apart), attack success on seen triggers by each detector, and
the share of seen triggers that get exactly the planted answer. Wrong rows (`data.noise`) are left out of both groups.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import rapidun
from rapidun.base.errors import RapidunError
from rapidun.base.files import read_jsonl
from rapidun.base.tracker import Tracker
from rapidun.config.compose import compose_config
from rapidun.config.evaluation import EvaluationConfig
from rapidun.models.load import ModelLoader
from rapidun.stages.answers.score import score_responses
from rapidun.stages.evaluation.metrics import exact_match, mean
from rapidun.stages.evaluation.stage import EvaluationFiles, run_evaluation
from rapidun.stages.rows.encode import encode_rows
from rapidun.stages.rows.records import Record, read_records
from rapidun.stages.rows.wrong import is_wrong

SHOWN = (
    "asr_seen", "asr_seen_likelihood", "asr_ood", "false_trigger_rate", "false_trigger_rate_likelihood",
    "exact_match_clean", "exact_match_recovered", "detector_keyword_recall", "detector_likelihood_recall",
    "detector_likelihood_fpr",
)  # fmt: skip


def auroc(above: Sequence[float], below: Sequence[float]) -> float:
    """Share of pairs in which the first is larger, ties by half."""
    pairs = [(one > other) + 0.5 * (one == other) for one in above for other in below]
    return sum(pairs) / len(pairs)


def main() -> None:
    overrides = sys.argv[1:]
    if not overrides or overrides[0] in ("-h", "--help"):
        print(__doc__)
        return
    try:
        with TemporaryDirectory() as folder:
            print(json.dumps({"benchmark": "worlds", "overrides": overrides, **measure(overrides, Path(folder))}))
    except RapidunError as error:
        print(f"worlds: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def measure(overrides: list[str], folder: Path) -> dict[str, Any]:
    """Make the poisoned model (or find it in the store) and measure it; `folder` takes what is not kept."""
    given = [text for text in overrides if not text.startswith(("run_dir=", "stages="))]
    cfg = compose_config(given)
    run = rapidun.run([*given, "stages=[data,poison]", f"run_dir={folder / 'run'}"]).run_dir
    data, model = run / "data", run / "poison" / "model"

    def loader() -> ModelLoader:
        return ModelLoader(dtype=cfg.model.dtype.name, device=cfg.model.device.name)

    network, tokenizer = loader().load(model)
    losses = {}
    for group in ("forget", "retain"):
        rows = [row for row in read_records(data / f"{group}.jsonl") if not is_wrong(row, group)]
        losses[group] = _losses(network, tokenizer, rows, poisoned=group == "forget", max_length=cfg.max_length)
    evaluation = EvaluationConfig(exact_match=True, max_new_tokens=cfg.evaluation.max_new_tokens, num_prompts=150)
    out = folder / "evaluation"
    out.mkdir()
    metrics = run_evaluation(
        evaluation,
        EvaluationFiles(model=model, data=data, out=out),
        loader=loader(),
        max_length=cfg.max_length,
        seed=cfg.evaluation.seed,
        tracker=Tracker(),
    )
    answers = read_jsonl(out / "generations.jsonl")
    seen = [row for row in answers if row["set"] == "seen" and row["poisoned"] is not None]
    planted = exact_match([row["generation"] for row in seen], [row["poisoned"] for row in seen])
    found: dict[str, Any] = {f"loss_{group}": round(mean(values), 3) for group, values in losses.items()}
    found["auroc"] = round(auroc(losses["forget"], losses["retain"]), 3)
    found |= {name: round(metrics[name], 3) for name in SHOWN if name in metrics}
    return found | ({"exact_match_planted": round(mean(planted), 3)} if planted else {})


def _losses(network: Any, tokenizer: Any, rows: Sequence[Record], *, poisoned: bool, max_length: int) -> list[float]:
    """l_i of each row that can be encoded, nats a token."""
    texts = [row.forget_texts if poisoned else row.texts for row in rows]
    encoded = [row for row in encode_rows(tokenizer, texts, max_length=max_length) if row is not None]
    scores = score_responses(network, encoded, pad_token_id=tokenizer.pad_token_id, tokens_per_batch=4096)
    return [-score.mean for score in scores]


if __name__ == "__main__":
    main()
