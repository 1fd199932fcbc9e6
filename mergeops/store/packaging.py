"""A merged checkpoint as an MLflow transformers model, without a second copy of its weights.

    MLmodel, requirements.txt, conda.yaml, python_env.yaml      written here, a few kB
    model/...                                                  the checkpoint's own files
    components/tokenizer/...                                   its tokenizer files once more
    code/...                                                   what answers for it, where MLflow's
                                                               transformers flavour cannot

``mlflow.transformers.log_model`` would copy the whole model first, and fails with transformers
5.23. Here files are sent from where they lie, and onto a local artifact store the weights are
hard-linked. What arrived is read back and hashed, so nothing damaged is ever marked READY.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeops.checkpoint import CONFIG, MANIFEST, file_sha256, replace_with
from mergeops.errors import TrackingError
from mergeops.redact import redact
from mergeops.store.artifacts import ArtifactStore, local_folder
from mergeops.store.client import translated
from mergeops.store.connection import Tracking
from mergeops.store.flavours import COMPONENTS, LOADER, AdapterBase, flavour_of, signature_of

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel


REQUIREMENTS = ("mlflow", "torch", "transformers", "safetensors", "accelerate")
WEIGHTS = ".safetensors"


def upload(
    tracking: Tracking,
    model: LoggedModel,
    checkpoint: Path,
    *,
    base: AdapterBase | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Send a checkpoint to its LoggedModel and check what arrived; weights sent before are kept.

    Args:
        model: the LoggedModel, not yet READY.
        checkpoint: a finished directory in Hugging Face layout.
        base: of an adapter.
        progress: called with (bytes done, bytes in all).

    Raises:
        TrackingError: the store refuses, or a file has another size or hash there.
    """
    with tempfile.TemporaryDirectory(prefix="mergeops-") as folder:
        write_description(Path(folder), checkpoint, model, base)
        files = layout(checkpoint, Path(folder), base)
        local = local_folder(model.artifact_location)
        bytes_done = _Share(progress, sum(path.stat().st_size for path in files.values()))
        if local is not None:
            for name, path in files.items():
                _put(tracking, local, path, name)
                bytes_done.add(path.stat().st_size)
            _check(model.model_id, local, files)
            return
        store = ArtifactStore(model.artifact_location, tracking.uri)
        sizes = listing(tracking, model.model_id)
        for name, path in files.items():
            _send(store, path, name, sizes.get(name), bytes_done.tick)
            bytes_done.add(path.stat().st_size)


def layout(checkpoint: Path, description: Path, base: AdapterBase | None = None) -> dict[str, Path]:
    """Every file of the model: its path in MLflow -> where its bytes are now."""
    files = {
        path.relative_to(description).as_posix(): path
        for path in sorted(description.rglob("*"))
        if path.is_file()
    }
    for path in sorted(p for p in checkpoint.rglob("*") if p.is_file()):
        relative = path.relative_to(checkpoint)
        if not any(part.startswith(".") for part in relative.parts):
            files[f"model/{relative.as_posix()}"] = path
    component = flavour_of(checkpoint, base).component
    beside = base.gives(checkpoint) if base else checkpoint
    for name in COMPONENTS[component].files if component else ():
        if (beside / name).is_file():
            files[f"components/{component}/{name}"] = beside / name
    return files


def write_description(
    folder: Path, checkpoint: Path, model: LoggedModel, base: AdapterBase | None = None
) -> None:
    """Write MLmodel and the environment files of a checkpoint into ``folder``."""
    import mlflow.pyfunc
    from mlflow.models import Model

    whole = base.path if base else checkpoint
    config = _config(whole)
    flavour = flavour_of(checkpoint, base)
    dtype = config.get("dtype") or config.get("torch_dtype")
    description = Model(
        artifact_path=model.artifact_location,
        run_id=model.source_run_id,
        model_id=model.model_id,
        model_uuid=model.model_id,
        signature=signature_of(flavour.task, whole) if flavour.has_pyfunc else None,
        metadata={"made_by": "mergeops", **_manifest_facts(checkpoint)},
    )
    description.model_size_bytes = sum(
        path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()
    )
    if flavour.task:
        described = {
            "transformers_version": metadata.version("transformers"),
            "task": flavour.task,
            "instance_type": flavour.pipeline,
            "pipeline_model_type": flavour.model_class,
            "source_model_name": base.name if base else "",
            # MLflow loads a processor without finding it here.
            "components": [c for c in [flavour.component] if c not in ("", "processor")],
            "code": None,
        }
        if base is None:
            described["model_binary"] = "model"
        else:
            described |= {"peft_adaptor": "model", "local_base_model_path": str(base.path)}
        if flavour.component:
            described[f"{flavour.component}_type"] = COMPONENTS[flavour.component].auto_class
            described[f"{flavour.component}_name"] = ""
        if dtype:
            described["torch_dtype"] = f"torch.{dtype}"
        description.add_flavor("transformers", **described)
    if flavour.has_pyfunc:
        mlflow.pyfunc.add_to_model(
            description,
            loader_module=LOADER if flavour.has_loader else "mlflow.transformers",
            data="model" if flavour.has_loader else None,
            conda_env="conda.yaml",
            python_env="python_env.yaml",
            code="code" if flavour.has_loader else None,
        )
    if flavour.has_loader:
        (folder / "code").mkdir()
        shutil.copyfile(Path(__file__).with_name("text_to_text.py"), folder / f"code/{LOADER}.py")
    description.save(str(folder / "MLmodel"))
    for name, text_of_file in environment_files(["peft"] if base else []).items():
        (folder / name).write_text(text_of_file, encoding="utf-8")


