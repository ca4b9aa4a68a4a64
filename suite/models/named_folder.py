"""The folder that a name in a spec stands for: a model's, an adapter's, or one that is fetched from the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from suite.config.errors import MissingError, ModelError, RegradeError
from suite.models.adapter_file import adapter_settings
from suite.models.checkpoints import LoraCheckpoint
from suite.models.folder import OPENED, brief, check_files, is_folder, read_settings
from suite.models.weight_files import INDEX, WEIGHTS

FETCHED = [f"*{ending}" for ending in OPENED if ending != ".safetensors"]
"""Names of files that are fetched besides weights: no pickles, no code."""


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Errors about a folder begin with the setting that names it."""
    try:
        yield
    except RegradeError as error:
        raise type(error)(f"{key}: {error}") from None


def adapter_folder(name: str) -> Path | None:
    """The folder, if the name is that of a LoRA adapter."""
    path = Path(name).expanduser() if is_folder(name) else None
    return path.resolve() if path and (path / LoraCheckpoint.CONFIG).is_file() else None


def adapters_base(path: Path, key: str) -> tuple[str, str]:
    """The base model that an adapter's config names, and that key for messages."""
    with naming(key):
        check_files(path)
        named = adapter_settings(path / LoraCheckpoint.CONFIG).get("base_model_name_or_path")
    if not named:
        raise ModelError(f"{key}: {path}/{LoraCheckpoint.CONFIG} names no base_model_name_or_path")
    if not isinstance(named, str):
        raise ModelError(f"{key}: {path}/{LoraCheckpoint.CONFIG}: base_model_name_or_path is {brief(named)}, no name")
    if adapter_folder(named) is not None:
        raise ModelError(f"{key}: {path} is an adapter of an adapter. Merge the first one")
    return named, f"{key}: {path}: base_model_name_or_path"


def architecture_folder(name: str, key: str = "model.name") -> Path:
    """The folder of a model's config, or of the model that an adapter belongs to. No weights are fetched.

    Raises:
        MissingError: no such model.
        ModelError, CheckpointError: a file in its folder is refused.
    """
    if (adapter := adapter_folder(name)) is not None:
        return architecture_folder(*adapters_base(adapter, key))
    return model_folder(name, key, weights=False)


def model_folder(name: str, key: str, *, weights: bool = True) -> Path:
    """Folder of a model, fetched from the hub if the name is not a local folder; its files are ordinary ones."""
    if is_folder(name):
        path = Path(name).expanduser()
        with naming(key):
            check_files(path)
        if not (path / "config.json").is_file():
            raise MissingError(f"{key}: {path} has no config.json, so it is no model folder")
        return path.resolve()
    if name.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise MissingError(f"{key}: {name}: no such folder. Use a folder, tiny, or a hub id owner/model[@revision]")
    folder = _fetch(*name.partition("@")[::2], key, weights)
    with naming(key):
        check_files(folder)
    return folder


def _fetch(repository: str, revision: str, key: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        folder = Path(snapshot_download(repository, revision=revision or None, allow_patterns=FETCHED))
        if weights:  # those that count, of all that a repository may hold beside them
            with naming(key):
                check_files(folder)
            index = folder / INDEX
            shards = read_settings(index).get("weight_map", {}).values() if index.is_file() else ()
            snapshot_download(repository, revision=folder.name, allow_patterns=[WEIGHTS, *sorted(set(shards))])
        return folder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise MissingError(
            f"{key}: {repository}: not in the local cache and not to be had from the hub ({type(error).__name__})."
            " Name a local folder, log in for a gated model, or unset HF_HUB_OFFLINE"
        ) from None
