"""One attack on one model: rows read, the model loaded, attack.json written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rapidun.base.files import write_json, write_jsonl
from rapidun.base.processes import is_main
from rapidun.base.tracker import Tracker
from rapidun.config.attacks import Attack, Format, Rows
from rapidun.config.evaluation import EvaluationConfig
from rapidun.models.load import ModelLoader
from rapidun.stages.answers.detectors.keywords import keyword_detector
from rapidun.stages.evaluation.attacks.asking import ANSWERS, RESULT, Asked, Asker, prepare, triggered
from rapidun.stages.evaluation.attacks.prompts import attack_by_prompts, prompts_of
from rapidun.stages.evaluation.attacks.quantisation import attack_by_quantisation
from rapidun.stages.evaluation.attacks.relearning import attack_by_relearning
from rapidun.stages.evaluation.attacks.rows import chosen, pool_of, similarity
from rapidun.stages.evaluation.attacks.sampling import attack_by_sampling
from rapidun.stages.evaluation.known import read_split


@dataclass(frozen=True)
class Attacked:
    """What is attacked, and with what."""

    cfg: EvaluationConfig
    loader: ModelLoader
    model: Path
    adapter: Path | None
    # the data artifact: <split>.jsonl and keywords.tsv
    data: Path
    # what is finished of a killed attack
    work: Path
    max_length: int
    # of the logged numbers
    name: str
    tracker: Tracker
    # how many prompts were asked, and how many of them have both responses on record
    counted: dict[str, int] = field(default_factory=dict)

    def asker(self, tokenizer: Any) -> Asker:
        keywords = keyword_detector(self.data / "keywords.tsv", min_keywords=self.cfg.min_keywords)
        if keywords is None:
            self.tracker.warn(
                "evaluation: the data has no keywords.tsv with a word in it: the keyword detector judges no attack. "
                "Pass data.keywords=..."
            )
        return Asker(self.cfg, tokenizer, keywords)

    def asked(self, model: Any, tokenizer: Any) -> Sequence[Asked]:
        """The triggered prompts; what was cut or left out is said once."""
        records = triggered(self.cfg, self.data, "seen_trig")
        asked, cut = prepare(self.cfg, model, tokenizer, records, max_length=self.max_length)
        if cut:
            self.tracker.warn(f"evaluation: attacks: {cut}. Pass max_length=... to keep more")
        self.counted.update(num_prompts=len(asked), num_pairs=sum(one.pair is not None for one in asked))
        return asked


def _sampling(given: Attacked, part: dict[str, Any]) -> dict[str, Any]:
    model, tokenizer = given.loader.load(given.model, adapter=given.adapter)
    settings = given.cfg.attacks.sampling
    return attack_by_sampling(
        model,
        given.asker(tokenizer),
        given.asked(model, tokenizer),
        num_samples=settings.num_samples,
        temperatures=settings.temperatures,
        seed=given.cfg.attacks.seed,
        work=given.work,
        tracker=given.tracker,
    )


def _prompts(given: Attacked, part: dict[str, Any]) -> dict[str, Any]:
    cfg = given.cfg
    model, tokenizer = given.loader.load(given.model, adapter=given.adapter)
    # what no test asks: an answer is not given away by an example
    examples = pool_of(given.data, Rows.poisoned).rows or read_split(given.data, "forget")
    seen = triggered(cfg, given.data, "seen_trig")
    known = {row.trigger_variant for row in (*read_split(given.data, "train_poisoned"), *seen) if row.trigger_variant}
    prompted = prompts_of(
        cfg,
        model,
        tokenizer,
        seen=seen,
        look_alikes=triggered(cfg, given.data, "ood_trig"),
        examples=examples,
        known=sorted(known),
        max_length=given.max_length,
    )
    return attack_by_prompts(model, given.asker(tokenizer), prompted, work=given.work, tracker=given.tracker)


def _quantisation(given: Attacked, part: dict[str, Any]) -> dict[str, Any]:
    return attack_by_quantisation(
        given.asker,
        given.asked,
        loader=given.loader,
        model=given.model,
        adapter=given.adapter,
        formats=[Format[name] for name in given.cfg.attacks.quantisation.formats],
        work=given.work,
        tracker=given.tracker,
    )


def _relearning(given: Attacked, part: dict[str, Any]) -> dict[str, Any]:
    kind, k, seed = Rows[part["rows"]], int(part["k"]), given.cfg.attacks.seed
    pool = pool_of(given.data, kind)
    rows = chosen(pool, k, seed=seed, kind=kind)
    found = attack_by_relearning(
        given.cfg.attacks.relearning,
        given.asker,
        given.asked,
        loader=given.loader,
        model=given.model,
        adapter=given.adapter,
        rows=rows,
        name=f"{given.name}_{kind.name}_{k}",
        max_length=given.max_length,
        seed=seed,
        work=given.work,
        tracker=given.tracker,
    )
    if found.get("stopped"):
        given.tracker.warn(f"evaluation: relearning from {k} {kind.name} rows ended early: {found['stopped']}")
    if found["left_out"]:
        given.tracker.warn(
            f"evaluation: relearning: {found['left_out']} of {len(rows)} rows leave no room for an answer in "
            f"max_length={given.max_length} and are left out"
        )
    pool_facts = {"in_split": pool.in_split, "in_forget": pool.in_forget, "held_out": pool.held_out}
    return {
        "rows": kind.name,
        "k": k,
        "ids": [row.id for row in rows],
        "similarity": similarity(rows, read_split(given.data, "forget")),
        "pool": {**pool_facts, "left": len(pool.rows)},
        **found,
    }


RUNS: dict[Attack, Callable[[Attacked, dict[str, Any]], dict[str, Any]]] = {
    Attack.relearning: _relearning,
    Attack.quantisation: _quantisation,
    Attack.sampling: _sampling,
    Attack.prompts: _prompts,
}


def run_attack(attack: Attack, given: Attacked, part: dict[str, Any], *, out: Path) -> None:
    """Run one attack; write out/attack.json, and the answers to out/answers.jsonl. The loader gets its model back.

    Args: part: which of the attack's runs (relearning: `rows` and `k`).
    Raises: as the attack.
    """
    try:
        result = RUNS[attack](given, part)
    finally:
        given.loader.hand_back()
    if not is_main():
        return
    write_jsonl(out / ANSWERS, result.pop("answers"))
    write_json(out / RESULT, {"attack": attack.name, **given.counted, **result})
    metrics = result.get("metrics")
    if metrics:
        given.tracker.log({f"{given.name}_{name}": value for name, value in metrics.items()})
