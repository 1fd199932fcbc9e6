#!/usr/bin/env bash
# mlflow.transformers.save_model of a PEFT model whose base is a local directory writes the base as it
# is inside PEFT (names with base_layer); load_model finds no weight for the adapted layers and draws
# them at random, another model at each load, with a warning only.
#   findings/mlflow-peft-model-reloads-random.sh [PYTHON]     exits 0 while that is so
set -euo pipefail
python=${1:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"$python" -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet mlflow==3.17.2 transformers==5.24.0 peft==0.21.2 accelerate==1.15.0
export HF_HUB_OFFLINE=1 MLFLOW_DISABLE_TELEMETRY=true OMP_NUM_THREADS=1
venv/bin/python - 2>/dev/null <<'PY'
from importlib.metadata import version

import mlflow
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

print({name: version(name) for name in ("mlflow", "transformers", "peft", "torch")})
torch.manual_seed(0)
sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
config = LlamaConfig(vocab_size=32, num_hidden_layers=1, num_key_value_heads=2, **sizes)
LlamaForCausalLM(config).save_pretrained("base")
words = models.WordLevel({f"w{i}": i for i in range(32)}, unk_token="w0")
tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), unk_token="w0")
lora = LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)
model = get_peft_model(LlamaForCausalLM.from_pretrained("base"), lora)
parts = {"model": model, "tokenizer": tokenizer}
mlflow.transformers.save_model(
    parts, "saved", task="text-generation", pip_requirements=["torch"]
)
names = [name for name in load_file("saved/model/model.safetensors") if "q_proj" in name]
print("written into model/:", *names)


def adapted(model):
    weights = dict(model.named_parameters())
    [weight] = [w for n, w in weights.items() if n.endswith("q_proj.base_layer.weight")]
    return weight.detach()


right = adapted(model)
first, second = (adapted(mlflow.transformers.load_model("saved").model) for _ in range(2))
print(f"q_proj, largest entry {right.abs().max():.3f}")
print(f"  loaded once: off by up to {(first - right).abs().max():.3f}")
print(f"  loaded twice: the two differ by up to {(first - second).abs().max():.3f}")
assert any("base_layer" in name for name in names)
assert not torch.equal(first, right) and not torch.equal(first, second)
PY
