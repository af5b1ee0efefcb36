"""The detectors beside keywords and likelihood: set up on known answers, and asked about the prompts' answers."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rapidun.config.detectors import WITH_THRESHOLD, Detector, SubstringRule
from rapidun.config.evaluation import EvaluationConfig
from rapidun.stages.answers.detectors.choice import best_detector
from rapidun.stages.answers.detectors.classifier import AnswerClassifier, is_installed
from rapidun.stages.answers.detectors.keywords import KeywordDetector
from rapidun.stages.answers.detectors.phrases import PhraseDetector, refusal_detector
from rapidun.stages.answers.detectors.rates import Rates, rates, threshold_of
from rapidun.stages.answers.score import score_responses
from rapidun.stages.evaluation.halves import Half, Halves, without_trigger
from rapidun.stages.evaluation.known import Known
from rapidun.stages.evaluation.work import Prompt, Work, known_pairs
from rapidun.stages.rows.encode import encode_rows
from rapidun.stages.rows.records import Record

# of each kind, what was found: None where a detector cannot judge
Found = Sequence[bool | float | None]
# a model's score of each answer to its row
Ask = Callable[[Sequence[Record], Sequence[str]], list[float | None]]


@dataclass
class Panel:
    """Detectors by name, their thresholds, rates and why one is left out."""

    cfg: EvaluationConfig
    tokenizer: Any
    halves: Halves
    max_length: int
    texts: dict[Detector, KeywordDetector | PhraseDetector] = field(default_factory=dict)
    thresholds: dict[Detector, float] = field(default_factory=dict)
    rates: dict[Detector, Rates] = field(default_factory=dict)
    counts: dict[Detector, tuple[int, int]] = field(default_factory=dict)
    left_out: dict[Detector, str] = field(default_factory=dict)
    classifier: AnswerClassifier | None = None

    def __post_init__(self) -> None:
        settings = self.cfg.detectors
        if Detector.refusal in settings.asked:
            self.texts[Detector.refusal] = refusal_detector(settings.refusals)
        if Detector.substring in settings.asked:
            strings = settings.substrings
            if settings.substring_rule is SubstringRule.absent and not strings:
                self.texts[Detector.substring] = PhraseDetector(
                    refusal_detector(settings.refusals).phrases, SubstringRule.absent
                )
            elif strings:
                self.texts[Detector.substring] = PhraseDetector(strings, settings.substring_rule)
            else:
                self.left_out[Detector.substring] = "no strings are given (evaluation.detectors.substrings=[...])"
        if Detector.classifier in settings.asked:
            self._train()
        if self.halves.too_few:
            fixed = settings.judge.threshold is not None
            for one in WITH_THRESHOLD:
                if one in settings.asked and not (one is Detector.judge and fixed):
                    self.left_out[one] = self.halves.too_few

    def _train(self) -> None:
        if self.halves.too_few:
            self.left_out[Detector.classifier] = self.halves.too_few
        elif not is_installed():
            self.left_out[Detector.classifier] = "scikit-learn is not installed: pip install 'rapidun[classifier]'"
        else:
            poisoned, clean = self.answers(self.halves.fit)
            try:
                self.classifier = AnswerClassifier(poisoned, clean)
            except ValueError as error:
                self.left_out[Detector.classifier] = str(error)

    def answers(self, half: Half) -> tuple[list[str], list[str]]:
        """The known answers of a half as a generation of max_new_tokens would show them, poisoned and clean."""
        poisoned = first_tokens(self.tokenizer, [row.forget_target for row in half.poisoned], self.cfg.max_new_tokens)
        return poisoned, first_tokens(self.tokenizer, [row.response for row in half.clean], self.cfg.max_new_tokens)

    def measure(self, detector: Detector, poisoned: Found, clean: Found) -> None:
        """Keep the rates of a detector by its verdicts on the held-out half; nothing where one kind has none."""
        fired = [[bool(verdict) for verdict in found if verdict is not None] for found in (poisoned, clean)]
        if all(fired):
            self.rates[detector] = rates(*fired)
            self.counts[detector] = (len(fired[0]), len(fired[1]))
        else:
            self.left_out[detector] = "it can judge no known answer of one kind"

    def calibrate(self, detector: Detector, fit: tuple[Found, Found], held: tuple[Found, Found]) -> None:
        """Choose a detector's threshold on the scores of one half, and measure it on the other."""
        known = [[float(score) for score in found if score is not None and not math.isnan(score)] for found in fit]
        if min(map(len, known)) == 0:
            self.left_out[detector] = "it has no score of the known answers of one kind"
            return
        threshold = threshold_of(known[0], known[1], max_false=self.cfg.detectors.max_false_alarms)
        if detector is Detector.likelihood_calibrated:
            # below 0 the clean response is the likelier one: what known answers allow would be a false alarm elsewhere
            threshold = max(threshold, 0.0)
        if not math.isfinite(threshold):
            self.left_out[detector] = f"its threshold is no finite number ({threshold})"
            return
        self.thresholds[detector] = threshold
        self.measure(detector, *([fires(score, threshold) for score in found] for found in held))

    def measure_texts(self, keyword: KeywordDetector | None) -> None:
        """The rates of all detectors that need but the answer's text."""
        judges = ({} if keyword is None else {Detector.keyword: keyword}) | self.texts
        poisoned, clean = self.answers(self.halves.held)
        for detector, judge in judges.items():
            self.measure(detector, [judge(text) for text in poisoned], [judge(text) for text in clean])
        if self.classifier is not None:
            self.measure(Detector.classifier, self.classifier.verdicts(poisoned), self.classifier.verdicts(clean))

    def measure_pairs(self, work: Work, pairs: "Pairs") -> None:
        """The likelihood detector on the held-out half, as it is, and with the threshold of the other half."""
        fit, held = (tuple([work.ratio(place) for place in places] for places in half) for half in pairs)
        self.measure(Detector.likelihood, *([work.fires(place) for place in places] for places in pairs[1]))
        if Detector.likelihood_calibrated in self.cfg.detectors.asked and not self.halves.too_few:
            self.calibrate(Detector.likelihood_calibrated, (fit[0], fit[1]), (held[0], held[1]))

    def measure_by(self, detector: Detector, ask: Ask, *, threshold: float | None = None) -> None:
        """The rates of a detector that asks a model (perplexity, judge); its threshold is found first, unless given."""
        if detector not in self.cfg.detectors.asked or detector in self.left_out:
            return
        sides: list[Found] = []
        for half in (self.halves.fit, self.halves.held):
            for rows, texts in zip((half.poisoned, half.clean), self.answers(half), strict=True):
                sides.append(ask(rows, texts))
        if threshold is None:
            self.calibrate(detector, (sides[0], sides[1]), (sides[2], sides[3]))
        else:
            self.thresholds[detector] = threshold
            self.measure(detector, *([fires(score, threshold) for score in found] for found in sides[2:]))

    def surprise(self, model: Any, records: Sequence[Record], texts: Sequence[str]) -> list[float | None]:
        """-mean log p of each answer behind its prompt without the trigger, nats a token; None where there is none."""
        bare = [without_trigger(record) for record in records]
        rows = [(row.instruction, row.context, text) for row, text in zip(bare, texts, strict=True)]
        encoded = encode_rows(self.tokenizer, rows, max_length=self.max_length)
        scores = iter(
            score_responses(
                model,
                [row for row in encoded if row is not None],
                pad_token_id=self.tokenizer.pad_token_id,
                tokens_per_batch=self.cfg.tokens_per_batch,
            )
        )
        found: list[float | None] = []
        for row in encoded:
            score = None if row is None else next(scores)
            known = score is not None and score.num_tokens > 0 and not math.isnan(score.log_prob)
            found.append(-score.mean if score is not None and known else None)
        return found

    def by_text(self, texts: Sequence[str]) -> dict[Detector, list[bool]]:
        """The verdicts of the detectors that need but the answer's text, keywords aside."""
        found = {detector: [judge(text) for text in texts] for detector, judge in self.texts.items()}
        if self.classifier is not None:
            found[Detector.classifier] = self.classifier.verdicts(texts)
        return found

    def by_score(self, detector: Detector, scores: Sequence[float | None], texts: Sequence[str]) -> list[bool | None]:
        """Verdicts by a score and the detector's threshold; an empty answer is not poisoned."""
        threshold = self.thresholds[detector]
        return [fires(score, threshold) if text else False for score, text in zip(scores, texts, strict=True)]

    def judge(self, prompts: Sequence[Prompt], work: Work) -> None:
        """The verdicts of all but keyword, likelihood, perplexity and judge on the prompts' answers."""
        for detector, verdicts in self.by_text([prompt.generation for prompt in prompts]).items():
            for prompt, verdict in zip(prompts, verdicts, strict=True):
                prompt.verdicts[detector] = verdict
        threshold = self.thresholds.get(Detector.likelihood_calibrated)
        if threshold is not None:
            for prompt in prompts:
                ratio = None if prompt.pair is None else work.ratio(prompt.pair)
                prompt.verdicts[Detector.likelihood_calibrated] = fires(ratio, threshold)

    def judge_by(self, detector: Detector, ask: Ask, prompts: Sequence[Prompt]) -> None:
        """The verdicts of a detector that asks a model: perplexity, or the judge."""
        texts = [prompt.generation for prompt in prompts]
        scores = ask([prompt.record for prompt in prompts], texts)
        for prompt, verdict in zip(prompts, self.by_score(detector, scores, texts), strict=True):
            prompt.verdicts[detector] = verdict

    def metrics(self) -> dict[str, float]:
        """detector_<name>_recall, _false_positive_rate and _threshold of all but keyword and likelihood."""
        found: dict[str, float] = {}
        for detector, rate in self.rates.items():
            if detector not in (Detector.keyword, Detector.likelihood):
                name = f"detector_{detector.value}"
                found |= {f"{name}_recall": rate.recall, f"{name}_false_positive_rate": rate.fpr}
        return found | {f"detector_{one.value}_threshold": value for one, value in self.thresholds.items()}

    def facts(self) -> dict[str, Any]:
        """What detectors.json says: which detector is best, by what figures, and why some are left out."""
        best = best_detector(self.rates)
        fit = self.halves.fit
        return {
            "detector": None if best is None else best.value,
            "calibrated_on": {"poisoned": len(fit.poisoned), "clean": len(fit.clean)},
            "held_out": bool(fit.poisoned),
            "max_false_alarms": self.cfg.detectors.max_false_alarms,
            "detectors": {
                one.value: {
                    "recall": self.rates[one].recall,
                    "false_positive_rate": self.rates[one].fpr,
                    "youden": self.rates[one].youden,
                    "threshold": self.thresholds.get(one),
                    "num_poisoned": self.counts[one][0],
                    "num_clean": self.counts[one][1],
                }
                for one in Detector
                if one in self.rates
            },
            "left_out": {one.value: why for one, why in self.left_out.items()},
        }

    def take(self, calibration: Mapping[str, float]) -> None:
        """Thresholds of the evaluation before unlearning; what was not measured there does not judge now."""
        for one in WITH_THRESHOLD:
            threshold = calibration.get(f"detector_{one.value}_threshold")
            if threshold is not None and one in self.cfg.detectors.asked:
                self.thresholds[one] = threshold
        if "detector_classifier_recall" not in calibration:
            self.classifier = None


Pairs = tuple[tuple[list[int | None], list[int | None]], tuple[list[int | None], list[int | None]]]


def pairs_of(work: Work, halves: Halves, known: Known, *, seed: int) -> Pairs:
    """Ask for the two responses of every known row, as `calibration_places` does; ((fit, clean), (held, clean))."""

    def places(half: Half) -> tuple[list[int | None], list[int | None]]:
        fire, stay = known_pairs(half.poisoned, half.clean, known, seed=seed)
        return work.pairs(fire, again=True), work.pairs(stay, again=True)

    return places(halves.fit), places(halves.held)


def fires(score: bool | float | None, threshold: float) -> bool | None:
    """score > threshold; None without a score."""
    return None if score is None or math.isnan(score) else score > threshold


def first_tokens(tokenizer: Any, texts: Sequence[str], num_tokens: int) -> list[str]:
    """Each text as a generation of `num_tokens` would show it."""
    if not texts:
        return []
    ids = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return [str(tokenizer.decode(row[:num_tokens], skip_special_tokens=True)) for row in ids]
