"""The suites that z1 knows: tasks with categories, and plans for demonstrations and SFT of the tiny policy."""

from __future__ import annotations

from dataclasses import dataclass

from z1.sims.robocasa_experts.registry import EXPERTS
from z1.sims.suites import all_tasks, category

DEFAULT_HORIZON = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPlan:
    """How a task is prepared.

    Attributes:
        horizon: Env steps of an episode.
        demonstrations: Demonstrations to record; 0: the simulator has no scripted expert for the task.
        sft_steps: Optimizer steps of SFT.
    """

    horizon: int = DEFAULT_HORIZON
    demonstrations: int = 0
    sft_steps: int = 700


def _plan(horizon: int, demonstrations: int, sft_steps: int) -> TaskPlan:
    return TaskPlan(horizon=horizon, demonstrations=demonstrations, sft_steps=sft_steps)


_KITCHEN: dict[str, tuple[str, TaskPlan]] = {
    "pick-place": ("pick and place", _plan(200, 120, 1400)),
    "pick-place-wall": ("pick and place", _plan(200, 120, 1400)),
    "shelf-place": ("pick and place", _plan(200, 120, 1400)),
    "bin-picking": ("pick and place", _plan(200, 60, 700)),
    "push": ("pick and place", _plan(200, 60, 900)),
    "sweep-into": ("pick and place", _plan(200, 80, 1000)),
    "box-close": ("pick and place", _plan(200, 40, 600)),
    "peg-insert-side": ("pick and place", _plan(200, 100, 1200)),
    "door-open": ("doors", _plan(150, 12, 125)),
    "door-close": ("doors", _plan(150, 6, 120)),
    "door-lock": ("doors", _plan(150, 20, 350)),
    "door-unlock": ("doors", _plan(150, 12, 250)),
    "drawer-open": ("drawers", _plan(150, 10, 150)),
    "drawer-close": ("drawers", _plan(150, 6, 120)),
    "faucet-open": ("sink", _plan(150, 10, 150)),
    "faucet-close": ("sink", _plan(150, 25, 400)),
    "handle-pull": ("sink", _plan(150, 50, 700)),
    "dial-turn": ("stove", _plan(140, 20, 350)),
    "lever-pull": ("stove", _plan(120, 25, 450)),
    "coffee-button": ("coffee", _plan(150, 6, 120)),
    "coffee-push": ("coffee", _plan(150, 25, 400)),
    "coffee-pull": ("coffee", _plan(120, 20, 350)),
    "button-press": ("microwave", _plan(150, 10, 200)),
    "button-press-topdown": ("microwave", _plan(150, 10, 200)),
}
"""MetaWorld tasks that mirror RoboCasa's categories: what is to be done, not how it looks."""

_ROBOCASA: dict[str, tuple[str, ...]] = {
    "pick and place": (
        "PnPCounterToCab",
        "PnPCabToCounter",
        "PnPCounterToSink",
        "PnPSinkToCounter",
        "PnPCounterToMicrowave",
        "PnPMicrowaveToCounter",
        "PnPCounterToStove",
        "PnPStoveToCounter",
    ),
    "doors": ("OpenSingleDoor", "CloseSingleDoor", "OpenDoubleDoor", "CloseDoubleDoor"),
    "drawers": ("OpenDrawer", "CloseDrawer"),
    "stove": ("TurnOnStove", "TurnOffStove"),
    "sink": ("TurnOnSinkFaucet", "TurnOffSinkFaucet", "TurnSinkSpout"),
    "coffee": ("CoffeeSetupMug", "CoffeeServeMug", "CoffeePressButton"),
    "microwave": ("TurnOnMicrowave", "TurnOffMicrowave"),
}
"""The 24 tasks of RoboCasa v0.2 by the published categories."""

_MT10 = (
    "reach",
    "push",
    "pick-place",
    "door-open",
    "drawer-open",
    "drawer-close",
    "button-press-topdown",
    "peg-insert-side",
    "window-open",
    "window-close",
)

_METAWORLD = tuple(task for task in all_tasks() if task.startswith("metaworld/"))

SUITES: dict[str, dict[str, str]] = {
    "metaworld-kitchen24": {f"metaworld/{name}": entry[0] for name, entry in _KITCHEN.items()},
    "metaworld-mt10": {f"metaworld/{name}": category(f"metaworld/{name}") for name in _MT10},
    "metaworld-mt50": {task: category(task) for task in _METAWORLD},
    "robocasa24": {f"robocasa/{name}": kind for kind, names in _ROBOCASA.items() for name in names},
}
"""Category of each task, by suite."""

DEMO_SETS: dict[str, dict[str, str | float]] = {"robocasa24": {"noise_std": 0.2, "quality": "fast"}}
"""Settings of a suite's own recordings. A policy sees its task rendered as its demonstrations were, and with RoboCasa's
usual rendering an env step takes 1.8 times the processor time (benchmarks/README.md).
"""

_ROBOCASA_HORIZONS = {
    "PnPCounterToSink": 700,
    "PnPCounterToMicrowave": 600,
    "OpenDoubleDoor": 1000,
    "CloseDoubleDoor": 700,
    "CoffeeSetupMug": 600,
    "CoffeeServeMug": 600,
    "CoffeePressButton": 300,
}
"""Published horizons that are not 500 env steps."""


def _robocasa_plan(name: str) -> TaskPlan:
    """Published horizon; demonstrations where there is a scripted demonstrator."""
    horizon = _ROBOCASA_HORIZONS.get(name, 500)
    return _plan(horizon, 60, 900) if name in EXPERTS else TaskPlan(horizon=horizon)


DEMONSTRATED: dict[str, TaskPlan] = (
    {task: _plan(DEFAULT_HORIZON, 60, 700) for task in _METAWORLD}
    | {f"metaworld/{name}": entry[1] for name, entry in _KITCHEN.items()}
    | {f"robocasa/{name}": _robocasa_plan(name) for names in _ROBOCASA.values() for name in names}
)
"""Plan of each task. A task without demonstrations needs a dataset."""
