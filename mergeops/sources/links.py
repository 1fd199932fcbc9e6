"""Links among the small files of a directory: a stranger's may lead to a file of yours."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mergeops.errors import SourceError

_COPIED = (".json", ".jinja", ".model", ".txt", ".py")
"""What the names of files that a merge gets a copy of end in."""
_CONTENT = re.compile(r"[0-9a-f]{30}")
"""In the name of a file that is named by its content: the hub's cache, DVC, git-annex and mergeops'
own cache keep files so, and link to them."""


def check_links(directory: Path) -> None:
    """Refuse small files that are links out of their directory, whose content a merge would show.

    Raises:
        SourceError: names the first, and says what to do where it is meant.
    """
    real = directory.resolve()
    for file in sorted(directory.iterdir()):
        if not file.is_symlink() or not file.name.endswith(_COPIED):
            continue
        target = Path(os.path.realpath(file))
        if target.is_relative_to(real) or _CONTENT.search(target.name) or not target.is_file():
            continue
        raise SourceError(
            f"{file} is a link to {target}, outside of its directory, and the merge would get a "
            "copy of that; if it is meant, put the file in the place of the link: cp "
            f"--remove-destination {target} {file}"
        )
