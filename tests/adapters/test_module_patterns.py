"""Patterns of module names match what PEFT's regular expressions match, in bounded time."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeops.adapters.module_patterns import ModulePattern, of_pattern
from mergeops.errors import SourceError

NAMES = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.11.self_attn.q_proj",
    "model.layers.1.mlp.down_proj",
    "model.language_model.layers.3.mlp.up_proj",
    "lm_head",
    "q_proj",
    "xq_proj",
    "",
]
PATTERNS = [
    "q_proj",
    r".*\.q_proj",
    r"layers\.\d+\.self_attn\.[qk]_proj",
    "layers.1.self_attn.q_proj",
    r"^model.layers.0.self_attn.q_proj",
    r"layers\.(0|1|1[0-9])\.(self_attn|mlp)\.\w+",
    r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:up_proj|q_proj).*?)|"
    r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:q_proj|down_proj))",
    r"[^q]*_proj",
    r"layers\.\d{2}\..*",
    r"(a|b)?q_proj$",
    r"(\w+\.)+q_proj",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_pattern_matches_what_pefts_expression_matches(pattern: str) -> None:
    ending = ModulePattern("rank_pattern", pattern, is_ending=True)
    whole = ModulePattern("target_modules", pattern, is_ending=False)
    for name in NAMES:
        assert ending.matches(name) is bool(re.match(rf"(.*\.)?({pattern})$", name)), name
        assert whole.matches(name) is bool(re.fullmatch(pattern, name)), name


@settings(deadline=None, max_examples=150)
@given(
    st.from_regex(r"(a|b|\.|\d|\(a\|b\)|\[ab\.\]|\[\^a\]|(a|\.|\(ab\))[*+?])*", fullmatch=True),
    st.text("ab.1", max_size=8),
)
def test_any_pattern_of_texts_classes_and_repetitions_means_what_re_says(
    pattern: str, name: str
) -> None:
    expected = bool(re.fullmatch(pattern, name))
    assert ModulePattern("key", pattern, is_ending=False).matches(name) is expected


def test_first_pattern_that_fits_decides() -> None:
    ranks = {"q_proj": 2, r"layers\.0\..*": 3}
    assert of_pattern("rank_pattern", ranks, "model.layers.0.q_proj", 8) == 2
    assert of_pattern("rank_pattern", ranks, "model.layers.0.k_proj", 8) == 3
    assert of_pattern("rank_pattern", ranks, "model.layers.1.k_proj", 8) == 8


def test_of_several_patterns_in_alphabetical_order_the_first_is_not_known() -> None:
    alphas = {r"layers\.0\..*": 3, "q_proj": 2}
    assert of_pattern("alpha_pattern", alphas, "model.layers.1.q_proj", 8) == 2
    told = r"layers.*: 3 and q_proj: 2, which both fit model.layers.0.q_proj; .* put model"
    with pytest.raises(SourceError, match=told):
        of_pattern("alpha_pattern", alphas, "model.layers.0.q_proj", 8)
    told_of_it = {"model.layers.0.q_proj": 3, **alphas}
    assert of_pattern("alpha_pattern", told_of_it, "model.layers.0.q_proj", 8) == 3
    # A key that ends with the other would have said nothing behind it.
    alphas = {r"layers\.0\.q_proj": 3, "q_proj": 2, "x": 1}
    assert of_pattern("alpha_pattern", alphas, "model.layers.0.q_proj", 8) == 3
    assert of_pattern("alpha_pattern", alphas, "model.layers.1.q_proj", 8) == 2
    equal = dict.fromkeys([r"layers\.0\..*", "q_proj"], 4)
    assert of_pattern("alpha_pattern", equal, "model.layers.0.q_proj", 8) == 4


def test_time_grows_with_the_length_of_the_name_only() -> None:
    pattern = ModulePattern("rank_pattern", r"(\w+\.?)+x", is_ending=True)
    start = time.perf_counter()
    assert not pattern.matches("layers." * 200)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("pattern", "match"),
    [
        ("(", r"rank_pattern has '\(', no pattern"),
        ("(?=q)q_proj", "which uses assert; mergeops matches texts"),
        ("(?!q)k_proj", "which uses assert not"),
        (r"(q)\1", "which uses groupref"),
        ("(?:(?i:q)_proj)", "which uses flags"),
        ("(?:q{1000}){1000}", "which uses more than 20000 steps"),
        ("a" * 9000, "9000 characters; it takes at most 8192"),
    ],
)
def test_what_cannot_be_matched_in_bounded_time_is_refused(pattern: str, match: str) -> None:
    with pytest.raises(SourceError, match=match):
        ModulePattern("rank_pattern", pattern, is_ending=True)
