"""Hugging Face hub repositories as sources: hf://ORG/NAME[@REVISION]."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mergeops.errors import SourceError
from mergeops.sources.download import NAMES, SUFFIXES

SCHEME = "hf://"
ALLOW = [*(f"*{suffix}" for suffix in SUFFIXES), *NAMES]
PICKLED = ["pytorch_model*.bin", "adapter_model.bin"]
# Other formats of the same weights: original/, onnx/, and Mistral's consolidated file.
IGNORE = ["*/*", "consolidated*"]

_URI = re.compile(r"^hf://([\w.-]+(?:/[\w.-]+)?)(?:@([^@\s]+))?$")


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit, on this machine."""

    path: Path
    revision: str
    """The commit."""


def find(uri: str, *, code: bool = False, pickled: bool = False) -> Snapshot:
    """Download a repository's safetensors and small files, or find them in the hub's cache.

    Args:
        uri: the repository.
        code: whether Python files are wanted, too.
        pickled: whether pickled weights are wanted, too.

    Raises:
        SourceError: the URI is malformed, the repository or revision does not exist or is gated, or
            the hub cannot be reached and the cache does not have it.
    """
    repository, revision = parse(uri)
    from huggingface_hub import errors, snapshot_download

    allow = [*ALLOW, *(PICKLED if pickled else []), *(["*.py"] if code else [])]
    try:
        folder = snapshot_download(
            repository, revision=revision, allow_patterns=allow, ignore_patterns=IGNORE
        )
    except errors.GatedRepoError as error:
        raise SourceError(
            f"{uri} is gated; accept its terms on huggingface.co and log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise SourceError(
            f"{uri}: there is no such repository on the hub, or it is private; check the name, or "
            "log in with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(f"{uri}: the repository has no revision {revision!r}") from error
    except errors.LocalEntryNotFoundError as error:
        raise SourceError(_unreachable(uri, repository, revision)) from error
    except errors.HFValidationError as error:
        raise SourceError(f"{uri} is no hub repository: {_line(error)}") from error
    except (OSError, RuntimeError) as error:
        raise SourceError(f"{uri} cannot be downloaded: {_line(error)}") from error
    except Exception as error:
        if not type(error).__module__.startswith("httpx"):
            raise
        raise SourceError(f"{uri} cannot be downloaded: {_line(error)}") from error
    return Snapshot(Path(folder), Path(folder).name)


def parse(uri: str) -> tuple[str, str | None]:
    """The repository and the revision of a hub URI.

    Raises:
        SourceError: it is malformed.
    """
    match = _URI.match(uri)
    if not match:
        raise SourceError(f"{uri} is no hub URI; write hf://ORG/NAME or hf://ORG/NAME@REVISION")
    return match.group(1), match.group(2)


def _unreachable(uri: str, repository: str, revision: str | None) -> str:
    from huggingface_hub import constants

    at = f" --revision {revision}" if revision else ""
    if constants.HF_HUB_OFFLINE:
        return (
            f"{uri} is not in the hub's cache and HF_HUB_OFFLINE is set; unset it, or run `hf "
            f"download {repository}{at}` where there is a network"
        )
    return f"{uri} is not in the hub's cache and the hub cannot be reached; check the network"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
