"""RoboCasa's tasks and protocol against the recorded facts of v0.2; no simulator is needed."""

from __future__ import annotations

import re

import pytest

from command_line import z1
from z1.sims.adapter import model_key, scene_of_key
from z1.sims.robocasa_tasks import TASKS, TEST_KITCHENS, TRAINING_KITCHENS, kitchens_of
from z1.sims.suites import all_tasks, category, instruction
from z1.types import Scene, SimInfo

HORIZONS = {
    1000: {"OpenDoubleDoor"},
    700: {"PnPCounterToSink", "CloseDoubleDoor"},
    600: {"PnPCounterToMicrowave", "CoffeeSetupMug", "CoffeeServeMug"},
    300: {"CoffeePressButton"},
}


def test_the_24_tasks_have_the_published_horizons() -> None:
    assert len(TASKS) == 24
    others = set(TASKS) - set().union(*HORIZONS.values())
    for horizon, names in (HORIZONS | {500: others}).items():
        assert {TASKS[name].horizon for name in names} == {horizon}
    assert list(all_tasks("robocasa")) == [f"robocasa/{name}" for name in sorted(TASKS)]


def test_categories_and_instructions() -> None:
    assert category("robocasa/CloseDrawer") == "drawer"
    assert instruction("robocasa/CloseDrawer") == "close the {side} drawer"
    assert sum(task.category == "pick-and-place" for task in TASKS.values()) == 8
    for name, task in TASKS.items():
        assert re.fullmatch(r"[a-z{}][a-z {}]+[a-z{}]", task.instruction), name
        assert task.instruction.count("{") == task.instruction.count("}")


def test_test_scenes_come_from_the_five_published_kitchens_and_no_other_split_does() -> None:
    assert TEST_KITCHENS == ((1, 1), (2, 2), (4, 4), (6, 9), (7, 10))
    assert len(TRAINING_KITCHENS) == len(set(TRAINING_KITCHENS)) == 10 * 12 - 5
    assert not set(TEST_KITCHENS) & set(TRAINING_KITCHENS)
    for split, pairs, objects in (
        ("train", TRAINING_KITCHENS, "A"),
        ("validation", TRAINING_KITCHENS, "A"),
        ("test", TEST_KITCHENS, "B"),
    ):
        for index in (0, 999_999_999):
            kitchens = kitchens_of(Scene.of_split("robocasa/CloseDrawer", split, index).seed)
            assert (kitchens.pairs, kitchens.objects) == (pairs, objects)


def test_a_kitchen_is_a_model_of_its_own() -> None:
    info = SimInfo(
        simulator="s",
        version="1",
        renderer="r",
        python="3",
        tasks=("CloseDrawer",),
        cameras=("c",),
        all_cameras=("c",),
        image_size=8,
        action_names=("a",),
        action_low=(0.0,),
        action_high=(1.0,),
        state_names=("s",),
        control_hz=20.0,
    )
    assert model_key(info, "CloseDrawer", 7) == "CloseDrawer"
    import dataclasses

    per_scene = dataclasses.replace(info, model_per_scene=True)
    assert model_key(per_scene, "CloseDrawer", 7) != model_key(per_scene, "CloseDrawer", 8)
    assert scene_of_key(model_key(per_scene, "CloseDrawer", 7)) == ("CloseDrawer", 7)


def test_without_an_installation_every_command_says_how_to_install(
    refused, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setenv("Z1_HOME", str(tmp_path))
    text = refused("check-sim", "robocasa/CloseDrawer")
    assert text == (
        "robocasa is not installed; install it with: z1 sims install robocasa --source CHECKOUT, where CHECKOUT is a "
        "checkout of RoboCasa v0.2: git clone --branch v0.2 https://github.com/robocasa/robocasa"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_task_is_answered_with_the_nearest(refused) -> None:
    assert "did you mean 'robocasa/CloseDrawer'" in refused("check-sim", "robocasa/CloseDrawr")


def test_all_74_tasks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert z1("tasks") == 0
    assert len(capsys.readouterr().out.splitlines()) == 74
