"""From a study to the config of each recording and run: recipe, overrides by dotted name, what the study sets."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from z1.ablate.study import KINDS, Study, StudyTask, Variant
from z1.config import RlConfig, SftConfig, config_from_dict, config_to_dict, require
from z1.data.record import DemoConfig
from z1.errors import ConfigError, UnknownNameError
from z1.recipes import RL_RECIPES, SFT_RECIPES

RESERVED: dict[str, str] = {
    "policy": "tasks",
    "task": "tasks",
    "out": "--out",
    "seed": "seeds",
    "iterations": "env_step_budget",
    "env_step_budget": "env_step_budget",
    "time_budget_s": "env_step_budget",
    "sim.horizon": "the tasks' horizon",
    "sim.hosts": "--jobs",
    "validation.every": "marks",
    "validation.every_env_steps": "marks",
    "validation.episodes": "validation_episodes",
}
"""Settings that an override may not name, and what says them instead."""

DEMO_RESERVED: dict[str, str] = {
    "task": "tasks",
    "out": "--out",
    "episodes": "the tasks' demonstrations",
    "seed": "seeds",
    "hosts": "--jobs",
    "resume": "--resume",
    "overwrite": "--resume",
}
"""The same for ``demo_set``."""

SFT_RESERVED: dict[str, str] = {
    "dataset": "tasks",
    "out": "--out",
    "steps": "the tasks' sft_steps",
    "seed": "seeds",
    "policy": "sft_policy",
}
"""The same for ``sft_set``."""

TEST_CONDITIONS = ("sim.quality", "sim.perturbation", "sim.perturbation_strength", "precision")
"""Settings that an evaluation depends on as well."""

ITERATIONS = 100_000
"""Iterations of a run, more than any budget of env steps lasts for."""


def run_config(study: Study, task: StudyTask, variant: Variant, seed: int, *, policy: str, out: str) -> RlConfig:
    """The config of one RL run.

    Overrides are put into the plain values and the config is built once from all of them, so that settings that only
    make sense together can be given in any order.

    Args:
        study: The study.
        task: The task.
        variant: The variant.
        seed: Run seed.
        policy: Folder of the SFT policy.
        out: Run folder.

    Raises:
        ConfigError: The settings are not allowed, each or together.
        UnknownNameError: An override names no setting.
    """
    data = config_to_dict(RL_RECIPES[variant.recipe or study.recipe](policy, task.task, out))
    settings = {
        **_checked(study.set, "set"),
        **_checked(task.set, f"set of task {task.task}"),
        **_checked_variant(variant),
        "seed": seed,
        "iterations": ITERATIONS,
        "env_step_budget": study.env_step_budget,
        "time_budget_s": 0.0,
        "sim.horizon": task.horizon,
        "sim.hosts": 1,
        "validation.every": 0,
        "validation.every_env_steps": study.mark_distance,
        "validation.episodes": study.validation_episodes,
    }
    for name, value in settings.items():
        section, _, key = name.rpartition(".")
        (data[section] if section else data)[key] = value
    try:
        return config_from_dict(RlConfig, data, source="the study")
    except ConfigError as error:
        raise ConfigError(f"variant {variant.name!r} on {task.task}: {error}") from error


def demo_config(study: Study, task: StudyTask, seed: int, *, out: str) -> DemoConfig:
    """The settings of a task's recording.

    Args:
        study: The study.
        task: The task.
        seed: Seed of the recording.
        out: Dataset folder.

    Raises:
        ConfigError: The settings are not allowed, each or together.
        UnknownNameError: An override names no setting.
    """
    base = DemoConfig(task=(task.task,), episodes=task.demonstrations, out=out, seed=seed, hosts=1)
    return _overridden(base, _checked(study.demo_set, "demo_set", DemoConfig, DEMO_RESERVED))


def sft_config(
    study: Study, tasks: Sequence[StudyTask], seed: int, *, datasets: tuple[str, ...], out: str
) -> SftConfig:
    """The config of the SFT run of some tasks.

    Args:
        study: The study.
        tasks: The tasks.
        seed: Seed of the run.
        datasets: Their demonstrations.
        out: Run folder.

    Raises:
        ConfigError: The settings are not allowed, each or together.
        UnknownNameError: An override names no setting.
    """
    overrides = _checked(study.sft_set, "sft_set", SftConfig, SFT_RESERVED)
    base = replace(SFT_RECIPES[study.sft_recipe](datasets, out), seed=seed, policy=study.sft_policy)
    return _overridden(base, {"steps": sum(task.sft_steps for task in tasks), **overrides})


def _overridden(config: Any, overrides: Mapping[str, Any]) -> Any:
    """A config built anew with some of its values changed, so that they are checked together."""
    return config_from_dict(type(config), {**config_to_dict(config), **overrides}, source="the study")


def settings_of(cls: type, prefix: str = "") -> dict[str, Any]:
    """Every setting of a config by dotted name, with its annotated type."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        hint = hints[f.name]
        inner = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        found |= settings_of(hint, f"{prefix}{f.name}.") if inner else {prefix + f.name: hint}
    return found


def _checked(
    overrides: Mapping[str, Any], where: str, cls: type = RlConfig, reserved: Mapping[str, str] = RESERVED
) -> dict[str, Any]:
    """Overrides whose names are known and free, and whose values are of the settings' types.

    Args:
        overrides: Values by dotted name.
        where: Place in the study, for messages.
        cls: The config whose settings they are.
        reserved: Settings that they may not name.
    """
    known = settings_of(cls)
    for name, value in overrides.items():
        if name not in known:
            raise UnknownNameError(f"setting in {where}", name, known.keys() - reserved.keys())
        if name in reserved:
            raise ConfigError(
                f"{where} names {name!r}, which the study sets for all runs; leave it out ({reserved[name]} says it)"
            )
        _check_type(known[name], f"{name} in {where}", value)
    return dict(overrides)


def _checked_variant(variant: Variant) -> dict[str, Any]:
    """A variant's overrides; it may not change what the policies are tested in, since SFT is tested once for all."""
    where = f"set of variant {variant.name!r}"
    known = _checked(variant.set, where)
    for name in known:
        if name in TEST_CONDITIONS:
            raise ConfigError(
                f"{where} names {name!r}, but variants are compared with one evaluation of the SFT policy; "
                "put it into the set of the study or of a task"
            )
    return known


def _check_type(hint: Any, where: str, value: Any) -> None:
    if typing.get_origin(hint) is Literal:
        allowed = typing.get_args(hint)
        require(value in allowed, where, value, "one of " + ", ".join(map(repr, allowed)))
    elif hint is float:
        finite = type(value) in (int, float) and math.isfinite(value)
        require(finite, where, value, "a finite number")
    elif typing.get_origin(hint) is tuple:
        texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
        require(texts, where, value, "a list of texts")
    else:
        require(type(value) is hint, where, value, KINDS[hint])
