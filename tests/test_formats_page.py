"""Each row of docs/formats.md is what tests show: those that this file names, or a test of its own.

Rows of schemes, kinds, families and GGUF models are held against the tests' own lists in
tests/checkpoint/test_quantisation.py, tests/adapters/test_every_kind.py, tests/old_files and
tests/architectures/test_gguf.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "formats.md"
CHECKED_BY_LISTS = ("stored as", "`peft_type`")
"""First cells of the heads of such tables."""

Shown = tuple[str, ...]
"""``file: test``, below tests/."""
MODEL, REMEDIES = "planning/test_model_of_the_result.py", "planning/test_remedies.py"
SMALL, NESTED = "planning/test_small_files.py", "planning/test_nested_files.py"
LORA, STARTS = "adapters/test_lora_in_full.py", "adapters/test_adapter_config.py"
LAYOUTS, MLMODEL = "sources/test_layouts.py", "sources/test_logged_models.py"
TIED, EXPERTS = "adapters/test_tied_parameters.py", "planning/test_single_experts.py"
TASK_HEADS = "adapters/test_task_heads.py"
BASE = "sources/test_adapter_base.py"
COMPUTES = f"{LORA}: test_merge_computes_what_the_adapted_model_computes"
ROWS: dict[str, tuple[str, Shown]] = {
    "parameters that no tensor gives": (
        "refused",
        (
            f"{MODEL}: test_a_config_of_another_model_is_refused",
            f"{MODEL}: test_a_part_of_a_layer_that_the_model_does_not_have_is_refused",
            f"{REMEDIES}: test_a_parameter_that_two_tensors_give_is_seen",
        ),
    ),
    "a head for another task": (
        "merged, and said",
        (f"{MODEL}: test_a_head_for_another_task_is_said_and_kept",),
    ),
    "no pooler, in a model": (
        "merged without one",
        (f"{MODEL}: test_a_model_that_was_trained_without_its_pooler_is_merged_and_said",),
    ),
    "layers behind the model's own": (
        "merged",
        (
            "architectures/test_model_fit.py: "
            "test_layers_that_predict_further_ahead_are_no_surprise",
            f"{REMEDIES}: "
            "test_layers_that_predict_further_ahead_are_taken_from_the_input_that_has_them",
        ),
    ),
    "names behind a wrapper": (
        "renamed",
        (
            f"{MODEL}: test_words_of_a_wrapper_are_left_out_and_said",
            f"{MODEL}: test_a_compiled_module_inside_the_model_is_found",
        ),
    ),
    "names of a PEFT model in memory": (
        "refused",
        (f"{MODEL}: test_the_names_of_a_peft_model_in_memory_are_refused",),
    ),
    "two inputs with two names": (
        "matched",
        (
            f"{MODEL}: test_gpt2_of_the_hub_is_merged_with_what_transformers_saves",
            f"{MODEL}: test_old_and_new_names_of_one_model_are_matched",
        ),
    ),
    "experts one by one in one input": (
        "merged",
        (
            f"{EXPERTS}: test_both_layouts_of_experts_are_averaged",
            f"{REMEDIES}: test_experts_one_by_one_beside_experts_in_one_need_a_model_that_is_known",
        ),
    ),
    "a model that transformers does not know": (
        "inputs are compared",
        (
            f"{MODEL}: test_models_that_nobody_knows_are_matched_by_one_prefix",
            f"{MODEL}: test_layers_are_counted_where_transformers_does_not_know_the_model",
            f"{MODEL}: test_code_of_its_own_makes_a_note_of_what_cannot_be_known",
        ),
    ),
    "a head of any name written though": (
        "kept",
        (
            f"{REMEDIES}: test_a_head_that_is_written_though_tied_is_untied_where_it_differs",
            f"{REMEDIES}: test_a_method_that_draws_parts_a_head_that_is_written_though_tied",
            "planning/test_tied_heads.py: "
            "test_heads_of_their_own_are_averaged_and_the_rest_stays_tied",
        ),
    ),
    "a head of any name that some": (
        "refused",
        ("planning/test_plan.py: test_tied_head_in_one_only",),
    ),
    "config.json, generation_config.json": (
        "the first input",
        (
            f"{SMALL}: "
            "test_settings_of_generation_in_which_inputs_differ_are_said_with_whose_the_merge_has",
            f"{SMALL}: test_settings_of_generation_of_another_input_get_the_ids_of_the_tokenizer_s",
        ),
    ),
    "tokenizer, and all others": (
        "the input whose tokenizer",
        (
            f"{SMALL}: test_small_files_come_along_and_leftovers_do_not",
            f"{SMALL}: test_leftovers_are_known",
            f"{SMALL}: test_a_tokenizer_of_bytes_has_no_vocabulary_and_comes_along",
            f"{SMALL}: test_without_a_tokenizer_the_small_files_are_those_of_the_config_s_input",
        ),
    ),
    "processor (": (
        "the config's input",
        (f"{SMALL}: test_a_processor_is_one_input_s_and_said_where_it_is_not_the_first_s",),
    ),
    "ids of special tokens": (
        "the tokenizer's input",
        (
            f"{SMALL}: test_ids_of_special_tokens_are_those_of_the_tokenizer_s_input",
            f"{SMALL}: test_what_ends_a_text_goes_with_the_chat_template",
            f"{SMALL}: test_what_ends_a_text_goes_with_a_chat_template_that_is_not_the_tokenizers",
            f"{SMALL}: test_special_tokens_in_which_inputs_differ_are_said_for_each_file",
            f"{NESTED}: test_an_end_that_generation_does_not_stop_at_is_said",
            f"{SMALL}: test_tokens_that_the_model_has_no_row_for_are_said",
        ),
    ),
    "`additional_chat_templates/`": (
        "the tokenizer's directory",
        (f"{NESTED}: test_further_chat_templates_come_along",),
    ),
    "`modules.json`": (
        "the config's input",
        (
            f"{NESTED}: test_the_modules_of_a_sentence_model_come_along",
            f"{NESTED}: test_a_module_with_pickled_weights_is_refused",
        ),
    ),
    "`quantization_config` over plain": (
        "dropped, and said",
        (f"{SMALL}: test_what_is_left_of_a_quantisation_over_plain_weights_is_dropped_and_said",),
    ),
    "code (`*.py`)": (
        "only with",
        ("recipe/mergekit/test_inputs.py: test_a_checkpoints_code_is_copied_where_it_is_trusted",),
    ),
    "a checkpoint in `model/`": (
        "found",
        (
            f"{LAYOUTS}: test_nemo_automodel_saves_models_two_directories_deep",
            f"{LAYOUTS}: test_an_adapter_with_a_name_lies_inside_its_checkpoint",
            f"{LAYOUTS}: test_of_several_named_adapters_one_is_to_be_named",
            f"{LAYOUTS}: test_a_directory_with_a_checkpoint_inside_says_where_it_is",
        ),
    ),
    "`MLmodel` with the flavour": (
        "it says which folder",
        (
            f"{MLMODEL}: test_a_peft_model_is_its_adapter_and_not_the_wrapped_base_beside_it",
            f"{MLMODEL}: test_the_tokenizer_that_mlflow_keeps_beside_a_model_belongs_to_it",
            f"{MLMODEL}: test_the_commit_of_the_base_that_mlflow_noted_is_the_adapters",
        ),
    ),
    "`MLmodel` that names a model": (
        "refused",
        (f"{MLMODEL}: test_a_model_of_which_mlflow_kept_the_name_alone_is_refused",),
    ),
    "a full model with the names that PEFT": (
        "refused",
        (
            f"{MLMODEL}: "
            "test_a_model_inside_peft_that_is_named_is_refused_with_the_adapter_beside_it",
        ),
    ),
    "a version of a registered model": (
        "its files are read",
        (f"{MLMODEL}: test_files_that_the_registry_keeps_of_a_deleted_logged_model_are_read",),
    ),
    "`checkpoint-is-incomplete.txt`": (
        "refused",
        ("recover/test_refusals.py: test_a_marker_says_that_the_save_did_not_finish",),
    ),
    "shards of FSDP": (
        "read where they lie",
        (
            "recover/test_recover_command.py: test_a_merge_reads_the_pieces_where_they_lie",
            "recover/test_recover_command.py: test_pieces_need_the_model_that_was_trained",
        ),
    ),
    "shards of Megatron": (
        "refused",
        ("recover/test_megatron.py: test_such_a_folder_as_a_source_names_the_command",),
    ),
    "`use_rslora`": ("applied", (COMPUTES,)),
    "`rank_pattern`, `alpha_pattern` with": (
        "where they are in alphabetical order",
        (
            "adapters/test_module_patterns.py: "
            "test_of_several_patterns_in_alphabetical_order_the_first_is_not_known",
        ),
    ),
    "`target_parameters`": (
        "applied",
        (f"{LORA}: test_factors_of_fused_experts_go_to_each_expert",),
    ),
    "modules of single experts": (
        "applied",
        (f"{EXPERTS}: test_an_adapter_with_lora_on_each_expert_applies_to_experts_in_one_tensor",),
    ),
    "convolutions": (
        "applied",
        (
            "adapters/test_odd_bases.py: test_lora_on_convolutions_gives_what_peft_merges",
            "adapters/test_odd_bases.py: "
            "test_convolutions_of_channels_in_groups_are_refused_by_that",
        ),
    ),
    "`layer_replication`": (
        "the merge has the repeated",
        (f"{LORA}: test_replicated_layers_are_layers_of_the_merge",),
    ),
    "`trainable_token_indices`": (
        "the rows are replaced",
        (
            f"{LORA}: test_tied_embeddings_and_head_become_what_the_adapted_model_has",
            f"{TIED}: test_rows_are_tied_where_they_are_the_input_embeddings_alone",
        ),
    ),
    "`modules_to_save`": (
        "the modules are replaced",
        (
            f"{TIED}: test_one_of_several_tied_parameters_is_changed_alone",
            f"{TASK_HEADS}: test_a_head_of_other_labels_is_the_adapters",
        ),
    ),
    "a head that the base lacks": (
        "refused",
        (
            f"{TASK_HEADS}: test_a_head_that_the_base_lacks_has_a_way_out_that_works",
            f"{TASK_HEADS}: "
            "test_what_the_training_drew_at_random_and_kept_nowhere_cannot_be_made_again",
        ),
    ),
    "`init_lora_weights`: `true`": (
        "applied",
        (
            COMPUTES,
            f"{STARTS}: test_starts_that_leave_the_base_or_follow_from_it_can_be_merged",
        ),
    ),
    "`init_lora_weights`: `pissa_niter_N`": (
        "refused",
        (f"{STARTS}: test_what_no_weights_stand_for_is_said_from_the_config_alone",),
    ),
    "`alora_invocation_tokens`": (
        "refused",
        (f"{STARTS}: test_what_no_weights_stand_for_is_said_from_the_config_alone",),
    ),
    "a bias for a layer": (
        "refused",
        (f"{LORA}: test_bias_on_a_layer_without_one_is_refused",),
    ),
    "a `torch.nn.MultiheadAttention`": (
        "applied",
        (
            "adapters/test_attention_of_torch.py: "
            "test_the_merge_computes_what_the_model_in_memory_computes",
            "adapters/test_attention_of_torch.py: test_what_is_not_exact_is_refused",
        ),
    ),
    "vocabularies of other sizes": (
        "matched by token",
        (
            "planning/tokens/test_every_embedding.py: "
            "test_what_transformers_grows_with_a_vocabulary_is_matched_by_token",
            "planning/tokens/test_every_embedding.py: "
            "test_embeddings_of_another_number_of_rows_are_not_matched",
        ),
    ),
    "a vocabulary that grew": (
        "as large in the merge",
        (
            f"{TIED}: test_trained_rows_of_a_vocabulary_that_grew_are_those_of_the_model_in_memory",
            f"{TIED}: test_an_encoder_decoder_grows_with_all_that_its_vocabulary_has",
            f"{TIED}: test_embeddings_that_grew_and_are_in_no_file_have_a_way_out_that_works",
        ),
    ),
    "one of several parameters": (
        "changed alone",
        (
            f"{TIED}: test_one_of_several_tied_parameters_is_changed_alone",
            f"{TIED}: test_rows_tied_with_a_head_whose_bias_peft_passes_over_are_refused",
            f"{LORA}: test_head_of_its_own_is_said",
        ),
    ),
    "names of the model in memory": (
        "found on disk",
        (
            f"{LORA}: test_modules_that_are_called_otherwise_on_disk_are_not_said_to_be_missing",
            "adapters/test_odd_bases.py: "
            "test_a_module_that_may_be_two_tensors_is_refused_with_both",
        ),
    ),
    "`revision`": (
        "followed",
        (
            f"{BASE}: test_an_adapter_is_added_to_the_commit_that_it_was_trained_on",
            f"{BASE}: test_a_path_into_another_machines_hub_cache_is_the_repository_and_its_commit",
            f"{BASE}: test_a_four_bit_repository_stands_for_the_model_whose_weights_it_rounds",
        ),
    ),
    "modules that the config names": (
        "left as in the base",
        (
            f"{LORA}: test_modules_that_the_file_has_nothing_for_and_a_base_of_four_bits_are_said",
            f"{LORA}: test_what_the_config_names_and_the_files_lack_is_refused",
        ),
    ),
}


def rows() -> list[tuple[str, str]]:
    """First and last cell of each row that no list of tests is held against."""
    found, head = [], ""
    for before, line in zip(
        ["", *(lines := PAGE.read_text("utf-8").splitlines())], lines, strict=False
    ):
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not line.startswith("| "):
            continue
        if not before.startswith("| "):
            head = cells[0]
        elif set(line) != set("| -") and head not in CHECKED_BY_LISTS:
            found.append((cells[0], cells[-1]))
    return found


def test_every_row_says_what_its_tests_show() -> None:
    told = {}
    for cell, fate in rows():
        keys = [key for key in ROWS if cell.startswith(key)]
        assert len(keys) == 1, f"{cell}: name the tests that show this row in ROWS"
        told[keys[0]] = fate
    assert told.keys() == ROWS.keys()
    assert [key for key, (word, _) in ROWS.items() if not told[key].startswith(word)] == []


@pytest.mark.parametrize("shown", sorted({shown for _, tests in ROWS.values() for shown in tests}))
def test_the_tests_of_a_row_are_there(shown: str) -> None:
    file, _, name = shown.partition(": ")
    assert f"\ndef {name}(" in (TESTS / file).read_text("utf-8")
