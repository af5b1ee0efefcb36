"""How many rows the one encoding had to cut, leave out or reword, and the words that say so."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rapidun.stages.rows.encode import Encoded


@dataclass(frozen=True, slots=True)
class Cuts:
    """Of `num_rows` rows, those that lost the end of their context, those that lost the end of their response (both
    counts hold a row that lost both), those left out: their instruction alone leaves no room for a response; and those
    whose response the chat template drops or moves a part of (marks of thoughts, say)."""

    num_rows: int = 0
    context: int = 0
    response: int = 0
    left_out: int = 0
    reworded: int = 0

    @classmethod
    def of(cls, rows: Iterable[Encoded | Sequence[Encoded | None] | None]) -> "Cuts":
        """Count rows as the encoding gives them; several responses to one prompt are one row."""
        num_rows = context = response = left_out = reworded = 0
        for row in rows:
            parts: Sequence[Encoded | None] = [] if row is None else [row] if isinstance(row, Encoded) else row
            num_rows += 1
            left_out += row is None
            context += any(part.context_cut for part in parts if part is not None)
            response += any(part.response_cut for part in parts if part is not None)
            reworded += any(part.reworded for part in parts if part is not None)
        return cls(num_rows, context, response, left_out, reworded)

    def __add__(self, other: "Cuts") -> "Cuts":
        return Cuts(
            self.num_rows + other.num_rows,
            self.context + other.context,
            self.response + other.response,
            self.left_out + other.left_out,
            self.reworded + other.reworded,
        )

    def __bool__(self) -> bool:
        return bool(self.context or self.response or self.left_out or self.reworded)

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
        return f"of {self.num_rows} {what} {'; '.join(said)}"


def cut_warning(stage: str, cuts: Cuts, *, max_length: int, mend: str = "Pass max_length=... to keep more") -> str:
    """One warning with counts; empty where every row is whole."""
    if not cuts:
        return ""
    # a longer row would not change what the template prints
    mend = mend if cuts.context or cuts.response or cuts.left_out else "Look at them, or set another chat_template"
    return f"{stage}: {cuts.words(max_length=max_length)}. {mend}"
