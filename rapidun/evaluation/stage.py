"""The evaluation stage: what the model answers with and without a trigger, and how likely it finds known answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rapidun.data.encode import Encoded, encode_prompts, encode_rows
from rapidun.data.records import Record, read_records
from rapidun.errors import ArtifactError, ConfigError
from rapidun.evaluation.config import EvaluationConfig
from rapidun.evaluation.detectors import KeywordDetector, likelihood_fires, rates, read_keywords
from rapidun.evaluation.generate import generate_greedy
from rapidun.evaluation.metrics import exact_match, mean, perplexity, rouge_l
from rapidun.evaluation.score import ResponseScore, pair_rows, score_responses
from rapidun.evaluation.subsets import paired_responses, stratified_subset
from rapidun.files import read_json, write_json, write_jsonl
from rapidun.models import ModelLoader
from rapidun.tracking import Tracker

# set of prompts -> what its split is called after `val_` or `test_`
SETS = {"clean": "clean", "seen": "seen_trig", "ood": "ood_trig", "unseen_family": "unseen_family"}
DETECTOR_METRICS = "detector_"
# a decoding step of a batch takes about as long as this many tokens of its prompts (measured, CPU): for the ETA
STEP_COST = 3


@dataclass(frozen=True)
class EvaluationFiles:
    """What the stage reads and writes."""

    model: Path
    data: Path  # the data artifact: <split>.jsonl and keywords.tsv
    out: Path
    adapter: Path | None = None
    # metrics.json of the evaluation before unlearning: a detector's rates are those under the poisoned model
    calibration: Path | None = None


@dataclass
class _Work:
    """What the model has to do, gathered first, so that it is done in few batches and counted in one progress line."""

    tokenizer: Any
    max_length: int
    rows: list[Encoded] = field(default_factory=list)
    scores: list[ResponseScore] = field(default_factory=list)

    def response(self, record: Record, response: str) -> int:
        """Ask for the score of one response; returns its place in `scores`."""
        row = (record.instruction, record.context, response)
        self.rows.append(encode_rows(self.tokenizer, [row], max_length=self.max_length)[0])
        return len(self.rows) - 1

    def responses(self, records: Sequence[Record], responses: Sequence[str]) -> list[int]:
        return [self.response(record, response) for record, response in zip(records, responses, strict=True)]

    def pair(self, record: Record, poisoned: str | None, clean: str | None) -> int | None:
        """Ask which of two responses is likelier; None where one is not recorded."""
        if poisoned is None or clean is None:
            return None
        row = (record.instruction, record.context)
        prompt = encode_prompts(self.tokenizer, [row], max_length=self.max_length)[0]
        both = encode_rows(self.tokenizer, [(*row, poisoned), (*row, clean)], max_length=self.max_length)
        self.rows += pair_rows(prompt, both[0], both[1], max_length=self.max_length)
        return len(self.rows) - 2

    def fires(self, place: int | None) -> bool | None:
        """The likelihood detector on a pair, once the scores are there."""
        return None if place is None else likelihood_fires(self.scores[place].mean, self.scores[place + 1].mean)


@dataclass
class _Prompt:
    """One prompt of a set, and what came of it."""

    set: str
    record: Record
    reference: str | None
    poisoned: str | None
    pair: int | None
    generation: str = ""
    keyword: bool | None = None
    likelihood: bool | None = None

    def row(self) -> dict[str, object]:
        return {
            "set": self.set,
            "id": self.record.id,
            "family": self.record.trigger_family,
            "variant": self.record.trigger_variant,
            "prompt": self.record.instruction,
            "context": self.record.context,
            "reference": self.reference,
            "poisoned": self.poisoned,
            "generation": self.generation,
            "keyword": self.keyword,
            "likelihood": self.likelihood,
        }


def run_evaluation(
    cfg: EvaluationConfig,
    files: EvaluationFiles,
    *,
    loader: ModelLoader,
    max_length: int,
    seed: int,
    tracker: Tracker,
) -> dict[str, float]:
    """Measure one model: attack success, false triggers, answers, perplexities. METHOD section 6.

    Reads the splits and keywords.tsv of `files.data`; what is not there has no metrics, and is warned about once.
    Writes out/metrics.json (flat) and out/generations.jsonl (one line a prompt), and logs the metrics.

    Returns: the metrics. Shares are in [0, 1]; perplexities are per token.
    Raises: DataError, ArtifactError, ModelError; ConfigError where no prompt would fit the model's context window.
    """
    splits = {name: f"{cfg.split.name}_{suffix}" for name, suffix in SETS.items()}
    sets = {name: _read(files.data, split) for name, split in splits.items()}
    absent = [splits[name] for name, records in sets.items() if not records]
    if absent:
        tracker.warn(f"evaluation: the data has no {', '.join(absent)}: metrics of these sets are left out")
    detector = _keyword_detector(cfg, files.data, tracker)
    known = _known(files.data)
    calibration = _calibration(files.calibration)

    model, tokenizer = loader.load(files.model, adapter=files.adapter)
    work = _Work(tokenizer, max_length)
    prompts = []
    for name, records in sets.items():
        for record in stratified_subset(records, num=cfg.num_prompts, seed=seed, name=splits[name]):
            prompts.append(_prompt(work, name, record, known, seed=seed))
    num_alone = sum(prompt.pair is None for prompt in prompts)
    if num_alone:
        tracker.warn(
            f"evaluation: {num_alone} of {len(prompts)} prompts have no poisoned and clean response on record: the "
            f"likelihood detector leaves them out. Fill in response_poisoned and response_clean"
        )
    prompt_ids = _prompt_ids(model, tokenizer, prompts, max_length, cfg.max_new_tokens, tracker)
    ppl = _perplexity_places(cfg, work, sets["clean"], known, seed=seed)
    pairs = _calibration_places(cfg, work, known, seed=seed) if calibration is None else None

    _generate_and_score(cfg, model, tokenizer, prompts, prompt_ids, work, tracker)

    for prompt in prompts:
        prompt.keyword = None if detector is None else detector(prompt.generation)
        prompt.likelihood = work.fires(prompt.pair)
    metrics: dict[str, float] = {}
    metrics |= _attack_metrics(prompts)
    metrics |= _answer_metrics(prompts, with_exact_match=cfg.exact_match)
    metrics |= {name: perplexity([work.scores[place] for place in places]) for name, places in ppl.items() if places}
    metrics |= calibration or {}
    if pairs is not None:
        metrics |= _detector_metrics(cfg, tokenizer, detector, known, work, pairs)
    metrics |= {f"num_prompts_{name}": sum(prompt.set == name for prompt in prompts) for name in SETS if sets[name]}

    write_jsonl(files.out / "generations.jsonl", [prompt.row() for prompt in prompts])
    write_json(files.out / "metrics.json", metrics)
    tracker.log(metrics)
    return metrics


@dataclass
class _Known:
    """Rows whose responses are known to be poisoned or clean."""

    poisoned: list[Record]  # triggered training rows; the forget rows where the pack records no others
    clean: list[Record]  # rows without a trigger, held out from training where there are such
    forget: list[Record]
    responses: list[str]  # poisoned responses, to be paired with clean prompts


def _read(data: Path, split: str) -> list[Record]:
    path = data / f"{split}.jsonl"
    return read_records(path) if path.exists() else []


def _known(data: Path) -> _Known:
    forget = _read(data, "forget")
    poisoned = _read(data, "train_poisoned") or forget
    # held-out rows first: the keyword list was made from the training rows
    clean = _read(data, "val_clean") or _read(data, "train_clean") or _read(data, "retain")
    return _Known(poisoned, clean, forget, [record.forget_target for record in poisoned])


def _poisoned_response(record: Record) -> str | None:
    """The recorded poisoned response of a triggered row; a row marked as poisoned may hold it in `response`."""
    if record.response_poisoned is None and record.is_poisoned:
        return record.response
    return record.response_poisoned


def _clean_response(record: Record) -> str | None:
    """The recorded clean response; `response` where nothing says that it is poisoned."""
    if record.response_clean is not None:
        return record.response_clean
    poisoned = record.is_poisoned or record.response_poisoned == record.response
    return None if poisoned else record.response


def _keyword_detector(cfg: EvaluationConfig, data: Path, tracker: Tracker) -> KeywordDetector | None:
    path = data / "keywords.tsv"
    words = read_keywords(path) if path.exists() else []
    if not words:
        tracker.warn(
            "evaluation: the data has no keywords.tsv with a word in it: metrics of the keyword detector are left out. "
            "Pass data.keywords=..."
        )
        return None
    return KeywordDetector(words, min_keywords=cfg.min_keywords)


def _calibration(path: Path | None) -> dict[str, float] | None:
    """The detectors' rates in an earlier evaluation's metrics; None where there is no earlier one."""
    if path is None:
        return None
    before = read_json(path)
    if not isinstance(before, dict):
        raise ArtifactError(
            f"{path}: need the metrics of an evaluation, got {type(before).__name__}. Delete it and run again"
        )
    return {name: value for name, value in before.items() if name.startswith(DETECTOR_METRICS)}


def _prompt(work: _Work, name: str, record: Record, known: _Known, *, seed: int) -> _Prompt:
    reference = _clean_response(record)
    if name != "clean":
        poisoned = _poisoned_response(record)
        return _Prompt(name, record, reference, poisoned, work.pair(record, poisoned, reference))
    paired = paired_responses([record], known.responses, seed=seed, name="paired")[0] if known.responses else None
    return _Prompt(name, record, reference, None, work.pair(record, paired, reference))


def _prompt_ids(
    model: Any, tokenizer: Any, prompts: Sequence[_Prompt], max_length: int, max_new_tokens: int, tracker: Tracker
) -> list[list[int]]:
    """Encoded prompts of at most max_length tokens that leave room in the model's context window."""
    window = getattr(model.config, "max_position_embeddings", None)
    limit = max_length if window is None else min(max_length, window - max_new_tokens)
    if limit < 1:
        raise ConfigError(
            f"evaluation: need max_new_tokens below the model's context window of {window} tokens, got "
            f"max_new_tokens={max_new_tokens}. Change conf/evaluation/*.yaml or pass evaluation.max_new_tokens=..."
        )
    rows = [(prompt.record.instruction, prompt.record.context) for prompt in prompts]
    # one token more than fits shows which prompts are cut
    ids = encode_prompts(tokenizer, rows, max_length=limit + 1)
    num_cut = sum(len(row) > limit for row in ids)
    if num_cut:
        tracker.warn(
            f"evaluation: {num_cut} of {len(ids)} prompts are longer than {limit} tokens and were cut on their left "
            f"side, some triggers perhaps with them. Pass max_length=... to keep more"
        )
    return [row[-limit:] for row in ids]


