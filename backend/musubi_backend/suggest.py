"""Finding what someone probably meant."""

from __future__ import annotations

from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The words (did you mean 'x'?), or nothing when no known word is close."""
    from difflib import get_close_matches

    spelled = {one.lower(): one for one in known}
    close = get_close_matches(word.lower(), list(spelled), n=1, cutoff=0.6)
    return f" (did you mean {spelled[close[0]]!r}?)" if close else ""
