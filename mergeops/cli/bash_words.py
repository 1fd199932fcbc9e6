"""Completion in bash, which hands out words that it has cut at every ``=`` and ``:``."""

from __future__ import annotations

from click.shell_completion import BashComplete, CompletionItem

CUTS = "=:"


class BashWords(BashComplete):
    """Puts the words together again, and offers only what stands behind the last cut, which is
    what bash replaces."""

    _cut = 0
    """How much of the word at the cursor bash takes for words before it."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The whole words before the cursor, and the whole one at it."""
        before, incomplete = super().get_completion_args()
        words: list[str] = []
        for word in (*before, incomplete):
            is_cut = bool(word) and bool(words) and (word[0] in CUTS or words[-1][-1:] in CUTS)
            if is_cut and words[-1]:
                words[-1] += word
            else:
                words.append(word)
        *whole, at_cursor = words
        self._cut = len(at_cursor) - len(incomplete.lstrip(CUTS))
        return whole, at_cursor

    def format_completion(self, item: CompletionItem) -> str:
        """Kind and text for the shell."""
        return f"{item.type},{item.value[self._cut :]}"
