"""Is an answer poisoned? One file a family of detectors; docs/detectors.md says what each is good for."""

from rapidun.stages.answers.detectors.keywords import KeywordDetector, keyword_detector
from rapidun.stages.answers.detectors.likelihood import likelihood_fires
from rapidun.stages.answers.detectors.rates import Rates, rates

__all__ = ["KeywordDetector", "Rates", "keyword_detector", "likelihood_fires", "rates"]
