#!/usr/bin/env bash
# A LoKr adapter that PEFT 0.13.2 trained and saved loads in PEFT 0.21.2 without a warning as another
# model: the old one never multiplied by alpha / r, the new one does, and the file does not say which.
#   findings/peft-old-lokr-loads-scaled.sh [PYTHON]     exits 0 while that is so
set -euo pipefail
python=${1:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"$python" -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet transformers==5.24.0 peft==0.21.2
venv/bin/python -m pip install --quiet --no-deps --target old peft==0.13.2
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
cat > one.py <<'PY'
import torch
from torch import nn


class One(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(16, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x)


def change(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.eye(16)) - One()(torch.eye(16))
PY
PYTHONPATH=.:old venv/bin/python - 2>/dev/null <<'PY'
import peft
import torch
from one import One, change

config = peft.LoKrConfig(r=2, alpha=8, target_modules=["a"], init_weights=False)
model = peft.get_peft_model(One(), config)
model.save_pretrained("adapter")
torch.save(change(model), "change.pt")
print(f"PEFT {peft.__version__}: adds a matrix of norm {change(model).norm():.3f}, saves it")
PY
PYTHONPATH=. venv/bin/python - 2>/dev/null <<'PY'
import warnings

import peft
import torch
from one import One, change

with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    model = peft.PeftModel.from_pretrained(One(), "adapter")
now, then = change(model), torch.load("change.pt")
about = [str(each.message) for each in said if "lokr" in str(each.message).lower()]
print(f"PEFT {peft.__version__}: adds one of norm {now.norm():.3f}, warnings about it: {about}")
print(f"it is alpha / r = 4 times as large: off from that by {(now - 4 * then).abs().max():.6f}")
assert not about and torch.allclose(now, 4 * then, atol=1e-5)
PY
