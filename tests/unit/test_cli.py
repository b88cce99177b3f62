"""The command line: help, options that are read before the settings, and mistakes in one line."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import z1
from command_line import z1 as run
from z1 import cli
from z1.config import EvalConfig, RlConfig, SftConfig
from z1.data.record import DemoConfig
from z1.demo import DemoRunConfig
from z1.errors import ConfigError
from z1.recipes import RL_RECIPES, SFT_RECIPES

CONFIGS = {"demo": DemoRunConfig, "demos": DemoConfig, "sft": SftConfig, "rl": RlConfig, "eval": EvalConfig}


def settings(cls: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every setting of a config as it is typed, with the text below its field."""
    hints = typing.get_type_hints(cls)
    (definition,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(definition, ast.ClassDef)
    texts: dict[str, str] = {}
    for field, following in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(following, ast.Expr):
            assert isinstance(field.target, ast.Name)
            assert isinstance(following.value, ast.Constant)
            texts[field.target.id] = str(following.value.value)
    for name in (field.name for field in dataclasses.fields(cls)):
        if dataclasses.is_dataclass(hints[name]):
            yield from settings(hints[name], f"{prefix}{name}.")
        else:
            assert name in texts, f"{cls.__name__}.{name} has no text"
            yield f"--{prefix}{name}".replace("_", "-"), texts[name]


def plain(text: str) -> str:
    """Without frames and line breaks."""
    return re.sub(r"\s+", " ", re.sub("[│╭╮╰╯─]", " ", text)).strip()


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wide terminal."""
    monkeypatch.setenv("COLUMNS", "110")


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("command", CONFIGS)
def test_help_explains_every_setting(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    shown = plain(capsys.readouterr().out)
    assert f"usage: z1 {command} " in shown
    listed = list(settings(CONFIGS[command]))
    assert len(listed) >= 6
    for option, text in listed:
        assert f" {option} " in shown or f" {option}, " in shown, option
        assert plain(text) in shown, (option, text)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize(("command", "recipes"), [("sft", SFT_RECIPES), ("rl", RL_RECIPES)])
def test_help_explains_recipes_and_resume(
    command: str, recipes: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, "--help") == 0
    shown = plain(capsys.readouterr().out)
    assert "--recipe NAME: settings to start from, one of " + ", ".join(recipes) in shown
    assert "--resume: continue the run in --out" in shown


@pytest.mark.usefixtures("wide")
def test_help_shows_the_settings_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    rates = []
    for recipe in ("tiny", "paper"):
        assert run("rl", "--recipe", recipe, "--help") == 0
        (rate,) = re.findall(r"--update\.learning-rate FLOAT .*?\(default: ([^)]*)\)", plain(capsys.readouterr().out))
        rates.append(float(rate))
    expected = [RL_RECIPES[recipe]("p", "t", "o").update.learning_rate for recipe in ("tiny", "paper")]
    assert rates == expected
    assert rates[0] != rates[1]


@pytest.mark.parametrize("command", ["report", "tasks", "check-sim", "doctor", "convert", "inspect"])
def test_help_of_the_small_commands(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    assert f"usage: z1 {command} " in plain(capsys.readouterr().out)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"], []])
def test_usage_names_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == (0 if arguments else 2)
    shown = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.help)}$", shown, re.MULTILINE)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == z1.__version__ + "\n"


def test_tasks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tasks") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 50 + 24
    assert any(re.fullmatch(r"metaworld/window-open +window +open the window", line) for line in lines)


def test_the_reader_of_the_output_may_leave() -> None:
    """``z1 tasks | head`` ends without a traceback."""
    environment = {**os.environ, "PYTHONPATH": str(Path(z1.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-m", "z1.cli", "tasks"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["trian"],
            "unknown command 'trian'; known: ablate, check-sim, convert, demo, demos, doctor, eval, inspect, ... (1",
        ),
        (["demoes"], "unknown command 'demoes'; did you mean 'demos' or 'demo'?"),
        (["rl", "--recipe", "papr"], "unknown recipe 'papr'; did you mean 'paper'?"),
        (["sft", "--recipe", "nano"], "unknown recipe 'nano'; known: pi05, tiny"),
        (["sft", "--recipe"], "--recipe needs a value"),
        (["rl", "--resume"], "--resume needs --out, the run folder to continue"),
        (
            ["sft", "--resume", "--out", "x", "--recipe", "tiny"],
            "--recipe has no effect with --resume, which takes the run's own settings; leave it out",
        ),
        (["sft", "--dataset", "d", "--out", "o", "--steps", "0"], "steps is 0; it must be at least 1"),
        (
            ["sft", "--dataset", "d", "--out", "o", "--learning-rate", "inf"],
            "learning_rate is inf; it must be a finite number",
        ),
        (
            ["sft", "--dataset", "d", "--out", "o", "--learning-rate", "nan"],
            "learning_rate is nan; it must be positive",
        ),
        (
            ["rl", "--recipe", "tiny", "--policy", "p", "--task", "t", "--out", "o", "--update.target-kl", "inf"],
            "update.target_kl is inf; it must be a finite number",
        ),
        (
            ["rl", "--recipe", "tiny", "--policy", "p", "--task", "t", "--out", "o", "--rollout.group-size", "1"],
            "rollout.group_size is 1; it must be at least 2, since members are compared",
        ),
        (
            ["rl", "--recipe", "tiny", "--policy", "p", "--task", "t", "--out", "o", "--update.vlm-learning-rate", "1"],
            "update.vlm_learning_rate has no effect with update.mode 'expert'; choose a joint mode or leave it at 0",
        ),
        (["demos", "--task", "metaworld/push", "--out", "o", "--hosts", "0"], "hosts is 0; it must be at least 1"),
        (["demo", "--hosts", "0"], "hosts is 0; it must be at least 1"),
        (
            ["eval", "--policy", "p", "--task", "metaworld/push", "--out", "o", "--episodes", "0"],
            "episodes is 0; it must be at least 1",
        ),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], text: str, refused: Callable[..., str]) -> None:
    assert refused(*arguments).startswith(text)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["sft", "--dataset", "d", "--out", "o", "--stps", "3"], ["Unrecognized options: --stps", "--steps INT"]),
        (
            ["rl", "--recipe", "tiny", "--policy", "p", "--task", "t", "--out", "o", "--rollout.group", "3"],
            ["Unrecognized options: --rollout.group", "--rollout.groups INT"],
        ),
        (["sft", "--dataset", "d", "--out", "o", "--steps", "many"], ["Error parsing --steps", "'many'"]),
        (["sft", "--dataset", "d", "--out", "o", "--model", "huge"], ["invalid choice 'huge'", "'tiny', 'pi05'"]),
        (["sft", "--dataset", "d"], ["Missing from z1 sft", "--out STR", "Run folder to create."]),
        (["rl"], ["Missing from z1 rl", "--policy STR", "--task STR", "--out STR"]),
        (["report"], ["Missing from z1 report"]),
        (["tasks", "metaworld"], ["Unrecognized options: metaworld"]),
        (["doctor", "--fix"], ["Unrecognized options: --fix"]),
        (["sft", "--dataset", "d", "--out", "o", "--steps"], ["--steps"]),
    ],
)
def test_settings_that_cannot_be_read_are_explained(
    arguments: list[str], texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    shown = plain(capsys.readouterr().err)
    for text in texts:
        assert text in shown
    assert "Traceback" not in shown


def test_take_option_in_both_forms() -> None:
    assert cli.take_option(["--a", "1", "--b", "2"], "--b") == ("2", ["--a", "1"])
    assert cli.take_option(["--b=x=y", "c"], "--b") == ("x=y", ["c"])
    assert cli.take_option(["--bc", "1"], "--b") == (None, ["--bc", "1"])
    with pytest.raises(ConfigError, match=r"^--b needs a value$"):
        cli.take_option(["--b"], "--b")


def test_interrupts_and_faults_of_our_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    def faulty(arguments: list[str]) -> int:
        raise ValueError("a fault of z1")

    monkeypatch.setitem(cli.COMMANDS, "tasks", cli.Command(help="", run=interrupted))
    assert run("tasks") == 130
    assert capsys.readouterr().err == "interrupted; a run folder can be continued with --resume\n"
    monkeypatch.setitem(cli.COMMANDS, "tasks", cli.Command(help="", run=faulty))
    with pytest.raises(ValueError, match="a fault of z1"):
        run("tasks")
