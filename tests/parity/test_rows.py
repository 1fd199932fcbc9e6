"""Each row of the pages about mergekit is what a test with mergekit's own wheel shows."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
PAGE, METHODS = "mergekit.md", "mergekit_methods_differences.md"
MOE = "mergekit.md ## mergekit-moe"
P, D, T, M = "test_page.py", "test_differences.py", "test_tokenizers.py", "test_moe.py"
BOTH = f"{D}: test_both_give_what_the_page_says"
STOPPED, REFUSED = (
    f"{D}: test_what_stops_mergekit_is_merged",
    f"{D}: test_what_mergekit_takes_in_silence_is_refused",
)
FIRST = f"{D}: test_of_equal_entries_the_first_stay_here_and_some_in_mergekit"
TYPED = f"{D}: test_two_methods_of_mergekit_leave_16_bits"
ORDER = f"{D}: test_mergekit_goes_through_a_set_of_models"
ERRORS = "test_bfloat16.py: test_the_error_is_never_larger_than_mergekits"
SAME = "test_methods.py: test_a_method_gives_what_mergekit_gives"
NEGATIVE = "test_yaml.py: test_a_negative_weight_is_not_turned_around_by_its_own_sum"
FUSION = "test_methods.py: test_arcee_fusion_takes_what_an_exact_divergence_takes"
NORMS = "test_random.py: test_rescaling_for_compatibility_keeps_each_tensors_norm"
INVERSE = "test_random.py: test_rescaling_keeps_the_expectation"
DRAWN = "test_random.py: test_as_many_entries_are_kept_and_they_are_the_sources"
DIVIDED = f"{D}: test_what_della_keeps_is_divided_by_its_own_probability"
LAMBDA = "test_yaml.py: test_a_config_gives_what_it_gives_in_mergekit"
POLE = f"{D}: test_the_ratio_beside_the_pole_is_bounded"
ROWS: dict[str, dict[str, tuple[str, ...]]] = {
    PAGE: {
        "Gradient on tensors after": (
            "test_yaml.py: test_what_is_behind_the_last_layer_has_the_last_value_of_a_gradient",
        ),
        "Arithmetic": (ERRORS,),
        "`rescale: true` of DARE": (NORMS, INVERSE),
        "Random methods": (DRAWN,),
        "Trimming where entries": (FIRST,),
        "Same model twice": (f"{P}: test_the_same_model_twice_is_refused_while_planning",),
        "Saved format": (
            f"{P}: test_two_methods_write_float32_where_dtype_asks_for_16_bits",
            f"{P}: test_out_dtype_is_written_in_both",
        ),
        "Tensors after the layers": (f"{P}: test_what_is_behind_the_layers_is_the_last_slices",),
        "`base_model` that `models`": (f"{P}: test_a_base_that_is_not_listed_takes_no_part",),
        "Order of several models": (ORDER,),
        "Output head": (f"{P}: test_a_head_that_some_models_have_is_what_loads",),
        "Buffers that only": (
            f"{P}: test_buffers_of_one_model_are_in_neither_merge",
            f"{P}: test_buffers_that_mergekits_table_asks_for_are_not_needed",
        ),
        "Layer lists": (f"{P}: test_lists_of_layers_are_sliced_where_mergekit_ends",),
        "Rows of embeddings": (
            f"{P}: test_rows_beyond_the_tokens_are_cut_with_the_unsafe_option_only",
            f"{P}: test_vocabularies_of_two_sizes_are_an_error_in_both",
        ),
        "Models with one vocabulary": (f"{P}: test_rows_that_are_no_tokens_stay",),
        "Ids of the tokens": (
            f"{P}: test_tokens_that_a_union_adds_follow_the_bases_model_by_model",
            f"{T}: test_every_token_has_the_embedding_it_has_in_mergekit",
        ),
        "A token that": (f"{T}: test_new_tokens_of_the_base_are_merged_where_mergekit_fails",),
        "Several chat templates": (f"{P}: test_without_a_word_the_template_is_the_tokenizers",),
        "`chat_template: auto`": (
            f"{P}: test_auto_is_the_tokenizers_template_here_and_the_usual_one_there",
        ),
        "Divisor of ties": (NEGATIVE,),
        "Ratio of model_stock": (POLE, BOTH),
        "Divergence in arcee_fusion": (FUSION,),
        "Tensors of a model with": (
            "test_yaml.py: test_modules_are_merged_alike_and_what_is_in_none_is_not_lost",
        ),
        "Experts": (
            f"{P}: test_experts_are_as_transformers_has_them_in_mergekit",
            "test_methods.py: test_models_of_experts_are_the_same_once_loaded",
        ),
    },
    METHODS: {
        "all but linear, slerp and karcher | arithmetic": (ERRORS,),
        "all | `arcee_fusion` and": (TYPED,),
        "all random |": (DRAWN,),
        "all task-vector methods |": (SAME, LAMBDA),
        "ties, breadcrumbs | equal": (FIRST,),
        "ties | a density": (BOTH,),
        "ties and what votes": (NEGATIVE, BOTH),
        "ties, dare_*": (BOTH, f"{D}: test_a_norm_beyond_the_format_is_summed_in_a_larger_one"),
        "dare_* | `rescale`": (NORMS, INVERSE),
        "della, della_linear | `rescale`": (DIVIDED,),
        "della, della_linear | ranks": (f"{D}: test_ranks_in_16_bits_run_into_one_another",),
        "della, della_linear | equal": (f"{D}: test_equal_entries_share_a_rank",),
        "della, della_linear | a row": (STOPPED,),
        "della, della_linear | `density`": (
            STOPPED,
            f"{D}: test_mergekit_ignores_epsilon_at_density_1",
        ),
        "della, della_linear | rows": (f"{D}: test_rows_lie_along_the_last_dimension",),
        "nuslerp | weights": (REFUSED, BOTH),
        "nuslerp | a vector": (BOTH,),
        "nuslerp | nearly": (f"{D}: test_nearly_opposite_vectors_get_the_straight_line",),
        "multislerp | directions": (STOPPED, BOTH),
        "multislerp | weights": (REFUSED,),
        "multislerp | adds": (SAME,),
        "karcher | iterates": (SAME,),
        "karcher | tensors": (BOTH,),
        "karcher | directions": (BOTH,),
        "karcher | a source": (f"{D}: test_a_source_opposite_to_the_mean_does_not_pull",),
        "model_stock | the product": (BOTH,),
        "model_stock | a pole": (POLE, BOTH),
        "sce | uniform": (BOTH,),
        "sce | weights": (BOTH,),
        "sce | `select_topk`": (f"{D}: test_entries_are_counted_in_decimals",),
        "sce | equal": (FIRST,),
        "arcee_fusion | quantiles": (f"{D}: test_quantiles_of_large_tensors_are_not_sampled",),
        "arcee_fusion | divergences": (FUSION,),
        "nearswap | differences": (BOTH,),
        "nearswap | a negative": (REFUSED,),
        "ramplus_tl | shared": (BOTH,),
    },
    MOE: {
        "`hidden` gates": (
            f"{M}: test_hidden_gates_are_of_the_last_token_in_mergekit_and_of_all_that_reaches_the"
            "_router_here",
        ),
        "Random gates": (
            f"{M}: test_random_gates_are_standard_normal_in_mergekit_and_another_draw_each_time",
        ),
        "Shared expert with": (
            f"{M}: test_a_shared_expert_is_a_random_share_in_mergekit_and_half_here",
        ),
        "Experts on disk": (f"{M}: test_all_but_the_routers_has_the_bits_of_mergekit",),
        "A key that": (f"{M}: test_a_key_that_mergekit_does_not_know_is_ignored_there",),
        "`noise_scale`": (f"{M}: test_noise_is_put_on_the_expert_in_mergekit_and_refused_here",),
        "Llama with": (
            f"{M}: test_a_llama_with_a_shared_expert_needs_code_in_mergekit_and_loads_here",
        ),
    },
}


def rows_of(page: str) -> list[str]:
    """The rows of the page's table of differences, as ``first cell | second cell``."""
    file, _, heading = page.partition(" ")
    text = (DOCS / file).read_text(encoding="utf-8")
    heading = "## Where the result differs" if page == PAGE else heading
    if heading:
        text = text.partition(heading)[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.split(" | ")] for line in lines]
    rows = [f"{row[0].removeprefix('| ')} | {row[1]}" for row in cells]
    return [row for row in rows if not row.startswith(("What |", "method |"))]


@pytest.mark.parametrize("page", ROWS)
def test_every_row_is_shown_by_a_test_that_is_there(page: str) -> None:
    rows = rows_of(page)
    for row in rows:
        assert len([key for key in ROWS[page] if row.startswith(key)]) == 1, row
    for key, shown in ROWS[page].items():
        assert any(row.startswith(key) for row in rows), key
        for named in shown:
            file, _, test = named.partition(": ")
            assert f"def {test}(" in (HERE / file).read_text(encoding="utf-8"), named
