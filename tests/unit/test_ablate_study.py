"""Study files: what is read, what is refused and in which words, and the config of each run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from command_line import z1
from z1.ablate.explain import EXAMPLE
from z1.ablate.jobs import StudyFolder, actings, check
from z1.ablate.overrides import DEMO_RESERVED, RESERVED, SFT_RESERVED, demo_config, run_config, settings_of, sft_config
from z1.ablate.study import Study, StudyTask, Variant, differences, read_study, study_from_dict, study_to_dict
from z1.config import ActingConfig, RlConfig, SftConfig
from z1.data.record import DemoConfig
from z1.errors import Z1Error

DOOR: dict[str, Any] = {"task": "metaworld/door-open", "horizon": 150, "demonstrations": 12, "sft_steps": 250}
TREE: dict[str, Any] = {"name": "tree", "set": {"rollout.plan": "tree", "rollout.prefix": 6}}


def given(**changes: Any) -> dict[str, Any]:
    """A study file's content with some keys changed; None removes one."""
    data = {"name": "s", "tasks": [DOOR], "variants": [{"name": "flat"}, TREE], "env_step_budget": 6000}
    data |= {"recipe": "tiny-awfm"} | changes
    return {key: value for key, value in data.items() if value is not None}


def config_of(study: Study, number: int, seed: int = 3) -> RlConfig:
    return run_config(study, study.tasks[0], study.variants[number], seed, policy="p", out="o")


