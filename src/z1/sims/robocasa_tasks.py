"""RoboCasa's 24 single-stage tasks: category, instruction, horizon; and which scenes are for training and for tests.

Source: RoboCasa v0.2, ``utils/dataset_registry.py`` (horizons), ``models/scenes/scene_registry.py`` (layouts, styles);
the evaluation protocol of robomimic's ``robocasa`` branch.
Level 1: standard library only, Python 3.10 syntax, no simulator.
"""

from __future__ import annotations

from dataclasses import dataclass

from z1.types import SPLIT_SEED_BASE


@dataclass(frozen=True, slots=True, kw_only=True)
class RoboCasaTask:
    """One task.

    Attributes:
        category: Kind of task.
        instruction: What the simulator says; words in braces depend on the scene.
        horizon: Env steps of an episode.
    """

    category: str
    instruction: str
    horizon: int


def _task(category: str, horizon: int, instruction: str) -> RoboCasaTask:
    return RoboCasaTask(category=category, instruction=instruction, horizon=horizon)


TASKS: dict[str, RoboCasaTask] = {
    "CloseDoubleDoor": _task("door", 700, "close the cabinet doors"),
    "CloseDrawer": _task("drawer", 500, "close the {side} drawer"),
    "CloseSingleDoor": _task("door", 500, "close the {fixture} door"),
    "CoffeePressButton": _task("coffee", 300, "press the button on the coffee machine to serve coffee"),
    "CoffeeServeMug": _task(
        "coffee", 600, "pick the mug from under the coffee machine dispenser and place it on the counter"
    ),
    "CoffeeSetupMug": _task(
        "coffee", 600, "pick the mug from the counter and place it under the coffee machine dispenser"
    ),
    "OpenDoubleDoor": _task("door", 1000, "open the cabinet doors"),
    "OpenDrawer": _task("drawer", 500, "open the {side} drawer"),
    "OpenSingleDoor": _task("door", 500, "open the {fixture} door"),
    "PnPCabToCounter": _task("pick-and-place", 500, "pick the {object} from the cabinet and place it on the counter"),
    "PnPCounterToCab": _task("pick-and-place", 500, "pick the {object} from the counter and place it in the cabinet"),
    "PnPCounterToMicrowave": _task(
        "pick-and-place", 600, "pick the {object} from the counter and place it in the microwave"
    ),
    "PnPCounterToSink": _task("pick-and-place", 700, "pick the {object} from the counter and place it in the sink"),
    "PnPCounterToStove": _task("pick-and-place", 500, "pick the {object} from the plate and place it in the {vessel}"),
    "PnPMicrowaveToCounter": _task(
        "pick-and-place",
        500,
        "pick the {object} from the microwave and place it on {vessel} located on the counter",
    ),
    "PnPSinkToCounter": _task(
        "pick-and-place", 500, "pick the {object} from the sink and place it on the {vessel} located on the counter"
    ),
    "PnPStoveToCounter": _task(
        "pick-and-place", 500, "pick the {object} from the {vessel} and place it {in or on} the {vessel}"
    ),
    "TurnOffMicrowave": _task("button", 500, "press the stop button on the microwave"),
    "TurnOffSinkFaucet": _task("faucet", 500, "turn off the sink faucet"),
    "TurnOffStove": _task("knob", 500, "turn off the {place} burner of the stove"),
    "TurnOnMicrowave": _task("button", 500, "press the start button on the microwave"),
    "TurnOnSinkFaucet": _task("faucet", 500, "turn on the sink faucet"),
    "TurnOnStove": _task("knob", 500, "turn on the {place} burner of the stove"),
    "TurnSinkSpout": _task("faucet", 500, "turn the sink spout to the {side}"),
}

LAYOUTS, STYLES = tuple(range(10)), tuple(range(12))

TEST_KITCHENS = ((1, 1), (2, 2), (4, 4), (6, 9), (7, 10))
"""Layout and style of the five kitchens that published evaluations use; no other split contains them."""

TRAINING_KITCHENS = tuple(
    (layout, style) for layout in LAYOUTS for style in STYLES if (layout, style) not in TEST_KITCHENS
)

LATCHED = frozenset({"CoffeePressButton", "TurnOffMicrowave", "TurnOnMicrowave"})
"""Tasks whose success a physical state does not tell: that a button was pressed is remembered in Python."""

TEST_OBJECTS, TRAINING_OBJECTS = "B", "A"
"""RoboCasa's object splits: ``A`` is the first half of a category's objects, ``B`` the rest."""

PROTOCOL = (
    "test: kitchens (1,1) (2,2) (4,4) (6,9) (7,10), objects B; train, validation: the other 115 kitchens, objects A; "
    "fixed cameras, no generative textures"
)
"""For result files."""


@dataclass(frozen=True, slots=True)
class Kitchens:
    """What the scenes of a split are drawn from.

    Attributes:
        pairs: Layout and style of each kitchen.
        objects: Object split.
    """

    pairs: tuple[tuple[int, int], ...]
    objects: str


def kitchens_of(seed: int) -> Kitchens:
    """The kitchens of the split that a scene seed belongs to."""
    if seed >= SPLIT_SEED_BASE["test"]:
        return Kitchens(TEST_KITCHENS, TEST_OBJECTS)
    return Kitchens(TRAINING_KITCHENS, TRAINING_OBJECTS)
