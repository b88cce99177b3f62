"""The commands as a user types them, on real simulation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from command_line import TASK, z1
from z1.commands import record_videos
from z1.config import EvalConfig, SimConfig
from z1.data.lerobot import LeRobotDataset
from z1.policy.policy import Policy
from z1.train.metrics import read_metrics

WINDOW = "metaworld/window-open"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("user")


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Path:
    assert z1("demos", "--task", WINDOW, "--episodes", "3", "--out", folder / "D") == 0
    return folder / "D"


@pytest.fixture(scope="module")
def trained(folder: Path, dataset: Path) -> Path:
    assert z1("sft", "--dataset", dataset, "--recipe", "tiny", "--steps", "20", "--out", folder / "R") == 0
    return folder / "R"


@pytest.fixture(scope="module")
def improved(folder: Path, trained: Path) -> Path:
    small = ["--rollout.groups", "1", "--rollout.group-size", "2", "--sim.horizon", "24", "--validation.episodes", "2"]
    small += ["--rollout.max-env-steps", "60", "--rollout.prefix", "1"]
    arguments = ["--policy", trained, "--task", WINDOW, "--iterations", "1", "--out", folder / "R2"]
    assert z1("rl", *arguments, *small) == 0
    return folder / "R2"


def test_demos(dataset: Path) -> None:
    recorded = LeRobotDataset.open(dataset)
    assert len(recorded.episodes) == 3
    assert recorded.cameras == ("corner2", "gripperPOV")
    assert recorded.image_size("corner2") == (64, 64)
    assert recorded.tasks == ["open the window"]


def test_sft(trained: Path) -> None:
    policy = Policy.load(trained / "policy")
    assert policy.config.image_size == 64
    assert policy.processor.cameras == ("corner2", "gripperPOV")
    records = read_metrics(trained / "metrics.jsonl")
    assert [record["sft/step"] for record in records] == [10, 20]
    assert records[1]["sft/loss"] < 3
    assert (trained / "checkpoints" / "last" / "state.json").exists()
    assert list((trained / "tensorboard").iterdir())


def test_rl(improved: Path) -> None:
    records = read_metrics(improved / "metrics.jsonl")
    assert [record["iteration"] for record in records] == [-1, 0]
    assert records[1]["cost/env_steps"] >= 48
    assert records[1]["rollout/invalid_members"] == 0
    environment = json.loads((improved / "environment.json").read_text())
    assert environment["simulator"] == "metaworld"
    Policy.load(improved / "policy")


def test_rl_with_a_recipe(trained: Path, tmp_path: Path) -> None:
    """Nothing but the recipe makes it small."""
    assert z1("rl", "--policy", trained, "--task", WINDOW, "--recipe", "debug", "--out", tmp_path / "R2") == 0
    records = read_metrics(tmp_path / "R2" / "metrics.jsonl")
    assert [record["iteration"] for record in records] == [-1, 0, 1]
    assert all(record["update/first_ratio_max"] == 0.0 for record in records[1:])


def test_eval_of_one_policy(improved: Path, tmp_path: Path) -> None:
    out = tmp_path / "E.json"
    assert z1("eval", "--policy", improved, "--task", WINDOW, "--episodes", "4", "--out", out) == 0
    evaluation = json.loads(out.read_text())
    assert len(evaluation["episodes"]) == 4
    assert evaluation["protocol"]["split"] == "test"
    assert [episode["seed"] for episode in evaluation["episodes"]] == [2_000_000_000 + index for index in range(4)]


def evaluated(out: Path, *arguments: str | Path, episodes: int = 5, horizon: int = 40) -> dict[str, Any]:
    common = ["--task", TASK, "--episodes", str(episodes), "--out", out, "--sim.horizon", str(horizon)]
    assert z1("eval", *arguments, *common) == 0
    return json.loads(out.read_text())


def test_eval_of_several_policies_and_tasks(sft_run: Path, untrained: Path, tmp_path: Path) -> None:
    arguments = ["--policy", untrained, "--policy", sft_run, "--task", "metaworld/reach", "--sim.hosts", "1"]
    evaluation = evaluated(tmp_path / "E.json", *arguments, episodes=2, horizon=16)
    assert [policy["name"] for policy in evaluation["policies"]] == ["policy", "run"]
    assert len(evaluation["episodes"]) == 2 * 2 * 2
    keys = {(episode["policy"], episode["task"], episode["seed"]) for episode in evaluation["episodes"]}
    assert len(keys) == 8
    rows = evaluation["summary"]["per_task"]
    assert {(row["policy"], row["task"], row["episodes"]) for row in rows} == {
        (policy, task, 2) for policy in (0, 1) for task in (TASK, "metaworld/reach")
    }
    pairs = evaluation["summary"]["paired"]
    assert {pair["task"] for pair in pairs} == {TASK, "metaworld/reach", "all"}


def test_eval_does_not_depend_on_hosts_or_on_how_many_run_at_a_time(sft_run: Path, tmp_path: Path) -> None:
    """Fewer at a time than there are episodes: none may be lost."""
    results = []
    for hosts, live in (("1", "100"), ("2", "2")):
        arguments = ["--sim.hosts", hosts, "--live-members", live]
        results.append(evaluated(tmp_path / f"{hosts}.json", "--policy", sft_run, *arguments)["episodes"])
    assert results[0] == results[1]
    assert len(results[0]) == 5
    assert len({episode["success"] for episode in results[0]}) == 2, "a policy that solves some scenes"


def test_eval_says_what_the_networks_computed_in(sft_run: Path, tmp_path: Path) -> None:
    """bfloat16 rounds, so the episodes end a little otherwise, and the protocol tells."""
    found = {}
    for precision in ("auto", "float32", "bfloat16"):
        arguments = ["--policy", sft_run, "--sim.hosts", "1", "--precision", precision]
        found[precision] = evaluated(tmp_path / f"{precision}.json", *arguments)
    assert [found[name]["protocol"]["precision"] for name in found] == ["float32", "float32", "bfloat16"]
    assert found["auto"]["episodes"] == found["float32"]["episodes"] != found["bfloat16"]["episodes"]


def test_videos_show_the_evaluated_episodes(sft_run: Path, untrained: Path, tmp_path: Path) -> None:
    """Filmed again, an episode ends as it was evaluated."""
    out = tmp_path / "E.json"
    evaluation = evaluated(out, "--policy", untrained, "--policy", sft_run, "--sim.hosts", "1")
    config = EvalConfig(
        policy=(str(untrained), str(sft_run)), task=(TASK,), out=str(out), sim=SimConfig(hosts=1, horizon=40)
    )
    record_videos(config, tmp_path / "videos", count=3)
    rows = json.loads((tmp_path / "videos" / "videos.json").read_text())
    success = {(e["policy"], e["seed"]): e["success"] for e in evaluation["episodes"]}
    assert len(rows) == 3
    for row in rows:
        assert row["before_success"] == success[0, row["seed"]]
        assert row["after_success"] == success[1, row["seed"]]
        for name in ("before", "after"):
            assert (tmp_path / "videos" / row[name]).stat().st_size > 1000


def test_report(improved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert z1("report", improved) == 0
    assert "Report: " in capsys.readouterr().out
    html = (improved / "report.html").read_text()
    assert WINDOW in html


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert z1("doctor") == 0
    assert "MetaWorld" in capsys.readouterr().out
