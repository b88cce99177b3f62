"""A LeRobot policy directory: what its config and processors say.

Source: LeRobot 0.4 to 0.6 (``policies/pi05``, ``processor/pipeline.py``, ``processor/normalize_processor.py``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from z1.data.stats import VECTOR_FIELDS, FeatureStats
from z1.errors import CheckpointError
from z1.policy.checkpoints.jsons import inner_file, objects, read_object, typed
from z1.policy.checkpoints.locate import HUB, POSTPROCESSOR, PREPROCESSOR
from z1.policy.checkpoints.settings import Settings
from z1.policy.checkpoints.translate import LEROBOT_MODES
from z1.policy.policy import CONFIG_FILE
from z1.policy.tensor_files import opened

IMAGES = "observation.images."
STATE, ACTION = "observation.state", "action"

PROMPT_STEP = "pi05_prepare_state_tokenizer_processor_step"
KNOWN_STEPS = {
    "rename_observations_processor",
    "to_batch_processor",
    "relative_actions_processor",
    "absolute_actions_processor",
    "normalizer_processor",
    "unnormalizer_processor",
    PROMPT_STEP,
    "tokenizer_processor",
    "device_processor",
}

FIXED: dict[str, Any] = {
    "n_obs_steps": 1,
    "use_peft": False,
    "use_visual_memory": False,
    "use_proprioceptive_memory": False,
    "use_relative_actions": False,
    "min_period": 0.004,
    "max_period": 4.0,
}
"""Settings of config.json that z1 knows one value of."""


def read_lerobot(folder: Path, settings: Settings) -> None:
    """Notes everything that a LeRobot directory says.

    It does not say whether the prompt holds the state, or how wide it was when it was written there.

    Args:
        folder: The directory.
        settings: Where to note it.

    Raises:
        CheckpointError: A file is damaged, contradicts another, or asks for what z1 cannot do.
    """
    source = str(folder / CONFIG_FILE)
    config = read_object(folder / CONFIG_FILE)
    for key, only in FIXED.items():
        if config.get(key) is not None and config[key] != only:
            raise CheckpointError(f"{source}: {key} is {config[key]!r}; z1 knows only {only!r}")
    settings.put("horizon", typed(config, "chunk_size", int, source), CONFIG_FILE)
    settings.put("max_tokens", typed(config, "tokenizer_max_length", int, source), CONFIG_FILE)
    settings.agree("model_action_dim", typed(config, "max_action_dim", int, source), CONFIG_FILE)
    resolution = typed(config, "image_resolution", list, source)
    if resolution:
        settings.agree("image_size", resolution[0], CONFIG_FILE)
    settings.put("resize", "torch_bilinear", "LeRobot's way")
    inputs = typed(config, "input_features", dict, source) or {}
    outputs = typed(config, "output_features", dict, source) or {}
    settings.put("state_dim", _width(inputs, STATE, source), CONFIG_FILE)
    settings.put("action_dim", _width(outputs, ACTION, source), CONFIG_FILE)
    cameras = [key for key, feature in inputs.items() if isinstance(feature, dict) and feature.get("type") == "VISUAL"]
    mapping = typed(config, "normalization_mapping", dict, source)
    if mapping:
        settings.put("normalization", _mode(mapping, source), CONFIG_FILE)
    renamed = _preprocessor(folder, settings) if (folder / PREPROCESSOR).exists() else {}
    if (folder / POSTPROCESSOR).exists():
        _postprocessor(folder, settings)
    real = [key for key in cameras if not key.startswith(f"{IMAGES}empty_camera")]
    names = tuple(renamed.get(key, key).removeprefix(IMAGES) for key in real)
    settings.put("cameras", names or None, CONFIG_FILE)


def _width(features: dict[str, Any], name: str, source: str) -> int | None:
    """The width of a vector feature."""
    feature = features.get(name)
    if feature is None:
        return None
    shape = feature.get("shape") if isinstance(feature, dict) else None
    if not isinstance(shape, list) or len(shape) != 1 or not isinstance(shape[0], int):
        raise CheckpointError(f"{source}: the shape of {name} is {shape!r}; expected a list of one integer")
    return shape[0]


def _mode(mapping: dict[str, Any], source: str) -> str:
    """z1's name of a normalisation of state and action."""
    if mapping.get("VISUAL", "IDENTITY") != "IDENTITY":
        raise CheckpointError(f"{source}: images are normalised by {mapping['VISUAL']!r}; z1 knows only 'IDENTITY'")
    state, action = mapping.get("STATE"), mapping.get("ACTION")
    if state != action or action not in LEROBOT_MODES:
        raise CheckpointError(
            f"{source}: the state is normalised by {state!r} and the action by {action!r}; "
            f"z1 knows {' and '.join(LEROBOT_MODES)}, the same for both"
        )
    return LEROBOT_MODES[action]