def test_the_example_of_the_help_is_a_study(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(EXAMPLE)
    study = read_study(tmp_path / "s.json")
    assert study == Study(
        name="rollout-plans",
        tasks=(
            StudyTask(task="metaworld/door-open", horizon=150, demonstrations=12, sft_steps=250),
            StudyTask(task="metaworld/lever-pull", horizon=120, policy="runs/sft-lever"),
        ),
        recipe="tiny",
        set={"rollout.groups": 6},
        variants=(
            Variant(name="flat", set={"rollout.plan": "flat", "rollout.prefix": 0}),
            Variant(name="tree", set={"rollout.plan": "tree", "rollout.prefix": 6}),
        ),
        seeds=(0, 1, 2),
        env_step_budget=60_000,
    )
    assert study.reference_name == "flat"
    assert study_from_dict(json.loads(json.dumps(study_to_dict(study)))) == study


def test_marks_end_with_the_budget() -> None:
    assert study_from_dict(given(env_step_budget=60_000)).mark_positions == (0, 15_000, 30_000, 45_000, 60_000)
    assert study_from_dict(given(env_step_budget=100, marks=3)).mark_positions == (0, 34, 68, 100)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (given(markz=1), "unknown key in the study 'markz'; did you mean 'marks'?"),
        (given(tasks=[{**DOOR, "horizn": 3}]), "unknown key in tasks[0] 'horizn'; did you mean 'horizon'?"),
        (given(name=None), "the study has no 'name'; give it"),
        (given(tasks=[{"task": "metaworld/door-open"}]), "tasks[0] has no 'horizon'; give it"),
        (given(variants=[{}]), "variants[0] has no 'name'; give it"),
        ([], "the study is []; it must be a JSON object"),
        (given(tasks=DOOR), f"tasks is {DOOR!r}; it must be a list"),
        (given(seeds=[0, "1"]), "seeds[1] is '1'; it must be a whole number"),
        (given(seeds=[True]), "seeds[0] is True; it must be a whole number"),
        (given(env_step_budget=6e3), "env_step_budget is 6000.0; it must be a whole number"),
        (given(sft_per_seed=1), "sft_per_seed is 1; it must be true or false"),
        (
            given(set=["rollout.groups"]),
            "set is ['rollout.groups']; it must be a JSON object of overrides by dotted name",
        ),
        (given(seeds=[]), "seeds is []; it must be at least one"),
        (given(variants=[]), "variants is []; it must be at least one"),
        (given(seeds=[1, 2, 1]), "seeds names 1 2 times; name each once"),
        (given(seeds=[-1]), "seeds is [-1]; it must be at least 0"),
        (given(tasks=[DOOR, DOOR]), "tasks names 'metaworld/door-open' 2 times; name each once"),
        (given(variants=[TREE, TREE]), "variants names 'tree' 2 times; name each once"),
        (given(marks=0), "marks is 0; it must be at least 1"),
        (given(env_step_budget=3), "marks is 4; it must be at most env_step_budget (3)"),
        (given(test_episodes=0), "test_episodes is 0; it must be at least 1"),
        (given(recipe="papr"), "unknown recipe 'papr'; did you mean 'paper'?"),
        (given(variants=[{"name": "a", "recipe": "papr"}]), "unknown recipe 'papr'; did you mean 'paper'?"),
        (given(reference="tre"), "unknown reference variant 'tre'; did you mean 'tree'?"),
        (
            given(variants=[{"name": "a b"}]),
            "name of a variant is 'a b'; it must be made of letters, digits, '.', '_' and '-', beginning with a letter "
            "or digit",
        ),
        (
            given(tasks=[{**DOOR, "task": "metaworld/dor-open"}]),
            "unknown task 'metaworld/dor-open'; did you mean 'metaworld/door-open' or 'metaworld/window-open' or "
            "'metaworld/drawer-open'?",
        ),
        (given(tasks=[{**DOOR, "horizon": 0}]), "horizon of task metaworld/door-open is 0; it must be at least 1"),
        (
            given(tasks=[{"task": "metaworld/door-open", "horizon": 9, "sft_steps": 4}]),
            "task metaworld/door-open has no SFT policy; give 'policy', a folder, or 'sft_steps' and one of "
            "'demonstrations' and 'dataset'",
        ),
        (
            given(tasks=[{**DOOR, "policy": "p"}]),
            "demonstrations of task metaworld/door-open has no effect, since the task has 'policy'; leave one of the "
            "two out",
        ),
        (
            given(tasks=[{"task": "metaworld/door-open", "horizon": 9, "policy": "p"}], sft_per_seed=True),
            "sft_per_seed is true, but task metaworld/door-open has 'policy', one for all seeds; give it "
            "'demonstrations' and 'sft_steps', or set sft_per_seed to false",
        ),
    ],
)
def test_mistakes_in_the_study(data: Any, text: str) -> None:
    with pytest.raises(Z1Error) as caught:
        study_from_dict(data)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rollout.group": 4}, "unknown setting in set of variant 'v' 'rollout.group'; did you mean 'rollout.groups'"),
        ({"rollout": {}}, "unknown setting in set of variant 'v' 'rollout'; did you mean "),
        (
            {"seed": 4},
            "set of variant 'v' names 'seed', which the study sets for all runs; leave it out (seeds says it)",
        ),
        (
            {"sim.horizon": 4},
            "set of variant 'v' names 'sim.horizon', which the study sets for all runs; leave it out (the tasks' "
            "horizon says it)",
        ),
        (
            {"sim.perturbation": "camera"},
            "set of variant 'v' names 'sim.perturbation', but variants are compared with one evaluation of the SFT "
            "policy; put it into the set of the study or of a task",
        ),
        ({"precision": "bfloat16"}, "set of variant 'v' names 'precision', but variants are compared with one"),
        ({"rollout.groups": 4.0}, "rollout.groups in set of variant 'v' is 4.0; it must be a whole number"),
        ({"rollout.groups": True}, "rollout.groups in set of variant 'v' is True; it must be a whole number"),
        ({"rollout.noise_level": "1"}, "rollout.noise_level in set of variant 'v' is '1'; it must be a finite number"),
        (
            {"rollout.noise_level": float("inf")},
            "rollout.noise_level in set of variant 'v' is inf; it must be a finite number",
        ),
        ({"rollout.exclude_last_step": 1}, "rollout.exclude_last_step in set of variant 'v' is 1; it must be true or"),
        (
            {"rollout.plan": "tee"},
            "rollout.plan in set of variant 'v' is 'tee'; it must be one of 'flat', 'shared_prefix', 'tree'",
        ),
        (
            {"rollout.prefix": 6},
            "variant 'v' on metaworld/door-open: rollout.prefix is 6, which has no effect with rollout.plan 'flat'",
        ),
        (
            {"rollout.plan": "tree", "rollout.prefix": 19},
            "variant 'v' on metaworld/door-open: rollout.prefix is 19; it must be less than the 19 chunks",
        ),
    ],
)
def test_mistakes_in_overrides(settings: dict[str, Any], text: str) -> None:
    study = study_from_dict(given(variants=[{"name": "v", "set": settings}]))
    with pytest.raises(Z1Error) as caught:
        config_of(study, 0)
    assert str(caught.value).startswith(text)


