#!/usr/bin/env bash
# DeepSpeed 0.19.8's ds_to_universal.py writes a tied embedding twice: under its first name the float32
# weights of the optimizer, under its second the 16-bit model's, in float32. The two differ.
#   findings/deepspeed-universal-rounds-a-tied-head.sh [PYTHON]     exits 0 while that is so
set -euo pipefail
python=${1:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"$python" -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0 setuptools wheel numpy
venv/bin/python -m pip install --quiet transformers==5.24.0
DS_BUILD_OPS=0 venv/bin/python -m pip install --quiet --no-build-isolation deepspeed==0.19.8
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu MASTER_ADDR=127.0.0.1
export RANK=0 LOCAL_RANK=0 WORLD_SIZE=1
MASTER_PORT=$(venv/bin/python -c "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])")
export MASTER_PORT
venv/bin/python - > train.log 2>&1 <<'PY' || { tail -20 train.log; exit 1; }
import deepspeed
import torch
from transformers import LlamaConfig, LlamaForCausalLM

# It would compile an extension that only makes messages quicker.
deepspeed.comm.torch.build_shm_op = lambda: None
deepspeed.init_distributed("gloo")
torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                     num_attention_heads=4, tie_word_embeddings=True)
settings = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 1},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
    "bf16": {"enabled": True},
}
model = LlamaForCausalLM(config)
engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=settings)
ids = torch.arange(8)[None]
engine.backward(engine(input_ids=ids, labels=ids).loss)
engine.step()
engine.save_checkpoint("run", tag="step1")
PY
venv/bin/python -m deepspeed.checkpoint.ds_to_universal --input_folder run/step1 \
    --output_folder run/universal --inject_missing_state > convert.log 2>&1 || { tail -20 convert.log; exit 1; }
venv/bin/python - 2>/dev/null <<'PY'
import deepspeed
import torch

states = torch.load("run/step1/mp_rank_00_model_states.pt", weights_only=True)
print(f"DeepSpeed {deepspeed.__version__}, torch {torch.__version__}; "
      f"tied, as the checkpoint says: {states['shared_params']}")
names = ("model.embed_tokens.weight", "lm_head.weight")
embedding, head = (torch.load(f"run/universal/zero/{name}/fp32.pt")["param"] for name in names)
print(f"in the universal checkpoint they are equal: {embedding.equal(head)}; "
      f"largest difference {(embedding - head).abs().max():.2e}")
print(f"the second is the first, rounded to bfloat16: {embedding.bfloat16().float().equal(head)}")
assert not embedding.equal(head) and embedding.bfloat16().float().equal(head)
PY
