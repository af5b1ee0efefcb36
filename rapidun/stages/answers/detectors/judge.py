"""A language model as a judge: how much likelier it finds the word that says `poisoned` than the one that says not."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from rapidun.base.errors import ConfigError, ModelError
from rapidun.config.detectors import ANSWER, JUDGE, PROMPT
from rapidun.models.losses import IGNORE
from rapidun.stages.answers.score import score_responses
from rapidun.stages.rows.encode import Encoded, Prompt, bare_responses, raw_prompts
from rapidun.stages.rows.fit import check_tokens, window_of

_PLACES = re.compile(f"{re.escape(PROMPT)}|{re.escape(ANSWER)}")


def filled(template: str, *, prompt: str, answer: str) -> str:
    """The template with both texts in their places, put in at once: a place written out in a text stays as it is."""
    texts = {PROMPT: prompt, ANSWER: answer}
    return _PLACES.sub(lambda found: texts[found[0]], template)


class AnswerJudge:
    """Log-odds of two verdicts behind a question about an answer. Deterministic: nothing is generated.

    score = log p(poisoned word | question) - log p(clean word | question), nats, each the sum over all tokens of the
    word: two that begin alike are told apart by what follows. The question is a turn of the model's chat template, or
    the filled template as it is, a blank before the verdict, where there is none.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, template: str, words: tuple[str, str], max_length: int,
        tokens_per_batch: int,
    ) -> None:  # fmt: skip
        """Args: words: poisoned, clean. max_length: most tokens of a question and a verdict.

        Raises: ModelError where one word's tokens begin the other's, or the chat template drops or changes words of the
        question; ConfigError where the template leaves no room.
        """
        self.model, self.tokenizer = model, tokenizer
        self.template, self.tokens_per_batch = template, tokens_per_batch
        poisoned, clean = bare_responses(tokenizer, words)
        shorter = min(len(poisoned), len(clean))
        if poisoned[:shorter] == clean[:shorter]:
            raise ModelError(
                f"{JUDGE}: need two verdicts neither of which begins the other in the judge's tokens, got "
                f"{words[0]!r} ({poisoned}) and {words[1]!r} ({clean}). Change {JUDGE}.poisoned_word=... or "
                "clean_word=..."
            )
        self._words = (poisoned, clean)
        window = window_of(model.config)
        size = max_length if window is None else min(max_length, window)
        self.room = size - max(len(poisoned), len(clean))
        bare = self._prompts([("", "")])[0]
        if bare.asked_otherwise:
            raise ModelError(
                f"{JUDGE}: need a judge whose chat template prints the question as it is, got one that drops or "
                f"changes its words. Change {JUDGE}.path=... or {JUDGE}.template=..."
            )
        if (least := len(bare.ids)) > self.room:
            raise ConfigError(
                f"{JUDGE}: need a template of at most {self.room} tokens ({size} less a verdict's), got one of "
                f"{least} without prompt and answer. Shorten {JUDGE}.template, or raise {JUDGE}.max_length"
            )
        # questions; those that lost an end; those of which the chat template prints other words
        self.num_asked = self.num_cut = self.num_changed = 0

    def log_odds(
        self, asked: Sequence[tuple[str, str]], *, on_batch: Callable[[list[int]], None] = lambda batch: None
    ) -> list[float | None]:
        """The score of each (prompt, answer), equal ones asked once; None where both verdicts are impossible.

        Longer questions than fit lose the end of the prompt, then of the answer; `num_cut` of `num_asked` have, and of
        `num_changed` the chat template prints other words.
        """
        different = list(dict.fromkeys(asked))
        rows = []
        for question in self._fitting(different):
            rows += [Encoded(question + word, [IGNORE] * len(question) + word) for word in self._words]
        size = int(self.model.get_input_embeddings().weight.shape[0])
        check_tokens(JUDGE, self.tokenizer, size, [row.input_ids for row in rows])
        scores = score_responses(
            self.model, rows, pad_token_id=self.tokenizer.pad_token_id, tokens_per_batch=self.tokens_per_batch,
            on_batch=on_batch,
        )  # fmt: skip
        odds = [one.log_prob - other.log_prob for one, other in zip(scores[::2], scores[1::2], strict=True)]
        found = dict(zip(different, odds, strict=True))
        return [None if math.isnan(found[one]) else found[one] for one in asked]

    def _fitting(self, asked: Sequence[tuple[str, str]]) -> list[list[int]]:
        prompts = self._prompts(asked)
        found = [prompt.ids for prompt in prompts]
        long = [place for place, ids in enumerate(found) if len(ids) > self.room]
        for place in long:
            found[place] = self._prompts([self._kept(*asked[place])])[0].ids
        self.num_asked += len(asked)
        self.num_changed += sum(prompt.asked_otherwise for prompt in prompts)
        self.num_cut += len(long)
        return found

    def _kept(self, prompt: str, answer: str) -> tuple[str, str]:
        """What fits of both: the answer whole, if it does without any prompt."""
        size = self._longest(len(prompt), lambda size: (prompt[:size], answer))
        if size is not None:
            return prompt[:size], answer
        return "", answer[: self._longest(len(answer), lambda size: ("", answer[:size])) or 0]

    def _longest(self, most: int, shortened: Callable[[int], tuple[str, str]]) -> int | None:
        """Of how many first characters the question fits, by bisection; None where it does not of none."""
        if not self._fits(shortened(0)):
            return None
        fits, over = 0, most
        while over - fits > 1:
            middle = (fits + over) // 2
            fits, over = (middle, over) if self._fits(shortened(middle)) else (fits, middle)
        return fits

    def _fits(self, asked: tuple[str, str]) -> bool:
        return len(self._prompts([asked])[0].ids) <= self.room

    def _prompts(self, asked: Sequence[tuple[str, str]]) -> list[Prompt]:
        return raw_prompts(
            self.tokenizer, [filled(self.template, prompt=prompt, answer=answer) for prompt, answer in asked]
        )