def test_mistakes_in_the_overrides_for_all_variants() -> None:
    study = study_from_dict(given(set={"policy": "p"}))
    with pytest.raises(Z1Error) as caught:
        config_of(study, 0)
    assert str(caught.value) == "set names 'policy', which the study sets for all runs; leave it out (tasks says it)"


def test_overrides_are_checked_together_and_the_variants_come_last() -> None:
    study = study_from_dict(
        given(
            recipe="tiny",
            set={"rollout.groups": 6, "update.epochs": 2, "rollout.noise_level": 1},
            variants=[
                {"name": "flat", "set": {"rollout.prefix": 0, "rollout.plan": "flat"}},
                {"name": "tree", "set": {"rollout.prefix": 6, "rollout.plan": "tree", "update.epochs": 3}},
                {"name": "awfm", "recipe": "tiny-awfm"},
            ],
        )
    )
    flat, tree, awfm = (config_of(study, number) for number in range(3))
    assert (flat.rollout.plan, flat.rollout.prefix, flat.rollout.groups, flat.update.epochs) == ("flat", 0, 6, 2)
    assert (tree.rollout.plan, tree.rollout.prefix, tree.rollout.groups, tree.update.epochs) == ("tree", 6, 6, 3)
    assert (awfm.update.objective, awfm.update.epochs, awfm.rollout.groups) == ("awfm", 2, 6)
    assert flat.rollout.noise_level == 1.0


def test_a_task_has_settings_of_its_own_between_the_studys_and_the_variants() -> None:
    own = {"sim.perturbation": "camera", "update.epochs": 3, "rollout.groups": 5}
    study = study_from_dict(
        given(
            set={"update.epochs": 2, "rollout.noise_level": 0.3},
            tasks=[{**DOOR, "set": own}, {**DOOR, "task": "metaworld/lever-pull"}],
            variants=[{"name": "v", "set": {"rollout.groups": 6}}],
        )
    )
    config = config_of(study, 0)
    assert (config.sim.perturbation, config.update.epochs, config.rollout.groups) == ("camera", 3, 6)
    assert config.rollout.noise_level == 0.3
    other = run_config(study, study.tasks[1], study.variants[0], 3, policy="p", out="o")
    assert (other.sim.perturbation, other.update.epochs) == ("", 2)
    wrong = study_from_dict(given(tasks=[{**DOOR, "set": {"sim.horizon": 3}}]))
    with pytest.raises(Z1Error, match=r"^set of task metaworld/door-open names 'sim.horizon', which the study sets"):
        config_of(wrong, 0)