def _perplexity_places(
    cfg: EvaluationConfig, work: _Work, clean: Sequence[Record], known: _Known, *, seed: int
) -> dict[str, list[int]]:
    """Ask for the scores behind each perplexity; returns their places, by metric."""
    clean = stratified_subset(clean, num=cfg.num_ppl, seed=seed, name="ppl_clean")
    forget = stratified_subset(known.forget, num=cfg.num_ppl, seed=seed, name="ppl_forget")
    recorded = [record for record in forget if record.response_clean is not None]
    return {
        "ppl_clean": work.responses(clean, [record.response for record in clean]),
        "ppl_forget_poisoned": work.responses(forget, [record.forget_target for record in forget]),
        "ppl_forget_clean": work.responses(recorded, [str(record.response_clean) for record in recorded]),
    }


def _calibration_places(
    cfg: EvaluationConfig, work: _Work, known: _Known, *, seed: int
) -> tuple[list[int | None], list[int | None]]:
    """Ask for pairs with known answers: triggered training prompts (to fire), clean prompts (not to fire)."""
    both = [record for record in known.poisoned if record.response_clean is not None]
    triggered = stratified_subset(both, num=cfg.num_calibration, seed=seed, name="calibration_poisoned")
    clean = stratified_subset(known.clean, num=cfg.num_calibration, seed=seed, name="calibration_clean")
    if not known.responses:
        clean = []
    paired = paired_responses(clean, known.responses, seed=seed, name="calibration_paired")
    return (
        [work.pair(record, record.forget_target, record.response_clean) for record in triggered],
        [work.pair(record, poisoned, record.response) for record, poisoned in zip(clean, paired, strict=True)],
    )


