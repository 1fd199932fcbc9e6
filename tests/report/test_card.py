"""The model card is what the Hugging Face hub reads, and it breaks on no input."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from mergeops.report.card import CardParent, base_model, model_card
from mergeops.scores.intervals import Estimate
from mergeops.sources import short_name


def parent(name: str, uri: str, sha256: str, run_id: str | None = None) -> CardParent:
    return CardParent(name, uri, sha256, run_id, short_name(uri))


PARENTS = [
    parent("base", "hf://HuggingFaceTB/SmolLM2-135M@12fd25f", "a" * 64),
    parent("math", "runs:/4f2c", "b" * 64, run_id="4f2c"),
    parent("dates", "/checkpoints/dates-lora/", "c" * 64),
]
RECIPE: dict[str, Any] = {
    "base": "hf://HuggingFaceTB/SmolLM2-135M@12fd25f",
    "method": {"name": "ties", "density": 0.5},
    "sources": {"math": {"uri": "runs:/4f2c", "weight": 0.5}, "dates": {"uri": "/checkpoints/d"}},
}


def front_matter(card: str) -> dict[str, Any]:
    head, _ = card.removeprefix("---\n").split("\n---\n", 1)
    found: dict[str, Any] = yaml.safe_load(head)
    return found


def test_the_front_matter_has_what_the_hubs_model_tree_needs() -> None:
    card = model_card("ties density=0.5", PARENTS, RECIPE, plan_digest="d" * 64)
    assert front_matter(card) == {
        "base_model": ["HuggingFaceTB/SmolLM2-135M", "math", "dates-lora"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["merge", "mergeops"],
    }


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("hf://org/name@main", "org/name"),
        ("hf://org/name", "org/name"),
        ("/a/b/c", "c"),
        ("C", "C"),
        ("models:/ft@best", "own"),
        ("models:/m-12", "own"),
        ("/", "own"),
    ],
)
def test_an_input_is_called_by_its_hub_id_or_the_end_of_its_path(uri: str, shown: str) -> None:
    assert base_model(parent("own", uri, "0")) == shown


def test_the_recipe_in_the_card_is_the_recipe() -> None:
    card = model_card("x", PARENTS, RECIPE, plan_digest="d" * 64)
    block = card.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(block) == RECIPE


def test_every_parent_is_pinned_by_its_hash_and_run() -> None:
    card = model_card("x", PARENTS, RECIPE, plan_digest="d" * 64)
    assert f"| math | `runs:/4f2c` | `4f2c` | `{'b' * 64}` |" in card
    assert "A merge of 2 models by `ties`" in card
    assert "## Scores" not in card


def test_scores_stand_beside_each_other_with_their_intervals() -> None:
    scores = {
        "ties": {"arithmetic": Estimate(0.75, (0.6, 0.9)), "dates": Estimate(0.5, None)},
        "math": {"arithmetic": Estimate(0.7, (0.55, 0.85))},
        "broken": {"dates": Estimate(float("nan"), None)},
    }
    card = model_card("ties", PARENTS, RECIPE, plan_digest="d" * 64, scores=scores)
    assert "| model | arithmetic | dates |" in card
    assert "| ties | 0.750 [0.600, 0.900] | 0.500 |" in card
    assert "| math | 0.700 [0.550, 0.850] |  |" in card
    assert "| broken |  |  |" in card
    assert "on the dev part, which the recipe was chosen on" in card
    confirm = model_card(
        "ties", PARENTS, RECIPE, plan_digest="d" * 64, scores=scores, part="confirm"
    )
    assert "on the confirm part, which no choice has seen" in confirm


def test_odd_names_break_neither_table_nor_heading() -> None:
    odd = CardParent("a|b\n# c <script>", "/x/`y`|z", "0" * 64)
    card = model_card("t\n\n# other", [odd], {"method": {"name": "linear"}}, plan_digest="0")
    assert "# t # other\n" in card
    assert "| a\\|b # c &lt;script> | `/x/'y'\\|z` |" in card
    assert "A merge of 1 model by" in card
    assert yaml.safe_load(card.removeprefix("---\n").split("\n---\n")[0])
