"""Patterns of module names, as anybody may write them into an adapter's config.

PEFT hands them to Python's ``re``, which may try exponentially many ways through a pattern. Here
each name is read once, from left to right, with the set of all places in the pattern that fit so
far (Thompson 1968, https://doi.org/10.1145/363347.363387): what matches is the same, and the time
is at most the product of both lengths.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any, TypeVar

from mergeops.checkpoint import ADAPTER_CONFIG
from mergeops.errors import SourceError

LONGEST_PATTERN, MOST_STATES = 8192, 20_000

Value = TypeVar("Value")
Test = Callable[[str], bool]
Condition = Callable[[str, str], bool]

_CLASSES: dict[Any, Test] = {
    codes.CATEGORY_DIGIT: str.isdecimal,
    codes.CATEGORY_NOT_DIGIT: lambda c: not c.isdecimal(),
    codes.CATEGORY_WORD: lambda c: c.isalnum() or c == "_",
    codes.CATEGORY_NOT_WORD: lambda c: not (c.isalnum() or c == "_"),
    codes.CATEGORY_SPACE: str.isspace,
    codes.CATEGORY_NOT_SPACE: lambda c: not c.isspace(),
}


def _is_edge(before: str, after: str) -> bool:
    return _is_word(before) != _is_word(after)


def _is_word(character: str) -> bool:
    return bool(character) and (character.isalnum() or character == "_")


_PLACES: dict[Any, Condition] = {
    codes.AT_BEGINNING: lambda before, after: not before,
    codes.AT_BEGINNING_STRING: lambda before, after: not before,
    codes.AT_END: lambda before, after: not after,
    codes.AT_END_STRING: lambda before, after: not after,
    codes.AT_BOUNDARY: _is_edge,
    codes.AT_NON_BOUNDARY: lambda before, after: not _is_edge(before, after),
}


class ModulePattern:
    """One pattern, ready to be held against names.

    Args:
        where: the config's key, for messages.
        pattern: as ``re`` takes it.
        is_ending: whether the pattern may stand for the last parts of a name, as in
            ``rank_pattern``; else it is the whole name.

    Raises:
        SourceError: it is no pattern, or uses what cannot be matched in bounded time.
    """

    def __init__(self, where: str, pattern: str, *, is_ending: bool) -> None:
        self._where = f"{where} has {pattern[:80]!r}"
        if len(pattern) > LONGEST_PATTERN:
            raise SourceError(
                f"{self._where}..., {len(pattern)} characters; it takes at most {LONGEST_PATTERN}"
            )
        try:
            tree = parser.parse(rf"(.*\.)?({pattern})" if is_ending else pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise SourceError(f"{self._where}, no pattern: {error}") from error
        if tree.state.flags & ~re.UNICODE:
            raise self._refused("flags")
        # Each state has at most one test of a character, and moves that need none.
        self._tests: list[tuple[Test, int] | None] = []
        self._moves: list[list[tuple[int, Condition | None]]] = []
        self._steps: dict[tuple[frozenset[int], str, str], frozenset[int]] = {}
        self._first = self._state()
        self._last = self._add(tree, self._first)

    def matches(self, name: str) -> bool:
        """Whether the pattern is the whole name, or its last parts."""
        at = self._reachable({self._first}, "", name[:1])
        for i, character in enumerate(name):
            key = at, character, name[i + 1 : i + 2]
            if key not in self._steps:
                self._steps[key] = self._step(*key)
            at = self._steps[key]
            if not at:
                return False
        return self._last in at

    def _step(self, at: frozenset[int], character: str, after: str) -> frozenset[int]:
        tests = (self._tests[state] for state in at)
        targets = {test[1] for test in tests if test and test[0](character)}
        return self._reachable(targets, character, after)

    def _refused(self, what: str) -> SourceError:
        return SourceError(
            f"{self._where}, which uses {what}; mergeops matches texts, classes, alternatives, "
            "groups and repetitions: write the modules' names instead"
        )

    def _state(self) -> int:
        if len(self._tests) >= MOST_STATES:
            raise self._refused(f"more than {MOST_STATES} steps")
        self._tests.append(None)
        self._moves.append([])
        return len(self._tests) - 1

    def _reachable(self, states: Iterable[int], before: str, after: str) -> frozenset[int]:
        seen, waiting = set(states), list(states)
        while waiting:
            for target, condition in self._moves[waiting.pop()]:
                if target not in seen and (condition is None or condition(before, after)):
                    seen.add(target)
                    waiting.append(target)
        return frozenset(seen)

    def _add(self, tree: Any, start: int) -> int:
        """Put a sequence behind a state; the state behind it."""
        for operation, argument in tree:
            start = self._add_one(operation, argument, start)
        return start

    def _add_one(self, operation: Any, argument: Any, start: int) -> int:
        if operation in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            least, most, inner = argument
            return self._add_repetition(least, most, inner, start)
        end = self._state()
        if operation is codes.SUBPATTERN:
            _, added, removed, inner = argument
            if added or removed:
                raise self._refused("flags")
            self._moves[self._add(inner, start)].append((end, None))
        elif operation is codes.BRANCH:
            for branch in argument[1]:
                begin = self._state()
                self._moves[start].append((begin, None))
                self._moves[self._add(branch, begin)].append((end, None))
        elif operation is codes.AT:
            self._moves[start].append((end, _PLACES[argument]))
        else:
            test = self._test(operation, argument)
            begin = self._state()
            self._moves[start].append((begin, None))
            self._tests[begin] = (test, end)
        return end

    def _add_repetition(self, least: int, most: Any, inner: Any, start: int) -> int:
        for _ in range(least):
            start = self._add(inner, start)
        end = self._state()
        self._moves[start].append((end, None))
        if most is codes.MAXREPEAT:
            begin = self._state()
            self._moves[start].append((begin, None))
            last = self._add(inner, begin)
            self._moves[last] += [(begin, None), (end, None)]
            return end
        for _ in range(most - least):
            start = self._add(inner, start)
            self._moves[start].append((end, None))
        return end

    def _test(self, operation: Any, argument: Any) -> Test:
        if operation is codes.ANY:
            return lambda c: c != "\n"
        if operation in (codes.LITERAL, codes.NOT_LITERAL):
            wanted, equal = chr(argument), operation is codes.LITERAL
            return lambda c: (c == wanted) is equal
        if operation is codes.RANGE:
            low, high = argument
            return lambda c: low <= ord(c) <= high
        if operation is codes.CATEGORY:
            return _CLASSES[argument]
        if operation is not codes.IN:
            raise self._refused(str(operation).lower().replace("_", " "))
        negated = argument[0][0] is codes.NEGATE
        tests = [self._test(*item) for item in argument[negated:]]
        return lambda c: any(test(c) for test in tests) is not negated


@lru_cache(maxsize=4096)
def module_pattern(where: str, pattern: str, is_ending: bool) -> ModulePattern:
    """The pattern, made once.

    Raises:
        SourceError: as ``ModulePattern``.
    """
    return ModulePattern(where, pattern, is_ending=is_ending)


def of_pattern(where: str, patterns: Mapping[str, Value], module: str, default: Value) -> Value:
    """The value of the pattern that is a module's name or its last parts.

    Of several that fit, PEFT takes the first while it trains, and saves them in alphabetical order
    (findings/peft-sorts-patterns.sh): where they are in that order, the first cannot be known. But
    one that ends with the other, as layers.0.q_proj does with q_proj, or is the module's own name
    was the first of the two: else it would have said nothing.

    Raises:
        SourceError: as ``ModulePattern``, or patterns with different values fit.
    """
    fitting = [p for p in patterns if module_pattern(where, p, True).matches(module)]
    if not fitting:
        return default
    first, *others = fitting
    doubtful = (
        other
        for other in others
        if patterns[other] != patterns[first]
        and first != module
        and not first.endswith(f".{other}")
    )
    if fitting == sorted(fitting) and (other := next(doubtful, None)) is not None:
        raise SourceError(
            f"{where} has {first}: {patterns[first]} and {other}: {patterns[other]}, which both "
            f"fit {module}; the training took the one that was written first, and PEFT saved them "
            f"in alphabetical order: put {module} with the value of the training before them in "
            f"{ADAPTER_CONFIG}"
        )
    return patterns[first]


def is_ending(module: str, name: str) -> bool:
    """Whether a name is a module's, or its last parts."""
    return module == name or module.endswith(f".{name}")
