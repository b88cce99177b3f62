"""Task names, instructions and categories."""

from __future__ import annotations

import re

import pytest

from z1.errors import UnknownNameError
from z1.sims.suites import all_tasks, categories, category, instruction, name_of, simulator_of


def test_all_fifty_metaworld_tasks_have_a_short_imperative_sentence() -> None:
    tasks = all_tasks("metaworld")
    assert len(tasks) == 50
    assert list(all_tasks()) == sorted(all_tasks("metaworld") + all_tasks("robocasa"))
    sentences = [instruction(task) for task in tasks]
    assert len(set(sentences)) == 50
    for sentence in sentences:
        assert re.fullmatch(r"[a-z][a-z ]+[a-z]", sentence), sentence
        assert 3 <= len(sentence.split()) <= 12, sentence


def test_categories_group_the_tasks() -> None:
    assert category("metaworld/door-lock") == "door"
    assert category("metaworld/window-open") == "window"
    assert {category(task) for task in all_tasks()} == set(categories())
    assert {"button", "coffee", "drawer", "faucet", "insertion", "lever", "pick-and-place", "plate"} < set(categories())


def test_names_are_taken_apart() -> None:
    assert simulator_of("metaworld/hammer") == "metaworld"
    assert name_of("metaworld/hammer") == "hammer"


@pytest.mark.parametrize("function", [instruction, category, simulator_of, name_of])
def test_unknown_tasks_are_answered_with_the_nearest(function: object) -> None:
    with pytest.raises(UnknownNameError) as caught:
        function("metaworld/window-opn")  # type: ignore[operator]
    assert str(caught.value).startswith("unknown task 'metaworld/window-opn'; did you mean 'metaworld/window-open'")
