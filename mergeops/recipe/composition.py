"""From Hydra to ``Recipe``: no other module sees a DictConfig.

Hydra finds and layers the YAML files and parses the override grammar; ``Recipe.from_dict`` checks
every key and value. So overrides are always allowed to add a key here (``++``): a typo is refused
there, with a better message.
"""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mergeops import methods
from mergeops.errors import ConfigError
from mergeops.recipe.choices import CHECKED, check_option, executor_plug_ins, hydra_error
from mergeops.recipe.files import (
    GROUPS,
    MERGEKIT,
    PACKAGE,
    one_line,
    read_mapping,
    read_recipe_file,
)
from mergeops.recipe.packaged import layered, packaged_conf
from mergeops.recipe.recipe import Recipe
from mergeops.schema import unknown_key

_FILE_RECIPE = "from_file"
FILE = "file"
# Hydra keeps its state in a process singleton.
_LOCK = threading.Lock()


def compose(
    overrides: Sequence[str] = (),
    *,
    config_dir: Path | None = None,
    recipe_file: Path | None = None,
    content: Mapping[str, Any] | None = None,
    strategies: Mapping[str, type[Any] | None] = MappingProxyType({}),
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> Recipe:
    """Layer the packaged config, the user's config directory, a recipe file and overrides.

    Args:
        overrides: Hydra overrides, e.g. ``method=ties``, ``method.density=0.3``, ``~sources.code``;
            a word that ends in .yaml or .yml is the recipe file.
        config_dir: the user's own directory; its files win over the packaged ones.
        recipe_file: a recipe file, layered like ``recipe=NAME``.
        content: what a recipe file would hold, in its place.
        strategies: search strategy -> the dataclass of its parameters, by which the recipe's are
            checked; None where it is not known. ``search=NAME`` finds each of them, and the files
            of conf/search.
        settings: values of the recipe's own keys, which win; unlike overrides, they need no Hydra,
            which takes a third of a small merge.

    Raises:
        ConfigError: anything that Hydra or the schema refuses.
    """
    files, overrides = _apart(overrides)
    if len(files) + (recipe_file is not None) > 1:
        raise ConfigError(f"{', '.join(files)}: only one recipe file can be given")
    if files:
        recipe_file = Path(files[0])
    parsed = _parse(overrides)
    if recipe_file is None:
        recipe_file, parsed = _mergekit_file(parsed)
    compat = settings.get("compat") or _value_of(parsed, "compat")
    read = read_recipe_file(recipe_file, compat) if recipe_file else None
    file_content = read.recipe if read else content and read_mapping(content)
    folders = [folder for folder in (packaged_conf(), config_dir) if folder]
    for override in parsed:
        _check_key(override)
        if override.key_or_group in CHECKED and isinstance(name := _plain_value(override), str):
            check_option(override.key_or_group, name, folders, strategies)
        if override.is_sweep_override():
            raise ConfigError(f"{override.input_line} lists several values; add -m to run them all")
    arguments = [_openly(override) for override in parsed]
    if file_content is not None:
        arguments.insert(0, f"recipe={_FILE_RECIPE}")
    raw = None
    if not parsed and config_dir is None:
        raw = layered(file_content or {})
    if raw is None:
        raw = _compose_plain(arguments, config_dir, file_content, strategies)
    if isinstance(tool := raw.get("tool"), Mapping):
        raise ConfigError(
            f"tool.name is {tool.get('name')!r}: this is the record of what `mergeops "
            f"{tool.get('name')}` made, and no recipe of a merge; run that command"
        )
    _choose_method(raw, parsed)
    _keep_only(raw)
    set_here = {*settings, *(override.key_or_group for override in parsed)}
    recipe = Recipe.from_dict({**raw, **settings})
    if parameters := strategies.get(recipe.search.strategy):
        recipe = dataclasses.replace(recipe, search=recipe.search.filled(parameters))
    if read is None:
        return recipe
    origins = {key: at for key, at in read.origins.items() if key not in set_here}
    return dataclasses.replace(recipe, origins=origins, notes=read.notes)


def expand_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """Every combination of the values that ``a=1,2 b=choice(x,y)`` list, in Hydra's order."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    files, overrides = _apart(overrides)
    batches = BasicSweeper.split_arguments(_parse(overrides), max_batch_size=None)
    return [[*files, *job] for batch in batches for job in batch]


def _apart(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Recipe files among the words of a command, and the overrides."""
    files = [word for word in words if "=" not in word and word.endswith((".yaml", ".yml"))]
    return files, [word for word in words if word not in files]


def _parse(overrides: Sequence[str]) -> list[Any]:
    if not overrides:
        return []
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    parsed = []
    for line in overrides:
        try:
            parsed.append(parser.parse_override(line))
        except HydraException as error:
            raise ConfigError(
                f"override {line!r} cannot be read: {one_line(error)}; write KEY=VALUE"
            ) from error
    return parsed


def _check_key(override: Any) -> None:
    top = override.key_or_group.split(".")[0].split("/")[0]
    if top == "hydra":
        raise hydra_error(override.key_or_group)
    known = set(Recipe.keys()) | set(GROUPS) | {"only", FILE}
    if top not in known:
        raise unknown_key("", override.key_or_group, sorted(known))


def _plain_value(override: Any) -> Any:
    return None if override.is_delete() or override.is_sweep_override() else override.value()


def _openly(override: Any) -> str:
    line: str = override.input_line
    if override.is_add() or override.is_delete() or line.startswith("+"):
        return line
    if override.key_or_group in GROUPS and isinstance(override.value(), str | type(None)):
        return line
    return f"++{line}"


def _compose_plain(
    arguments: list[str],
    config_dir: Path | None,
    file_content: Mapping[str, Any] | None,
    strategies: Mapping[str, type[Any] | None],
) -> dict[str, Any]:
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if config_dir is not None and not config_dir.is_dir():
        raise ConfigError(f"--config-dir {config_dir} is not a directory")
    with _LOCK, _search_path(config_dir):
        GlobalHydra.instance().clear()
        try:
            _store_nodes(file_content, strategies)
            with hydra.initialize_config_dir(str(packaged_conf()), version_base="1.3"):
                config = hydra.compose("recipe", overrides=arguments)
            raw = OmegaConf.to_container(config, resolve=True)
        except (HydraException, OmegaConfBaseException) as error:
            key = getattr(error, "full_key", None)
            where = f"{key}: " if key else ""
            raise ConfigError(where + one_line(error) + _ending(error, config_dir)) from error
    if isinstance(raw, dict) and isinstance(raw.get("recipe"), dict):
        raise ConfigError(
            f"a recipe that {' '.join(a for a in arguments if a.startswith('recipe='))} names must "
            f"begin with the line {PACKAGE!r}"
        )
    return {str(key): value for key, value in raw.items()}  # type: ignore[union-attr]


def _ending(error: Exception, config_dir: Path | None) -> str:
    """What to do about a file of the user's that Hydra does not find for its name."""
    named = re.search(r"Could not find '([^']+)'", str(error))
    if named is None or config_dir is None or not (config_dir / f"{named[1]}.yml").is_file():
        return ""
    return f"; {config_dir / named[1]}.yml is there, but Hydra reads .yaml only: rename it"


@contextmanager
def _search_path(config_dir: Path | None) -> Iterator[None]:
    """Put the user's directory before the packaged one: Hydra's own --config-dir comes after it."""
    global _user_dir
    _register_search_path()
    _user_dir = config_dir
    try:
        yield
    finally:
        _user_dir = None


_user_dir: Path | None = None


@cache
def _register_search_path() -> None:
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class UserDirectory(SearchPathPlugin):  # type: ignore[misc]
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            if _user_dir is not None:
                search_path.prepend("user", f"file://{_user_dir.resolve()}", anchor="main")

    Plugins.instance().register(UserDirectory)


def _store_nodes(
    file_content: Mapping[str, Any] | None, strategies: Mapping[str, type[Any] | None]
) -> None:
    """Make each method and strategy an option of its group, and a recipe file one of its own."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    for name in methods.names():
        store.store(group="method", name=name, node={"name": name})
    for name in executor_plug_ins():
        store.store(group="executor", name=name, node={"name": name})
    folders = [folder / "search" for folder in (packaged_conf(), _user_dir) if folder]
    for name, parameters in strategies.items():
        # Hydra would take a node for the schema of a file of the same name.
        if not any((folder / f"{name}.yaml").is_file() for folder in folders):
            defaults = dataclasses.asdict(parameters()) if parameters else {}
            store.store(group="search", name=name, node={"strategy": name, **defaults})
    if file_content is not None:
        node = dict(file_content)
        store.store(group="recipe", name=_FILE_RECIPE, node=node, package="_global_")


def _mergekit_file(parsed: list[Any]) -> tuple[Path | None, list[Any]]:
    """``recipe=mergekit file=config.yml``: the file, and the overrides but for these two."""
    file = _value_of(parsed, FILE)
    is_asked = _value_of(parsed, "recipe") == MERGEKIT
    if file is None and is_asked:
        raise ConfigError(f"recipe={MERGEKIT} needs {FILE}=config.yml, the mergekit config")
    if file is None:
        return None, parsed
    if not is_asked:
        raise ConfigError(f"{FILE}={file} is read with recipe={MERGEKIT} only; add it")
    rest = [override for override in parsed if override.key_or_group not in ("recipe", FILE)]
    return Path(str(file)), rest


def _value_of(parsed: Iterable[Any], key: str) -> Any:
    """What the last override of a key sets; None where there is none."""
    values = [o.value() for o in parsed if o.key_or_group == key and not o.is_delete()]
    return values[-1] if values else None


def _choose_method(raw: dict[str, Any], parsed: Sequence[Any]) -> None:
    """``method=NAME`` on the command line wins over a recipe file's method and its parameters."""
    chosen = [
        o.value() for o in parsed if o.key_or_group == "method" and isinstance(o.value(), str)
    ]
    method = raw.get("method")
    if not chosen or not isinstance(method, dict) or method.get("name") == chosen[-1]:
        return
    raw["method"] = {"name": chosen[-1]}
    for override in parsed:
        key = override.key_or_group
        if key.startswith("method.") and not override.is_delete():
            raw["method"][key.removeprefix("method.")] = override.value()


def _keep_only(raw: dict[str, Any]) -> None:
    only = raw.pop("only", None)
    if only is None:
        return
    if isinstance(only, str):
        only = [only]
    sources = raw.get("sources") or {}
    for name in only:
        if name not in sources:
            raise unknown_key("only: source ", str(name), sorted(sources))
    raw["sources"] = {name: sources[name] for name in only}
