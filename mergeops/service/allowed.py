"""What a job may be: commands, options and paths that an operator's config allows.

A job runs with the rights of its worker, and who submits it may be somebody else. So a command is
taken only where this table has it, an option only where the command's line has it, and the recipe
that its words make is composed and looked through before it is queued, and again before it runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mergeops.errors import ConfigError
from mergeops.recipe import Recipe, compose, expand_sweep, read_mixture
from mergeops.schema import did_you_mean, read_yaml
from mergeops.search import parameter_types, with_strategy
from mergeops.service.job_commands import COMMANDS, Command
from mergeops.service.operator_config import ServiceConfig
from mergeops.service.queued_jobs import JobRequest, digest_of

MOST_WORDS, MOST_CHARACTERS = 500, 20_000
MOST_COMBINATIONS, MOST_LISTED = 64, 4096
TASK_ENDINGS, TEXT_ENDINGS = (".yaml", ".yml"), (".txt", ".md")
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")


APPROVAL = "promote.approval"
"""A job never moves @champion: it proposes."""


def checked_request(
    command: str,
    words: Sequence[str],
    config: ServiceConfig,
    directory: Path,
    *,
    tags: Sequence[str] = (),
    priority: int = 0,
) -> JobRequest:
    """What may be queued.

    Args:
        directory: where jobs work; relative paths are relative to it.

    Raises:
        ConfigError: the command, a word or what the words make is not allowed, or wrong.
    """
    words = _plain(words)
    for tag in tags:
        if not TAG.fullmatch(tag):
            raise ConfigError(f"tag {tag[:60]!r}: a tag is letters, digits, '.', '_' and '-'")
    if len(set(tags)) > 6:
        raise ConfigError(f"a job has {len(set(tags))} tags; at most 6 are allowed")
    if abs(priority) > 100:
        raise ConfigError(f"priority is {priority}; allowed: from -100 to 100")
    if command == "promote":
        words = _proposing(words)
    files = check_again(command, words, config, directory)
    digests = {str(path): digest_of(directory / path) for path in files}
    return JobRequest(command, words, tuple(sorted(set(tags))), priority, digests)


def check_again(
    command: str, words: Sequence[str], config: ServiceConfig, directory: Path
) -> list[Path]:
    """Refuse what a job may not do; also before it runs, since files may have changed.

    Returns:
        Files and directories that decide what it does.

    Raises:
        ConfigError: as ``checked_request``.
    """
    spec = COMMANDS.get(command)
    if spec is None or (config.commands and command not in config.commands):
        allowed = [name for name in COMMANDS if not config.commands or name in config.commands]
        raise ConfigError(
            f"{command[:60]!r} is no command that a job may be; {did_you_mean(command, allowed)}"
            f"allowed: {', '.join(allowed)}"
        )
    rest, paths, flags = _apart(command, spec, words)
    for path in paths:
        check_place(path, config, directory)
    named, overrides = rest[: spec.places], rest[spec.places :]
    for place in named:
        check_place(place, config, directory)
    if not spec.is_composed:
        if len(overrides) > spec.names:
            raise ConfigError(f"{command}: unexpected word {overrides[spec.names]!r}")
        if command == "moe" and named:
            _check_mixture(directory / named[0], config, directory)
        return _present(named[:1], directory)
    if spec.names and overrides and _is_name(overrides[0]):
        overrides = overrides[1:]
    recipe_file = directory / named[0] if command == "merge" and named else None
    files = [word for word in overrides if word.endswith(TASK_ENDINGS) and "=" not in word]
    for file in files:
        check_place(file, config, directory)
    _check_recipes(command, overrides, flags, recipe_file, config, directory)
    configs = [config.config_dir] if config.config_dir else []
    return _present([*files, *configs, *(named[:1] if recipe_file else [])], directory)


def _check_mixture(file: Path, config: ServiceConfig, directory: Path) -> None:
    """Refuse what a file of mergekit-moe may not name."""
    with suppress(OSError, ValueError):
        # Before anybody looks whether it is there: that is not told of places out of the roots.
        for key, path in _other_paths(read_yaml(file.read_bytes())):
            if key.endswith("_model"):
                with_key(f"{file.name}: {key}", path, config, directory)
    mixture = read_mixture(file)
    for model in (mixture.base, *(expert.model for expert in mixture.every)):
        for uri in (model.uri, model.base):
            if uri is not None:
                with_key(file.name, uri, config, directory)


def _check_recipes(
    command: str,
    overrides: Sequence[str],
    flags: Sequence[str],
    recipe_file: Path | None,
    config: ServiceConfig,
    directory: Path,
) -> None:
    is_sweep = "-m" in flags or "--multirun" in flags
    jobs = _combinations(overrides) if is_sweep else [with_strategy(overrides)]
    for words in jobs:
        # A file's own path is relative to where jobs work.
        at = [
            str(directory / word) if word.endswith(TASK_ENDINGS) and "=" not in word else word
            for word in words
        ]
        config_dir = directory / config.config_dir if config.config_dir else None
        recipe = compose(
            at, config_dir=config_dir, recipe_file=recipe_file, strategies=parameter_types()
        )
        check_recipe(recipe, config, directory)
        if command == "promote" and not recipe.promote.approval:
            raise ConfigError(f"{APPROVAL} is false; a job proposes, and people approve")


def _combinations(overrides: Sequence[str]) -> list[list[str]]:
    """What -m makes of the words, where it is not too many; counted before it is made."""
    most = math.prod(1 + word.count(",") for word in overrides)
    if any("range(" in word for word in overrides) or most > MOST_LISTED:
        raise ConfigError("a job with -m lists few values one by one, e.g. seed=1,2,3")
    jobs = expand_sweep(overrides)
    if len(jobs) > MOST_COMBINATIONS:
        raise ConfigError(
            f"-m makes {len(jobs)} combinations; at most {MOST_COMBINATIONS} are one job"
        )
    return jobs


def check_recipe(recipe: Recipe, config: ServiceConfig, directory: Path) -> None:
    """Refuse what a recipe may not ask of a worker.

    Raises:
        ConfigError: says the key, the value and what would allow it.
    """
    trusted = _trusted(config, directory)
    if recipe.trust_remote_code and not (config.trust_remote_code or trusted.trust_remote_code):
        raise ConfigError(
            "trust_remote_code is true; the service's operator allows it by trust_remote_code: true"
        )
    hooks = recipe.promote.hooks
    is_own = hooks == trusted.promote.hooks
    if (hooks.command or hooks.webhook) and not (config.hooks or is_own):
        raise ConfigError("promote.hooks is set; the service's operator allows it by hooks: true")
    for key in ("uri", "registry_uri"):
        uri, own = getattr(recipe.tracking, key), getattr(trusted.tracking, key)
        if uri not in (None, own, *config.tracking_uris):
            raise ConfigError(
                f"tracking.{key} is set; jobs log to the service's own MLflow server, or to one "
                "that its operator names in tracking_uris"
            )
    for inner in recipe.merges.values():
        check_recipe(inner, config, directory)
    for key, uri in _uris(recipe):
        with_key(key, uri, config, directory)
    evaluate = recipe.evaluate
    if evaluate.include_path is not None:
        _check_tasks("evaluate.include_path", evaluate.include_path, config, directory)
    for task in evaluate.tasks:
        if task.endswith(TASK_ENDINGS) or ("/" in task and not task.endswith(TEXT_ENDINGS)):
            _check_tasks("evaluate.tasks", task, config, directory)
        elif task.endswith(TEXT_ENDINGS):
            with_key("evaluate.tasks", task, config, directory)
    with_key("output.dir", str(recipe.output.dir), config, directory)
    for key, path in _other_paths(recipe.to_dict()):
        with_key(key, path, config, directory)


def _trusted(config: ServiceConfig, directory: Path) -> Recipe:
    """What the operator's own config directory says."""
    if config.config_dir is None:
        return Recipe.from_dict({"method": "linear", "sources": {}})
    return compose([], config_dir=directory / config.config_dir)