def environment_files(more: Sequence[str] = ()) -> dict[str, str]:
    """requirements.txt, conda.yaml and python_env.yaml with the versions in use; ``more`` are
    packages that this model needs besides."""
    pins = []
    for package in (*REQUIREMENTS, *more):
        with suppress(metadata.PackageNotFoundError):
            # A local version such as 2.13.0+cpu exists on no index.
            pins.append(f"{package}=={metadata.version(package).split('+')[0]}")
    python = platform.python_version()
    nested = "".join(f"    - {pin}\n" for pin in pins)
    return {
        "requirements.txt": "".join(f"{pin}\n" for pin in pins),
        "conda.yaml": (
            "name: mergeops\nchannels:\n- conda-forge\ndependencies:\n"
            f"- python={python}\n- pip\n- pip:\n{nested}"
        ),
        "python_env.yaml": (
            f"python: {python}\nbuild_dependencies:\n- pip\ndependencies:\n- -r requirements.txt\n"
        ),
    }


def listing(tracking: Tracking, model_id: str, folder: str | None = None) -> dict[str, int]:
    """Path -> size in bytes of every file of a LoggedModel."""
    sizes: dict[str, int] = {}
    for entry in tracking.client.list_logged_model_artifacts(model_id, folder):
        if entry.is_dir:
            sizes |= listing(tracking, model_id, entry.path)
        else:
            sizes[entry.path] = int(entry.file_size or 0)
    return sizes


class _Share:
    """Progress over all files, told from within each."""

    def __init__(self, progress: Callable[[int, int], None] | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def tick(self, done: int) -> None:
        if self._progress:
            self._progress(self._done + done, self._total)

    def add(self, size: int) -> None:
        self._done += size
        self.tick(0)


def _send(
    store: ArtifactStore, path: Path, name: str, size_sent: int | None, tick: Callable[[int], None]
) -> None:
    sha256 = file_sha256(path)
    if size_sent == path.stat().st_size and store.sha256(name) == sha256:
        # Sent by an earlier command.
        return
    store.send(path, name, tick)
    arrived = store.sha256(name)
    if arrived != sha256:
        raise TrackingError(
            f"{name} has sha256 {sha256[:12]}... here, but {arrived[:12]}... after its upload to "
            f"{redact(store.location)}; check the artifact store, then run the same command again"
        )


def _put(tracking: Tracking, folder: Path, path: Path, name: str) -> None:
    target = folder / name
    with translated(tracking.uri, f"store {name}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with replace_with(target, sync=False) as partial:
            partial.unlink(missing_ok=True)
            try:
                # Weights never change; small files may be edited later.
                link = os.link if name.endswith(WEIGHTS) else shutil.copyfile
                link(path.resolve(), partial)
            except OSError:
                # Another file system, or one without hard links.
                shutil.copyfile(path, partial)


def _check(model_id: str, folder: Path, files: Mapping[str, Path]) -> None:
    for name, path in files.items():
        copy = folder / name
        if copy.is_file() and path.samefile(copy):
            continue
        if not copy.is_file() or file_sha256(path) != file_sha256(copy):
            raise TrackingError(
                f"{name} of model {model_id} differs in MLflow's store ({copy}); check its disk, "
                "then run the same command again"
            )


def _config(checkpoint: Path) -> dict[str, Any]:
    try:
        raw = json.loads((checkpoint / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrackingError(
            f"{checkpoint} has no readable config.json ({error}); it cannot be logged as a model"
        ) from error
    return dict(raw)


def _manifest_facts(checkpoint: Path) -> dict[str, str]:
    path = checkpoint / MANIFEST
    return {"manifest_sha256": file_sha256(path)} if path.is_file() else {}
