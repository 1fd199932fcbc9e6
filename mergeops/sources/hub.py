"""Hugging Face hub repositories as sources: hf://ORG/NAME[@REVISION], or one GGUF file of such a
repository: hf://ORG/NAME[@REVISION]/FILE.gguf."""

from __future__ import annotations

import re
from pathlib import Path

from mergeops.checkpoint import CONFIG, PICKLED_ADAPTER
from mergeops.errors import SourceError
from mergeops.sources.contents import Location, examine, in_gguf
from mergeops.sources.find_context import FindContext
from mergeops.sources.remote.directory import LocalDirectory
from mergeops.sources.remote.download import NAMES, SUFFIXES
from mergeops.sources.schemes import Scheme

ALLOW = [*(f"*{suffix}" for suffix in SUFFIXES), *NAMES]
PICKLED = ["pytorch_model*.bin", PICKLED_ADAPTER]
# Other formats of the same weights: original/, onnx/, and Mistral's consolidated file.
IGNORE = ["*/*", "consolidated*"]

ANSWER_S = 3.0

_SNAPSHOT = re.compile(r"/models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40})/?$")
_NAME = re.compile(r"^[\w.-]+/[\w.-]+(@[^@\s]+)?$")

_URI = re.compile(r"^hf://([\w.-]+(?:/[\w.-]+)?)(?:@([^@\s]+))?$")
_FILE = re.compile(r"(?<=[^/])/([\w.-]+\.gguf)$")


def public_name(uri: str) -> str:
    """ORG/NAME, as cards and configs write it, without scheme and revision."""
    return repository_and_file(uri)[0].removeprefix("hf://").split("@")[0]


def repository_and_file(uri: str) -> tuple[str, str | None]:
    """A URI, or what follows its scheme, without the GGUF file that it names, and that."""
    match = _FILE.search(uri)
    return (uri[: match.start()], match[1]) if match else (uri, None)


def is_hub_name(name: str) -> bool:
    """Whether a text may be ORG/NAME or ORG/NAME@REVISION."""
    return _NAME.match(name) is not None


def snapshot_name(path: str) -> str | None:
    """ORG/NAME@COMMIT of a path into a hub cache, this machine's or another's; else None."""
    match = _SNAPSHOT.search(path)
    return f"{match[1]}/{match[2]}@{match[3]}" if match else None


def cached(name: str) -> Path | None:
    """The snapshot of ORG/NAME[@REVISION] in this machine's hub cache."""
    from huggingface_hub import errors, try_to_load_from_cache

    repository, _, revision = name.partition("@")
    try:
        file = try_to_load_from_cache(repository, CONFIG, revision=revision or "main")
    except errors.HFValidationError:
        return None
    return Path(file).parent if isinstance(file, str) else None


def pinned_name(name: str) -> str:
    """ORG/NAME@COMMIT of ORG/NAME[@REVISION], where this machine's cache knows the commit; else
    with the revision as it is, main where none is named."""
    repository, _, revision = name.partition("@")
    snapshot = cached(name)
    return f"{repository}@{snapshot.name if snapshot else revision or 'main'}"


def commit_of(name: str, kind: str = "model") -> str | None:
    """The commit that ORG/NAME[@REVISION] means on the hub now; None where the hub does not say.

    Args:
        kind: ``model`` or ``dataset``.
    """
    from huggingface_hub import HfApi

    repository, _, revision = repository_and_file(name)[0].partition("@")
    try:
        return (
            HfApi()
            .repo_info(repository, revision=revision or None, repo_type=kind, timeout=ANSWER_S)
            .sha
        )
    except Exception:
        # The network, the hub or the name: whoever needs it says what is wrong.
        return None


@Scheme(("hf://",), hints=("hf://ORG/NAME",), order=30, short_name=public_name)
def find(uri: str, context: FindContext) -> Location:
    """The repository's snapshot on this machine, with its pickled weights where it has no others.

    Raises:
        SourceError: as ``download``; or it holds GGUF files, of which none is downloaded unasked;
            or it has no file of the name.
    """
    repository, file = repository_and_file(uri)
    if file is not None:
        path = download(repository, file=file)
        if not (path / file).is_file():
            raise SourceError(f"{uri}: the repository {repository} has no file {file}")
        directory = LocalDirectory(path)
        return Location(directory, in_gguf(directory, file), revision=path.name)
    path = download(uri, code=context.code)
    if examine(LocalDirectory(path)).kind is None and context.pickled:
        path = download(uri, code=context.code, pickled=True)
    location = Location.at(LocalDirectory(path), revision=path.name)
    contents = location.contents
    if contents.kind is None and not contents.convertible and "gguf" in uri.lower():
        raise SourceError(
            f"{uri} has no safetensors; of its GGUF files one is to be named: {uri}/FILE.gguf"
        )
    return location


def download(
    uri: str, *, code: bool = False, pickled: bool = False, file: str | None = None
) -> Path:
    """Download a repository's safetensors and small files, or find them in the hub's cache.

    Args:
        uri: the repository.
        code: whether Python files are wanted, too.
        pickled: whether pickled weights are wanted, too.
        file: the only weights that are wanted.

    Returns:
        Where they are; the directory is named by the commit.

    Raises:
        SourceError: the URI is malformed, the repository or revision does not exist or is gated, or
            the hub cannot be reached and the cache does not have it.
    """
    match = _URI.match(uri)
    if not match:
        raise SourceError(
            f"{uri} is no hub URI; write hf://ORG/NAME or hf://ORG/NAME@REVISION, with /FILE.gguf "
            "for one such file"
        )
    repository, revision = match.groups()
    from huggingface_hub import errors, snapshot_download

    allow = [*ALLOW, *(PICKLED if pickled else []), *(["*.py"] if code else [])]
    if file is not None:
        allow = [file, *(pattern for pattern in ALLOW if pattern != "*.safetensors")]
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
    except Exception as error:
        is_network = type(error).__module__.startswith("httpx")
        if not is_network and not isinstance(error, OSError | RuntimeError):
            raise
        raise SourceError(f"{uri} cannot be downloaded: {_line(error)}") from error
    return Path(folder)


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
