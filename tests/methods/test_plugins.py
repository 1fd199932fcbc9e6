"""Methods of other packages, which installed packages offer by entry points."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mergeops import methods
from mergeops.cli.methods import methods as methods_command
from mergeops.engine.execute import Tuning, merge
from mergeops.errors import ConfigError
from mergeops.methods import plugins, registry
from mergeops.recipe.composition import compose

TAKE_FIRST = '''
"""Take first: a part of the first source. Everything else is ignored.

Nobody 2026, https://example.org/first.
"""

from dataclasses import dataclass

from torch import Tensor

from mergeops.methods import Formula, MethodView, method


@dataclass(frozen=True)
class TakeFirst:
    """Parameters of ``take_first``."""

    share: float = 1.0
    """How much of it."""


def formula(p: TakeFirst, at: MethodView, n: int) -> Formula:
    """What ``merge`` does."""
    return Formula([p.share] + [0.0] * (n - 1))


@method("take_first", needs_base=True, max_sources=1, formula=formula)
def merge(base: Tensor, sources: Tensor, p: TakeFirst, at: MethodView) -> Tensor:
    """Merge one chunk."""
    return base + (sources[0] - base) * p.share
'''
Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """``install("pack", {"method": "module"}, module=text)``, as pip leaves a package behind."""

    def forget() -> None:
        plugins.offers.cache_clear()
        registry._load_plugin.cache_clear()

    def make(package: str, entry_points: dict[str, str], **files: str) -> Path:
        place = tmp_path / package
        about = place / f"{package}-1.2.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        lines = [f"{method} = {module}" for method, module in entry_points.items()]
        (about / "entry_points.txt").write_text("\n".join(["[mergeops.methods]", *lines, ""]))
        for module, text in files.items():
            (place / f"{module}.py").write_text(text)
        monkeypatch.syspath_prepend(place)
        forget()
        return place

    yield make
    forget()
    registry._REGISTRY.pop("take_first", None)
    for module in ("plugin_first", "plugin_second"):
        sys.modules.pop(module, None)


def test_a_method_of_a_package_is_imported_when_it_is_asked_for(install: Install) -> None:
    install("pack", {"take_first": "plugin_first"}, plugin_first=TAKE_FIRST)
    assert "take_first" in methods.names()
    assert methods.get("linear").name == "linear"
    assert "plugin_first" not in sys.modules
    found = methods.get("take_first")
    assert found.documentation.startswith("Take first: a part of the first source.")
    assert found.paper == "https://example.org/first"


def test_a_recipe_and_the_command_line_name_it_as_any_other(install: Install) -> None:
    install("pack", {"take_first": "plugin_first"}, plugin_first=TAKE_FIRST)
    recipe = compose(
        ["method=take_first", "method.share=0.25", "base=file:b", "+sources.a.uri=file:a"]
    )
    assert recipe.method.name == "take_first"
    shown = CliRunner().invoke(methods_command, ["take_first", "--json"])
    assert '"default": 1.0' in shown.stdout and "How much of it." in shown.stdout


def test_kernels_merge_by_its_formula(
    install: Install, plan_of: Any, tiny_llama: Any, tmp_path: Path
) -> None:
    install("pack", {"take_first": "plugin_first"}, plugin_first=TAKE_FIRST)
    base = tiny_llama(dtype="bfloat16")
    sources = {"a": tiny_llama(like=base, seed=1)}
    plan = plan_of({"name": "take_first", "share": 0.3}, base, sources)
    merged = [
        (merge(plan, tmp_path / str(fused), tuning=Tuning(fused=fused)) / "model.safetensors")
        for fused in (True, False)
    ]
    assert merged[0].read_bytes() == merged[1].read_bytes()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import missing_of_plugin", "ModuleNotFoundError: No module named 'missing_of_plugin'"),
        (TAKE_FIRST + "\nraise OSError('first\\nsecond')", "OSError: first second"),
        (
            TAKE_FIRST.replace("take_first", "linear"),
            "TypeError: method 'linear' is defined in mergeops.methods.linear and in plugin_first",
        ),
    ],
)
def test_a_broken_package_is_named_by_who_asks_for_its_method(
    install: Install, text: str, why: str
) -> None:
    install("pack", {"take_first": "plugin_first"}, plugin_first=text)
    for _ in range(2):
        with pytest.raises(ConfigError) as caught:
            methods.get("take_first")
        assert str(caught.value) == f"method 'take_first' of pack 1.2 cannot be loaded: {why}"
    assert "take_first" not in registry._REGISTRY
    listed = CliRunner().invoke(methods_command, ["--json"])
    assert listed.exit_code == 0 and '"ties"' in listed.stdout
    assert '"take_first"' not in listed.stdout
    assert listed.stderr == f"mergeops: warning: {caught.value}\n"
    assert CliRunner().invoke(methods_command, ["ties"]).stderr == ""


def test_a_module_without_the_method_is_named(install: Install) -> None:
    install("pack", {"take_last": "plugin_first"}, plugin_first=TAKE_FIRST)
    with pytest.raises(ConfigError, match="pack 1.2 offers a method 'take_last', but its module"):
        methods.get("take_last")


def test_a_name_that_is_taken_is_refused_naming_both(install: Install) -> None:
    install("pack", {"ties": "plugin_first"}, plugin_first=TAKE_FIRST)
    with pytest.raises(ConfigError, match=r"'ties' is offered by mergeops itself and by pack 1.2;"):
        methods.get("ties")
    install("one", {"take_first": "plugin_first"}, plugin_first=TAKE_FIRST)
    install("two", {"take_first": "plugin_second"}, plugin_second=TAKE_FIRST)
    with pytest.raises(ConfigError, match=r"'take_first' is offered by (two|one) 1.2 and by"):
        methods.get("take_first")


TESTS = """
from mergeops.testing import MethodContract


class TestTakeFirst(MethodContract):
    method = "take_first"


class TestTakeWrongly(MethodContract):
    method = "take_wrongly"
"""


@pytest.mark.slow
def test_a_package_runs_the_laws_of_methods_on_its_own(install: Install) -> None:
    wrong = TAKE_FIRST.replace("take_first", "take_wrongly").replace("base +", "base + 1 +")
    place = install(
        "pack",
        {"take_first": "plugin_first", "take_wrongly": "plugin_second"},
        plugin_first=TAKE_FIRST,
        plugin_second=wrong,
        test_laws=TESTS,
    )
    words = [sys.executable, "-m", "pytest", "-q", "--strict-markers", "test_laws.py", "-k"]
    ran = subprocess.run(
        [*words, "TestTakeFirst or sources_equal"],
        cwd=place,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )
    last = ran.stdout.splitlines()[-1]
    assert re.match(r"1 failed, 1\d passed, \d skipped, ", last), ran.stdout
    # A law that is broken is a sentence with numbers, not two tensors.
    assert "FAILED test_laws.py::TestTakeWrongly::test_sources_equal" in ran.stdout
    assert re.search(
        "not so: sources equal to the base give the base: 1000 of 1000 entries differ, by 1 at "
        r"most; entry 0 is -?\d+\.\d+, not -?\d+\.\d+",
        ran.stdout,
    )
    assert "tensor(" not in ran.stdout
