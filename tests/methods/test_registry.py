"""The registry: adding a file adds the method; names and mistakes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mergeops import methods
from mergeops.errors import ConfigError

NEW_METHOD = '''
"""A method of a test: the first source.

Nobody 2026, https://example.org/first.
"""

from dataclasses import dataclass

from torch import Tensor

from mergeops.methods import MethodView, method


@dataclass(frozen=True)
class First:
    """Parameters."""

    strength: float = 1.0
    """How much of it, over
    two lines."""


@method("first_of_test")
def merge(base: Tensor, sources: Tensor, p: First, at: MethodView) -> Tensor:
    """Merge one chunk."""
    return sources[0] * p.strength
'''


def test_the_methods_of_the_papers_are_there() -> None:
    expected = {
        *("arcee_fusion", "breadcrumbs", "breadcrumbs_ties", "dare_linear", "dare_ties", "della"),
        *("della_linear", "karcher", "linear", "model_stock", "multislerp", "nearswap", "nuslerp"),
        *("passthrough", "ram", "ramplus_tl", "sce", "slerp", "task_arithmetic", "ties"),
    }
    assert expected <= set(methods.names())
    assert methods.names() == sorted(methods.names())


def test_unknown_method_gets_a_hint_and_the_list() -> None:
    with pytest.raises(ConfigError, match=r"unknown method 'dare-ties'; did you mean 'dare_ties'"):
        methods.get("dare-ties")
    with pytest.raises(ConfigError, match=r"unknown method 'zzz'; allowed: actmat, arcee_fusion"):
        methods.get("zzz")


def test_a_new_file_is_a_new_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "first_of_test.py").write_text(NEW_METHOD)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    methods.registry._discover.cache_clear()
    try:
        found = methods.get("first_of_test")
        assert found.documentation == "A method of a test: the first source."
        assert found.paper == "https://example.org/first"
        assert found.describe() == [("strength", "float", 1.0, "How much of it, over two lines.")]
        assert found.tensor_parameters == ("strength",)
    finally:
        methods.registry._REGISTRY.pop("first_of_test", None)
        sys.modules.pop("mergeops.methods.first_of_test", None)
        methods.registry._discover.cache_clear()


def test_two_methods_of_one_name_are_a_programming_error() -> None:
    taken = methods.get("linear")
    with pytest.raises(TypeError, match=r"'linear' is defined in mergeops.methods.linear and in"):
        methods.method("linear")(taken.merge)


def test_a_source_parameter_is_a_field() -> None:
    taken = methods.get("slerp")
    with pytest.raises(TypeError, match=r"names \['weight'\] in source_parameters, and Slerp"):
        methods.method("other", source_parameters=("weight",))(taken.merge)


def test_ties_says_what_the_recipe_may_set() -> None:
    ties = methods.get("ties")
    assert ties.source_parameters == ("weight", "density")
    assert ties.tensor_parameters == ("weight", "density", "scale")
    assert ties.needs_base and not ties.is_random and not ties.order_matters
    assert methods.get("dare_ties").is_random
    slerp = methods.get("slerp")
    assert (slerp.min_sources, slerp.max_sources, slerp.order_matters) == (2, 2, True)