def with_key(key: str, value: str, config: ServiceConfig, directory: Path) -> None:
    """``check_place``, with the key in the error."""
    try:
        check_place(value, config, directory)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error


def check_place(value: str, config: ServiceConfig, directory: Path) -> None:
    """Refuse a path out of the allowed roots, and a URI of another kind than allowed.

    Raises:
        ConfigError: says which and what is allowed.
    """
    scheme, colon, rest = value.partition(":")
    if colon and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        if scheme in config.schemes:
            return
        if scheme != "file":
            raise ConfigError(
                f"{value[:200]} begins with {scheme}:; allowed: {', '.join(config.schemes)}"
            )
        value = re.sub(r"^//(localhost)?(?=/)", "", rest)
    if not _is_inside(value, config.roots, directory):
        raise ConfigError(
            f"{value[:200]} lies outside {', '.join(config.roots)}; the service's operator allows "
            "more by roots"
        )


def _is_inside(path: str, roots: Sequence[str], directory: Path) -> bool:
    if "\0" in path:
        return False
    # Links are followed, so that one inside leads nowhere else.
    target = (directory / Path(path).expanduser()).resolve()
    return any(target.is_relative_to((directory / root).resolve()) for root in roots)


def _check_tasks(key: str, path: str, config: ServiceConfig, directory: Path) -> None:
    places = [*config.task_dirs, *([config.config_dir] if config.config_dir else [])]
    if not _is_inside(path, places, directory):
        raise ConfigError(
            f"{key} is {path[:200]}: a task's YAML may run code, so its directory has to be in the "
            f"service's task_dirs ({', '.join(places) or 'none'})"
        )


