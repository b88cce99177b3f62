"""What the tests of the whole loop share: one recorded dataset, one trained small policy, and a way to run commands."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from command_line import TASK, z1


@pytest.fixture(scope="session", autouse=True)
def _interrupts() -> None:
    """A shell's background jobs ignore Ctrl-C, and so would the processes whose answer to it is tested."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command line that a user got wrong: one line on stderr, exit code 2. Returns the line's text."""

    def run(*arguments: str | Path) -> str:
        capsys.readouterr()
        assert z1(*arguments) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0].removeprefix("error: ")

    return run


@pytest.fixture(scope="session")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three demonstrations of a quick task, 32 pixels, one camera. Not to be changed."""
    path = tmp_path_factory.mktemp("recorded") / "data"
    arguments = ["--episodes", "3", "--image-size", "32", "--cameras", "corner2", "--hosts", "1", "--horizon", "100"]
    assert z1("demos", "--task", TASK, "--out", path, *arguments) == 0
    return path


@pytest.fixture(scope="session")
def untrained(demonstrations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a very small policy with random weights that fits the dataset. Not to be changed."""
    from z1.data.lerobot import LeRobotDataset
    from z1.policy.config import PolicyConfig, ProcessorConfig
    from z1.policy.policy import Policy

    dataset = LeRobotDataset.open(demonstrations)
    sizes = PolicyConfig.tiny(
        image_size=32, patch=16, width=32, depth=2, vision_width=32, vision_depth=1, expert_width=32, action_dim=4
    )
    processor = ProcessorConfig.of_dataset(
        cameras=dataset.cameras,
        state_stats=dataset.stats["observation.state"],
        action_stats=dataset.stats["action"],
    )
    path = tmp_path_factory.mktemp("untrained") / "policy"
    Policy.create(sizes, replace(processor, prompt="no_state"), seed=5).save(path)
    return path


@pytest.fixture(scope="session")
def sft_run(demonstrations: Path, untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished SFT run of the very small policy, which solves some scenes. Not to be changed."""
    path = tmp_path_factory.mktemp("sft") / "run"
    arguments = ["--steps", "60", "--batch-size", "16", "--learning-rate", "2e-3", "--warmup-steps", "5"]
    assert z1("sft", "--dataset", demonstrations, "--policy", untrained, "--out", path, *arguments) == 0
    return path
