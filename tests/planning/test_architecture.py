"""Depth of layers from names, and gradients over it."""

from __future__ import annotations

from mergeops.planning.architecture import layer_depths
from mergeops.recipe.values import interpolate


def test_depth_of_a_llama() -> None:
    depths = layer_depths(
        [
            "lm_head.weight",
            "model.embed_tokens.weight",
            *(f"model.layers.{i}.mlp.up_proj.weight" for i in range(5)),
            "model.norm.weight",
        ]
    )
    assert depths["model.embed_tokens.weight"] == 0.0
    assert [depths[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(5)] == [
        0.0,
        0.25,
        0.5,
        0.75,
        1.0,
    ]
    assert depths["model.norm.weight"] == depths["lm_head.weight"] == 1.0


def test_depth_of_gpt2_and_of_experts() -> None:
    depths = layer_depths(["wte.weight", "wpe.weight", "h.0.attn.w", "h.10.attn.w", "ln_f.weight"])
    assert list(depths.values()) == [0.0, 0.0, 0.0, 1.0, 1.0]
    names = [f"model.layers.{i}.experts.{j}.w1.weight" for i in range(3) for j in range(2)]
    assert list(layer_depths(names).values()) == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]


def test_every_stack_has_its_own_depth() -> None:
    names = ["encoder.layers.0.w", "encoder.layers.1.w", "decoder.layers.0.w", "decoder.layers.4.w"]
    assert list(layer_depths(names).values()) == [0.0, 1.0, 0.0, 1.0]


def test_single_layer_is_at_the_end() -> None:
    assert layer_depths(["model.layers.0.w"]) == {"model.layers.0.w": 1.0}


def test_gradient_between_its_values() -> None:
    assert interpolate(0.7, 0.3) == 0.7
    assert interpolate((0.2,), 0.3) == 0.2
    assert [interpolate((0.0, 1.0), d) for d in (0.0, 0.25, 1.0)] == [0.0, 0.25, 1.0]
    assert [interpolate((0.0, 1.0, 0.0), d) for d in (0.0, 0.25, 0.5, 0.75, 1.0)] == [
        0.0,
        0.5,
        1.0,
        0.5,
        0.0,
    ]
