"""What a study compares: the study file as frozen dataclasses, read strictly and checked once."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from z1.config import config_to_dict, require
from z1.errors import ConfigError, UnknownNameError
from z1.files import read_json
from z1.recipes import RL_RECIPES, SFT_RECIPES
from z1.sims.suites import simulator_of

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Names that can be folders everywhere."""

NAME_RULE = "made of letters, digits, '.', '_' and '-', beginning with a letter or digit"

KINDS: dict[type, str] = {str: "a text", int: "a whole number", bool: "true or false"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyTask:
    """A task of a study, and where its SFT policy comes from: a folder, or demonstrations that the study records."""

    task: str
    """Task id, for example ``metaworld/door-open``."""
    horizon: int
    """Env steps after which an episode without success counts as failed, in training and in evaluation."""
    policy: str = ""
    """Folder of the SFT policy. Empty: the study records demonstrations and trains it."""
    demonstrations: int = 0
    """Demonstrations to record, if ``policy`` is empty."""
    dataset: str = ""
    """Folder of demonstrations to train on instead of recorded ones, if ``policy`` is empty."""
    sft_steps: int = 0
    """Optimizer steps of SFT on them, if ``policy`` is empty."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """Overrides for this task's RL runs and evaluations, not for its demonstrations and SFT, by dotted name, for
    example ``sim.perturbation``; they come after the study's and before a variant's."""
    sft_group: str = ""
    """Tasks that name the same group share one SFT policy, trained on the demonstrations of all of them for the sum of
    their steps. Empty: the task has one of its own.
    """

    def __post_init__(self) -> None:
        simulator_of(self.task)
        require(self.horizon >= 1, f"horizon of task {self.task}", self.horizon, "at least 1")
        if not self.policy:
            if not ((self.demonstrations or self.dataset) and self.sft_steps):
                raise ConfigError(
                    f"task {self.task} has no SFT policy; give 'policy', a folder, "
                    "or 'sft_steps' and one of 'demonstrations' and 'dataset'"
                )
            if self.demonstrations and self.dataset:
                raise ConfigError(f"task {self.task} has both 'demonstrations' and 'dataset'; leave one of them out")
            if not self.dataset:
                require(
                    self.demonstrations >= 1, f"demonstrations of task {self.task}", self.demonstrations, "at least 1"
                )
            require(self.sft_steps >= 1, f"sft_steps of task {self.task}", self.sft_steps, "at least 1")
            if self.sft_group:
                require(bool(NAME.fullmatch(self.sft_group.replace(" ", "-"))), "sft_group", self.sft_group, NAME_RULE)
        elif idle := [n for n in ("demonstrations", "dataset", "sft_steps", "sft_group") if getattr(self, n)]:
            name = idle[0]
            raise ConfigError(
                f"{name} of task {self.task} has no effect, since the task has 'policy'; leave one of the two out"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to train."""

    name: str
    """Name in tables and folders."""
    recipe: str = ""
    """RL recipe to start from. Empty: the study's."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """Overrides by dotted name, for example ``rollout.prefix``; they come after the study's."""

    def __post_init__(self) -> None:
        require(bool(NAME.fullmatch(self.name)), "name of a variant", self.name, NAME_RULE)
        _check_recipe(self.recipe, empty=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Variants × tasks × seeds, each trained for the same number of env steps."""

    name: str
    """Name of the study."""
    tasks: tuple[StudyTask, ...]
    """Tasks. Averages weigh each the same."""
    variants: tuple[Variant, ...]
    """What is compared."""
    env_step_budget: int
    """Env steps of training of each run, evaluations not counted."""
    recipe: str = "tiny"
    """RL recipe that variants start from."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """Overrides for all variants, by dotted name."""
    reference: str = ""
    """Variant that the others are compared with. Empty: the first."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Run seeds."""
    marks: int = 4
    """Validations at equal distances of env steps, after the one at the start."""
    validation_episodes: int = 50
    """Validation scenes at each mark; the run's best policy is chosen by them."""
    test_episodes: int = 100
    """Test scenes on which each run's policy and its SFT policy are compared."""
    sft_recipe: str = "tiny"
    """SFT recipe, for tasks without ``policy``."""
    sft_policy: str = ""
    """Folder of the policy that SFT starts from. Empty: a new one of the recipe's size."""
    demo_set: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of the settings of ``z1 demos`` for demonstrations that are recorded, for example ``noise_std``."""
    sft_set: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of the SFT recipe, for example ``learning_rate``."""
    sft_per_seed: bool = False
    """Whether each seed has demonstrations and SFT of its own. False: one SFT policy per task."""

    def __post_init__(self) -> None:
        require(bool(NAME.fullmatch(self.name)), "name", self.name, NAME_RULE)
        _check_unique("tasks", [task.task for task in self.tasks])
        _check_unique("variants", [variant.name for variant in self.variants])
        _check_unique("seeds", list(self.seeds))
        groups = dict.fromkeys(task.sft_group for task in self.tasks if task.sft_group)
        if groups:
            _check_unique("sft_group", [group.replace(" ", "-") for group in groups])
        require(min(self.seeds) >= 0, "seeds", list(self.seeds), "at least 0")
        _check_recipe(self.recipe)
        if self.sft_recipe not in SFT_RECIPES:
            raise UnknownNameError("SFT recipe", self.sft_recipe, SFT_RECIPES)
        for name in ("env_step_budget", "marks", "validation_episodes", "test_episodes"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(
            self.marks <= self.env_step_budget, "marks", self.marks, f"at most env_step_budget ({self.env_step_budget})"
        )
        self._check_sets()
        names = [variant.name for variant in self.variants]
        if self.reference and self.reference not in names:
            raise UnknownNameError("reference variant", self.reference, names)
        if self.sft_per_seed:
            for task in self.tasks:
                if task.policy:
                    raise ConfigError(
                        f"sft_per_seed is true, but task {task.task} has 'policy', one for all seeds; "
                        "give it 'demonstrations' and 'sft_steps', or set sft_per_seed to false"
                    )

    def _check_sets(self) -> None:
        """Refuses overrides of what no task does."""
        for name, does, what in (
            ("demo_set", any(task.demonstrations for task in self.tasks), "no task has 'demonstrations' to record"),
            ("sft_set", any(not task.policy for task in self.tasks), "every task has 'policy'"),
        ):
            if getattr(self, name) and not does:
                raise ConfigError(f"{name} has no effect, since {what}; leave it out")

    @property
    def reference_name(self) -> str:
        """The variant that the others are compared with."""
        return self.reference or self.variants[0].name

    @property
    def mark_distance(self) -> int:
        """Env steps from one mark to the next, rounded up, so that the last mark is where the budget ends."""
        return -(-self.env_step_budget // self.marks)

    @property
    def mark_positions(self) -> tuple[int, ...]:
        """Env steps of the marks, from 0 (before training) to the budget."""
        return tuple(min(k * self.mark_distance, self.env_step_budget) for k in range(self.marks + 1))


def read_study(path: Path) -> Study:
    """A study file.

    Raises:
        ConfigError: The file is missing or not JSON, or a key is missing or has a value that is not allowed.
        UnknownNameError: A key, task, recipe or reference is not known.
    """
    return study_from_dict(read_json(path, ConfigError))


def study_from_dict(data: Any) -> Study:
    """A study from plain JSON values.

    Raises:
        ConfigError: A key is missing or has a value that is not allowed.
        UnknownNameError: A key, task, recipe or reference is not known.
    """
    return record_from_dict(Study, data, what="the study")


def record_from_dict(cls: type, data: Any, *, what: str) -> Any:
    """A dataclass of plain values, tuples, mappings and other such dataclasses from plain JSON values.

    Args:
        cls: The dataclass.
        data: Plain values.
        what: What it is, for messages, for example ``the study``.

    Raises:
        ConfigError: A key is missing or has a value that is not allowed.
        UnknownNameError: A key is not known.
    """
    return _record(cls, data, "", what)


def study_to_dict(study: Study) -> dict[str, Any]:
    """A study as plain JSON values, defaults included."""
    return config_to_dict(study)


def differences(stored: Study, study: Study) -> list[str]:
    """What keeps a study from continuing a stored one: every difference but added tasks, variants, seeds and marks.

    A task cannot be added to an SFT group, whose policy would not know it. Marks are added by a raised
    ``env_step_budget`` at the old distance; every run then goes on to the new budget.

    Args:
        stored: As it was started.
        study: As it is asked for.

    Returns:
        One text per differing key, for example ``marks was 4, is 5``.
    """
    before, now = study_to_dict(stored), study_to_dict(study)
    before["reference"], now["reference"] = stored.reference_name, study.reference_name
    found: list[str] = []
    if study.marks > stored.marks and study.mark_distance == stored.mark_distance:
        for name in ("env_step_budget", "marks"):
            before[name] = now[name]
    for name in now:
        if name not in ("tasks", "variants", "seeds") and before[name] != now[name]:
            found.append(f"{name} was {before[name]!r}, is {now[name]!r}")
    for key, identity in (("tasks", "task"), ("variants", "name")):
        new = {entry[identity]: entry for entry in now[key]}
        for entry in before[key]:
            other = new.get(entry[identity])
            if other is None:
                found.append(f"{key} has no {entry[identity]!r} any more")
            elif other != entry:
                changed = [
                    f"{name} was {entry[name]!r}, is {other[name]!r}" for name in entry if entry[name] != other[name]
                ]
                found.append(f"{key} {entry[identity]!r}: {', '.join(changed)}")
    for group in dict.fromkeys(task.sft_group for task in stored.tasks if task.sft_group):
        old, new_members = ([task.task for task in part.tasks if task.sft_group == group] for part in (stored, study))
        if set(old) != set(new_members):
            found.append(f"the tasks of SFT group {group!r} were {', '.join(old)}, are {', '.join(new_members)}")
    gone = [seed for seed in stored.seeds if seed not in study.seeds]
    return found + ([f"seeds has no {', '.join(map(str, gone))} any more"] if gone else [])


def is_needed(f: dataclasses.Field[Any]) -> bool:
    """Whether a field has no default."""
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _check_recipe(name: str, *, empty: bool = False) -> None:
    if name not in RL_RECIPES and not (empty and not name):
        raise UnknownNameError("recipe", name, RL_RECIPES)


def _check_unique(key: str, names: list[Any]) -> None:
    require(bool(names), key, names, "at least one")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"{key} names {twice[0]!r} {names.count(twice[0])} times; name each once")


def _record(cls: type, data: Any, where: str, what: str) -> Any:
    """A dataclass from a JSON object.

    Args:
        cls: The dataclass.
        data: Plain values.
        where: Place in the file, for messages; empty for the whole.
        what: Name of the whole.
    """
    place = where or what
    require(isinstance(data, dict), place, data, "a JSON object")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for name in data:
        if name not in fields:
            raise UnknownNameError(f"key in {place}", name, fields)
    for name, f in fields.items():
        if is_needed(f) and name not in data:
            raise ConfigError(f"{place} has no {name!r}; give it")
    inside = f"{where}." if where else ""
    return cls(**{name: _value(hints[name], value, f"{inside}{name}", what) for name, value in data.items()})


def _value(hint: Any, value: Any, where: str, what: str) -> Any:
    """A checked value of an annotated type."""
    if typing.get_origin(hint) is tuple:
        require(isinstance(value, list), where, value, "a list")
        inner = typing.get_args(hint)[0]
        return tuple(_value(inner, item, f"{where}[{i}]", what) for i, item in enumerate(value))
    if typing.get_origin(hint) is Literal:
        allowed = typing.get_args(hint)
        require(value in allowed, where, value, "one of " + ", ".join(map(repr, allowed)))
        return value
    if typing.get_origin(hint) is not None:  # a mapping of overrides
        require(isinstance(value, dict), where, value, "a JSON object of overrides by dotted name")
        return dict(value)
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return _record(hint, value, where, what)
    require(type(value) is hint, where, value, KINDS[hint])
    return value
