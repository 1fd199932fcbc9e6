"""How MLflow loads a checkpoint, and what it may be asked: by the kind of model that it is.

transformers' own tables say which task a class is made for. What MLflow's transformers flavour
cannot serve is described as far as it can, and a note says what does not work.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mergeops.checkpoint import CONFIG, GENERATION_CONFIG, PROCESSOR_TEMPLATE, TokenizerFile

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

TASKS = (
    ("text2text-generation", "SEQ_TO_SEQ_CAUSAL_LM", "Text2TextGenerationPipeline"),
    ("image-text-to-text", "IMAGE_TEXT_TO_TEXT", "ImageTextToTextPipeline"),
    ("text-generation", "CAUSAL_LM", "TextGenerationPipeline"),
    ("text-classification", "SEQUENCE_CLASSIFICATION", "TextClassificationPipeline"),
    ("token-classification", "TOKEN_CLASSIFICATION", "TokenClassificationPipeline"),
    ("fill-mask", "MASKED_LM", "FillMaskPipeline"),
    ("image-classification", "IMAGE_CLASSIFICATION", "ImageClassificationPipeline"),
    ("feature-extraction", "", "FeatureExtractionPipeline"),
)
"""Task, transformers' table of its classes, and its pipeline; the first that fits is taken."""
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
"""Either of them makes a processor."""


class Component(NamedTuple):
    """What is loaded beside a model."""

    auto_class: str
    files: tuple[str, ...]
    """Those that it may have."""


_TOKENIZER = tuple(name.value for name in TokenizerFile)
COMPONENTS = {
    "tokenizer": Component("AutoTokenizer", _TOKENIZER),
    "processor": Component(
        "AutoProcessor",
        (*_TOKENIZER, *PROCESSOR_FILES, PROCESSOR_TEMPLATE, "video_preprocessor_config.json"),
    ),
    "image_processor": Component("AutoImageProcessor", PROCESSOR_FILES),
}
"""As MLflow calls them."""
GENERATING = ("text2text-generation", "text-generation")
SETTINGS = {
    "max_new_tokens": ("integer", 256),
    "do_sample": ("boolean", False),
    "temperature": ("double", 1.0),
    "top_p": ("double", 1.0),
    "top_k": ("integer", 50),
    "num_beams": ("integer", 1),
    "repetition_penalty": ("double", 1.0),
}
"""What a generating model may be asked with -> its type in a signature, and transformers' value."""
LOADER = "mergeops_text_to_text"
"""Module beside an encoder-decoder model that answers for it."""


@dataclass(frozen=True)
class AdapterBase:
    """The full model that an adapter is logged for."""

    path: Path
    """Its directory on this machine."""
    name: str
    """As the recipe names it."""

    def gives(self, checkpoint: Path) -> Path:
        """Where tokenizer and processor are: the adapter's own, else the model's."""
        names = (*TokenizerFile, *PROCESSOR_FILES)
        return checkpoint if any((checkpoint / name).is_file() for name in names) else self.path


@dataclass(frozen=True)
class Flavour:
    """How a checkpoint is loaded."""

    task: str
    """As transformers calls it; empty where no flavour but its files is given."""
    pipeline: str = ""
    """Class of transformers' pipeline."""
    model_class: str = ""
    component: str = "tokenizer"
    """What is loaded beside the model, a key of ``COMPONENTS``; empty for nothing."""
    has_pyfunc: bool = True
    note: str = ""
    """What does not work, and what does."""

    @property
    def has_loader(self) -> bool:
        """Whether a module beside the model answers for it in pyfunc."""
        return self.has_pyfunc and self.task == "text2text-generation"


def flavour_of(checkpoint: Path, base: AdapterBase | None = None) -> Flavour:
    """What MLflow can make of a checkpoint, from its config and the files beside it.

    Args:
        checkpoint: a directory in Hugging Face layout; an adapter's with ``base``.
        base: of an adapter: MLflow loads it from where it lies, and then the adapter.
    """
    if base is None:
        return _flavour_of(checkpoint, read_config(checkpoint, CONFIG))
    whole = _flavour_of(base.gives(checkpoint), read_config(base.path, CONFIG))
    if not whole.task:
        return whole
    note = (
        f"the adapter alone is logged, and MLflow loads its base from {base.path}; elsewhere give "
        "mlflow.transformers.load_model(..., base_model_path=DIR)"
    )
    if whole.has_loader:
        note += ', and return_type="components"'
    # What answers for an encoder-decoder model loads full weights.
    return dataclasses.replace(
        whole, has_pyfunc=whole.has_pyfunc and not whole.has_loader, note=note
    )


