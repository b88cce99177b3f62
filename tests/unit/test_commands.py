"""What commands check before they begin: devices, policy folders, outputs, settings of resumed runs."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from rich.console import Console

from toy import TASK, ToyPool, toy_policy
from z1.commands import base, evaluation
from z1.config import RlConfig, RolloutConfig, SftConfig, SimConfig, UpdateConfig, config_to_dict
from z1.errors import CheckpointError, ConfigError, RunFolderError
from z1.policy.checkpoints.sizes import Sizes
from z1.policy.config import PolicyConfig
from z1.sims.pool import SimSpec
from z1.train.resume import RL_MAY_CHANGE, check_resume, stored_config, undone_on_error
from z1.train.run_folder import RunFolder

RL = RlConfig(policy="p", task=TASK, out="o")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert base.pick_device("auto").type == base.pick_device("cpu").type == "cpu"
    with pytest.raises(ConfigError) as caught:
        base.pick_device("cuda")
    assert str(caught.value) == ("device is 'cuda', but torch finds no GPU; choose --device cpu, or run z1 doctor")
    with pytest.raises(ConfigError) as caught:
        base.pick_device("tpu")
    assert str(caught.value) == "device is 'tpu'; it must be 'cpu', 'cuda' or 'auto'"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert base.pick_device("auto").type == base.pick_device("cuda").type == "cuda"


def test_policy_folders(tmp_path: Path) -> None:
    toy_policy().save(tmp_path / "run" / "policy")
    inner = tmp_path / "run" / "policy"
    assert base.policy_folder(str(tmp_path / "run")) == inner
    assert base.policy_folder(str(inner)) == inner
    assert base.recipe_for_policy(str(tmp_path / "run")) == "tiny"


def test_the_recipe_follows_the_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    toy_policy().save(tmp_path / "policy")
    opened = base.open_checkpoint(tmp_path)
    published = replace(opened, sizes=Sizes.of_config(PolicyConfig.pi05()))
    monkeypatch.setattr(base, "open_checkpoint", lambda place: published)
    assert base.recipe_for_policy(str(tmp_path)) == "paper"


def test_missing_policies(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        base.policy_folder("runs/none")
    assert str(caught.value) == (
        "policy runs/none does not exist; give a run folder of z1 sft or z1 rl, or a policy folder"
    )
    with pytest.raises(CheckpointError) as caught:
        base.policy_folder(str(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path} holds no policy: model.safetensors is missing; give a run folder of z1 sft or z1 rl, "
        "or a policy folder"
    )
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(CheckpointError) as caught:
        base.policy_folder(str(tmp_path))
    assert str(caught.value) == (
        f"run {tmp_path} has not finished and holds no policy yet; resume it with --resume, "
        f"or use {tmp_path}/checkpoints/last/policy"
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"state_names": ("x", "y", "z")},
            "the policy has 2 state dims, but toy has 3; choose a policy that was trained on toy",
        ),
        (
            {"action_names": ("x",)},
            "the policy has 2 action dims, but toy has 1; choose a policy that was trained on toy",
        ),
    ],
)
def test_a_policy_of_another_robot_is_refused(changes: dict[str, tuple[str, ...]], text: str) -> None:
    info = ToyPool().info
    base.check_fit(toy_policy(), info)
    with pytest.raises(ConfigError) as caught:
        base.check_fit(toy_policy(), replace(info, **changes))  # type: ignore[arg-type]
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("asked", "remembered", "rendered"), [("", "", ""), ("", "fast", "fast"), ("default", "fast", "default")]
)
def test_simulators_render_as_the_demonstrations_were_rendered(
    monkeypatch: pytest.MonkeyPatch, asked: Literal["", "default"], remembered: str, rendered: str
) -> None:
    specs: list[SimSpec] = []

    def pool(spec: SimSpec, hosts: int, *, timeout_s: float) -> ToyPool:
        specs.append(spec)
        return ToyPool()

    monkeypatch.setattr(base, "SimPool", pool)
    policy = toy_policy()
    policy.processor = replace(policy.processor, quality=remembered)
    base.open_pool(policy, "metaworld/door-open", SimConfig(quality=asked, perturbation="colours"))
    assert [(spec.quality, spec.perturbation) for spec in specs] == [(rendered, "colours")]


def test_results_say_how_images_were_perturbed() -> None:
    info = ToyPool().info
    assert "perturbation" not in base.simulator_record(info)
    assert base.simulator_record(replace(info, perturbation="camera"))["perturbation"] == "camera"


def test_short_names_are_unique() -> None:
    assert evaluation.policy_names(["runs/sft", "runs/rl"]) == ["sft", "rl"]
    assert evaluation.policy_names(["a/policy", "b/policy", "c/rl"]) == ["a/policy", "b/policy", "rl"]


def test_outputs_are_checked_before_anything_is_computed(tmp_path: Path) -> None:
    out = tmp_path / "new" / "result.json"
    evaluation._check_output(out, overwrite=False)
    assert out.parent.is_dir()
    out.write_text("{}")
    evaluation._check_output(out, overwrite=True)
    cases = {
        out: f"{out} exists already; choose another --out, or pass --overwrite",
        tmp_path: f"{tmp_path} is a folder; --out names the JSON file to write",
        out / "inner.json": f"cannot write {out / 'inner.json'}: File exists; choose another --out",
        out / "a" / "b.json": f"cannot write {out / 'a' / 'b.json'}: Not a directory; choose another --out",
    }
    for path, text in cases.items():
        with pytest.raises(RunFolderError) as caught:
            evaluation._check_output(path, overwrite=False)
        assert str(caught.value) == text
    with pytest.raises(RunFolderError, match="is a folder"):
        evaluation._check_output(tmp_path, overwrite=True)


def test_a_folder_without_write_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(RunFolderError) as caught:
        evaluation._check_output(tmp_path / "x.json", overwrite=False)
    text = f"cannot write {tmp_path / 'x.json'}: {tmp_path} is not writable; choose another --out"
    assert str(caught.value) == text


def test_a_resumed_run_keeps_its_settings() -> None:
    stored = config_to_dict(RL)
    check_resume(stored, RL, Path("run"), may_change=())
    allowed = replace(RL, iterations=99, device="cuda", wandb=True, sim=SimConfig(hosts=7, timeout_s=9), out="moved")
    check_resume(stored, allowed, Path("run"), may_change=RL_MAY_CHANGE)
    changed = replace(RL, seed=3, rollout=RolloutConfig(groups=7), update=UpdateConfig(learning_rate=1.0), iterations=1)
    with pytest.raises(ConfigError) as caught:
        check_resume(stored, changed, Path("run"), may_change=RL_MAY_CHANGE)
    assert str(caught.value) == (
        f"cannot resume run with other settings: seed was 0, is 3; rollout.groups was {RL.rollout.groups}, is 7; "
        f"update.learning_rate was {RL.update.learning_rate}, is 1.0. "
        "Leave them out to resume with the stored ones, or start a new run with another --out."
    )


def test_settings_come_back_from_a_run_folder(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "rl", config_to_dict(RL), "rl")
    assert stored_config(tmp_path / "rl", RlConfig, "rl") == RL
    with pytest.raises(RunFolderError) as caught:
        stored_config(tmp_path / "rl", SftConfig, "sft")
    assert str(caught.value) == f"{tmp_path / 'rl'} is a run of z1 rl; expected one of z1 sft"
    with pytest.raises(RunFolderError) as caught:
        stored_config(tmp_path / "none", RlConfig, "rl")
    assert str(caught.value) == f"run folder {tmp_path / 'none'} does not exist; check the path"
    config = tmp_path / "rl" / "config.json"
    config.write_text('{"schema": "z1.run/1", "kind": "rl"}')
    with pytest.raises(RunFolderError) as caught:
        stored_config(tmp_path / "rl", RlConfig, "rl")
    assert str(caught.value) == f"{config} holds no settings; restore it from a copy"
    config.write_text("{")
    with pytest.raises(RunFolderError, match=r"config\.json cannot be read as JSON"):
        stored_config(tmp_path / "rl", RlConfig, "rl")


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "new", {}, "rl")
    with pytest.raises(ConfigError), undone_on_error(run, resume=False):
        raise ConfigError("a setting")
    assert not run.path.exists()
    run = RunFolder.create(tmp_path / "new", {}, "rl")
    with pytest.raises(ConfigError), undone_on_error(run, resume=True):
        raise ConfigError("a setting")
    assert run.config_path.exists()
    run.metrics_path.write_text("kept")
    with pytest.raises(ConfigError), undone_on_error(run, resume=False):
        raise ConfigError("a setting")
    assert run.metrics_path.read_text() == "kept"


@pytest.mark.parametrize(
    ("every_s", "terminal", "expected"),
    [
        (0.0, False, ["sft 1/2 after 0 s: loss [1]", "sft 2/2 after 0 s"]),
        (0.0, True, []),
        (1000.0, False, []),
    ],
)
def test_progress_is_written_in_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, every_s: float, terminal: bool, expected: list[str]
) -> None:
    written = io.StringIO()
    monkeypatch.setattr(base, "console", Console(file=written, width=100, force_terminal=terminal))
    monkeypatch.setattr(base, "LINE_EVERY_S", every_s)
    with base.progress_bar("sft", 2) as (bar, task):
        bar.update(task, completed=1, note="loss [1]")
        bar.update(task, completed=2, note="")
    assert [line for line in written.getvalue().splitlines() if " after " in line] == expected
