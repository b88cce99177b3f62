"""Run folders: what is written, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest

from z1.errors import RunFolderError
from z1.train.run_folder import RunFolder, describe_environment, git_state

CONFIG = {"seed": 3, "task": "metaworld/reach", "update": {"epochs": 4}}


def test_create_then_open_returns_the_settings(tmp_path: Path):
    made = RunFolder.create(tmp_path / "runs" / "one", CONFIG, "rl")
    run = RunFolder.open(made.path)
    assert (run.config, run.kind) == (CONFIG, "rl")
    assert sorted(p.name for p in run.path.iterdir()) == ["config.json", "environment.json"]


def test_environment_describes_versions_and_hardware_without_the_hostname(tmp_path: Path):
    simulator = {"simulator": {"name": "metaworld", "version": "3.1.1"}}
    run = RunFolder.create(tmp_path / "run", CONFIG, "rl", environment=simulator)
    environment = run.environment
    assert environment.keys() == {
        *("z1", "python", "torch", "numpy", "platform", "cpu", "cores", "memory_gib", "gpus", "created", "simulator")
    }
    assert environment["simulator"]["version"] == "3.1.1"
    assert environment["cores"] >= 1
    assert environment["memory_gib"] > 0.1
    assert environment["z1"].keys() == {"version", "commit", "modified"}
    assert os.uname().nodename not in json.dumps(environment).split('"')


def test_update_config_keeps_the_kind(tmp_path: Path):
    run = RunFolder.create(tmp_path / "run", CONFIG, "rl")
    run.update_config({**CONFIG, "seed": 4})
    assert (RunFolder.open(run.path).config["seed"], run.kind) == (4, "rl")


def test_create_accepts_an_empty_folder(tmp_path: Path):
    assert RunFolder.create(tmp_path, CONFIG, "sft").kind == "sft"


def test_create_refuses_a_run_that_exists_and_leaves_it_alone(tmp_path: Path):
    run = RunFolder.create(tmp_path / "run", CONFIG, "rl")
    with pytest.raises(RunFolderError) as error:
        RunFolder.create(run.path, {"seed": 4}, "rl")
    assert str(error.value) == (
        f"run folder {run.path} exists already and is not empty; choose another --out, or continue a run with --resume"
    )
    assert RunFolder.open(run.path).config == CONFIG


def test_create_refuses_a_file_and_a_folder_of_other_things(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("x")
    for name in ("file", "folder"):
        with pytest.raises(RunFolderError, match=f"path .*{name} exists already and is not empty"):
            RunFolder.create(tmp_path / name, CONFIG, "rl")


def test_an_unwritable_place_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError, match=r"cannot create .*run: Not a directory; choose another --out"):
        RunFolder.create(tmp_path / "file" / "run", CONFIG, "rl")


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunFolderError, match="No space left on device; free some space or choose another folder"):
        RunFolder.create(tmp_path / "run", CONFIG, "rl")


def test_open_says_what_is_wrong(tmp_path: Path):
    with pytest.raises(RunFolderError) as error:
        RunFolder.open(tmp_path / "nothing")
    assert str(error.value) == f"run folder {tmp_path / 'nothing'} does not exist; check the path"
    with pytest.raises(RunFolderError) as error:
        RunFolder.open(tmp_path)
    assert str(error.value) == f"{tmp_path} is not a run folder: it has no config.json; give the folder of --out"
    (tmp_path / "config.json").write_text('{"schema": "z1.run/9"}')
    with pytest.raises(RunFolderError, match=r"has schema 'z1.run/9', expected 'z1.run/1'"):
        RunFolder.open(tmp_path)
    (tmp_path / "config.json").write_text('{"schema": ')
    with pytest.raises(RunFolderError, match=r"config.json cannot be read as JSON"):
        RunFolder.open(tmp_path)


def test_git_state_reports_only_the_packages_own_repository(tmp_path: Path):
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    git("init", "--quiet")
    for name in ("ours", "foreign"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    git("add", "ours")
    git("commit", "--quiet", "-m", "first")
    state = git_state(tmp_path / "ours")
    assert len(state["commit"]) == 40
    assert state["modified"] is False
    (tmp_path / "ours" / "__init__.py").write_text("changed = 1")
    assert git_state(tmp_path / "ours")["modified"] is True
    assert git_state(tmp_path / "foreign") == {"commit": None, "modified": None}


def test_environment_works_without_git(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    assert describe_environment()["z1"]["commit"] is None
