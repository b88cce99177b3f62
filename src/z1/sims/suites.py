"""Tasks by name: what to tell the policy, which kind of task it is, which simulator runs it. Imports no simulator.

MetaWorld's instructions are written for z1; they name what is to be done, never where things are. RoboCasa's are its
own; words in braces depend on the scene, and what the policy is told comes from the simulator.
"""

from __future__ import annotations

from z1.errors import UnknownNameError
from z1.sims.robocasa_tasks import TASKS as ROBOCASA_TASKS

_METAWORLD: dict[str, tuple[str, str]] = {
    "assembly": ("insertion", "put the ring onto the peg"),
    "basketball": ("pick-and-place", "drop the basketball into the basket"),
    "bin-picking": ("pick-and-place", "move the cube from one bin to the other"),
    "box-close": ("pick-and-place", "put the lid on the box"),
    "button-press-topdown": ("button", "press the button from above"),
    "button-press-topdown-wall": ("button", "reach over the wall and press the button from above"),
    "button-press": ("button", "press the button"),
    "button-press-wall": ("button", "reach around the wall and press the button"),
    "coffee-button": ("coffee", "press the button of the coffee machine"),
    "coffee-pull": ("coffee", "pull the mug away from the coffee machine"),
    "coffee-push": ("coffee", "push the mug under the coffee machine"),
    "dial-turn": ("dial", "turn the dial"),
    "disassemble": ("insertion", "take the ring off the peg"),
    "door-close": ("door", "close the door"),
    "door-lock": ("door", "lock the door"),
    "door-open": ("door", "open the door"),
    "door-unlock": ("door", "unlock the door"),
    "drawer-close": ("drawer", "close the drawer"),
    "drawer-open": ("drawer", "open the drawer"),
    "faucet-close": ("faucet", "close the faucet"),
    "faucet-open": ("faucet", "open the faucet"),
    "hammer": ("tool", "pick up the hammer and drive in the nail"),
    "hand-insert": ("insertion", "push the block into the hole with the hand"),
    "handle-press": ("handle", "press the handle down"),
    "handle-press-side": ("handle", "press the handle down from the side"),
    "handle-pull": ("handle", "pull the handle up"),
    "handle-pull-side": ("handle", "pull the handle up from the side"),
    "lever-pull": ("lever", "pull the lever up"),
    "peg-insert-side": ("insertion", "insert the peg into the hole from the side"),
    "peg-unplug-side": ("insertion", "pull the peg out of the hole sideways"),
    "pick-out-of-hole": ("pick-and-place", "take the block out of the hole"),
    "pick-place": ("pick-and-place", "pick up the block and bring it to the goal"),
    "pick-place-wall": ("pick-and-place", "bring the block over the wall to the goal"),
    "plate-slide": ("plate", "slide the plate into the rack"),
    "plate-slide-back": ("plate", "slide the plate back out of the rack"),
    "plate-slide-back-side": ("plate", "slide the plate out of the rack to the side"),
    "plate-slide-side": ("plate", "slide the plate into the rack from the side"),
    "push": ("push", "push the block to the goal"),
    "push-back": ("push", "pull the block back to the goal"),
    "push-wall": ("push", "push the block around the wall to the goal"),
    "reach": ("reach", "move the hand to the goal"),
    "reach-wall": ("reach", "move the hand over the wall to the goal"),
    "shelf-place": ("pick-and-place", "pick up the block and put it on the shelf"),
    "soccer": ("push", "push the ball into the net"),
    "stick-pull": ("tool", "pick up the stick and pull the box with it"),
    "stick-push": ("tool", "pick up the stick and push the box with it"),
    "sweep": ("push", "sweep the block off the table"),
    "sweep-into": ("push", "sweep the block into the hole"),
    "window-close": ("window", "close the window"),
    "window-open": ("window", "open the window"),
}

_TASKS: dict[str, tuple[str, str]] = {
    **{f"metaworld/{name}": entry for name, entry in sorted(_METAWORLD.items())},
    **{f"robocasa/{name}": (task.category, task.instruction) for name, task in sorted(ROBOCASA_TASKS.items())},
}


def all_tasks(simulator: str = "") -> tuple[str, ...]:
    """Task ids, ``simulator/name``, sorted: those of a simulator, or every one."""
    return tuple(task for task in _TASKS if not simulator or task.startswith(f"{simulator}/"))


def categories() -> tuple[str, ...]:
    """Every category, sorted."""
    return tuple(sorted({category for category, _ in _TASKS.values()}))


def _entry(task: str) -> tuple[str, str]:
    if task not in _TASKS:
        raise UnknownNameError("task", task, _TASKS)
    return _TASKS[task]


def instruction(task: str) -> str:
    """The language instruction of a task; where the scene decides some of its words, they stand in braces.

    Raises:
        UnknownNameError: No such task.
    """
    return _entry(task)[1]


def category(task: str) -> str:
    """The kind of a task, for example ``door``.

    Raises:
        UnknownNameError: No such task.
    """
    return _entry(task)[0]


def simulator_of(task: str) -> str:
    """Short name of the simulator that runs a task.

    Raises:
        UnknownNameError: No such task.
    """
    _entry(task)
    return task.split("/", 1)[0]


def name_of(task: str) -> str:
    """Name of a task without the simulator prefix.

    Raises:
        UnknownNameError: No such task.
    """
    _entry(task)
    return task.split("/", 1)[1]
