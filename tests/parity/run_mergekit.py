"""Runs in mergekit's own environment: merge many configs in one process.

    python run_mergekit.py JOBS.json

JOBS.json is a list of {config, out, seed, truncate}; beside each out, out.status gets ``ok`` or the
error.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from pathlib import Path

import yaml
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge import run_merge
from mergekit.options import MergeOptions


def main() -> None:
    logging.disable(logging.CRITICAL)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        text = Path(job["config"]).read_text()
        try:
            config = MergeConfiguration.model_validate(yaml.safe_load(text))
            options = MergeOptions(
                quiet=True,
                random_seed=job["seed"],
                unsafe_truncate_embeddings=job["truncate"],
                write_model_card=False,
                lora_merge_cache=job["out"] + ".adapters",
            )
            run_merge(config, job["out"], options, config_source=text)
            status = "ok"
        except Exception:
            status = traceback.format_exc()
        LoaderCache().flush_all()
        Path(job["out"] + ".status").write_text(status)


if __name__ == "__main__":
    main()
