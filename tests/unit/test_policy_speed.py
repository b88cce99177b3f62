"""The benchmark of the policy's speed runs, at a size of milliseconds; what it compares with is the same function."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import policy_speed  # noqa: E402
from joint_graph import JointGraph  # noqa: E402


def test_it_runs(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    command = [sys.executable, str(BENCHMARKS / "policy_speed.py"), "--size", "micro", "--device", "cpu"]
    subprocess.run([*command, "--rounds", "1", "--out", str(out)], check=True, capture_output=True)
    result = json.loads(out.read_text())
    assert list(result["acting"]) == ["B=1 K=2 H=5", "B=16 K=2 H=5", "16 members of one observation, K=2 H=5"]
    assert list(result["update"]["expert, B=4 H=5"])[-2:] == ["split expert", "cached expert"]
    assert set(result["sft"]["B=4 H=5"]) == {"SFT step", "SFT step, activation checkpointing"}
    update = result["update"]["joint, B=4 H=5"]
    assert update["split joint checkpointed"]["kept_for_backward_mb"] < update["split joint"]["kept_for_backward_mb"]
    tables = subprocess.run(
        [sys.executable, str(BENCHMARKS / "speed_tables.py"), str(out)], check=True, capture_output=True, text=True
    )
    assert "| cached expert |" in tables.stdout


def test_the_joint_graph_is_the_network() -> None:
    """Velocity and gradients of everything in one graph, padded and masked, are those of the split one."""
    work = policy_speed.Work(
        policy_speed.MICRO, policy_speed.make_policy(policy_speed.MICRO, torch.device("cpu"), torch.float32)
    )
    model, inputs, noise = work.model.requires_grad_(True), work.inputs(2), work.noise(2, 5)
    times = torch.tensor([0.9, 0.2])

    def gradients(joint: bool) -> dict[str, torch.Tensor]:
        model.zero_grad()
        graph = JointGraph(model)
        velocity = (
            graph.velocity(inputs, noise, times) if joint else model.velocity(model.encode_prefix(inputs), noise, times)
        )
        velocity.square().sum().backward()
        return {"velocity": velocity.detach()} | {
            name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
        }

    joint, split = gradients(True), gradients(False)
    assert joint.keys() == split.keys()
    for name, theirs in split.items():
        torch.testing.assert_close(joint[name], theirs, rtol=1e-4, atol=1e-5 * max(1.0, float(theirs.abs().max())))


def test_a_difference_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    work = policy_speed.Work(
        policy_speed.MICRO, policy_speed.make_policy(policy_speed.MICRO, torch.device("cpu"), torch.float32)
    )
    assert max(policy_speed.agreement(work, None).values()) < 1e-5
    original = JointGraph.velocity
    monkeypatch.setattr(JointGraph, "velocity", lambda *arguments: 1.01 * original(*arguments))
    with pytest.raises(SystemExit, match="not the same function"):
        policy_speed.agreement(work, None)