def test_recordings_and_sft_have_settings_of_their_own(tmp_path: Path) -> None:
    study = study_from_dict(
        given(
            demo_set={"noise_std": 0.1, "cameras": ["corner2"]},
            sft_set={"learning_rate": 1e-4},
        )
    )
    (task, *_) = study.tasks
    demos = demo_config(study, task, 5, out="data")
    assert demos == DemoConfig(
        task=(task.task,),
        episodes=task.demonstrations,
        out="data",
        seed=5,
        hosts=1,
        noise_std=0.1,
        cameras=("corner2",),
    )
    sft = sft_config(study, (task, task), 5, datasets=("a", "b"), out="run")
    assert (sft.steps, sft.seed, sft.learning_rate, sft.dataset) == (2 * task.sft_steps, 5, 1e-4, ("a", "b"))
    assert sft_config(study_from_dict(given()), (task,), 0, datasets=("a",), out="run").learning_rate == 1e-3


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"demo_set": {"noise": 0.1}}, "unknown setting in demo_set 'noise'; did you mean 'noise_std'"),
        (
            {"demo_set": {"episodes": 3}},
            "demo_set names 'episodes', which the study sets for all runs; leave it out (the tasks' demonstrations",
        ),
        ({"demo_set": {"cameras": "corner2"}}, "cameras in demo_set is 'corner2'; it must be a list of texts"),
        ({"demo_set": {"noise_std": -1}}, "noise_std is -1; it must be from 0 up to 10"),
        (
            {"sft_set": {"steps": 3}},
            "sft_set names 'steps', which the study sets for all runs; leave it out (the tasks'",
        ),
        ({"sft_set": {"batch_size": 0}}, "batch_size is 0; it must be at least 1"),
    ],
)
def test_mistakes_in_the_settings_of_recordings_and_sft(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(Z1Error) as caught:
        check(study_from_dict(given(**changes)), StudyFolder(tmp_path))
    assert str(caught.value).startswith(text)


def test_settings_of_what_no_task_does_are_refused() -> None:
    policy = {"task": DOOR["task"], "horizon": 100, "policy": "runs/sft"}
    for name, setting, why in (
        ("demo_set", {"noise_std": 0.1}, "no task has 'demonstrations' to record"),
        ("sft_set", {"learning_rate": 1e-4}, "every task has 'policy'"),
    ):
        with pytest.raises(Z1Error) as caught:
            study_from_dict(given(tasks=[policy], **{name: setting}))
        assert str(caught.value) == f"{name} has no effect, since {why}; leave it out"


def test_what_the_study_sets() -> None:
    study = study_from_dict(given(env_step_budget=6001, validation_episodes=7, recipe="tiny"))
    config = config_of(study, 0)
    assert (config.policy, config.task, config.out, config.seed) == ("p", "metaworld/door-open", "o", 3)
    assert (config.env_step_budget, config.sim.horizon, config.sim.hosts) == (6001, 150, 1)
    assert config.iterations == 100_000
    validation = config.validation
    assert (validation.every, validation.every_env_steps, validation.episodes) == (0, 1501, 7)


def test_reserved_settings_exist() -> None:
    assert settings_of(RlConfig).keys() >= RESERVED.keys()
    assert settings_of(DemoConfig).keys() >= DEMO_RESERVED.keys()
    assert settings_of(SftConfig).keys() >= SFT_RESERVED.keys()
    assert {name for name in settings_of(RlConfig) if "." not in name} >= {"policy", "device"}
    assert len(settings_of(RlConfig)) > len(fields(RlConfig))


def test_everything_is_checked_before_anything_runs(tmp_path: Path, refused: Callable[..., str]) -> None:
    path = tmp_path / "s.json"

    def mistake(**changes: Any) -> str:
        path.write_text(json.dumps(given(**changes)))
        return refused("ablate", path, "--out", tmp_path / "o")

    last = [{"name": "a"}, {"name": "b", "set": {"rollout.group_size": 1}}]
    text = (
        "variant 'b' on metaworld/door-open: rollout.group_size is 1; it must be at least 2, since members are compared"
    )
    assert mistake(variants=last) == text
    text = (
        "variant 'b' on metaworld/door-open: acting.chunk_length is 9, but the policy predicts 8 env steps; choose at "
        "most 8"
    )
    assert mistake(variants=[{"name": "b", "set": {"acting.chunk_length": 9}}]) == text
    text = "policy p does not exist; give a run folder of z1 sft or z1 rl, or a policy folder"
    assert (
        mistake(tasks=[{"task": "metaworld/door-open", "horizon": 9, "policy": "p"}], variants=[{"name": "a"}]) == text
    )
    path.write_text("{")
    assert refused("ablate", path, "--out", tmp_path / "o").startswith(f"{path} cannot be read as JSON: ")
    assert refused("ablate", tmp_path / "none", "--out", tmp_path / "o") == f"{tmp_path}/none is missing"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.json"]


def test_policies_are_evaluated_once_per_acting_setting(tmp_path: Path) -> None:
    variants = [
        {"name": "a"},
        {"name": "b", "set": {"acting.chunk_length": 4}},
        {"name": "c", "set": {"update.epochs": 1}},
        {"name": "d", "set": {"acting.denoise_steps": 2, "acting.chunk_length": 4}},
    ]
    study, folder = study_from_dict(given(variants=variants)), StudyFolder(tmp_path)
    check(study, folder)
    found = actings(folder, study, study.tasks[0])
    assert found == [
        ActingConfig(),
        ActingConfig(chunk_length=4),
        ActingConfig(chunk_length=4, denoise_steps=2),
    ]
    paths = {folder.sft_evaluation(study.tasks[0], None, acting) for acting in found}
    assert len(paths) == 3


def test_studies_may_grow_and_nothing_else() -> None:
    before = study_from_dict(given(seeds=[0, 1]))
    lever = {"task": "metaworld/lever-pull", "horizon": 120, "policy": "p"}
    grown = given(seeds=[1, 0, 5], tasks=[lever, DOOR], variants=[{"name": "flat"}, {"name": "new"}, TREE])
    assert differences(before, study_from_dict(grown)) == []
    assert differences(before, study_from_dict(given(seeds=[0, 1], reference="flat"))) == []
    assert differences(before, study_from_dict(given(seeds=[0, 1], env_step_budget=9000, marks=6))) == []
    assert differences(before, study_from_dict(given(seeds=[0, 1], env_step_budget=3000, marks=2))) == [
        "env_step_budget was 6000, is 3000",
        "marks was 4, is 2",
    ]
    assert differences(before, study_from_dict(given(seeds=[0, 1], env_step_budget=9000, marks=5))) == [
        "env_step_budget was 6000, is 9000",
        "marks was 4, is 5",
    ]
    grouped = {"task": "metaworld/lever-pull", "horizon": 120, "dataset": "d", "sft_steps": 3, "sft_group": "all"}
    one, two = (
        study_from_dict(given(tasks=[grouped, {**grouped, "task": "metaworld/dial-turn"}][:number]))
        for number in (1, 2)
    )
    assert differences(one, two) == [
        "the tasks of SFT group 'all' were metaworld/lever-pull, are metaworld/lever-pull, metaworld/dial-turn"
    ]
    other = given(
        seeds=[0],
        marks=5,
        tasks=[{**DOOR, "horizon": 140}, lever],
        variants=[{"name": "tree", "set": {"rollout.plan": "tree", "rollout.prefix": 7}}],
        set={"update.epochs": 2},
    )
    assert differences(before, study_from_dict(other)) == [
        "set was {}, is {'update.epochs': 2}",
        "reference was 'flat', is 'tree'",
        "marks was 4, is 5",
        "tasks 'metaworld/door-open': horizon was 150, is 140",
        "variants has no 'flat' any more",
        "variants 'tree': set was {'rollout.plan': 'tree', 'rollout.prefix': 6}, is {'rollout.plan': 'tree', "
        "'rollout.prefix': 7}",
        "seeds has no 1 any more",
    ]


def test_help_explains_the_study_file(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert z1("ablate", "--help") == 0
    shown = capsys.readouterr().out
    assert EXAMPLE in shown
    for cls in (Study, StudyTask, Variant):
        for f in fields(cls):
            assert f"\n  {f.name}: " in shown
    assert "  marks: Validations at equal distances of env steps, after the one at the start. (default: 4)" in shown
    for option in ("--out", "--jobs", "--resume", "--plan", "--report", "--rate"):
        assert f" {option}" in shown
