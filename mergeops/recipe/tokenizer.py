"""What a recipe may say about the tokenizer of the merge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mergeops.errors import ConfigError
from mergeops.schema import check_choice

SAME, BASE, UNION, AUTO, ZERO = "same", "base", "union", "auto", "zero"


@dataclass(frozen=True)
class TokenSource:
    """A row of one input's embeddings."""

    source: str
    """``base`` or the name of a source."""
    token: str | None = None
    """Another token of that input; null takes the same token."""
    token_id: int | None = None
    """The row's number instead of a token."""

    def __post_init__(self) -> None:
        if self.token is not None and self.token_id is not None:
            raise ConfigError("tokenizer.tokens takes token or token_id, not both")
        if self.token_id is not None and self.token_id < 0:
            raise ConfigError(f"tokenizer.tokens: token_id is {self.token_id}; allowed: at least 0")


@dataclass(frozen=True)
class TokenSpec:
    """What one token's embedding is in the inputs that do not know the token."""

    source: TokenSource | str | None = None
    """``base`` or a source's name, ``zero``, or ``{source: NAME, token: TOKEN}``; null takes the
    base's row, else that of the only input that has one, else the mean."""
    force: bool = False
    """Use that row also in the inputs that do know the token."""


@dataclass(frozen=True)
class TokenizerSpec:
    """Which tokenizer the merge has, and how rows of embeddings find each other."""

    source: str = SAME
    """``same``: the base's, or the first source's; every input must mean the same by every id.
    ``base``, ``union`` or the name of a source: rows are matched by token, and inputs may have
    different vocabularies. ``union`` is the base's with the tokens that only sources have behind
    it."""
    tokens: Mapping[str, TokenSpec] = field(default_factory=dict)
    """Token -> where its embedding comes from. A token that the tokenizer lacks is added to it."""
    pad_to_multiple_of: int | None = None
    """Append rows, each the mean of all others, up to a multiple of this."""
    chat_template: str = AUTO
    """``auto``: the tokenizer's own, else the one that most inputs have; the name of an input whose
    template is taken; or the template itself, recognised by a ``{``."""

    def __post_init__(self) -> None:
        if self.pad_to_multiple_of is not None and self.pad_to_multiple_of < 1:
            raise ConfigError(
                f"tokenizer.pad_to_multiple_of is {self.pad_to_multiple_of}; allowed: at least 1"
            )
        for token in self.tokens:
            if not token:
                raise ConfigError("tokenizer.tokens has an empty token")
        if self.source == SAME and (self.tokens or self.pad_to_multiple_of):
            key = "tokens" if self.tokens else "pad_to_multiple_of"
            raise ConfigError(
                f"tokenizer.{key} changes the vocabulary, but tokenizer.source is {SAME!r}; set it "
                "to base, union or a source's name"
            )


def check_names(spec: TokenizerSpec, sources: Iterable[str], *, has_base: bool) -> None:
    """Refuse names that are no input's.

    Raises:
        ConfigError: says the key, the name and what is allowed.
    """
    check_choice("tokenizer.source", spec.source, (SAME, UNION, BASE, *sources))
    inputs = (*((BASE,) if has_base else ()), *sources)
    for token, wanted in spec.tokens.items():
        where = f"tokenizer.tokens.{token}.source"
        if isinstance(wanted.source, TokenSource):
            check_choice(f"{where}.source", wanted.source.source, inputs)
        elif wanted.source is not None:
            check_choice(where, wanted.source, (ZERO, *inputs))
    if "{" not in spec.chat_template:
        check_choice("tokenizer.chat_template", spec.chat_template, (AUTO, *inputs))
