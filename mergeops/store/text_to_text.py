"""What MLflow runs of a registered encoder-decoder model; a copy lies beside its weights.

transformers 5 has no pipeline for such models, and its text-generation pipeline cuts their answers
as if they began with the question. This file needs MLflow, torch and transformers only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class TextToText:
    """A model and its tokenizer.

    Args:
        path: the checkpoint's directory.
    """

    def __init__(self, path: str) -> None:
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        self.model: Any = AutoModelForSeq2SeqLM.from_pretrained(path, dtype="auto").eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(path)

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> list[str]:
        """Answer texts, one by one.

        Args:
            data: a text, a list of them, or a data frame whose first column holds them.
            params: of ``generate``; those that are None are the model's own.
        """
        settings = {name: value for name, value in (params or {}).items() if value is not None}
        texts = data.iloc[:, 0].tolist() if hasattr(data, "iloc") else data
        return [
            self._answer(text, settings) for text in ([texts] if isinstance(texts, str) else texts)
        ]

    def _answer(self, text: str, settings: Mapping[str, Any]) -> str:
        import torch

        asked = self.tokenizer(text, return_tensors="pt")
        inputs = {name: asked[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            answer = self.model.generate(**inputs, **settings)
        return str(self.tokenizer.decode(answer[0], skip_special_tokens=True))


def _load_pyfunc(path: str) -> TextToText:
    """As ``mlflow.pyfunc`` calls it."""
    return TextToText(path)
