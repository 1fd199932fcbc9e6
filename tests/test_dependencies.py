"""The dependency rule: who may know of MLflow, Hydra and lm-eval."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mergeops.methods.fused import kernels

PACKAGE = Path(__file__).parent.parent / "mergeops"
PURE = (
    "methods",
    "checkpoint",
    "plan.py",
    "destination.py",
    "execute.py",
    "recipe.py",
    "schema.py",
    "settings.py",
)
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names of every import in a file, also those inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def is_below(path: Path, *places: str) -> bool:
    return path.relative_to(PACKAGE).parts[0] in places


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_what_its_place_allows(path: Path) -> None:
    found = tops(path)
    if is_below(path, *PURE):
        assert not found & {"mlflow", "hydra", "omegaconf", "lm_eval", "optuna"}
    if not is_below(path, "tracking", "promote.py", "sources"):
        assert "mlflow" not in found
    if not is_below(path, "evaluate"):
        assert "lm_eval" not in found
    if not is_below(path, "compose.py"):
        assert not found & {"hydra", "omegaconf"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_is_one_idea(path: Path) -> None:
    assert path.name not in {"utils.py", "common.py", "helpers.py", "manager.py", "core.py"}
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350


def test_importing_mergeops_loads_nothing_that_a_training_script_would_feel() -> None:
    heavy = "{'torch', 'transformers', 'mlflow', 'lm_eval', 'hydra', 'matplotlib', 'rich'}"
    code = f"import sys, mergeops; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
    import mergeops

    assert not hasattr(mergeops, "MergeReadyCallbak")


def test_the_command_line_starts_without_heavy_libraries() -> None:
    heavy = "{'torch', 'transformers', 'mlflow', 'lm_eval', 'hydra', 'matplotlib', 'rich'}"
    code = f"import sys, mergeops.cli; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


LEAN = """
import sys
from mergeops.cli import main
sys.argv = ["mergeops", "merge", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(sorted({"torch", "numba", "mlflow", "transformers"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "method",
    ["linear", "task_arithmetic", "slerp", "nuslerp", "model_stock", "dare_ties", "della"],
)
def test_a_merge_by_compiled_kernels_imports_neither_torch_nor_the_compiler(
    method: str, tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    assert kernels().result()
    base = tiny_llama(dtype="bfloat16")
    sources = {name: str(tiny_llama(like=base, seed=i)) for i, name in enumerate("ab", 1)}
    recipe = {"base": str(base), "sources": sources, "method": {"name": method}}
    recipe = recipe if method not in ("linear", "slerp") else {**recipe, "base": None}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    words = [str(tmp_path / "recipe.yaml"), str(tmp_path / "out"), "-q"]
    ran = subprocess.run([sys.executable, "-c", LEAN, *words], capture_output=True, text=True)
    assert ran.stdout.splitlines()[-1:] == ["[]"], ran.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()