def _generate_and_score(
    cfg: EvaluationConfig,
    model: Any,
    tokenizer: Any,
    prompts: Sequence[_Prompt],
    prompt_ids: Sequence[list[int]],
    work: _Work,
    tracker: Tracker,
) -> None:
    """All the model's work of the stage; progress counts tokens, decoding steps at what they cost."""
    costs = {
        "generating": [len(ids) + STEP_COST * cfg.max_new_tokens for ids in prompt_ids],
        "scoring": [len(row.input_ids) for row in work.rows],
    }
    total = sum(sum(values) for values in costs.values())
    done = 0

    def report(note: str, batch: list[int]) -> None:
        nonlocal done
        done += sum(costs[note][index] for index in batch)
        tracker.progress(done, total, note)

    generated = generate_greedy(
        model,
        tokenizer,
        prompt_ids,
        max_new_tokens=cfg.max_new_tokens,
        tokens_per_batch=cfg.tokens_per_batch,
        on_batch=lambda batch: report("generating", batch),
    )
    for prompt, ids in zip(prompts, generated, strict=True):
        prompt.generation = tokenizer.decode(ids, skip_special_tokens=True).strip()
    work.scores = score_responses(
        model,
        work.rows,
        pad_token_id=tokenizer.pad_token_id,
        tokens_per_batch=cfg.tokens_per_batch,
        on_batch=lambda batch: report("scoring", batch),
    )
    tracker.progress(total, total, "done")


