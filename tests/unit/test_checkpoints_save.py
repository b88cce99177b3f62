"""Checkpoints out: exact layouts, exact round trips, the same function for the other program."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import reference_checkpoints as reference
from z1.data.stats import compute_stats
from z1.data.transforms import Normalizer
from z1.errors import CheckpointError, ConfigError, RunFolderError
from z1.policy import CheckpointOverrides, Policy, load_policy, save_policy
from z1.policy.checkpoints.save import differences
from z1.policy.config import PolicyConfig, ProcessorConfig
from z1.policy.pi05 import Pi05

RNG = np.random.Generator(np.random.Philox(key=3))
STATE, ACTION = RNG.normal(size=(300, 3)), RNG.uniform(-1.5, 0.5, (300, 4)) / 3
SIZES = PolicyConfig.tiny(
    image_size=32, patch=16, width=64, depth=2, vision_width=64, vision_depth=1, expert_width=32, horizon=5
)
PROCESSOR = ProcessorConfig.of_dataset(
    cameras=("front", "wrist"), state_stats=compute_stats(STATE), action_stats=compute_stats(ACTION)
)
FOREIGN = ("lerobot", "openpi")


def make(**changes: Any) -> Policy:
    return Policy.create(SIZES, replace(PROCESSOR, **changes), seed=2)


def equal(first: Policy, second: Policy) -> None:
    """Weights, statistics, settings and tokenizer, bit for bit."""
    assert first.config == second.config
    assert first.processor == second.processor
    assert first.tokenizer.serialised == second.tokenizer.serialised
    ours, theirs = first.model.state_dict(), second.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("layout", ["z1", *FOREIGN])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prompt": "no_state", "state_stats": None, "resize": "torch_bilinear"},
        {"prompt": "state_padded", "action_low": None, "action_high": None},
        {"normalization": "quantile_lerobot"},
        {"normalization": "mean_std"},
        {"normalization": "mean_std_openpi", "allow_constant_dims": True},
    ],
)
def test_round_trips_are_exact(tmp_path: Path, layout: Any, changes: dict[str, Any]) -> None:
    policy = make(**changes)
    save_policy(policy, tmp_path / "there", layout)
    back = load_policy(tmp_path / "there")
    save_policy(back, tmp_path / "back")
    equal(policy, load_policy(tmp_path / "back"))


def test_round_trip_in_bfloat16(tmp_path: Path) -> None:
    make().save(tmp_path / "policy")
    policy = load_policy(tmp_path / "policy", dtype="bfloat16")
    for layout in ("z1", "lerobot", "openpi"):
        save_policy(policy, tmp_path / layout, layout)  # type: ignore[arg-type]
        equal(policy, load_policy(tmp_path / layout, dtype="bfloat16"))
    config = json.loads((tmp_path / "lerobot" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    with safe_open(tmp_path / "openpi" / "model.safetensors", "pt") as file:
        dtypes = {name: file.get_slice(name).get_dtype() for name in list(file.keys())}
    assert dtypes[reference.HEAD] == "BF16"
    assert dtypes["action_in_proj.weight"] == dtypes[f"{reference.PALIGEMMA}.model.language_model.norm.weight"] == "F32"


def dims(config: PolicyConfig) -> reference.Dims:
    return reference.Dims(
        vision=config.vision.width,
        vision_layers=config.vision.depth,
        vision_mlp=config.vision.mlp,
        patch=config.vision.patch,
        image=config.image_size,
        vlm=config.vlm.width,
        layers=config.vlm.depth,
        vlm_mlp=config.vlm.mlp,
        heads=config.vlm.heads,
        head_dim=config.vlm.head_dim,
        vocab=config.vlm.vocab,
        expert=config.expert.width,
        expert_mlp=config.expert.mlp,
        action=config.action_dim,
    )


def test_tensors_are_exactly_those_of_the_references(tmp_path: Path) -> None:
    policy = make()
    expected = reference.shapes(dims(policy.config))
    for layout in FOREIGN:
        save_policy(policy, tmp_path / layout, layout)  # type: ignore[arg-type]
    lerobot = load_file(tmp_path / "lerobot" / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in lerobot.items()} == {
        f"model.{name}": shape for name, shape in expected.items()
    }
    openpi = load_file(tmp_path / "openpi" / "model.safetensors")
    del expected[reference.EMBEDDING]
    assert {name: tuple(tensor.shape) for name, tensor in openpi.items()} == expected
    assert all(torch.equal(tensor, lerobot[f"model.{name}"]) for name, tensor in openpi.items())
    assert torch.equal(openpi[reference.HEAD], policy.model.vlm.embedding)
    assert torch.equal(lerobot[f"model.{reference.EMBEDDING}"], policy.model.vlm.embedding)
    with safe_open(tmp_path / "openpi" / "model.safetensors", "pt") as file:
        assert file.metadata() == {reference.EMBEDDING: reference.HEAD}
    with safe_open(tmp_path / "lerobot" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_reference_checkpoint_goes_out_as_it_came_in(tmp_path: Path) -> None:
    """All that influences actions, bit for bit; the rest as zeros."""
    came = reference.write_lerobot(tmp_path / "came")
    policy = load_policy(came, overrides=CheckpointOverrides(prompt="state", vision_heads=4))
    save_policy(policy, tmp_path / "left", "lerobot")
    before, after = (load_file(folder / "model.safetensors") for folder in (came, tmp_path / "left"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == 9
    assert all("lm_head" in name or "language_model.layers.1." in name or ".norm." in name for name in changed)
    for name in (
        "policy_preprocessor_step_3_normalizer_processor",
        "policy_postprocessor_step_0_unnormalizer_processor",
    ):
        first, second = (load_file(folder / f"{name}.safetensors") for folder in (came, tmp_path / "left"))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    for name in ("policy_preprocessor.json", "policy_postprocessor.json", "config.json"):
        old, new = (json.loads((folder / name).read_text()) for folder in (came, tmp_path / "left"))
        if "steps" in old:
            assert [step["registry_name"] for step in old["steps"]] == [step["registry_name"] for step in new["steps"]]
            assert [step.get("state_file") for step in old["steps"]] == [s.get("state_file") for s in new["steps"]]
        else:
            same = ("type", "input_features", "output_features", "chunk_size", "normalization_mapping", "dtype")
            assert {key: old[key] for key in same} == {key: new[key] for key in same}


def lerobots_formula(folder: Path, raw: np.ndarray) -> np.ndarray:
    """What LeRobot makes of an action, in float32."""
    stats = load_file(folder / "policy_preprocessor_step_3_normalizer_processor.safetensors")
    mode = json.loads((folder / "config.json").read_text())["normalization_mapping"]["ACTION"]
    value = torch.from_numpy(raw).float()
    if mode == "MEAN_STD":
        return ((value - stats["action.mean"]) / (stats["action.std"] + 1e-8)).numpy()
    low, high = stats["action.q01"], stats["action.q99"]
    return (2 * (value - low) / torch.where(high == low, torch.tensor(1e-8), high - low) - 1).numpy()


def openpis_formula(folder: Path, raw: np.ndarray, *, quantile: bool) -> np.ndarray:
    """What openpi makes of an action, in float64."""
    (path,) = (folder / "assets").rglob("norm_stats.json")
    stats = {key: np.array(vector) for key, vector in json.loads(path.read_text())["norm_stats"]["actions"].items()}
    if not quantile:
        return (raw - stats["mean"]) / (stats["std"] + 1e-6)
    return (raw - stats["q01"]) / (stats["q99"] - stats["q01"] + 1e-6) * 2 - 1


@pytest.mark.parametrize("mode", ["quantile_openpi", "quantile_lerobot", "mean_std", "mean_std_openpi"])
def test_the_other_program_normalises_the_same(tmp_path: Path, mode: str) -> None:
    policy = make(normalization=mode)
    raw = ACTION[:50]
    expected = Normalizer(mode, PROCESSOR.action_stats).normalize(raw)
    for layout in FOREIGN:
        save_policy(policy, tmp_path / layout, layout)  # type: ignore[arg-type]
    np.testing.assert_allclose(lerobots_formula(tmp_path / "lerobot", raw), expected, atol=2e-6)
    quantile = mode.startswith("quantile")
    np.testing.assert_allclose(openpis_formula(tmp_path / "openpi", raw, quantile=quantile), expected, atol=1e-6)


def test_a_constant_dim_is_the_same_for_lerobot(tmp_path: Path) -> None:
    """openpi's 1e-6 becomes a real spread of LeRobot's: the constant stays at -1 and comes back."""
    actions = ACTION.copy()
    actions[:, 2] = 0.25
    save_policy(make(action_stats=compute_stats(actions), action_low=None, action_high=None), tmp_path / "x", "lerobot")
    np.testing.assert_allclose(lerobots_formula(tmp_path / "x", actions[:5])[:, 2], -1.0)


def test_openpi_cannot_express_lerobots_constant_dims(tmp_path: Path) -> None:
    actions = ACTION.copy()
    actions[:, 2] = 0.25
    policy = make(
        action_stats=compute_stats(actions),
        normalization="quantile_lerobot",
        allow_constant_dims=True,
        action_low=None,
        action_high=None,
    )
    with pytest.raises(ConfigError) as caught:
        save_policy(policy, tmp_path / "x", "openpi")
    assert str(caught.value) == (
        "action dim 2 hardly varies (q99 spread 0); openpi's normalisation cannot express that, write another format"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", ["z1", *FOREIGN])
def test_an_existing_folder_is_kept_unless_replaced(tmp_path: Path, layout: Any) -> None:
    target = tmp_path / "x"
    target.mkdir()
    (target / "mine").write_text("kept")
    with pytest.raises(RunFolderError, match="exists already; choose another path or remove it"):
        save_policy(make(), target, layout)
    assert [path.name for path in target.iterdir()] == ["mine"]
    save_policy(make(), target, layout, replace=True)
    assert not (target / "mine").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_nothing_is_left_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("z1.policy.checkpoints.save.write_tensors", full)
    with pytest.raises(RunFolderError, match="No space left on device"):
        save_policy(make(), tmp_path / "x", "openpi")
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        save_policy(make(), tmp_path / "x", "jax")  # type: ignore[arg-type]
    assert str(caught.value) == "format is 'jax'; it must be one of z1, lerobot, openpi"


def change_horizon(folder: Path) -> None:
    reference.edit_json(folder / "config.json", chunk_size=7, action_horizon=7)


def change_stats(folder: Path) -> None:
    for file in folder.glob("policy_p*.safetensors"):
        values = load_file(file)
        values["action.q99"] += 1
        save_file(values, file)
    for file in (folder / "assets").rglob("norm_stats.json"):
        value = json.loads(file.read_text())
        value["norm_stats"]["actions"]["q99"][0] += 1
        reference.write_json(file, value)


@pytest.mark.parametrize("layout", FOREIGN)
@pytest.mark.parametrize(("change", "what"), [(change_horizon, "horizon"), (change_stats, "action stats")])
def test_settings_of_z1_are_not_believed_when_the_rest_was_changed(
    tmp_path: Path, layout: Any, change: Any, what: str
) -> None:
    folder = tmp_path / "x"
    save_policy(make(), folder, layout)
    change(folder)
    with pytest.raises(CheckpointError) as caught:
        load_policy(folder)
    assert str(caught.value).startswith(f"{folder / 'z1.json'} and ")
    assert str(caught.value).endswith(
        f" beside it disagree about the {what}: the checkpoint was changed after z1 wrote it; "
        "remove z1.json to go by the other files"
    )
    (folder / "z1.json").unlink()
    given = CheckpointOverrides(
        prompt="state",
        vision_heads=2,
        cameras=("front", "wrist"),
        normalization="quantile_openpi" if layout == "openpi" else None,
        max_tokens=96,
    )
    load_policy(folder, overrides=given)


def test_without_z1s_settings_the_weights_are_still_exact(tmp_path: Path) -> None:
    policy = make()
    save_policy(policy, tmp_path / "x", "lerobot")
    (tmp_path / "x" / "z1.json").unlink()
    back = load_policy(tmp_path / "x", overrides=CheckpointOverrides(prompt="state", vision_heads=2))
    assert all(torch.equal(a, b) for a, b in zip(policy.model.parameters(), back.model.parameters(), strict=True))
    assert back.processor.normalization == "quantile_lerobot"
    actions = torch.rand(3, 5, SIZES.action_dim) * 2 - 1
    free = Policy(policy.model, replace(policy.processor, action_low=None, action_high=None), policy.tokenizer)
    np.testing.assert_allclose(back.env_actions(actions), free.env_actions(actions), atol=1e-6)


def test_differences_are_told() -> None:
    policy = make(prompt="no_state")
    assert differences(policy, "z1") == []
    assert differences(policy, "lerobot") == [
        "LeRobot builds networks of pi0.5's own sizes; it does not load this one.",
        "LeRobot up to 0.6.1 looks for the tokenizer where it is started: start it in the new folder, or override "
        "tokenizer_name of its tokenizer_processor with the path of tokenizer/; it needs the packages sentencepiece "
        "and protobuf.",
        "LeRobot since 0.5 writes the state into the prompt in its real width; here the prompt is 'no_state'.",
        "LeRobot resizes without antialiasing; give it images of 32 pixels.",
        "Actions are not clipped to the policy's bounds there.",
    ]
    assert differences(make(action_low=None, action_high=None), "openpi") == [
        "openpi builds networks of pi0.5's own sizes; it does not load this one.",
        "openpi's training config has to say: pi05=True, discrete_state_input=True; use_quantile_norm=True; "
        "cameras front, wrist as its image keys in this order.",
    ]


def test_a_network_of_pi05s_sizes_needs_no_such_warning() -> None:
    policy = make()
    full = Policy(Pi05.blank(PolicyConfig.pi05()), policy.processor, policy.tokenizer)
    assert not any("own sizes" in note for note in differences(full, "lerobot") + differences(full, "openpi"))


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    save_policy(make(), tmp_path / "own", on_bytes=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] == sum(p.nbytes for p in make().model.parameters())
    told.clear()
    save_policy(make(), tmp_path / "x", "openpi", on_bytes=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1]
    size = told[-1][1]
    told.clear()
    load_policy(tmp_path / "x", on_bytes=lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert 0 < told[-1][0] == told[-1][1] < size