def _flavour_of(checkpoint: Path, config: Mapping[str, Any]) -> Flavour:
    model_class = _model_class(config)
    has_tokenizer = any((checkpoint / name).is_file() for name in TokenizerFile)
    has_processor = any((checkpoint / name).is_file() for name in PROCESSOR_FILES)
    tasks = _tasks(model_class, config)
    pipelines = {task: pipeline for task, _, pipeline in TASKS}
    for task in tasks:
        component = "tokenizer"
        if task in ("image-text-to-text", "image-classification"):
            if not has_processor:
                continue
            component = "processor" if task == "image-text-to-text" else "image_processor"
        elif not has_tokenizer:
            continue
        note = ""
        if task == "text2text-generation":
            note = (
                f"{model_class} is an encoder-decoder model, for which transformers 5 has no "
                "pipeline: load it with mlflow.pyfunc.load_model, or with "
                'mlflow.transformers.load_model(..., return_type="components")'
            )
        elif task == "image-text-to-text":
            note = (
                f"{model_class} has a processor, of which MLflow makes no pipeline: load it with "
                'mlflow.transformers.load_model(..., return_type="components")'
            )
        return Flavour(
            task, pipelines[task], model_class, component, task != "image-text-to-text", note
        )
    if "text-generation" in tasks and not has_tokenizer:
        # Its tokenizer may be given to load_model.
        return Flavour("text-generation", pipelines["text-generation"], model_class, "")
    wanted = "the files of its tokenizer or processor" if tasks else "a pipeline in transformers"
    note = (
        f"{model_class or 'the model'} lacks {wanted}, so MLflow keeps its files only: load the "
        "directory model/ of the registered version with transformers"
    )
    return Flavour("", model_class=model_class, component="", has_pyfunc=False, note=note)


def signature_of(task: str, checkpoint: Path) -> ModelSignature:
    """What goes in, what comes out, and the settings with their defaults."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    text = Schema([ColSpec("string")])
    if task in GENERATING:
        defaults = _defaults(task, read_config(checkpoint, GENERATION_CONFIG))
        params = [ParamSpec(name, SETTINGS[name][0], value) for name, value in defaults.items()]
        if task == "text-generation":
            params.append(ParamSpec("return_full_text", "boolean", True))
        return ModelSignature(inputs=text, outputs=text, params=ParamSchema(params))
    if task in ("text-classification", "image-classification"):
        scored = Schema([ColSpec("string", name="label"), ColSpec("double", name="score")])
        return ModelSignature(inputs=text, outputs=scored)
    if task == "feature-extraction":
        vector = Schema([TensorSpec(np.dtype("float64"), (-1,), "double")])
        return ModelSignature(inputs=text, outputs=vector)
    return ModelSignature(inputs=text, outputs=text)


def read_config(checkpoint: Path, name: str) -> dict[str, Any]:
    """A JSON object beside the weights; empty where it is none."""
    try:
        content = json.loads((checkpoint / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _model_class(config: Mapping[str, Any]) -> str:
    """The class that the config names; else that of a causal model of its type."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    for name in config.get("architectures") or []:
        return str(name)
    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.get("model_type"), ""))


def _tasks(model_class: str, config: Mapping[str, Any]) -> Sequence[str]:
    """The tasks that a class is made for, by transformers' tables or the model's own code."""
    from transformers.models.auto import modeling_auto

    def lists(table: str) -> bool:
        name = f"MODEL_FOR_{table}_MAPPING_NAMES" if table else "MODEL_MAPPING_NAMES"
        classes = getattr(modeling_auto, name, {}).values()
        return any(
            model_class == listed or (isinstance(listed, tuple) and model_class in listed)
            for listed in classes
        )

    tasks = [task for task, table, _ in TASKS if lists(table)]
    auto_map = config.get("auto_map")
    if isinstance(auto_map, Mapping) and "AutoModelForCausalLM" in auto_map and not tasks:
        return ["text-generation"]
    return tasks


def _defaults(task: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that hold where none are given: MLflow passes each on, so they are those that
    the model would take by itself."""
    own: dict[str, Any] = {name: value for name, (_, value) in SETTINGS.items()}
    if task == "text-generation":
        from transformers import TextGenerationPipeline

        config: Any = TextGenerationPipeline._default_generation_config
        own |= {k: v for k, v in config.to_diff_dict().items() if k in own}
    if task == "text2text-generation" or said.get("max_length") is not None:
        # Without a limit of its own an encoder-decoder model stops at transformers' max_length, and
        # many have no positions for more.
        own["max_new_tokens"] = None
    return {**own, **{name: said[name] for name in SETTINGS if said.get(name) is not None}}
