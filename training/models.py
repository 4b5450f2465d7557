"""Models from wherever they lie: a folder, object storage, MLflow's runs and registry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from infra import storage
from infra.scratch import scratch_folder
from model import SAVE, saved


def load_model(
    uri: str, *, sam_checkpoint: str | None = None, vggish_checkpoint: str | None = None
) -> SAVE:
    """The model in a checkpoint or model folder, in evaluation mode on the CPU.

    Args:
        uri: a path, ``s3://``, or what the registry knows: ``models:/name@alias``,
            ``runs:/id/model``.
        sam_checkpoint: path or URI, for a model built on SAM's weights.
        vggish_checkpoint: likewise VGGish's.

    Raises:
        FileNotFoundError: no model is there.
        ValueError: it is damaged, or was trained on other published weights.
    """
    with scratch_folder("model") as temporary:
        folder = fetch_model(uri, temporary)
        model = saved.load(
            folder,
            sam_checkpoint=local_file(sam_checkpoint),
            vggish_checkpoint=local_file(vggish_checkpoint),
        )
    return model.eval()


def load_weights(model: SAVE, uri: str) -> None:
    """Start ``model`` from the weights of another of the same configuration, see ``load_model``."""
    with scratch_folder("model") as temporary:
        saved.load_weights(model, fetch_model(uri, temporary))


def check_model(uri: str, name: str, image_size: int) -> None:
    """Refuse a model that ``load_weights`` could not take, without reading its weights."""
    with scratch_folder("model") as temporary:
        found = saved.read_config(fetch_model(uri, temporary, (saved.CONFIG,)))["model"]
    if (found["name"], found["image_size"]) != (name, image_size):
        raise ValueError(
            f"the parent {uri} is a {found['name']} at {found['image_size']} pixels, this stage "
            f"trains a {name} at {image_size}: make them equal"
        )


def fetch_model(
    uri: str, temporary: Path, names: Sequence[str] = (saved.CONFIG, saved.WEIGHTS)
) -> Path:
    """A local folder with the model at ``uri``, or the files of it that are named.

    What lies on object storage is copied to ``temporary``.
    """
    uri = resolve(uri)
    if not uri.startswith("s3://"):
        if not (Path(uri) / saved.CONFIG).is_file():
            raise FileNotFoundError(f"{uri} holds no model: {saved.CONFIG} is missing")
        return Path(uri)
    copy_model(uri, temporary, names)
    return temporary


def copy_model(
    uri: str, folder: Path, names: Sequence[str] = (saved.CONFIG, saved.WEIGHTS)
) -> None:
    """Copy a model, without the optimizer's state that a checkpoint has beside it."""
    for name in names:
        storage.download(storage.join(resolve(uri), name), folder / name)


def resolve(uri: str, tracking: str | None = None) -> str:
    """The folder of a model: a path or ``s3://`` URI, whatever form ``uri`` has.

    Args:
        tracking: MLflow server that knows runs and registry; the environment's by default.
    """
    if uri.startswith(("models:", "runs:")):
        # MLflow takes seconds to import, and most models lie in a plain folder.
        from infra import registry

        return registry.resolve(uri, tracking)
    return storage.normalise(uri)


def is_cached(folder: str) -> bool:
    """Whether ``resolve`` has brought a model into this machine's cache, where no other sees it."""
    return not folder.startswith("s3://") and Path(folder).is_relative_to(storage.cache_folder())


def local_file(uri: str | None) -> Path | None:
    """A file of published weights on this machine, copied once if it lies on object storage."""
    if uri is None:
        return None
    uri = storage.normalise(uri)
    if not uri.startswith("s3://"):
        return Path(uri)
    local = storage.cache_folder() / "published" / uri.removeprefix("s3://").replace("/", "_")
    if not local.is_file() or local.stat().st_size != storage.size(uri):
        storage.download(uri, local)
    return local