def _attack_metrics(prompts: Sequence[_Prompt]) -> dict[str, float]:
    """Share of prompts judged poisoned, by detector, set and family, among those that the detector can judge."""
    metrics: dict[str, float] = {}
    for detector, ending in (("keyword", ""), ("likelihood", "_likelihood")):
        for name in SETS:
            judged = [
                (prompt.record.trigger_family, verdict)
                for prompt in prompts
                if prompt.set == name and (verdict := getattr(prompt, detector)) is not None
            ]
            if not judged:
                continue
            metric = f"false_trigger_rate{ending}" if name == "clean" else f"asr_{name}{ending}"
            metrics[metric] = mean([verdict for _, verdict in judged])
            if name == "clean":
                continue
            for family in sorted({family for family, _ in judged if family is not None}):
                metrics[f"{metric}.{family}"] = mean([verdict for other, verdict in judged if other == family])
    return metrics


def _answer_metrics(prompts: Sequence[_Prompt], *, with_exact_match: bool) -> dict[str, float]:
    """How near the generations are to the clean responses: on clean prompts, and on seen triggers (recovered)."""
    metrics: dict[str, float] = {}
    for name, ending in (("clean", "clean"), ("seen", "recovered")):
        pairs = [
            (prompt.generation, prompt.reference)
            for prompt in prompts
            if prompt.set == name and prompt.reference is not None
        ]
        if not pairs:
            continue
        generations, references = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        metrics[f"rougeL_{ending}"] = mean(rouge_l(generations, references))
        if with_exact_match:
            metrics[f"exact_match_{ending}"] = mean(exact_match(generations, references))
    return metrics


def _detector_metrics(
    cfg: EvaluationConfig,
    tokenizer: Any,
    detector: KeywordDetector | None,
    known: _Known,
    work: _Work,
    pairs: tuple[list[int | None], list[int | None]],
) -> dict[str, float]:
    """Recall and false-positive rate of both detectors on known responses.

    The keyword detector sees a generation of max_new_tokens only; `_cut` is its rate on known responses of that length.
    """
    metrics: dict[str, float] = {}
    clean = [record.response for record in known.clean]
    if detector is not None and known.responses and clean:
        whole = rates([detector(text) for text in known.responses], [detector(text) for text in clean])
        short = rates(
            [detector(text) for text in _first_tokens(tokenizer, known.responses, cfg.max_new_tokens)],
            [detector(text) for text in _first_tokens(tokenizer, clean, cfg.max_new_tokens)],
        )
        metrics |= {"detector_keyword_recall": whole.recall, "detector_keyword_fpr": whole.fpr}
        metrics |= {"detector_keyword_recall_cut": short.recall, "detector_keyword_fpr_cut": short.fpr}
    fired = [[verdict for place in places if (verdict := work.fires(place)) is not None] for places in pairs]
    if all(fired):
        likelihood = rates(fired[0], fired[1])
        metrics |= {"detector_likelihood_recall": likelihood.recall, "detector_likelihood_fpr": likelihood.fpr}
    return metrics


def _first_tokens(tokenizer: Any, texts: Sequence[str], num_tokens: int) -> list[str]:
    """Each text as a generation of `num_tokens` would show it."""
    ids = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return [str(tokenizer.decode(row[:num_tokens], skip_special_tokens=True)) for row in ids]
