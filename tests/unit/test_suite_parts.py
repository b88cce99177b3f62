"""Suites: what they are, which jobs they become, and what their results say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from z1.ablate.jobs import Preparation, Run, SharedSft, StudyFolder, check, env_steps, jobs_of
from z1.ablate.schedule import least_used
from z1.ablate.study import StudyTask, differences
from z1.errors import ConfigError, UnknownNameError, Z1Error
from z1.eval.stats import summarise
from z1.files import write_json
from z1.sims.robocasa_experts.registry import EXPERTS
from z1.sims.suites import all_tasks
from z1.suite.builtin import SUITES
from z1.suite.command import SuiteRunConfig, chosen_suite
from z1.suite.published import PUBLISHED
from z1.suite.results import compare, gather_suite
from z1.suite.suite import Suite, SuiteTask, builtin_suite, read_suite, suite_to_dict, with_datasets, with_tasks
from z1.suite.table import headline, markdown, terminal_table

DOOR, DRAWER, DIAL = "metaworld/door-open", "metaworld/drawer-open", "metaworld/dial-turn"
FILE = {
    "name": "three",
    "tasks": [
        {"task": DOOR, "category": "doors", "horizon": 50, "demonstrations": 3, "sft_steps": 10},
        {"task": DRAWER, "category": "drawers", "horizon": 60, "demonstrations": 4, "sft_steps": 20},
        {"task": DIAL, "category": "doors", "horizon": 70, "sft_steps": 30},
    ],
    "env_step_budget": 400,
    "test_episodes": 4,
}


def suite_of(**change: Any) -> Suite:
    from z1.suite.suite import suite_from_dict

    return suite_from_dict({**FILE, **change})


def test_the_built_in_suites() -> None:
    assert {name: len(tasks) for name, tasks in SUITES.items()} == {
        "metaworld-kitchen24": 24,
        "metaworld-mt10": 10,
        "metaworld-mt50": 50,
        "robocasa24": 24,
    }
    kitchen, robocasa = SUITES["metaworld-kitchen24"], SUITES["robocasa24"]
    assert set(kitchen.values()) == set(robocasa.values())
    assert set(kitchen) <= set(all_tasks())
    assert all(task.has_demonstrations for task in builtin_suite("metaworld-kitchen24").tasks)
    assert builtin_suite("metaworld-kitchen24").without_demonstrations == ()
    horizons = {task.task: task.horizon for task in builtin_suite("robocasa24").tasks}
    assert horizons["robocasa/CoffeePressButton"] == 300
    assert horizons["robocasa/CloseDrawer"] == 500
    assert set(builtin_suite("robocasa24").without_demonstrations) == {
        task for task in robocasa if task.removeprefix("robocasa/") not in EXPERTS
    }
    assert set(PUBLISHED) <= set(SUITES)


def test_a_suite_file_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "suite.json"
    write_json(path, FILE)
    suite = read_suite(str(path))
    assert suite.without_demonstrations == (DIAL,)
    write_json(path, suite_to_dict(suite))
    assert read_suite(str(path)) == suite
    for change, text in (
        ({"sfd": "task"}, "unknown key in the suite 'sfd'; did you mean 'sft' or 'seed'?"),
        ({"sft": "x"}, "sft is 'x'; it must be one of 'task', 'category', 'suite'"),
        ({"tasks": []}, "tasks is (); it must be at least one"),
        ({"tasks": FILE["tasks"][:1] * 2}, f"tasks names '{DOOR}' 2 times; name each once"),  # type: ignore[index]
        ({"validate_every": 150}, "env_step_budget is 400; it must be a multiple of validate_every (150), or less"),
    ):
        write_json(path, {**FILE, **change})
        with pytest.raises(Z1Error) as caught:
            read_suite(str(path))
        assert str(caught.value) == text
    for wrong in ("CloseDrawer", "metaworld/door-opne"):  # also where no demonstrations are
        write_json(path, {**FILE, "tasks": [{"task": wrong, "category": "x", "horizon": 50, "sft_steps": 1}]})
        with pytest.raises(UnknownNameError):
            read_suite(str(path))
    with pytest.raises(UnknownNameError) as unknown:
        read_suite("metaworld-kitchen")
    assert "did you mean 'metaworld-kitchen24'" in str(unknown.value)


def test_one_policy_per_task_category_or_suite() -> None:
    groups = {
        kind: [task.sft_group for task in suite_of(sft=kind).study().tasks] for kind in ("task", "category", "suite")
    }
    assert groups == {"task": ["", ""], "category": ["doors", "drawers"], "suite": ["all", "all"]}


def test_a_shared_policy_is_made_once_and_before_its_tasks() -> None:
    study = suite_of(sft="suite").study()
    jobs = jobs_of(study)
    assert [type(job) for job in jobs] == [SharedSft, Preparation, Preparation, Run, Run]
    shared, first, second, *_ = jobs
    assert isinstance(shared, SharedSft)
    assert [task.task for task in shared.tasks] == [DOOR, DRAWER]
    assert first.after == second.after == shared.name
    folder = StudyFolder(Path("somewhere"))
    assert {folder.policy(task, 0) for task in study.tasks} == {"somewhere/shared/all/seed-0"}
    assert env_steps(study, folder, shared) == 7 * 200
    assert env_steps(study, folder, first) == 4 * 50, "its demonstrations are the shared job's"
    alone = suite_of().study()
    assert [job.after for job in jobs_of(alone)][:2] == ["", ""]
    check(study, folder)


def test_probes_decide_what_trains_where_a_suite_asks_for_them() -> None:
    study = suite_of(probe_env_steps=200, set={"rollout.groups": 2}).study()
    assert study.set == {"selection": "auto", "probe_env_steps": 200, "rollout.groups": 2}
    assert suite_of().study().set == {}
    assert all(builtin_suite(name).study().set["selection"] == "auto" for name in SUITES)
    with pytest.raises(ConfigError) as caught:
        suite_of(probe_env_steps=201)
    assert str(caught.value) == (
        "env_step_budget is 400; it must hold two probes of probe_env_steps (201). Lower probe_env_steps, or set it to "
        "0 to train without probes"
    )


def test_a_raised_budget_keeps_the_distance_of_validations() -> None:
    before, after = (suite_of(env_step_budget=budget, validate_every=200).study() for budget in (400, 1000))
    assert (before.marks, after.marks) == (2, 5)
    assert differences(before, after) == []
    assert differences(before, suite_of(env_step_budget=1000, validate_every=100).study())
    assert suite_of(env_step_budget=400, validate_every=20_000).study().marks == 1


def test_the_command_line_comes_after_the_suite(tmp_path: Path) -> None:
    path = tmp_path / "suite.json"
    write_json(path, {**FILE, "probe_env_steps": 100})
    ask = SuiteRunConfig(suite=str(path), out="out", env_step_budget=900, probe_env_steps=0)
    suite = chosen_suite(ask)
    assert (suite.env_step_budget, suite.probe_env_steps) == (900, 0)
    assert chosen_suite(SuiteRunConfig(suite=str(path), out="out")) == read_suite(str(path))


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ConfigError) as caught:
        with_tasks(suite_of(), (DIAL,)).study()
    assert str(caught.value) == (
        "no task of suite three has demonstrations; give a folder with a dataset per task by --data, or 'dataset' in a "
        "suite file"
    )


def test_datasets_of_a_folder_are_taken_by_name(tmp_path: Path) -> None:
    for name in ("dial-turn", "metaworld-door-open"):
        write_json(tmp_path / name / "meta" / "info.json", {})
    suite = with_datasets(suite_of(), tmp_path)
    assert [task.dataset for task in suite.tasks] == [
        str(tmp_path / "metaworld-door-open"),
        "",
        str(tmp_path / "dial-turn"),
    ]
    assert suite.without_demonstrations == ()
    assert [task.demonstrations for task in suite.study().tasks] == [0, 4, 0]
    with pytest.raises(ConfigError) as caught:
        with_datasets(suite_of(), tmp_path / "empty")
    assert str(caught.value) == (
        f"{tmp_path / 'empty'} holds a dataset of no task of three; expected folders like "
        f"{tmp_path / 'empty'}/door-open"
    )


def test_settings_of_recordings_and_sft_reach_the_study(tmp_path: Path) -> None:
    sets = {"demo_set": {"noise_std": 0.1}, "sft_set": {"learning_rate": 2e-4}}
    study = suite_of(**sets).study()
    assert {name: getattr(study, name) for name in sets} == sets
    assert builtin_suite("robocasa24").study().demo_set == {"noise_std": 0.2, "quality": "fast"}
    check(builtin_suite("robocasa24").study(), StudyFolder(tmp_path / "out"))
    for name in ("dial-turn", "door-open", "drawer-open"):
        write_json(tmp_path / name / "meta" / "info.json", {})
    given = with_datasets(suite_of(**sets), tmp_path)  # nothing is recorded any more
    assert (given.demo_set, given.sft_set) == ({}, sets["sft_set"])
    given.study()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"sft_steps": 0},
            f"task {DOOR} has no SFT policy; give 'policy', a folder, or 'sft_steps' and one of 'demonstrations' and "
            "'dataset'",
        ),
        (
            {"dataset": "x"},
            f"task {DOOR} has both 'demonstrations' and 'dataset'; leave one of them out",
        ),
        (
            {"policy": "p", "demonstrations": 0, "sft_steps": 0, "sft_group": "g"},
            f"sft_group of task {DOOR} has no effect, since the task has 'policy'; leave one of the two out",
        ),
    ],
)
def test_tasks_that_contradict_themselves(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        StudyTask(**{"task": DOOR, "horizon": 50, "demonstrations": 3, "sft_steps": 10, **change})
    assert str(caught.value) == text


def test_the_least_used_device() -> None:
    assert least_used(("0", "1", "2"), []) == "0"
    assert least_used(("0", "1", "2"), ["0", "1", "0"]) == "2"
    assert least_used(("0", "1"), ["1", "0", "1"]) == "0"


def evaluation_of(task: str, sft: str, rl: str) -> dict[str, Any]:
    """An evaluation of two policies by their outcomes, ``+`` and ``-``, on the same scenes."""
    episodes = [
        {"policy": policy, "task": task, "seed": seed, "success": sign == "+", "invalid": False, "steps": 5}
        for policy, outcomes in enumerate((sft, rl))
        for seed, sign in enumerate(outcomes)
    ]
    policies = [{"name": "sft"}, {"name": "rl"}]
    return {
        "protocol": {"episodes": len(sft)},
        "policies": policies,
        "episodes": episodes,
        "summary": summarise(episodes, policies),
    }


def test_averages_weigh_tasks_the_same_and_pair_scenes() -> None:
    """1/4 to 3/4 on one task, 1/2 to 1/2 with one gained and one lost on the other: 37.5 to 62.5 %, +25 points."""
    row = compare([evaluation_of(DOOR, "+---", "+++-"), evaluation_of(DRAWER, "+-", "-+")])
    assert row["sft"]["value"] == pytest.approx(0.375)
    assert row["rl"]["value"] == pytest.approx(0.625)
    assert row["difference"]["value"] == pytest.approx(0.25)
    assert (row["difference"]["gained"], row["difference"]["lost"], row["episodes"]) == (3, 1, 6)
    assert row["difference"]["low"] < 0.25 < row["difference"]["high"]
    assert compare([]) == {}


def test_results_name_every_task_with_its_state(tmp_path: Path) -> None:
    suite, folder = suite_of(), StudyFolder(tmp_path)
    study = suite.study()
    (run,) = [job for job in jobs_of(study) if isinstance(job, Run) and job.task.task == DOOR]
    sft, rl = "+" * 20 + "-" * 30, "+" * 45 + "-" * 5
    path = folder.run(run.task, run.variant, run.seed)
    write_json(folder.evaluation(run), evaluation_of(DOOR, sft, rl))
    write_json(path / "config.json", {"kind": "rl", "config": {"update": {"mode": "joint"}}})
    record = {"iteration": 0, "cost/env_steps": 400, "time/total_s": 2.0}
    (path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    results = gather_suite(suite, folder)
    door, drawer, dial = results["tasks"]
    assert (door["state"], door["mode"], door["env_steps"]) == ("finished", "joint", 400)
    assert (drawer["state"], dial["state"]) == ("not finished", "no demonstrations")
    assert results["improved"] == [DOOR]
    assert results["harmed"] == []
    assert [(c["category"], c["tasks"], c["planned"]) for c in results["categories"]] == [
        ("doors", 1, 2),
        ("drawers", 0, 1),
    ]
    assert "stand-ins" not in headline(results)
    results["protocols"] = [{"stand_ins": "3 meshes are generated"}, {}]
    assert headline(results).endswith("Made with stand-ins: 3 meshes are generated.")
    page = markdown(results)
    assert "Made with stand-ins: 3 meshes are generated." in page
    assert "| metaworld/door-open | 40 (28–54) | 90 (79–96) | +50 (" in page
    assert "| metaworld/dial-turn |  |  |  |  | no demonstrations |  |" in page
    assert headline(results).startswith("1 task: 40\u202f% after SFT, 90\u202f% after RL, +50\u202fpoints (")
    assert "Without demonstrations, so neither trained nor evaluated (1): metaworld/dial-turn." in headline(results)
    assert terminal_table(results).row_count == 6
    write_json(folder.evaluation(run), evaluation_of(DOOR, rl, sft))
    worse = gather_suite(suite, folder)
    assert (worse["improved"], worse["harmed"]) == ([], [DOOR])


def test_published_numbers_stand_apart(tmp_path: Path) -> None:
    suite = Suite(
        name="robocasa24",
        tasks=(SuiteTask(task=DOOR, category="doors", horizon=50, sft_steps=1, demonstrations=1),),
    )
    page = markdown(gather_suite(suite, StudyFolder(tmp_path)))
    assert "## What others report" in page
    assert "| Z-1, RL | 80.6 | " in page
    assert "What others report" not in markdown(gather_suite(suite_of(), StudyFolder(tmp_path)))