def _uris(recipe: Recipe) -> Iterator[tuple[str, str]]:
    for key in ("base", "base_adapter"):
        if (uri := getattr(recipe, key)) is not None:
            yield key, uri
    for name, source in recipe.sources.items():
        yield f"sources.{name}.uri", source.uri
        if source.base is not None:
            yield f"sources.{name}.base", source.base


def _other_paths(raw: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every other value that looks like a way out of the roots."""
    if isinstance(raw, Mapping):
        for name, value in raw.items():
            if name not in ("chat_template", "tokens", "hooks", "match"):
                yield from _other_paths(value, f"{key}.{name}" if key else str(name))
    elif isinstance(raw, list | tuple):
        for i, value in enumerate(raw):
            yield from _other_paths(value, f"{key}[{i}]")
    elif isinstance(raw, str) and not key.startswith(("tracking.", "evaluate.")):
        looks = raw.startswith(("/", "~")) or ".." in Path(raw).parts
        if looks and "\n" not in raw:
            yield key, raw


def _apart(
    command: str, spec: Command, words: Sequence[str]
) -> tuple[list[str], list[str], list[str]]:
    """The words that are no options, the paths that options name, and the flags."""
    rest, paths, flags = [], [], []
    waiting = iter(words)
    for word in waiting:
        option, equals, value = word.partition("=")
        if not word.startswith("-"):
            rest.append(word)
        elif word in spec.flags:
            flags.append(word)
        elif option in (*spec.valued, *spec.paths):
            given = value if equals else next(waiting, None)
            if given is None:
                raise ConfigError(f"{command}: {option} takes a value")
            if option in spec.paths:
                paths.append(given)
        else:
            allowed = ", ".join((*spec.valued, *spec.paths, *spec.flags)) or "none"
            raise ConfigError(
                f"{command}: a job may not have the option {option[:60]}; allowed: {allowed}"
            )
    return rest, paths, flags


def _plain(words: Sequence[str]) -> tuple[str, ...]:
    """The words that decide: how progress is shown is the worker's."""
    if len(words) > MOST_WORDS or sum(map(len, words)) > MOST_CHARACTERS:
        raise ConfigError(
            f"a job has {len(words)} words of {sum(map(len, words))} characters; at most "
            f"{MOST_WORDS} of {MOST_CHARACTERS} are allowed; put the recipe into a file"
        )
    for word in words:
        if "\0" in word or "${" in word:
            shown = word.replace("\0", "?")[:100]
            raise ConfigError(f"{shown!r}: a job's words hold no interpolation (${{...}}) or NUL")
    skipped = {"--json", "-q", "--quiet"}
    return tuple(word for word in words if word not in skipped)


def _proposing(words: Sequence[str]) -> tuple[str, ...]:
    if any(word.partition("=")[0] == APPROVAL for word in words):
        return tuple(words)
    return (*words, f"{APPROVAL}=true")


def _is_name(word: str) -> bool:
    return "=" not in word and not word.startswith("~")


def _present(places: Sequence[str], directory: Path) -> list[Path]:
    return [Path(place) for place in places if (directory / place).exists() and ":" not in place]
