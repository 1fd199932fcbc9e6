"""CONTRIBUTING.md has an example of each thing to add; that of a method is one file and works.

``tests/search/test_strategies.py`` and ``tests/sources/test_schemes.py`` run the other two.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXAMPLES = dict(
    re.findall(
        r'^```python title="mergeops/(.+?)"\n(.*?)^```$',
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
)
# The file lies in a directory that counts as part of the package.
PROGRAM = """
import sys
import mergeops.methods
mergeops.methods.__path__.append({folder!r})
from mergeops.cli.main import main
main()
"""
LAWS = """
import mergeops.methods
mergeops.methods.__path__.append({folder!r})
from mergeops.testing import MethodContract

class TestMedian(MethodContract):
    method = "median"
"""


def test_every_kind_of_thing_to_add_has_an_example() -> None:
    rooms = [name.partition("/")[0] for name in EXAMPLES]
    assert sorted(rooms) == ["methods", "search", "sources"]


def test_the_example_of_a_method_merges_and_obeys_every_law(
    tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "methods"
    folder.mkdir()
    (folder / "median.py").write_text(EXAMPLES["methods/median.py"], encoding="utf-8")

    def run(*words: str) -> str:
        program = PROGRAM.format(folder=str(folder))
        ran = subprocess.run(
            [sys.executable, "-c", program, *words], capture_output=True, text=True, cwd=tmp_path
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    assert json.loads(run("methods", "median", "--json"))[0]["name"] == "median"
    base = tiny_llama()
    sources = {name: str(tiny_llama(like=base, seed=i)) for i, name in enumerate("abc", 1)}
    recipe = {"base": str(base), "sources": sources, "method": {"name": "median", "scale": 0.5}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    run("merge", "recipe.yaml", "out", "-q")

    import torch
    from safetensors.torch import load_file

    tensors = [load_file(Path(directory) / "model.safetensors") for directory in sources.values()]
    before = load_file(base / "model.safetensors")
    for name, merged in load_file(tmp_path / "out" / "model.safetensors").items():
        changes = torch.stack([source[name] - before[name] for source in tensors])
        middle = changes.sort(dim=0).values[1]
        assert torch.equal(merged, before[name] + 0.5 * middle), name

    (tmp_path / "test_median.py").write_text(LAWS.format(folder=str(folder)))
    laws = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_median.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert laws.returncode == 0, laws.stdout
    assert re.search(r"^\d+ passed", laws.stdout, re.MULTILINE)
