"""A recovered directory is the model that was trained, whole or not there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.zero_files import write_zero2, write_zero3

from mergeops.checkpoint import verify_checkpoint
from mergeops.errors import MergeError, SourceError
from mergeops.recover import recover, writing

Copied = Callable[[str], Path]


def test_a_sharded_run_becomes_a_model_that_transformers_loads(
    written: Path, trained_base: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "out"
    result = recover(written / "together" / "checkpoint-8", out, base=trained_base)
    trained = torch.load(written / "trained.pt", weights_only=True)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert all(model.state_dict()[name].equal(tensor) for name, tensor in trained.items())
    assert len(AutoTokenizer.from_pretrained(out)) == 131
    assert verify_checkpoint(out) == []
    assert result.notes == ()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_the_config_says_the_format_of_the_weights(
    written: Path, trained_base: Path, tmp_path: Path
) -> None:
    recover(written / "slices", tmp_path / "out", base=trained_base)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_the_digest_is_that_of_the_directory_as_a_source(
    written: Path, trained_base: Path, tmp_path: Path
) -> None:
    from mergeops.checkpoint import weights_sha256

    result = recover(written / "fsdp" / "checkpoint-4", tmp_path / "out", base=trained_base)
    assert result.sha256 == weights_sha256(tmp_path / "out") == weights_sha256(trained_base)


def test_a_large_model_is_in_several_files(
    written: Path, trained_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(writing, "SHARD_BYTES", 30_000)
    monkeypatch.setattr(writing, "CHUNK_BYTES", 1000)
    recover(written / "fsdp" / "checkpoint-4", tmp_path / "out", base=trained_base)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    expected = load_file(trained_base / "model.safetensors")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(found[name].equal(tensor) for name, tensor in expected.items())
    assert verify_checkpoint(tmp_path / "out") == []


def test_a_killed_recovery_goes_on_with_the_next_file(
    written: Path, trained_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergeops.recover import recovery

    monkeypatch.setattr(writing, "SHARD_BYTES", 30_000)
    written_files: list[str] = []
    write_file = writing.write_file

    def killed(path: Path, *rest: Any) -> Any:
        if len(written_files) == 2:
            raise KeyboardInterrupt
        written_files.append(path.name)
        return write_file(path, *rest)

    monkeypatch.setattr(recovery, "write_file", killed)
    source = written / "fsdp" / "checkpoint-4"
    with pytest.raises(KeyboardInterrupt):
        recover(source, tmp_path / "out", base=trained_base)
    assert not (tmp_path / "out").exists()
    first, written_files = written_files, []
    with pytest.raises(KeyboardInterrupt):
        recover(source, tmp_path / "out", base=trained_base)
    assert not set(first) & set(written_files)
    monkeypatch.setattr(recovery, "write_file", write_file)
    assert not recover(source, tmp_path / "out", base=trained_base).was_there
    assert verify_checkpoint(tmp_path / "out") == []
    assert recover(source, tmp_path / "out", base=trained_base).was_there


def test_a_dry_run_writes_nothing(written: Path, trained_base: Path, tmp_path: Path) -> None:
    source = written / "fsdp" / "checkpoint-4"
    result = recover(source, tmp_path / "out", base=trained_base, dry_run=True)
    assert result.sha256 is None
    assert result.to_dict()["found"]["tensors"] == 21
    assert list(tmp_path.iterdir()) == []


def test_the_config_of_the_checkpoint_itself_is_enough(
    copied: Copied, trained_base: Path, tmp_path: Path
) -> None:
    folder = copied("verl/global_step_4")
    with pytest.raises(SourceError, match=r"has no config.json; say which .* OUT --base BASE`"):
        recover(folder, tmp_path / "out")
    (folder / "actor" / "huggingface").mkdir()
    shutil.copy(trained_base / "config.json", folder / "actor" / "huggingface")
    result = recover(folder, tmp_path / "out")
    assert result.notes == (
        "names and shapes were compared with no base; --base BASE does so",
        "there is no tokenizer; --base BASE brings the base's",
    )
    assert len(load_file(tmp_path / "out" / "model.safetensors")) == 21


def test_slices_without_the_base_may_lack_the_last_process(
    copied: Copied, trained_base: Path, tmp_path: Path
) -> None:
    folder = copied("slices")
    shutil.copy(trained_base / "config.json", folder)
    with pytest.raises(SourceError, match="how large the whole ones are stands in no file"):
        recover(folder, tmp_path / "out")
    sorted(folder.glob("shard-*"))[-1].unlink()
    with pytest.raises(SourceError, match=r"has the shape .*: the files of a process are missing"):
        recover(folder, tmp_path / "out", base=trained_base)


def test_another_model_is_not_the_base(
    written: Path, tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    source = written / "fsdp" / "checkpoint-4"
    other = tiny_llama(vocabulary_size=131, layers=1)
    with pytest.raises(SourceError, match=r"has not the tensors of .*: it has model.layers.1"):
        recover(source, tmp_path / "out", base=other)
    with pytest.raises(SourceError, match=r"it lacks model.layers.2.*name as base the model that"):
        recover(source, tmp_path / "out", base=tiny_llama(vocabulary_size=131, layers=3))
    with pytest.raises(SourceError, match=r"embed_tokens.weight has the shape \[131, 32\], in "):
        recover(source, tmp_path / "out", base=tiny_llama(vocabulary_size=140))
    with pytest.raises(SourceError, match="--base nowhere is not a directory"):
        recover(source, tmp_path / "out", base=Path("nowhere"))


def test_names_of_other_trainers_have_another_way(trained_base: Path, tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    tensors = dict.fromkeys(
        ("tok_embeddings.weight", "layers.0.moe.router.weight"), torch.ones(4, 2)
    )
    dcp.save(tensors, checkpoint_id=tmp_path / "step-3", no_dist=True)
    with pytest.raises(SourceError, match=r"has other names than .*convert_to_hf.py"):
        recover(tmp_path / "step-3", tmp_path / "out", base=trained_base)


def test_names_that_wrappers_made_are_those_of_the_model(
    trained_base: Path, tmp_path: Path
) -> None:
    tensors = load_file(trained_base / "model.safetensors")
    wrapped = {
        name.replace("layers.0.", "layers.0._checkpoint_wrapped_module."): tensor
        for name, tensor in tensors.items()
    }
    run = write_zero2(tmp_path / "run", {f"_orig_mod.{n}": t for n, t in wrapped.items()})
    recover(run, tmp_path / "out", base=trained_base)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == tensors.keys()
    assert all(found[name].equal(tensor) for name, tensor in tensors.items())


def test_a_tied_head_is_saved_once(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_llama(tied=True)
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    result = recover(write_zero3(tmp_path / "a", tensors, 2), tmp_path / "out", base=base)
    assert "lm_head.weight is tied to model.embed_tokens.weight" in result.notes[0]
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    with pytest.raises(SourceError, match="tied to model.embed_tokens.weight, but they differ"):
        recover(write_zero3(tmp_path / "b", tensors, 2), tmp_path / "out2", base=base)


def test_zeros_that_the_base_does_not_have_are_no_weights(
    trained_base: Path, tmp_path: Path
) -> None:
    tensors = load_file(trained_base / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"].zero_()
    run = write_zero3(tmp_path / "run", tensors, 2)
    with pytest.raises(MergeError, match=r"1.mlp.up_proj.weight is zero throughout, in the base"):
        recover(run, tmp_path / "out", base=trained_base)
    assert not (tmp_path / "out").exists()


def test_an_adapter_needs_its_settings(written: Path, copied: Copied, tmp_path: Path) -> None:
    folder = copied("lora/checkpoint-4")
    known = r"LoraConfig\(r=4, lora_alpha=(?:8|ALPHA), target_modules=\['q_proj'\]\)"
    with pytest.raises(SourceError, match=rf"alpha is in no file; write it.*{known}"):
        recover(folder, tmp_path / "out")
    (folder / "lora_train_meta.json").write_text('{"r": 4, "lora_alpha": 8}')
    with pytest.raises(SourceError, match=rf"lora_train_meta.json says lora_alpha=8; .*{known}"):
        recover(folder, tmp_path / "out")
    (folder / "adapter_config.json").write_text('{"r": 16, "lora_alpha": 16}')
    with pytest.raises(
        SourceError, match=r"says r=16, but .*lora_A.weight has rank 4: it is of an"
    ):
        recover(folder, tmp_path / "out")
    shutil.copy(written / "adapter" / "adapter_config.json", folder)
    recover(folder, tmp_path / "out")
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    expected = load_file(written / "adapter" / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    assert all(found[name].equal(tensor) for name, tensor in expected.items())
    assert (tmp_path / "out" / "adapter_config.json").is_file()
    assert verify_checkpoint(tmp_path / "out") == []


def test_slices_of_an_adapter_are_refused(written: Path, tmp_path: Path) -> None:
    said = json.dumps({"a.lora_A.weight": {"saved_offsets": [0, 0]}})
    name = "shard-00001-model-00001-of-00001.safetensors"
    tensors = {"a.lora_A.weight": torch.ones(2, 2)}
    save_file(tensors, tmp_path / name, metadata={"DCP_SHARDING_INFO": said})
    shutil.copy(written / "adapter" / "adapter_config.json", tmp_path)
    with pytest.raises(SourceError, match="holds slices of an adapter's tensors"):
        recover(tmp_path, tmp_path / "out")


def test_an_adapter_in_memory_gets_the_names_of_peft(
    written: Path, trained_base: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(trained_base)
    states = PeftModel.from_pretrained(base, written / "adapter").state_dict()
    run = write_zero2(tmp_path / "run", states)
    shutil.copy(written / "adapter" / "adapter_config.json", run)
    result = recover(run, tmp_path / "out")
    assert "21 tensors of the base, which the adapter does not have, were left out" in result.notes
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    expected = load_file(written / "adapter" / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    assert all(found[name].equal(tensor) for name, tensor in expected.items())
    more = {name.replace(".default.", ".other."): tensor for name, tensor in states.items()}
    run = write_zero2(tmp_path / "two", states | more)
    shutil.copy(written / "adapter" / "adapter_config.json", run)
    with pytest.raises(SourceError, match="holds the adapters default, other; save one of them"):
        recover(run, tmp_path / "two_out")


def test_what_is_in_the_way_stays(written: Path, trained_base: Path, tmp_path: Path) -> None:
    source = written / "fsdp" / "checkpoint-4"
    (tmp_path / "file").touch()
    with pytest.raises(MergeError, match="file is a file; the output must be a new or empty"):
        recover(source, tmp_path / "file", base=trained_base)
    with pytest.raises(MergeError, match="is not empty and holds no mergeops.json"):
        recover(source, tmp_path, base=trained_base)
    recover(source, tmp_path / "out", base=trained_base)
    with pytest.raises(MergeError, match="holds something else already"):
        recover(written / "slices", tmp_path / "out", base=trained_base)


def test_nothing_to_recover_says_what_there_is(trained_base: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is a whole checkpoint already; use it as a source"):
        recover(trained_base, tmp_path / "out")
    save_file({"w": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(
        SourceError, match=r"holds nothing that a sharded training left: .*; it has"
    ):
        recover(tmp_path, tmp_path / "out")
    with pytest.raises(SourceError, match="nowhere is not a directory"):
        recover(tmp_path / "nowhere", tmp_path / "out")


def test_experts_that_are_the_bases_are_named(trained_base: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(trained_base, tmp_path / "base"))
    weights = load_file(base / "model.safetensors")
    weights["model.layers.0.mlp.experts.0.up_proj.weight"] = torch.randn(2, 2)
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    trained = {name: tensor + 1 for name, tensor in weights.items()}
    run = write_zero2(tmp_path / "trained", trained)
    assert recover(run, tmp_path / "one", base=base).notes == ()
    trained |= {name: tensor for name, tensor in weights.items() if ".experts." in name}
    run = write_zero2(tmp_path / "left_out", trained)
    [note] = recover(run, tmp_path / "two", base=base).notes
    assert note.startswith("all 1 tensors of experts in ")
    assert note.endswith("merge the run's adapter instead")
