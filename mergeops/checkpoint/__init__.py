"""A model's directory on disk: names, headers, byte ranges, digests, manifest.

Stands on: errors, lazy_torch, progress.
"""

from mergeops.checkpoint.conversions import kept_conversion
from mergeops.checkpoint.digest import (
    adapter_sha256,
    combined_sha256,
    file_sha256,
    files_sha256,
    known_sha256,
    look_alike,
    remember,
    weights_sha256,
)
from mergeops.checkpoint.dtypes import BY_WORD, FLOATS, item_size, torch_dtype, word
from mergeops.checkpoint.durable import (
    keep_text,
    locked,
    no_work,
    replace_with,
    sync_directory,
    sync_file,
    sync_or_remove,
)
from mergeops.checkpoint.hash_along import HashAlong
from mergeops.checkpoint.header import SLICES_NAME, StoredTensor, encode_header, read_slices
from mergeops.checkpoint.holds import alone, hold
from mergeops.checkpoint.layout import (
    ADAPTER,
    ADAPTER_CONFIG,
    CONFIG,
    GENERATION_CONFIG,
    INDEX,
    PICKLED,
    PICKLED_ADAPTER,
    PICKLED_INDEX,
    SINGLE,
    Checkpoint,
    FileStamp,
    check_filled,
    is_too_deep,
    open_checkpoint,
    quantisation_of,
    read_headers,
    read_json,
    read_small,
    stamp,
    weight_files,
)
from mergeops.checkpoint.manifest import MANIFEST, WrittenFile, read_manifest, write_manifest
from mergeops.checkpoint.pickled import converted
from mergeops.checkpoint.quantised.recognition import (
    ORIGINAL,
    Quantisation,
    gguf_instead,
    gguf_models,
    recognise,
    without_quantisation,
)
from mergeops.checkpoint.reader import (
    Bytes,
    CheckpointReader,
    TensorReader,
    as_floats,
    as_tensor,
    read_bytes,
    read_range,
    read_tensor,
)
from mergeops.checkpoint.relaid import RelaidReader
from mergeops.checkpoint.renamed import RenamedReader, TensorCut
from mergeops.checkpoint.sizes import lacking, size_text
from mergeops.checkpoint.small_files import (
    MODULES,
    MORE_TEMPLATES,
    SMALL_SUFFIXES,
    is_processor_file,
    is_small_file,
)
from mergeops.checkpoint.staged import STAGE_VARIABLE
from mergeops.checkpoint.tokenizer_files import (
    PROCESSOR_TEMPLATE,
    VOCABULARY_FILES,
    TokenizerFile,
    has_tokenizer,
    tokenizer_directory,
)
from mergeops.checkpoint.verification import verify_checkpoint
from mergeops.checkpoint.watched import as_seen, look_at, older_than
from mergeops.checkpoint.whole_directory import Destination

__all__ = [
    "ADAPTER",
    "ADAPTER_CONFIG",
    "BY_WORD",
    "CONFIG",
    "FLOATS",
    "GENERATION_CONFIG",
    "INDEX",
    "MANIFEST",
    "MODULES",
    "MORE_TEMPLATES",
    "ORIGINAL",
    "PICKLED",
    "PICKLED_ADAPTER",
    "PICKLED_INDEX",
    "PROCESSOR_TEMPLATE",
    "SINGLE",
    "SLICES_NAME",
    "SMALL_SUFFIXES",
    "STAGE_VARIABLE",
    "VOCABULARY_FILES",
    "Bytes",
    "Checkpoint",
    "CheckpointReader",
    "Destination",
    "FileStamp",
    "HashAlong",
    "Quantisation",
    "RelaidReader",
    "RenamedReader",
    "StoredTensor",
    "TensorCut",
    "TensorReader",
    "TokenizerFile",
    "WrittenFile",
    "adapter_sha256",
    "alone",
    "as_floats",
    "as_seen",
    "as_tensor",
    "check_filled",
    "combined_sha256",
    "converted",
    "encode_header",
    "file_sha256",
    "files_sha256",
    "gguf_instead",
    "gguf_models",
    "has_tokenizer",
    "hold",
    "is_processor_file",
    "is_small_file",
    "is_too_deep",
    "item_size",
    "keep_text",
    "kept_conversion",
    "known_sha256",
    "lacking",
    "locked",
    "look_alike",
    "look_at",
    "no_work",
    "older_than",
    "open_checkpoint",
    "quantisation_of",
    "read_bytes",
    "read_headers",
    "read_json",
    "read_manifest",
    "read_range",
    "read_slices",
    "read_small",
    "read_tensor",
    "recognise",
    "remember",
    "replace_with",
    "size_text",
    "stamp",
    "sync_directory",
    "sync_file",
    "sync_or_remove",
    "tokenizer_directory",
    "torch_dtype",
    "verify_checkpoint",
    "weight_files",
    "weights_sha256",
    "without_quantisation",
    "word",
    "write_manifest",
]
