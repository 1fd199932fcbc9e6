"""What MLflow refuses or cuts is mapped, and MLflow takes what comes out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeops.redact import redact
from mergeops.store.keys import (
    file_name,
    flatten,
    folded,
    key,
    model_name,
    own_tags,
    param_value,
    quoted,
    tag_value,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("arc_easy/acc", "arc_easy/acc"),
        ("acc,none", "acc_none"),
        ("pass@1", "pass_at_1"),
        ("a//b/../c", "a/b/_/c"),
        ("/leading", "leading"),
        ("", "_"),
        ("größe", "größe"),
    ],
)
def test_a_key_stays_as_close_to_its_text_as_mlflow_allows(text: str, expected: str) -> None:
    assert key(text) == expected


@settings(deadline=None)
@given(st.text(max_size=400))
def test_mlflow_takes_every_key_and_model_name(text: str) -> None:
    from mlflow.utils.validation import _validate_logged_model_name, _validate_metric_name

    _validate_metric_name(key(text))
    _validate_logged_model_name(model_name(text))
    assert len(key(text)) <= 250
    assert len(model_name(text)) <= 250


def test_long_keys_that_begin_alike_stay_apart() -> None:
    assert key("a" * 300) != key("a" * 301)


def test_a_decimal_point_in_a_model_name_becomes_a_p() -> None:
    assert model_name("ties density=0.5 v.2") == "ties density=0p5 v_2"


def test_an_artifact_name_is_one_component() -> None:
    assert file_name("../a/b:c") == "_a_b_c"
    assert file_name("..") == "_"


def test_settings_become_dotted_parameters_and_lists_stay_whole() -> None:
    tree = {"method": {"density": 0.5, "normalize": True}, "rules": [{"match": "*"}], "base": None}
    assert flatten(tree) == {
        "method.density": "0.5",
        "method.normalize": "true",
        "rules": '[{"match": "*"}]',
    }


def test_long_values_are_cut_at_the_limits_with_an_ellipsis() -> None:
    assert len(param_value("x" * 7000)) == 6000
    assert param_value("x" * 7000).endswith("...")
    assert len(tag_value("x" * 9000)) == 8000


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://me:hunter2@host:5000/path", "https://host:5000/path"),
        ("postgresql+psycopg2://u:p@db/mlflow", "postgresql+psycopg2://db/mlflow"),
        ("s3://bucket/x?X-Amz-Signature=abc&v=1", "s3://bucket/x?X-Amz-Signature=***&v=1"),
        ("https://host/x?subscription-key=abc&v=1", "https://host/x?subscription-key=***&v=1"),
        ("sftp://bob:pw@host/math?host_key=abc", "sftp://host/math?host_key=***"),
        ("hf://org/name@rev", "hf://org/name@rev"),
        ("runs:/abc/path", "runs:/abc/path"),
        ("models:/skills@champion", "models:/skills@champion"),
    ],
)
def test_credentials_are_taken_out_of_uris(uri: str, shown: str) -> None:
    assert redact(uri) == shown
    assert redact({"a": [f"see {uri} there"]}) == {"a": [f"see {shown} there"]}


def test_a_filter_literal_with_an_apostrophe_is_quoted_the_other_way() -> None:
    assert quoted("plain") == "'plain'"
    assert quoted("it's") == '"it\'s"'


def test_folded_facts_are_one_hidden_tag_unless_they_are_too_long_for_one() -> None:
    facts = {"mergeops.role": "merge", "mergeops.parents": "a,b"}
    assert folded(facts) == {
        "mlflow.mergeops.facts": '{"mergeops.role": "merge", "mergeops.parents": "a,b"}'
    }
    long = facts | {"mergeops.parents": "a" * 5000}
    assert folded(long) == {
        "mlflow.mergeops.role": "merge",
        "mlflow.mergeops.parents": "a" * 5000,
    }
    for each in (facts, long):
        assert own_tags({"team": "us", **folded(each)}) == {"team": "us", **each}


def test_facts_that_somebody_edited_are_passed_over() -> None:
    assert own_tags({"mlflow.mergeops.facts": "[1", "mlflow.mergeops.role": "merge"}) == {
        "mergeops.role": "merge"
    }
