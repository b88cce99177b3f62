"""From a path or a hub name to a folder on this machine, and what kind of checkpoint it holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from z1.errors import CheckpointError
from z1.policy.checkpoints.jsons import read_object
from z1.policy.policy import CONFIG_FILE, FORMAT
from z1.policy.tensor_files import INDEX_FILE, MODEL_FILE, refuse_pickles

CheckpointFormat = Literal["z1", "lerobot", "openpi"]

HUB = "hf:"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
WEIGHT_PATTERNS = ["*.json", "*.safetensors", "*.model"]
TOKENIZER_PATTERNS = ["tokenizer.model", "tokenizer.json"]
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:@[\w./-]+)?")


def checkpoint_folder(path: str | Path) -> Path:
    """The folder that a path means: itself, ``policy/`` in a run folder, or a download from the Hugging Face hub.

    Args:
        path: A folder, ``hf:owner/name[@revision]``, or ``owner/name[@revision]`` where no such folder exists.

    Raises:
        CheckpointError: There is none, or it cannot be downloaded.
    """
    text = str(path)
    if text.startswith(HUB):
        return download(text.removeprefix(HUB), WEIGHT_PATTERNS)
    folder = Path(path)
    if not folder.exists() and _HUB_NAME.fullmatch(text):
        try:
            return download(text, WEIGHT_PATTERNS)
        except CheckpointError as error:
            raise CheckpointError(f"{text} is no folder here, and {error}") from None
    if not folder.exists():
        raise CheckpointError(f"{path} does not exist; give a checkpoint's folder or hf:owner/name")
    if folder.is_file():
        refuse_pickles(folder)
        raise CheckpointError(f"{path} is a file; give the folder of the checkpoint")
    return folder / "policy" if has_weights(folder / "policy") else folder


def download(name: str, patterns: list[str]) -> Path:
    """A snapshot of a model on the Hugging Face hub; files of other endings are not fetched.

    Args:
        name: ``owner/name`` or ``owner/name@revision``.
        patterns: What to fetch.

    Raises:
        CheckpointError: There is no such model, no access to it, or no network.
    """
    if not _HUB_NAME.fullmatch(name):
        raise CheckpointError(f"{HUB}{name} is no name of a model; expected hf:owner/name or hf:owner/name@revision")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{name} cannot be downloaded from the Hugging Face hub: {reason}; check the name, the network and, for a "
            "gated model, your login (hf auth login), or give a folder"
        ) from None


def has_weights(folder: Path) -> bool:
    """Whether a folder holds safetensors weights."""
    return (folder / MODEL_FILE).is_file() or (folder / INDEX_FILE).is_file()


def detect_format(folder: Path) -> CheckpointFormat:
    """The kind of a checkpoint.

    Raises:
        CheckpointError: It is none that z1 reads.
    """
    config: dict[str, Any] = read_object(folder / CONFIG_FILE) if (folder / CONFIG_FILE).exists() else {}
    if "format" in config or ({"policy", "processor"} <= set(config)):
        if config.get("format") != FORMAT:
            raise CheckpointError(
                f"{folder / CONFIG_FILE} has format {config.get('format')!r}, expected {FORMAT!r}; "
                "it is no policy of z1, or of another version"
            )
        return "z1"
    if "type" in config or (folder / PREPROCESSOR).exists():
        if config.get("type") != "pi05":
            raise CheckpointError(
                f"{folder / CONFIG_FILE} has type {config.get('type')!r}; of LeRobot's policies z1 reads type 'pi05'"
            )
        return "lerobot"
    if not has_weights(folder):
        refuse_pickles(folder)
        if (folder / "params").is_dir():
            raise CheckpointError(
                f"{folder} is a JAX checkpoint of openpi; convert it with openpi's "
                "examples/convert_jax_model_to_pytorch.py first"
            )
        raise CheckpointError(f"{folder} holds no policy: {MODEL_FILE} is missing")
    return "openpi"
