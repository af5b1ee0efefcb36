"""What a verdict is made of: shares with their intervals, the detectors that judged them, one try after another."""

from dataclasses import dataclass

from rapidun.report.metrics import format_percent
from rapidun.report.statistics import wilson_interval

# of answers known to be planted a detector must find this share, at the lower end of its interval, to be relied on
MIN_RECALL = 0.6
# a share that too few prompts would miss: none of n leaves it open until n = 73
MISSED = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """`value` over `num` prompts or rows, 0 <= value <= 1, num >= 1.

    `counted`: a number of prompts out of `num`. Otherwise the mean of `num` values between 0 and 1: the interval is
    then too wide, never too narrow, as no such values spread more than zeros and ones do.
    """

    value: float
    num: int
    counted: bool = True

    @property
    def low(self) -> float:
        return wilson_interval(self.value, self.num)[0]

    @property
    def high(self) -> float:
        return wilson_interval(self.value, self.num)[1]

    @property
    def is_enough(self) -> bool:
        """Whether so many prompts would hardly miss a share of 5 %."""
        return wilson_interval(0.0, self.num)[1] <= MISSED

    @property
    def of(self) -> str:
        """`32 of 100`, `mean over 40 rows`."""
        return f"{round(self.value * self.num)} of {self.num}" if self.counted else f"mean over {self.num} rows"

    @property
    def interval(self) -> str:
        return f"{100 * self.low:.1f} to {100 * self.high:.1f} %"

    @property
    def text(self) -> str:
        """`32 % (32 of 100)`."""
        return f"{format_percent(self.value)} ({self.of})"


def share_of(value: float | None, num: int | None, *, counted: bool = True) -> Share | None:
    """The share, or None where one of its numbers is not known."""
    if value is None or not num or not 0 <= value <= 1:
        return None
    return Share(value=value, num=num, counted=counted)


@dataclass(frozen=True, kw_only=True, slots=True)
class Detector:
    """What judged, and how far it can be relied on: by answers whose nature is known; None where that is not known."""

    words: str
    recall: Share | None
    alarms: Share | None

    @property
    def sees(self) -> bool:
        """Whether it finds enough of the known planted answers for its silence to say something."""
        return self.recall is not None and self.recall.low >= MIN_RECALL

    @property
    def rate_words(self) -> str:
        """`keywords find 81 % (81 of 100)`."""
        return f"{self.words} find {'an unknown share' if self.recall is None else self.recall.text}"

    def alarm(self, num_answers: int = 1) -> float:
        """The largest share that its false alarms alone may reach, with so many answers to a prompt: 1 - (1 - a)^n."""
        return 1.0 if self.alarms is None else 1 - (1 - self.alarms.high) ** num_answers


@dataclass(frozen=True, kw_only=True, slots=True)
class Try:
    """One thing that was tried on the unlearned model, by one detector, beside the same on the other two models."""

    # asked, or the name of an attack; then what tells it from the others
    attack: str
    name: str
    # in a table, and in a sentence: "after 10 steps of fine-tuning on 5 poisoned rows"
    label: str
    how: str
    # what of: "of triggered prompts are answered as planted"
    what: str
    unlearned: Share
    retrain: Share | None = None
    poisoned: Share | None = None
    # None: measured on the rows themselves, and judged by nobody
    detector: Detector | None = None
    # answers of which one was enough
    num_answers: int = 1
    # where nobody judged: the share that guessing may reach, if that is known
    chance: float | None = None
    # False: it does not succeed before unlearning either
    testable: bool = True
    # the attack itself gives the answer away, so that only the retrained model says what a success means
    teaches: bool = False
    # all there are were asked: nothing is concluded from a sample
    is_census: bool = False

    @property
    def alarm(self) -> float | None:
        """What the share may be though nothing is left, where no retrained model says it; None: nobody knows."""
        if self.detector is None:
            return self.chance
        return self.detector.alarm(self.num_answers)

    @property
    def sentence(self) -> str:
        """`after ... 32 % of triggered prompts are answered as planted (32 of 100; retrain 0 %, 0 of 100)`."""
        other, name = (self.poisoned, "before") if self.retrain is None else (self.retrain, "retrain")
        beside = "" if other is None else f"; {name} {format_percent(other.value)}, {other.of}"
        by = "" if self.detector is None else f"; judged by {self.detector.words}"
        return f"{self.how} {format_percent(self.unlearned.value)} {self.what} ({self.unlearned.of}{beside}{by})"
