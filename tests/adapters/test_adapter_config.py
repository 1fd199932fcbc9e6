"""adapter_config.json is anybody's file: types, bounds, and whether the kind can be merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mergeops.adapters import EXACT, INPUT_DEPENDENT, checked, read_adapter_config
from mergeops.errors import SourceError

PLAIN = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("r", 4.5, "r is 4.5; it takes a whole number from 1"),
        ("r", float("inf"), "r is inf; it takes a finite number"),
        ("r", "8", "r is '8'; it takes a whole number"),
        ("r", True, "r is True; it takes a whole number"),
        ("r", 0, "r is 0; it takes a whole number from 1"),
        ("r", 1 << 40, "r is 1099511627776; it takes a whole number from 1 to 1048576"),
        ("lora_alpha", "8", "lora_alpha is '8'; it takes a positive number"),
        ("lora_alpha", float("nan"), "lora_alpha is nan; it takes a finite number"),
        ("lora_alpha", -1, "lora_alpha is -1; it takes a positive number"),
        ("use_rslora", "false", "use_rslora is 'false'; it takes true or false"),
        ("use_dora", "false", "use_dora is 'false'; it takes true or false"),
        ("use_dora", 1, "use_dora is 1; it takes true or false"),
        ("rank_pattern", ["q_proj"], r"rank_pattern is \['q_proj'\]; it takes a mapping"),
        ("rank_pattern", {"q_proj": 2.5}, "rank_pattern.q_proj is 2.5; it takes a whole number"),
        ("alpha_pattern", 3, "alpha_pattern is 3; it takes a mapping"),
        ("alpha_pattern", {"q_proj": "8"}, "alpha_pattern.q_proj is '8'; it takes a number"),
        ("alpha_pattern", {"q_proj": 0}, "alpha_pattern.q_proj is 0.0; it takes a positive number"),
        ("target_modules", {"q_proj": 1}, "target_modules is .*; it takes a list"),
        ("modules_to_save", [1], r"modules_to_save\[0\] is 1; it takes a text"),
        ("peft_type", None, "peft_type is None; it takes a text"),
        ("base_model_name_or_path", "a" * 5000, "5000 characters; it takes a printable name"),
        ("base_model_name_or_path", "a\nb", "3 characters; it takes a printable name"),
        ("base_model_name_or_path", "\ud800", r"is '\\ud800', which is no Unicode text"),
        ("target_modules", ["\udfff"], r"is '\\udfff', which is no Unicode text"),
        ("revision", 3, "revision is 3; it takes a text"),
        ("eva_config", {"rho": float("-inf")}, "eva_config.rho is -inf; it takes a finite number"),
    ],
)
def test_value_of_another_type_or_out_of_bounds_is_refused_by_its_key(
    key: str, value: Any, match: str
) -> None:
    with pytest.raises(SourceError, match=f"^place: adapter_config.json: .*{match}"):
        checked({**PLAIN, key: value}, "place")


def test_config_without_a_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8}))
    with pytest.raises(SourceError, match="peft_type is missing"):
        read_adapter_config(tmp_path)


def test_config_says_kind_base_and_revision() -> None:
    named = {"base_model_name_or_path": "org/model", "revision": "v1"}
    config = checked({**PLAIN, **named}, "place")
    assert (config.kind, config.base_name, config.revision) == ("lora", "org/model", "v1")
    assert config.problem is None
    assert checked({**PLAIN, "use_dora": True}, "place").kind == "dora"
    assert checked({"peft_type": "LOHA", "r": 8}, "place").kind == "loha"


def test_rank_zero_of_oft_and_lists_in_the_rank_pattern_of_adalora_are_what_peft_writes() -> None:
    oft = {"peft_type": "OFT", "r": 0, "oft_block_size": 8, "peft_version": "0.21.2"}
    assert checked(oft, "place").problem is None
    pattern = {"model.layers.0.self_attn.q_proj.lora_E": [True, False]}
    adalora = {"peft_type": "ADALORA", "r": 8, "init_r": 12, "rank_pattern": pattern}
    assert checked(adalora, "place").problem is None


def test_every_kind_of_the_installed_peft_is_known() -> None:
    from peft import PeftType

    assert {kind.value for kind in PeftType} == EXACT.keys() | INPUT_DEPENDENT.keys()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "trained vectors before the input .*; leave this source"),
        ({"peft_type": "LILY", "r": 8}, "mixes its projections anew for every input"),
        ({"peft_type": "NEW"}, "peft_type is 'NEW'; allowed: ADALORA, "),
        ({**PLAIN, "alora_invocation_tokens": [5]}, "changes only what comes after those tokens"),
        ({**PLAIN, "arrow_config": {"top_k": 1}}, "chooses among adapters for every token"),
        ({**PLAIN, "use_qalora": True}, "sees groups of the input averaged"),
        ({**PLAIN, "init_lora_weights": "pissa_niter_4"}, "depended on data or on chance"),
        ({**PLAIN, "init_lora_weights": "loftq"}, "depended on data or on chance"),
        ({**PLAIN, "init_lora_weights": "new"}, "'new', which mergeops does not know"),
    ],
)
def test_what_no_weights_stand_for_is_said_from_the_config_alone(
    content: dict[str, Any], match: str
) -> None:
    problem = checked(content, "place").problem
    assert problem is not None
    with pytest.raises(SourceError, match=match):
        raise SourceError(problem)


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal", "eva", "mica", "pissa"])
def test_starts_that_leave_the_base_or_follow_from_it_can_be_merged(start: Any) -> None:
    assert checked({**PLAIN, "init_lora_weights": start}, "place").problem is None
