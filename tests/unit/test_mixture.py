"""Several data sets as one: frames, chunks, statistics, equal shares, held-out episodes, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from toy import ToyDemonstrations, image_of, side_of, toy_policy
from z1.cli import parse, spread_values
from z1.config import EvalConfig, SftConfig, config_from_dict, config_to_dict
from z1.data.mixture import Mixture, check_alike, feature_stats, open_datasets
from z1.data.stats import compute_stats
from z1.errors import ConfigError, DatasetError
from z1.policy.policy import Policy
from z1.policy.sampler import sample_chunk
from z1.seeding import Seeds
from z1.train.metrics import MetricsWriter, read_metrics
from z1.train.resume import check_resume
from z1.train.sft import SftTrainer
from z1.types import Observations, Scene

SETTINGS = SftConfig(dataset=("few", "many"), out="run", steps=20, batch_size=16, warmup_steps=4)
GO, FLEE = "towards", "away"


def pair(**settings: Any) -> list[ToyDemonstrations]:
    """Two data sets of other sizes."""
    few = ToyDemonstrations(episodes=5, instruction=GO, name="few", **settings)
    return [few, ToyDemonstrations(episodes=12, pace=-0.45, instruction=FLEE, name="many")]


def trainer_of(folder: Path, datasets: list[ToyDemonstrations], policy: Policy | None = None, **settings: Any) -> Any:
    config = replace(SETTINGS, dataset=tuple(str(d.path) for d in datasets), **settings)
    metrics = MetricsWriter(folder, tensorboard=False)
    return SftTrainer(config, policy or toy_policy(), datasets, folder, metrics)  # type: ignore[arg-type]


def test_frames_and_chunks_are_those_of_the_data_sets() -> None:
    few, many = datasets = pair()
    mixture = Mixture(datasets)  # type: ignore[arg-type]
    assert mixture.first_frame.tolist() == [0, 40, 136]
    np.testing.assert_array_equal(mixture.state[40:], many.state)
    np.testing.assert_array_equal(mixture.images(("front",))[:40, 0], few.images("front"))
    assert mixture.instructions == (GO,) * 40 + (FLEE,) * 96
    index = np.array([135, 39, 40, 0, 47])
    actions, padded = mixture.action_chunks(index, 3)
    for row, frame in enumerate(index):
        own, number = (few, frame) if frame < 40 else (many, frame - 40)
        expected = own.action_chunks(np.array([number]), 3)
        np.testing.assert_array_equal(actions[row], expected[0][0])
        np.testing.assert_array_equal(padded[row], expected[1][0])


def test_merged_statistics_are_exact() -> None:
    """Against the merging of counts, means and variances; quantiles against the pooled values."""
    datasets = pair()
    found = feature_stats(datasets, "action")  # type: ignore[arg-type]
    parts, counts = [compute_stats(d.action) for d in datasets], np.array([40, 96])
    means, stds = (np.array([getattr(part, name) for part in parts]) for name in ("mean", "std"))
    mean = counts @ means / counts.sum()
    variance = counts @ (stds**2 + (means - mean) ** 2) / counts.sum()
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(found.std, np.sqrt(variance), rtol=1e-12)
    np.testing.assert_array_equal(found.min, np.min([part.min for part in parts], axis=0))  # type: ignore[arg-type]
    np.testing.assert_array_equal(found.max, np.max([part.max for part in parts], axis=0))  # type: ignore[arg-type]
    pooled = np.concatenate([d.action for d in datasets]).astype(np.float64)
    np.testing.assert_array_equal(found.q01, np.quantile(pooled, 0.01, axis=0))
    assert found.count == 136
    between = np.mean([part.q01 for part in parts], axis=0)  # type: ignore[arg-type]
    assert not np.allclose(found.q01, between), "a mean of quantiles is no quantile"


def test_a_single_data_set_keeps_its_own_statistics() -> None:
    few = pair()[0]
    assert feature_stats([few], "action") is few.stats["action"]  # type: ignore[list-item]


def old_batch(seeds: Seeds, train: np.ndarray, step: int, size: int) -> np.ndarray:
    """Frame numbers of a batch as they were before there could be several data sets."""
    count, first, last = len(train), step * size, (step + 1) * size
    rows = [
        seeds.rng("sft", "epoch", epoch).permutation(count)[max(first - epoch * count, 0) : last - epoch * count]
        for epoch in range(first // count, (last - 1) // count + 1)
    ]
    return train[np.concatenate(rows)]


def test_one_data_set_is_trained_on_as_before(tmp_path: Path) -> None:
    """The same split, batches and validation frames, to the bit, over several epochs."""
    few = pair()[0]
    trainer = trainer_of(tmp_path, [few], validation_fraction=0.2)
    seeds = Seeds(SETTINGS.seed)
    held_out = np.isin(few.episode_index, seeds.rng("sft", "split").permutation(5)[:1])
    np.testing.assert_array_equal(trainer._train[0], np.flatnonzero(~held_out))
    np.testing.assert_array_equal(trainer._held_out[0], np.flatnonzero(held_out))
    for step in range(8):
        np.testing.assert_array_equal(trainer._batch(step), old_batch(seeds, trainer._train[0], step, 16))
    frames = []
    trainer._pass = lambda observations, index, rng: frames.append(index) or 0.0
    trainer._validation_losses()
    drawn = seeds.rng("sft", "validation").choice(np.flatnonzero(held_out), size=256, replace=True)
    np.testing.assert_array_equal(np.concatenate(frames), drawn)


@pytest.mark.parametrize("size", [16, 7])
def test_shares_are_equal_and_every_epoch_of_each_is_a_permutation(size: int, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, pair(), validation_fraction=0.2, batch_size=size)
    stream = np.concatenate([trainer._batch(step) for step in range(40)])
    assert np.array_equal(stream < 40, np.arange(len(stream)) % 2 == 0)
    for number, frames in enumerate(trainer._train):
        own = stream[number::2]
        for epoch in range(len(own) // len(frames)):
            assert sorted(own[epoch * len(frames) : (epoch + 1) * len(frames)]) == frames.tolist()
    assert len(trainer._train[0]) == 32
    assert len(trainer._held_out[1]) == 16, "a fifth of each is held out"


def test_validation_is_per_data_set_and_a_resumed_run_equals_a_straight_one(tmp_path: Path) -> None:
    def run(folder: Path, stop: int | None = None, *, resume: bool = False) -> None:
        with MetricsWriter(folder, tensorboard=False, resume=resume) as metrics:
            config = replace(SETTINGS, steps=8, validate_every=4, validation_fraction=0.2)
            trainer = SftTrainer(config, toy_policy(), pair(), folder, metrics)  # type: ignore[arg-type]
            if resume:
                trainer.resume()
            metrics.resume_at("sft/step", trainer.state.step)
            if stop is not None:
                trainer._on_step = lambda step, loss: (_ for _ in ()).throw(KeyboardInterrupt) if step > stop else None
                with pytest.raises(KeyboardInterrupt):
                    trainer.run()
                return
            trainer.run()
            trainer.finish()

    run(tmp_path / "straight")
    run(tmp_path / "parts", 5)
    run(tmp_path / "parts", resume=True)
    straight, parts = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("straight", "parts"))
    for record in straight:
        losses = [record["sft/validation_loss/0"], record["sft/validation_loss/1"]]
        assert record["sft/validation_loss"] == pytest.approx(np.mean(losses))
        assert losses[0] != losses[1]
    assert [{k: v for k, v in r.items() if k != "sft/samples_per_s"} for r in straight] == [
        {k: v for k, v in r.items() if k != "sft/samples_per_s"} for r in parts
    ]
    weights = {(tmp_path / name / "policy/model.safetensors").read_bytes() for name in ("straight", "parts")}
    assert len(weights) == 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"fps": 20.0}, "few has frames per second 10.0, many has 20.0"),
        ({"state": np.zeros((96, 3))}, "few has state dims 2, many has 3"),
        ({"action": np.zeros((96, 7))}, "few has action dims 2, many has 7"),
        ({"cameras": ("front", "top")}, "few has cameras front of 16x16, many has front of 16x16, top of 16x16"),
    ],
)
def test_data_sets_that_differ_are_refused(change: dict[str, Any], text: str) -> None:
    datasets = pair()
    for name, value in change.items():
        setattr(datasets[1], name, value)
    with pytest.raises(DatasetError) as caught:
        check_alike(datasets)  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"{text}; data sets that are trained on together must agree, so train on them apart or record one of them again"
    )


def test_a_data_set_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        open_datasets([str(tmp_path), f"{tmp_path}/."])
    assert str(caught.value) == f"dataset names {tmp_path} 2 times; name each data set once"


def test_runs_stored_with_a_single_name_are_read_and_resumed() -> None:
    config = SftConfig(dataset=("d",), out="o")
    stored = config_to_dict(config)
    assert stored["dataset"] == ["d"]
    old = {**stored, "dataset": "d"}
    assert config_from_dict(SftConfig, old, source="config.json") == config
    check_resume(old, config, Path("o"), may_change=())
    with pytest.raises(ConfigError, match=r"dataset was \['d'\], is \['d', 'e'\]"):
        check_resume(old, replace(config, dataset=("d", "e")), Path("o"), may_change=())


def test_several_values_may_follow_one_option() -> None:
    assert spread_values(["--dataset", "A", "B", "--steps", "3"], ["--dataset"]) == [
        *("--dataset", "A", "--dataset", "B"),
        *("--steps", "3"),
    ]
    once, twice = ["--dataset", "A", "B", "--out", "o"], ["--dataset", "A", "--dataset", "B", "--out", "o"]
    assert parse(SftConfig, "sft", once) == parse(SftConfig, "sft", twice) == SftConfig(dataset=("A", "B"), out="o")
    stored = SftConfig(dataset=("A", "B"), out="o", steps=3)
    assert parse(SftConfig, "sft", ["--out", "o"], stored) == stored
    assert parse(SftConfig, "sft", once, stored) == stored, "named values replace the stored ones"
    config = parse(EvalConfig, "eval", ["--policy", "p", "q", "--task", "t", "--out", "o"])
    assert (config.policy, config.task) == (("p", "q"), ("t",))


def separation(policy: Policy) -> float:
    """How much further towards the light one instruction sends the point than the other, from the same observations."""
    scenes = [Scene.of_split("toy/side", "test", index) for index in range(8)]
    noise = torch.from_numpy(Seeds(0).normal((8, policy.config.horizon, policy.config.action_dim), "noise")).float()
    along = []
    for instruction in (GO, FLEE):
        observations = Observations(
            images=np.stack([image_of(scene)[None] for scene in scenes]),
            state=np.zeros((8, 2), np.float32),
            instructions=(instruction,) * 8,
        )
        with torch.no_grad():
            sample = sample_chunk(
                policy.model,
                policy.model.encode_prefix(policy.prepare(observations)),
                initial_noise=noise,
                denoise_steps=4,
                noise_level=0.0,
                sde_index=None,
                sde_noise=None,
                executed_steps=4,
                counted_dims=range(2),
            )
        actions = policy.env_actions(sample.actions)
        along.append(np.mean([chunk @ side_of(scene) for chunk, scene in zip(actions, scenes, strict=True)]))
    return float(along[0] - along[1])


@pytest.mark.parametrize("told", [True, False])
def test_the_instruction_decides_what_is_done_if_it_was_told_in_training(told: bool, tmp_path: Path) -> None:
    """Two data sets that see the same and act in opposite ways; without words nothing tells them apart."""
    datasets = [
        ToyDemonstrations(episodes=32, pace=pace, spread=0.1, instruction=text if told else "move", name=text)
        for pace, text in ((0.45, GO), (-0.45, FLEE))
    ]
    for dataset in datasets:
        dataset.state = np.zeros_like(dataset.state)  # what was done before would tell
    policy = toy_policy()
    trainer = trainer_of(tmp_path, datasets, policy, steps=200, batch_size=32, learning_rate=3e-3, validate_every=200)
    trainer.run()
    assert separation(toy_policy()) < 0.1
    if told:
        assert separation(policy) > 0.5, "of 0.9 in the demonstrations"
    else:
        assert abs(separation(policy)) < 0.1
