"""How many rows the one encoding had to cut, leave out or reword, and the words that say so."""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

from rapidun.base.errors import ModelError
from rapidun.stages.rows.encode import Encoded, Prompt

# of a row's tokens: from here on nothing can be learnt from it
MOSTLY = 0.5


@dataclass(frozen=True, slots=True)
class Cuts:
    """Of `num_rows` rows, those that lost the end of their context, those that lost the end of their response (both
    counts hold a row that lost both), those left out: their instruction alone leaves no room for a response; and those
    whose response the chat template drops or moves a part of (marks of thoughts, say); those whose user's words it
    prints otherwise; those with tokens that the vocabulary lacks, and those of them of which it lacks at least half."""

    num_rows: int = 0
    context: int = 0
    response: int = 0
    left_out: int = 0
    reworded: int = 0
    asked_otherwise: int = 0
    unknown: int = 0
    mostly_unknown: int = 0

    @classmethod
    def of(cls, rows: Iterable[Encoded | Sequence[Encoded | None] | None]) -> "Cuts":
        """Count rows as the encoding gives them; several responses to one prompt are one row."""
        num_rows = context = response = left_out = reworded = asked_otherwise = unknown = mostly_unknown = 0
        for row in rows:
            parts = (
                [] if row is None else [row] if isinstance(row, Encoded) else [one for one in row if one is not None]
            )
            num_rows += 1
            left_out += row is None
            context += any(part.context_cut for part in parts)
            response += any(part.response_cut for part in parts)
            reworded += any(part.reworded for part in parts)
            asked_otherwise += any(part.asked_otherwise for part in parts)
            unknown += any(part.unknown > 0 for part in parts)
            mostly_unknown += any(part.unknown >= MOSTLY for part in parts)
        return cls(num_rows, context, response, left_out, reworded, asked_otherwise, unknown, mostly_unknown)

    @classmethod
    def of_prompts(cls, prompts: Sequence[Prompt | None]) -> "Cuts":
        """Count prompts, which have no response."""
        return cls.of(
            one and Encoded(one.ids, [], one.context_cut, asked_otherwise=one.asked_otherwise, unknown=one.unknown)
            for one in prompts
        )

    def __add__(self, other: "Cuts") -> "Cuts":
        return Cuts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __bool__(self) -> bool:
        return any(astuple(self)[1:])

    def check(self, stage: str) -> None:
        """Raises: ModelError where no row says to the model what it says."""
        kept = self.num_rows - self.left_out
        if kept and self.asked_otherwise == kept:
            raise ModelError(
                f"{stage}: need a chat template that prints the user's words as they are, got one that drops or "
                f"changes them, or prints other text around them, in each of {kept} rows. Set another chat_template in "
                "tokenizer_config.json (or chat_template.jinja) of the model's folder"
            )
        if kept and self.mostly_unknown == kept:
            raise ModelError(
                f"{stage}: need a tokenizer that knows the rows' words, got one whose vocabulary lacks half of them or "
                f"more in each of {kept} rows. Change model.path=..., or take the tokenizer that belongs to the model"
            )

    def words(self, *, max_length: int, what: str = "rows") -> str:
        """`of 799 rows 200 lost ..., 31 ..., 2 were left out`."""
        parts = []
        if self.context:
            parts.append(f"{self.context} lost the end of their context")
        if self.response:
            parts.append(f"{self.response} lost the end of their response")
        if self.left_out:
            parts.append(f"{self.left_out} were left out (their instruction alone leaves no room for a response)")
        said = [f"{', '.join(parts)}, to fit into {max_length} tokens"] if parts else []
        if self.reworded:
            said.append(
                f"{self.reworded} have a response that the chat template prints only in part or in another place "
                "(marks of thoughts in it, say)"
            )
        said += self.odd_words()
        return f"of {self.num_rows} {what} {'; '.join(said)}"

    def odd_words(self) -> list[str]:
        """What is said of rows whose words reach the model as others."""
        said = []
        if self.asked_otherwise:
            said.append(
                f"{self.asked_otherwise} have user's words that the chat template drops or changes, or prints other "
                "text around"
            )
        if self.unknown:
            said.append(
                f"{self.unknown} have words that the tokenizer's vocabulary lacks (all such words are one token)"
            )
        return said


def cut_warning(stage: str, cuts: Cuts, *, max_length: int, mend: str = "Pass max_length=... to keep more") -> str:
    """One warning with counts; empty where every row is whole. Raises: as `Cuts.check`."""
    cuts.check(stage)
    if not cuts:
        return ""
    # a longer row would not change what the template prints
    mend = (
        mend
        if cuts.context or cuts.response or cuts.left_out
        else "Look at them, or set another chat_template or tokenizer"
    )
    return f"{stage}: {cuts.words(max_length=max_length)}. {mend}"
