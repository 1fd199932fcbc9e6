"""Which tokens of two vocabularies are the same: by the bytes of the text that they stand for."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mergeops.checkpoint import TokenizerFile, read_json
from mergeops.errors import MergeError
from mergeops.planning import Vocabulary, has_vocabulary, read_vocabulary

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE = "\u2581"
"""What stands for a space in tokens of sentencepiece."""
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tokens:
    """A vocabulary, and the bytes of its tokens."""

    vocabulary: Vocabulary
    is_bytes: bool
    """Whether a character of a token stands for a byte, as in GPT-2."""

    @classmethod
    def read(cls, directory: Path) -> Tokens:
        """The vocabulary of a directory.

        Raises:
            MergeError: it has none.
            SourceError: tokenizer.json is none.
        """
        if not has_vocabulary(directory):
            raise MergeError(
                f"{directory} has no {TokenizerFile.TOKENIZER}, by which tokens are matched; write "
                "one with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
            )
        content = read_json(directory / TokenizerFile.TOKENIZER)
        said = json.dumps([content.get("pre_tokenizer"), content.get("decoder")])
        return cls(read_vocabulary(directory), '"ByteLevel"' in said)

    @property
    def count(self) -> int:
        """Rows that hold all tokens."""
        return 1 + max(self.vocabulary.ids.values())

    def content(self, token: str) -> bytes:
        """The text that a token stands for; of an added one its own."""
        if token in self.vocabulary.added:
            return token.encode()
        if self.is_bytes:
            return b"".join(_bytes_of_characters().get(c, c.encode()) for c in token)
        if (byte := _BYTE.fullmatch(token)) is not None:
            return bytes([int(byte[1], 16)])
        return token.replace(SPACE, " ").encode()


@functools.cache
def _bytes_of_characters() -> Mapping[str, bytes]:
    """GPT-2's characters for bytes: those that print stand for themselves, the others follow from
    256 on (Radford et al. 2019)."""
    prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in prints]
    table = {chr(byte): bytes([byte]) for byte in prints}
    return table | {chr(256 + i): bytes([byte]) for i, byte in enumerate(others)}


def matched(model: Tokens, donor: Tokens) -> tuple[Ids, Ids]:
    """Ids of the same tokens, in the model and in the donor, in the order of the donor's ids."""
    ours: dict[tuple[bool, bytes], int] = {}
    for token, i in sorted(model.vocabulary.ids.items(), key=lambda item: item[1]):
        # A special token is another one than text of the same letters.
        ours.setdefault((_is_special(model, token), model.content(token)), i)
    pairs = []
    for token, i in sorted(donor.vocabulary.ids.items(), key=lambda item: item[1]):
        found = ours.get((_is_special(donor, token), donor.content(token)))
        if found is not None:
            pairs.append((found, i))
    both = np.array(pairs, np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _is_special(tokens: Tokens, token: str) -> bool:
    return bool(tokens.vocabulary.added.get(token, {}).get("special"))


def by_role(
    model: Path, ours: Tokens, donor: Path, theirs: Tokens, known: Ids
) -> list[tuple[int, int]]:
    """Ids in the model and in the donor of special tokens that do the same under other names.

    Args:
        model: the directory of its tokenizer.
        ours: its tokens.
        donor: the directory of the other's.
        theirs: its tokens.
        known: ids of the donor that have a partner already.
    """
    pairs: dict[int, int] = {}
    for role in ROLES:
        first, second = (_of_role(d, t, role) for d, t in ((model, ours), (donor, theirs)))
        if first is not None and second is not None and second not in known:
            pairs.setdefault(second, first)
    return [(first, second) for second, first in pairs.items()]


def _of_role(directory: Path, tokens: Tokens, role: str) -> int | None:
    file = directory / TokenizerFile.CONFIG
    said = read_json(file).get(role) if file.is_file() else None
    if isinstance(said, Mapping):
        said = said.get("content")
    return tokens.vocabulary.ids.get(said) if isinstance(said, str) else None
