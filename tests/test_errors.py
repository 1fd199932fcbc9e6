"""The error tree and its exit codes."""

from __future__ import annotations

import re

from mergeops import errors


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    drawn = dict(re.findall(r"(\w+)\s+(\d)\s{2,}", errors.__doc__ or ""))
    defined = {
        name: str(value.exit_code)
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.MergeopsError)
    }
    assert drawn == defined


def test_each_error_has_an_exit_code_of_its_own() -> None:
    codes = [c.exit_code for c in errors.MergeopsError.__subclasses__()]
    assert sorted(codes) == [2, 3, 4, 5, 6, 7, 8]
