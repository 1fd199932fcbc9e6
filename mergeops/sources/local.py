"""Directories of this machine as sources: a path, or file:///PATH."""

from __future__ import annotations

import dataclasses

from mergeops.errors import SourceError
from mergeops.sources.contents import Location, in_gguf
from mergeops.sources.find_context import FindContext
from mergeops.sources.remote.directory import LocalDirectory
from mergeops.sources.saves import locations_in
from mergeops.sources.schemes import DIRECTORY, Scheme, allowed, local_path


@Scheme((DIRECTORY, "file:"), hints=("a directory",), order=0, is_place=True)
def find(uri: str, context: FindContext) -> Location:
    """The directory, whatever it holds.

    Raises:
        SourceError: there is none.
    """
    path = local_path(uri)
    assert path is not None
    path = path.absolute()
    named = "" if uri == str(path) else f" (from {uri})"
    if not path.exists():
        raise SourceError(f"there is no directory {path}{named}; a source is {allowed()}")
    if path.is_file() and path.suffix == ".gguf":
        directory = LocalDirectory(path.parent)
        return Location(directory, in_gguf(directory, path.name))
    if not path.is_dir():
        raise SourceError(
            f"{path}{named} is a file; name the directory that holds config.json and safetensors"
        )
    location = Location.at(LocalDirectory(path))
    if location.contents.kind is None and not location.contents.has_weights:
        inside = locations_in(location.directory)
        if inside and "name one of them" not in str(location.contents.problem):
            what = "the checkpoint" if len(inside) == 1 else "one of the checkpoints"
            shown = ", ".join(found.directory.shown for found in inside[:5])
            problem = f"{location.contents.problem}; name {what} inside it: {shown}"
            contents = dataclasses.replace(location.contents, problem=problem)
            return dataclasses.replace(location, contents=contents)
    return location