def _steps(path: Path) -> dict[str, dict[str, Any]]:
    """The steps of a pipeline by their registered names."""
    steps: dict[str, dict[str, Any]] = {}
    for step in objects(read_object(path), "steps", str(path)):
        name = step.get("registry_name")
        if name not in KNOWN_STEPS or name in steps:
            raise CheckpointError(f"{path}: z1 does not know what step {name or step.get('class')!r} does there")
        steps[name] = step
    for name in ("relative_actions_processor", "absolute_actions_processor"):
        if _config(steps, name, str(path)).get("enabled"):
            raise CheckpointError(f"{path}: {name} is enabled; z1 knows only absolute actions")
    return steps


def _config(steps: dict[str, dict[str, Any]], name: str, source: str) -> dict[str, Any]:
    return typed(steps.get(name, {}), "config", dict, f"{source}: {name}") or {}


def _preprocessor(folder: Path, settings: Settings) -> dict[str, str]:
    """Notes normalisation, statistics and tokenizer; returns the cameras' names before the policy's renaming."""
    path = folder / PREPROCESSOR
    steps = _steps(path)
    if PROMPT_STEP not in steps:
        raise CheckpointError(f"{path}: the step {PROMPT_STEP} is missing; these are not the processors of a pi05")
    _normalizer(folder, path, steps, "normalizer_processor", settings)
    tokenizer = _config(steps, "tokenizer_processor", str(path))
    if tokenizer.get("padding_side", "right") != "right":
        raise CheckpointError(f"{path}: padding_side is {tokenizer['padding_side']!r}; z1 knows only 'right'")
    settings.put("max_tokens", typed(tokenizer, "max_length", int, str(path)), PREPROCESSOR)
    artifacts = typed(steps.get("tokenizer_processor", {}), "artifacts", dict, str(path)) or {}
    inside = typed(artifacts, "tokenizer_name", str, str(path))
    name = typed(tokenizer, "tokenizer_name", str, str(path))
    if inside is not None:
        settings.put("tokenizer", str(inner_file(folder, inside, str(path))), PREPROCESSOR)
    elif name is not None:
        settings.put("tokenizer", HUB + name, PREPROCESSOR)
    renames = typed(_config(steps, "rename_observations_processor", str(path)), "rename_map", dict, str(path)) or {}
    back = {new: old for old, new in renames.items()}
    if len(back) != len(renames):
        raise CheckpointError(f"{path}: rename_map gives one name to several observations: {renames}")
    return back


def _postprocessor(folder: Path, settings: Settings) -> None:
    path = folder / POSTPROCESSOR
    _normalizer(folder, path, _steps(path), "unnormalizer_processor", settings)


def _normalizer(folder: Path, path: Path, steps: dict[str, dict[str, Any]], name: str, settings: Settings) -> None:
    """Notes what a step that normalises says, and that it agrees with what was noted of another."""
    if name not in steps:
        raise CheckpointError(f"{path}: the step {name} is missing")
    config = _config(steps, name, str(path))
    if config.get("eps", 1e-8) != 1e-8:
        raise CheckpointError(f"{path}: eps of {name} is {config['eps']!r}; z1 knows only 1e-08")
    mode = _mode(typed(config, "norm_map", dict, str(path)) or {}, str(path))
    found: dict[str, Any] = {"normalization": mode}
    file = typed(steps[name], "state_file", str, str(path))
    if file is not None:
        found |= _stats(inner_file(folder, file, str(path)))
    for key, value in found.items():
        known, origin = settings.get(key), settings.origin(key)
        if known is not None and known != value and origin != CONFIG_FILE:
            raise CheckpointError(f"{path} and {folder / origin} disagree about the {key.replace('_', ' ')}")
        settings.put(key, value, path.name)


def _stats(path: Path) -> dict[str, FeatureStats]:
    """Statistics of state and action in a step's file."""
    found: dict[str, FeatureStats] = {}
    with opened(path) as file:
        keys = set(file.keys())
        for name, feature in (("state_stats", STATE), ("action_stats", ACTION)):
            vectors = {
                field: file.get_tensor(f"{feature}.{field}").double().flatten().tolist()
                for field in VECTOR_FIELDS
                if f"{feature}.{field}" in keys
            }
            if vectors:
                found[name] = FeatureStats.from_json(vectors, f"{path}: {feature}", CheckpointError)
    return found
