"""Rows of the model's embeddings for the donor's tokens: copied, or put together of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergeops.errors import ConfigError, MergeError
from mergeops.lazy_torch import Tensor, torch
from mergeops.progress import Tick
from mergeops.transplant.pursuit import SparseSums, pursue
from mergeops.transplant.shared_tokens import Ids, Tokens

METHODS = ("omp", "mean")
ANCHORS = 8192
"""Shared tokens that others are sums of: those with the smallest ids of the donor, which are what a
BPE learned first."""
FEWEST = 64
"""Shared tokens without which two vocabularies have nothing in common."""


@dataclass(frozen=True)
class Match:
    """Which of the donor's tokens the model has, and what is known of the others."""

    ours: Ids
    """``[shared]``, ids in the model."""
    theirs: Ids
    """``[shared]``, the same tokens' ids in the donor."""
    new: Ids
    """Ids of the donor that the model has no token for."""
    rows: int
    """Of the result; those that are no token's get the mean."""

    def check(self, k: int, method: str) -> None:
        """Refuse too few shared tokens.

        Raises:
            ConfigError: k is out of range.
            MergeError: says how many there are, and how many it takes.
        """
        needed = max(FEWEST, 2 * k) if method == "omp" else FEWEST
        if k < 1:
            raise ConfigError(f"--k is {k}; allowed: from 1")
        if len(self.theirs) < needed:
            raise MergeError(
                f"the two tokenizers share {len(self.theirs)} token(s), and {method} takes "
                f"{needed} of them at least; choose a donor with a vocabulary that is more alike"
                + (", or a smaller --k" if needed > FEWEST else "")
            )


def pieces_of(model: Tokens, donor: Tokens, new: Ids) -> list[list[int]]:
    """What the model's tokenizer cuts the text of each new token into; nothing where it is none.

    Raises:
        MergeError: the model's tokenizer cannot be read.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(model.vocabulary.file))
    # The library raises its plainest error for what it cannot read.
    except Exception as error:
        raise MergeError(f"{model.vocabulary.file} cannot be read: {error}") from error
    names = {i: token for token, i in donor.vocabulary.ids.items()}
    texts = [donor.content(names[int(i)]).decode("utf-8", "ignore") for i in new]
    found = tokenizer.encode_batch(texts, add_special_tokens=False)
    return [list(encoding.ids) for encoding in found]


def by_pieces(embeddings: Tensor, match: Match, pieces: Sequence[Sequence[int]]) -> Tensor:
    """Each new token as the mean of its pieces (Gee et al. 2022, https://arxiv.org/abs/2402.09977).

    Args:
        embeddings: of the model, ``[rows, d]`` float32.
        match: which tokens are new.
        pieces: of each of them.
    """
    lengths = torch.tensor([len(of_one) for of_one in pieces])
    flat = torch.tensor([i for of_one in pieces for i in of_one], dtype=torch.int64)
    offsets = torch.cumsum(lengths, 0) - lengths
    means = torch.nn.functional.embedding_bag(flat, embeddings, offsets, mode="mean")
    means[lengths == 0] = embeddings[torch.from_numpy(match.ours)].mean(dim=0)
    return means


def by_sums(embeddings: Tensor, match: Match, sums: SparseSums) -> Tensor:
    """Each new token as the same sum of the model's rows as it is of the donor's.

    Args:
        embeddings: of the model, ``[rows, d]`` float32.
        match: which tokens are new.
        sums: of each of them, of the first ``ANCHORS`` shared tokens.
    """
    anchors = embeddings[torch.from_numpy(match.ours[:ANCHORS])]
    made: Tensor = torch.nn.functional.embedding_bag(
        sums.atoms, anchors, per_sample_weights=sums.weights, mode="sum"
    )
    # A token that the donor never trained is like nothing.
    is_nothing = ~(sums.weights != 0).any(dim=1)
    made[is_nothing] = embeddings[torch.from_numpy(match.ours)].mean(dim=0)
    return made


def sums_of(donor: Tensor, match: Match, k: int, progress: Tick | None) -> SparseSums:
    """The donor's new tokens as sums of its shared ones; ``donor`` is ``[rows, d]`` float32."""
    atoms = donor[torch.from_numpy(match.theirs[:ANCHORS])]
    return pursue(donor[torch.from_numpy(match.new)], atoms, k, progress)


def laid_out(embeddings: Tensor, match: Match, new: Tensor) -> Tensor:
    """All rows of the result ``[rows, d]``: copied, new, and the mean where no token is.

    Args:
        embeddings: of the model, float32.
        match: where each row comes from.
        new: those of the new tokens.
    """
    shared = embeddings[torch.from_numpy(match.ours)]
    result = shared.mean(dim=0).repeat(match.rows, 1)
    result[torch.from_numpy(match.theirs)] = shared
    result[torch.from_numpy(np.asarray(match.new))] = new
    return result
