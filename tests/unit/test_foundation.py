"""Seeds, files, config records and the levels of the packages."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from z1.config import EvalConfig, RlConfig, RolloutConfig, SftConfig, UpdateConfig, config_from_dict, config_to_dict
from z1.errors import ConfigError, RunFolderError, UnknownNameError
from z1.files import atomic_file, atomic_folder, read_json, write_json
from z1.recipes import RL_RECIPES, SFT_RECIPES
from z1.seeding import Seeds
from z1.types import Scene

SOURCE = Path(__file__).parents[2] / "src" / "z1"


def test_same_path_same_stream_and_any_difference_another() -> None:
    seeds = Seeds(3)
    paths = [("a", 1), ("a", 2), ("a", "1"), ("a1",), ("a", 1, 0)]
    first = [seeds.normal((4,), *path) for path in paths]
    again = [Seeds(3).normal((4,), *path) for path in reversed(paths)][::-1]
    np.testing.assert_array_equal(first, again)
    assert len({row.tobytes() for row in first}) == len(paths)
    assert not np.array_equal(Seeds(4).normal((4,), "a", 1), first[0])


def test_splits_are_disjoint() -> None:
    seeds = {Scene.of_split("t", split, 999_999_999).seed for split in ("train", "validation", "test")}
    assert seeds == {999_999_999, 1_999_999_999, 2_999_999_999}
    with pytest.raises(ValueError, match="outside"):
        Scene.of_split("t", "train", 1_000_000_000)


def test_atomic_file_leaves_the_old_content_when_the_writer_fails(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})

    def fail_half_way() -> None:
        with atomic_file(path) as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail_half_way()
    assert read_json(path, RunFolderError) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_atomic_folder_refuses_to_replace_unless_asked(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "d") as folder:
        (folder / "one").write_text("1")
    with (
        pytest.raises(RunFolderError, match="exists already; choose another path or remove it"),
        atomic_folder(tmp_path / "d"),
    ):
        pass
    with atomic_folder(tmp_path / "d", replace=True) as folder:
        (folder / "two").write_text("2")
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["two"]
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_replacement_that_is_interrupted_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with atomic_folder(tmp_path / "d") as folder:
        (folder / "one").write_text("1")
    moves, move = [], os.replace

    def interrupted(source: Path, target: Path) -> None:
        moves.append(target)
        if len(moves) == 2:
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr("z1.files.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "d", replace=True) as folder:
        (folder / "two").write_text("2")
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["one"]
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_atomic_folder_can_be_read_by_others(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "d") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "private").touch(mode=0o600)
        (folder / "group").touch()
        (folder / "group").chmod(0o640)
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "d" / "sub" / "private").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "d" / "group").stat().st_mode & 0o777 == 0o640


def test_unwritable_place_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"cannot write .*File exists; free some space or choose another folder"):
        write_json(tmp_path / "file" / "x.json", {})


def test_json_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"x\.json is missing"):
        read_json(tmp_path / "x.json", RunFolderError)
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"x\.json cannot be read as JSON"):
        read_json(tmp_path / "x.json", RunFolderError)


@pytest.mark.parametrize("name", RL_RECIPES)
def test_rl_recipes_round_trip(name: str) -> None:
    config = RL_RECIPES[name]("p", "metaworld/reach", "o")
    assert config_from_dict(RlConfig, config_to_dict(config), source="test") == config


@pytest.mark.parametrize("name", SFT_RECIPES)
def test_sft_recipes_round_trip(name: str) -> None:
    config = SFT_RECIPES[name](("d",), "o")
    assert config_from_dict(SftConfig, config_to_dict(config), source="test") == config


def test_stored_settings_are_checked() -> None:
    config = config_to_dict(RL_RECIPES["tiny"]("p", "t", "o"))
    with pytest.raises(UnknownNameError, match="unknown setting in file 'iteratoins'; did you mean 'iterations'"):
        config_from_dict(RlConfig, {**config, "iteratoins": 3}, source="file")
    with pytest.raises(ConfigError, match="iterations in file is 'x'; it must be of type"):
        config_from_dict(RlConfig, {**config, "iterations": "x"}, source="file")


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"rollout.group_size is 1; it must be at least 2, since members are compared"
    ):
        RolloutConfig(group_size=1)
    with pytest.raises(ConfigError, match=r"update\.vlm_learning_rate has no effect with update.mode 'expert'"):
        UpdateConfig(vlm_learning_rate=1e-5)
    with pytest.raises(ConfigError, match=r"rollout.noise_level is 0.0; it must be positive with GRPO"):
        RlConfig(policy="p", task="t", out="o", rollout=RolloutConfig(noise_level=0.0))


@pytest.mark.parametrize("cls", [RlConfig, SftConfig, EvalConfig])
def test_every_setting_is_read_somewhere(cls: type) -> None:
    code = "\n".join(
        path.read_text() for path in SOURCE.rglob("*.py") if path.name != "recipes.py" and path.parent.name != "config"
    )

    def names(config: type) -> list[str]:
        import dataclasses
        import typing

        hints = typing.get_type_hints(config)
        out = []
        for f in dataclasses.fields(config):
            out += names(hints[f.name]) if dataclasses.is_dataclass(hints[f.name]) else [f.name]
        return out

    unread = [name for name in names(cls) if f".{name}" not in code]
    assert not unread


LEVELS = {
    "types": 0,
    "errors": 0,
    "seeding": 0,
    "files": 0,
    "machine": 0,
    "config": 0,
    "sims": 1,
    "data": 1,
    "policy": 1,
    "algo": 1,
    "rollout": 2,
    "eval": 3,
    "train": 3,
    "recipes": 3,
    "doctor": 3,
    "convert": 3,
    "commands": 4,
    "demo": 4,
    "ablate": 4,
    "suite": 4,
    "cli": 5,
}


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("z1."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "z1":
            found |= {alias.name for alias in node.names} - {"__version__"}
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_modules_import_only_from_their_level_or_below(path: Path) -> None:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    if parts == ("__init__",):
        return
    too_high = [name for name in _imports(path) if LEVELS[name] > LEVELS[parts[0]]]
    assert not too_high


def test_importing_z1_is_light() -> None:
    heavy = ("torch", "metaworld", "mujoco")
    code = f"import sys, z1, z1.types, z1.config, z1.cli; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
