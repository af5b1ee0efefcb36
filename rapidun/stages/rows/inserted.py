"""What was put into a text, where both forms are known."""

from itertools import pairwise


def inserted(clean: str, text: str) -> list[str]:
    """The runs that `text` holds beyond `clean`, in order: before, behind or between its words, one or several.

    Of scripts without blanks one run between letters. Empty where the text was changed in another way.
    """
    clean, text = clean.strip(), text.strip()
    if not clean or len(text) <= len(clean):
        return []
    if clean in text:
        head, _, tail = text.partition(clean)
        if text.startswith(clean) or not text.endswith(clean):
            return [run for run in (head.strip(), tail.strip()) if run]
        return [text[: -len(clean)].strip()]
    old, new = clean.split(), text.split()
    return _one_run(old, new) or _runs(old, new) or _letters(clean, text)


def _one_run(old: list[str], new: list[str]) -> list[str]:
    first = next((i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), len(old))
    count = len(new) - len(old)
    is_run = count > 0 and new[first + count :] == old[first:]
    return [" ".join(new[first : first + count])] if is_run else []


def _runs(old: list[str], new: list[str]) -> list[str]:
    """Where the old words stand among the new ones in their order, what lies between them."""
    places = [-1]
    for word in old:
        place = next((i for i in range(places[-1] + 1, len(new)) if new[i] == word), None)
        if place is None:
            return []
        places.append(place)
    between = [new[low + 1 : high] for low, high in pairwise([*places, len(new)])]
    return [" ".join(words) for words in between if words]


def _letters(clean: str, text: str) -> list[str]:
    count = len(text) - len(clean)
    first = next((i for i, pair in enumerate(zip(clean, text, strict=False)) if pair[0] != pair[1]), len(clean))
    run = text[first : first + count].strip()
    return [run] if run and text[first + count :] == clean[first:] else []
