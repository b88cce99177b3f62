"""Checkpoints of LeRobot and openpi in: what is taken from where, and what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import reference_checkpoints as reference
from toy import toy_policy
from z1.errors import CheckpointError, ConfigError, UnknownNameError
from z1.policy import CheckpointOverrides, load_policy
from z1.policy.checkpoints import locate
from z1.policy.checkpoints.load import open_checkpoint
from z1.policy.weights import foreign_rules
from z1.types import Observations

LEROBOT = CheckpointOverrides(prompt="state", vision_heads=4)
OPENPI = CheckpointOverrides(
    prompt="no_state",
    vision_heads=4,
    normalization="quantile_openpi",
    cameras=("front", "wrist"),
    tokenizer=str(reference.TOKENIZER),
)


@pytest.fixture
def lerobot(tmp_path: Path) -> Path:
    return reference.write_lerobot(tmp_path / "lerobot")


@pytest.fixture
def openpi(tmp_path: Path) -> Path:
    return reference.write_openpi(tmp_path / "openpi")


def refusal(path: Path | str, overrides: CheckpointOverrides = LEROBOT) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_policy(path, overrides=overrides)
    return str(caught.value)


def same_weights(model: torch.nn.Module, values: dict[str, torch.Tensor], config: Any) -> bool:
    """Whether a network holds the reference's tensors, bit for bit."""
    own = model.state_dict()
    return all(
        torch.equal(piece, values[name].reshape(piece.shape).to(piece.dtype))
        for rule in foreign_rules(config)
        for (name, _), piece in zip(rule.parts, own[rule.name].split([s[0] for _, s in rule.parts]), strict=True)
    )


def test_lerobot(lerobot: Path) -> None:
    policy = load_policy(lerobot, overrides=LEROBOT)
    config, processor = policy.config, policy.processor
    d = reference.TINY
    assert (config.vision.width, config.vision.depth, config.vision.mlp) == (d.vision, d.vision_layers, d.vision_mlp)
    assert (config.vision.patch, config.image_size, config.vision.heads) == (d.patch, d.image, 4)
    assert (config.vlm.width, config.vlm.depth, config.vlm.mlp, config.vlm.vocab) == (32, 2, 48, 520)
    assert (config.vlm.heads, config.vlm.kv_heads, config.vlm.head_dim) == (8, 1, 6)
    assert (config.expert.width, config.expert.mlp) == (d.expert, d.expert_mlp)
    assert (config.horizon, config.action_dim, config.max_tokens) == (6, 8, 48)
    assert processor.cameras == ("front", "wrist")
    assert (processor.state_dim, processor.action_dim) == (3, 4)
    assert (processor.normalization, processor.resize, processor.prompt) == (
        "quantile_lerobot",
        "torch_bilinear",
        "state",
    )
    assert processor.action_low is None
    stats = reference.statistics()
    for name, ours in (("state", processor.state_stats), ("action", processor.action_stats)):
        assert ours is not None
        for field, vector in stats[name].items():
            assert ours.vector(field) == tuple(vector), (name, field)
    assert same_weights(policy.model, reference.tensors(), config)


def test_openpi(openpi: Path) -> None:
    policy = load_policy(openpi, overrides=OPENPI)
    config, processor = policy.config, policy.processor
    assert (config.horizon, config.action_dim, config.max_tokens) == (6, 8, 200)
    assert processor.cameras == ("front", "wrist")
    assert (processor.state_dim, processor.action_dim) == (3, 4)
    assert (processor.normalization, processor.resize) == ("quantile_openpi", "pil_antialias")
    assert processor.action_stats.q01 == tuple(reference.statistics()["action"]["q01"])
    assert same_weights(policy.model, reference.tensors(), config)


def test_a_policy_that_was_loaded_acts(lerobot: Path) -> None:
    policy = load_policy(lerobot, overrides=LEROBOT)
    rng = np.random.Generator(np.random.Philox(key=1))
    seen = Observations(
        images=rng.integers(0, 256, (2, 2, 20, 14, 3), dtype=np.uint8),
        state=rng.normal(size=(2, 3)).astype(np.float32),
        instructions=("push", "pull"),
    )
    with torch.no_grad():
        prefix = policy.encode_prefix(policy.prepare(seen))
    noise = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([[1], [2]])
    settings: dict[str, Any] = {"denoise_steps": 4, "noise_level": 0.5, "sde_index": index}
    chunk = policy.sample_chunk(
        prefix, initial_noise=noise, sde_noise=noise.flip(0)[:, None], executed_steps=6, **settings
    )
    again = policy.chunk_log_prob(
        prefix, x_t=chunk.x_t, x_next=chunk.x_next, executed_mask=torch.ones(2, 6, dtype=torch.bool), **settings
    )
    assert torch.equal(again, chunk.log_prob)
    assert policy.velocity(prefix, noise, torch.ones(1)).shape == (2, 6, 8)
    assert policy.env_actions(chunk.actions).shape == (2, 6, 4)
    ode = policy.sample_chunk(prefix, initial_noise=noise, denoise_steps=4, executed_steps=6)
    assert not torch.equal(ode.actions, chunk.actions)


@pytest.mark.parametrize("layout", ["lerobot", "openpi"])
def test_shards_give_the_same_network(tmp_path: Path, layout: str) -> None:
    write, overrides = (reference.write_lerobot, LEROBOT) if layout == "lerobot" else (reference.write_openpi, OPENPI)
    folder = write(tmp_path / "whole")
    whole = load_policy(folder, overrides=overrides).model.state_dict()
    reference.shard(folder)
    parts = load_policy(folder, overrides=overrides).model.state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_shards_must_be_what_the_index_says(lerobot: Path) -> None:
    reference.shard(lerobot)
    index = lerobot / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    names = value["weight_map"]
    first, second = sorted(names)[:2]
    names[first], names[second] = names[second], names[first]
    reference.write_json(index, value)
    assert refusal(lerobot) == (
        f"{index} and its files disagree about 2 tensors ({first}, {second}); download them again"
    )
    names[first] = "../elsewhere.safetensors"
    reference.write_json(index, value)
    assert refusal(lerobot) == f"{index} names '../elsewhere.safetensors'; expected .safetensors files beside it"
    reference.write_json(index, {"weight_map": []})
    assert refusal(lerobot) == f"{index} has no weight_map from tensor names to file names; download it again"
    names[first] = "model-00009-of-00003.safetensors"
    reference.write_json(index, value)
    missing = lerobot / "model-00009-of-00003.safetensors"
    assert refusal(lerobot) == f"{missing} is missing; give the folder of a complete checkpoint"


def test_bfloat16(lerobot: Path) -> None:
    policy = load_policy(lerobot, overrides=LEROBOT, dtype="bfloat16")
    dtypes = {name: p.dtype for name, p in policy.model.named_parameters()}
    assert dtypes["vlm.embedding"] == dtypes["expert.layers.0.mlp.down.weight"] == torch.bfloat16
    assert dtypes["action_in.weight"] == dtypes["vlm.last.norm1.weight"] == torch.float32
    assert same_weights(policy.model, reference.tensors(), policy.config)
    with pytest.raises(ConfigError) as caught:
        load_policy(lerobot, overrides=LEROBOT, dtype="float16")  # type: ignore[arg-type]
    assert str(caught.value) == "dtype is 'float16'; it must be one of float32, bfloat16"


def test_a_run_folder_and_a_policy_folder(tmp_path: Path) -> None:
    made = toy_policy()
    made.save(tmp_path / "run" / "policy")
    for path in (tmp_path / "run", tmp_path / "run" / "policy", str(tmp_path / "run")):
        policy = load_policy(path)
        assert (policy.config, policy.processor) == (made.config, made.processor)
    changed = load_policy(tmp_path / "run", overrides=CheckpointOverrides(cameras=("side",), horizon=3))
    assert changed.processor.cameras == ("side",)
    assert changed.config.horizon == 3


def test_all_unknowns_are_one_error(openpi: Path) -> None:
    (openpi / "config.json").unlink()
    (openpi / "assets" / "physical-intelligence" / "lab" / "norm_stats.json").unlink()
    assert refusal(openpi, CheckpointOverrides()) == (
        f"{openpi} does not say: attention heads of the image encoder (--vision-heads N); "
        "action horizon (--horizon H); "
        "cameras and their order (--cameras NAME, once for each); state dims (--state-dim S); "
        "real action dims (--action-dim A); statistics of the state (--stats FILE); "
        "statistics of the action (--stats FILE); "
        "normalisation (--normalization quantile_openpi | quantile_lerobot | mean_std | mean_std_openpi); "
        "prompt format (--prompt state | state_padded | no_state); tokenizer (--tokenizer FILE). "
        "Give them to z1 convert, or as CheckpointOverrides to load_policy"
    )


def test_lerobot_leaves_only_the_prompt_open(lerobot: Path) -> None:
    assert refusal(lerobot, CheckpointOverrides(vision_heads=4)) == (
        f"{lerobot} does not say: prompt format (--prompt state | state_padded | no_state). "
        "Give them to z1 convert, or as CheckpointOverrides to load_policy"
    )


def test_all_wrong_tensors_are_one_error(lerobot: Path) -> None:
    file = lerobot / "model.safetensors"
    values = load_file(file)
    del values["model.time_mlp_in.bias"]
    values["model.state_proj.weight"] = torch.zeros(2, 2)
    values["model.action_out_proj.bias"] = torch.zeros(9)
    save_file(values, file)
    assert refusal(lerobot) == (
        f"{file} does not fit the network: 1 tensors missing (time_mlp_in.bias); 1 tensors unknown "
        "(state_proj.weight); 1 tensors of another shape (action_out_proj.bias is (9,), expected (8,)). "
        "Use the config.json that belongs to these weights."
    )


def test_a_tensor_that_tells_a_size_may_be_missing_too(lerobot: Path) -> None:
    file = lerobot / "model.safetensors"
    values = load_file(file)
    del values["model.action_in_proj.weight"]
    reference.edit_json(lerobot / "config.json", max_action_dim=None)
    save_file(values, file)
    assert "1 tensors missing (action_in_proj.weight)" in refusal(lerobot)


def test_tensors_without_influence_may_be_anything(lerobot: Path) -> None:
    file = lerobot / "model.safetensors"
    before = load_policy(lerobot, overrides=LEROBOT).model.state_dict()
    values = load_file(file)
    for name in list(values):
        if name.endswith(
            ("lm_head.weight", "language_model.norm.weight", "language_model.layers.1.mlp.up_proj.weight")
        ):
            del values[name]
    assert len(values) == len(load_file(file)) - 4
    save_file(values, file)
    after = load_policy(lerobot, overrides=LEROBOT).model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_weights_that_are_not_numbers_of_a_network(lerobot: Path) -> None:
    file = lerobot / "model.safetensors"
    values = load_file(file)
    values["model.time_mlp_in.bias"] = torch.zeros(16, dtype=torch.int64)
    save_file(values, file)
    assert refusal(lerobot) == (f"{file} stores model.time_mlp_in.bias as I64; expected one of F32, BF16, F16, F64")


class Bomb:
    """What unpickling would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("unpickled",))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl", "last.ckpt"])
def test_pickles_are_refused_unread(lerobot: Path, openpi: Path, name: str) -> None:
    for folder, overrides in ((lerobot, LEROBOT), (openpi, OPENPI)):
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps(Bomb()))
        for path in (folder, folder / name):
            assert refusal(path, overrides) == (
                f"{path} holds pickled weights ({name}), which can run any code when they are read; z1 never does. "
                "Save them as safetensors with the program that wrote them"
            )


def test_pickles_beside_safetensors_are_left_alone(lerobot: Path) -> None:
    (lerobot / "optimizer.pt").write_bytes(pickle.dumps(Bomb()))
    load_policy(lerobot, overrides=LEROBOT)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"type": "pi0"}, "has type 'pi0'; of LeRobot's policies z1 reads type 'pi05'"),
        ({"chunk_size": "50"}, ": chunk_size is '50'; expected an integer"),
        ({"chunk_size": True}, ": chunk_size is True; expected an integer"),
        ({"input_features": []}, ": input_features is []; expected an object"),
        ({"n_obs_steps": 2}, ": n_obs_steps is 2; z1 knows only 1"),
        ({"use_visual_memory": True}, ": use_visual_memory is True; z1 knows only False"),
        ({"use_relative_actions": True}, ": use_relative_actions is True; z1 knows only False"),
        (
            {"output_features": {"action": {"shape": "7"}}},
            ": the shape of action is '7'; expected a list of one integer",
        ),
        (
            {"normalization_mapping": {"STATE": "QUANTILES", "ACTION": "MEAN_STD"}},
            ": the state is normalised by 'QUANTILES' and the action by 'MEAN_STD'; "
            "z1 knows QUANTILES and MEAN_STD, the same for both",
        ),
        (
            {"normalization_mapping": {"STATE": "MIN_MAX", "ACTION": "MIN_MAX"}},
            ": the state is normalised by 'MIN_MAX' and the action by 'MIN_MAX'; "
            "z1 knows QUANTILES and MEAN_STD, the same for both",
        ),
    ],
)
def test_config_of_lerobot(lerobot: Path, change: dict[str, Any], text: str) -> None:
    path = lerobot / "config.json"
    reference.edit_json(path, **change)
    message = refusal(lerobot)
    assert message.startswith(str(path))
    assert message.removeprefix(str(path)).strip() == text.strip()


def test_config_and_weights_must_agree(lerobot: Path, openpi: Path) -> None:
    reference.edit_json(lerobot / "config.json", max_action_dim=32)
    assert refusal(lerobot) == f"{lerobot}: model action dim is 32 in config.json, but 8 in weights"
    reference.edit_json(lerobot / "config.json", max_action_dim=8, image_resolution=[224, 224])
    assert refusal(lerobot) == f"{lerobot}: image size is 224 in config.json, but 14 in weights"
    reference.edit_json(openpi / "config.json", action_dim=32)
    assert refusal(openpi, OPENPI) == f"{openpi}: model action dim is 32 in config.json, but 8 in weights"
    reference.edit_json(openpi / "config.json", action_dim=8, pi05=False)
    assert refusal(openpi, OPENPI) == f"{openpi / 'config.json'}: pi05 is False; z1 reads pi0.5, not pi0"


@pytest.mark.parametrize("name", ["config.json", "policy_preprocessor.json", "policy_postprocessor.json"])
def test_unreadable_json(lerobot: Path, name: str) -> None:
    (lerobot / name).write_text("{")
    assert refusal(lerobot).startswith(f"{lerobot / name} cannot be read as JSON: ")
    (lerobot / name).write_text("[]")
    assert refusal(lerobot) == f"{lerobot / name}: expected an object, got list"


def edit_step(path: Path, registered: str, **changes: Any) -> None:
    value = json.loads(path.read_text())
    (step,) = (step for step in value["steps"] if step["registry_name"] == registered)
    step["config"] |= changes.pop("config", {})
    step |= changes
    reference.write_json(path, value)


@pytest.mark.parametrize(
    ("step", "changes", "text"),
    [
        ("to_batch_processor", {"registry_name": "magic"}, ": z1 does not know what step 'magic' does there"),
        (
            "relative_actions_processor",
            {"config": {"enabled": True}},
            ": relative_actions_processor is enabled; z1 knows only absolute actions",
        ),
        ("normalizer_processor", {"config": {"eps": 0.1}}, ": eps of normalizer_processor is 0.1; z1 knows only 1e-08"),
        (
            "normalizer_processor",
            {"config": {"norm_map": {"VISUAL": "MEAN_STD", "STATE": "QUANTILES", "ACTION": "QUANTILES"}}},
            ": images are normalised by 'MEAN_STD'; z1 knows only 'IDENTITY'",
        ),
        (
            "normalizer_processor",
            {"state_file": "../stats.safetensors"},
            " names '../stats.safetensors'; expected a path within the checkpoint",
        ),
        (
            "tokenizer_processor",
            {"config": {"padding_side": "left"}},
            ": padding_side is 'left'; z1 knows only 'right'",
        ),
        (
            "tokenizer_processor",
            {"artifacts": {"tokenizer_name": "/etc"}},
            " names '/etc'; expected a path within the checkpoint",
        ),
        (
            "rename_observations_processor",
            {"config": {"rename_map": {"a": "c", "b": "c"}}},
            ": rename_map gives one name to several observations: {'a': 'c', 'b': 'c'}",
        ),
        (
            "pi05_prepare_state_tokenizer_processor_step",
            {"registry_name": "device_processor"},
            ": z1 does not know what step 'device_processor' does there",
        ),
    ],
)
def test_steps_of_lerobot(lerobot: Path, step: str, changes: dict[str, Any], text: str) -> None:
    path = lerobot / "policy_preprocessor.json"
    edit_step(path, step, **changes)
    assert refusal(lerobot) == f"{path}{text}"


def test_a_step_that_makes_the_prompt_is_needed(lerobot: Path) -> None:
    path = lerobot / "policy_preprocessor.json"
    value = json.loads(path.read_text())
    value["steps"] = [step for step in value["steps"] if not step["registry_name"].startswith("pi05")]
    reference.write_json(path, value)
    assert refusal(lerobot) == (
        f"{path}: the step pi05_prepare_state_tokenizer_processor_step is missing; "
        "these are not the processors of a pi05"
    )


def test_the_state_file_is_followed_not_guessed(lerobot: Path) -> None:
    old = lerobot / "policy_preprocessor_step_3_normalizer_processor.safetensors"
    new = "policy_preprocessor_step_2_normalizer_processor.safetensors"
    old.rename(lerobot / new)
    edit_step(lerobot / "policy_preprocessor.json", "normalizer_processor", state_file=new)
    assert load_policy(lerobot, overrides=LEROBOT).processor.state_stats is not None
    (lerobot / new).unlink()
    assert refusal(lerobot) == f"{lerobot / new} is missing; give the folder of a complete checkpoint"


def test_the_two_processors_must_agree(lerobot: Path) -> None:
    file = lerobot / "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
    values = load_file(file)
    values["action.q99"] += 1
    save_file(values, file)
    assert refusal(lerobot) == (
        f"{lerobot / 'policy_postprocessor.json'} and {lerobot / 'policy_preprocessor.json'} disagree about the "
        "action stats"
    )


def test_no_statistics(lerobot: Path) -> None:
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        value = json.loads((lerobot / name).read_text())
        for step in value["steps"]:
            step.pop("state_file", None)
        reference.write_json(lerobot / name, value)
    message = refusal(lerobot)
    assert message.startswith(
        f"{lerobot} does not say: statistics of the state (--stats FILE); statistics of the action (--stats FILE). Give"
    )
    stats = reference.statistics()
    given = lerobot / "stats.json"
    reference.write_json(given, {"observation.state": stats["state"], "action": stats["action"]})
    overrides = CheckpointOverrides(prompt="state", vision_heads=4, stats=str(given))
    assert load_policy(lerobot, overrides=overrides).processor.action_stats.q99 == tuple(stats["action"]["q99"])


def test_quantiles_are_needed_for_quantiles(openpi: Path) -> None:
    path = openpi / "assets" / "physical-intelligence" / "lab" / "norm_stats.json"
    value = json.loads(path.read_text())
    value["norm_stats"]["actions"] |= {"q01": None, "q99": None}
    reference.write_json(path, value)
    assert refusal(openpi, OPENPI) == (
        f"{openpi}: normalisation of action: mode 'quantile_openpi' needs q01 and q99, but the statistics lack "
        "q01 and q99; compute them from the dataset or choose another mode"
    )


def test_several_assets_need_a_choice(openpi: Path) -> None:
    other = openpi / "assets" / "other"
    other.mkdir()
    (other / "norm_stats.json").write_bytes(
        (openpi / "assets" / "physical-intelligence" / "lab" / "norm_stats.json").read_bytes()
    )
    with pytest.raises(ConfigError) as caught:
        load_policy(openpi, overrides=OPENPI)
    assert str(caught.value) == (
        f"{openpi / 'assets'} holds statistics of other, physical-intelligence/lab; choose one of them with --asset"
    )
    given = {**OPENPI.given(), "asset": "physical-intelligence/lab"}
    assert load_policy(openpi, overrides=CheckpointOverrides(**given)).processor.action_dim == 4
    with pytest.raises(UnknownNameError, match="unknown asset 'othr'; did you mean 'other'"):
        load_policy(openpi, overrides=CheckpointOverrides(**{**given, "asset": "othr"}))


def test_padded_statistics_do_not_tell_the_width(openpi: Path) -> None:
    """As wide as the model, with zeros at the end: openpi's base assets."""
    path = openpi / "assets" / "physical-intelligence" / "lab" / "norm_stats.json"
    value = json.loads(path.read_text())
    for name in ("state", "actions"):
        entry = value["norm_stats"][name]
        for vector in entry.values():
            vector += [0.0] * (8 - len(vector))
    reference.write_json(path, value)
    assert "does not say: state dims (--state-dim S); real action dims (--action-dim A). Give" in refusal(
        openpi, OPENPI
    )
    overrides = CheckpointOverrides(**OPENPI.given(), state_dim=3, action_dim=4)
    processor = load_policy(openpi, overrides=overrides).processor
    assert (processor.state_dim, processor.action_dim, processor.action_stats.dim) == (3, 4, 4)
    with pytest.raises(ConfigError) as caught:
        load_policy(openpi, overrides=CheckpointOverrides(**OPENPI.given(), action_dim=9))
    assert str(caught.value) == f"action_dim is 9, but the statistics of {openpi} have 8 dims"


def test_cameras(lerobot: Path) -> None:
    fewer = CheckpointOverrides(prompt="state", vision_heads=4, cameras=("corner2",))
    assert load_policy(lerobot, overrides=fewer).processor.cameras == ("corner2",)
    with pytest.raises(ConfigError) as caught:
        load_policy(lerobot, overrides=CheckpointOverrides(prompt="state", vision_heads=4, cameras=("a", "b", "c")))
    assert str(caught.value) == (f"cameras names 3 cameras, but {lerobot} sees 2 (front, wrist); leave some out")
    renames = {"observation.images.corner": "observation.images.front"}
    edit_step(lerobot / "policy_preprocessor.json", "rename_observations_processor", config={"rename_map": renames})
    config = json.loads((lerobot / "config.json").read_text())
    config["input_features"]["observation.images.empty_camera_0"] = {"type": "VISUAL", "shape": [3, 14, 14]}
    reference.write_json(lerobot / "config.json", config)
    assert load_policy(lerobot, overrides=LEROBOT).processor.cameras == ("corner", "wrist")


def test_no_tokenizer(tmp_path: Path, openpi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lerobot = reference.write_lerobot(tmp_path / "hub", tokenizer=False)
    asked = []

    def offline(repository: str, **more: Any) -> str:
        asked.append((repository, more["allow_patterns"]))
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    assert refusal(lerobot) == (
        "the tokenizer google/paligemma-3b-pt-224 cannot be downloaded from the Hugging Face hub: no network; check "
        "the name, the network and, for a gated model, your login (hf auth login), or give a folder; "
        "--tokenizer FILE gives another"
    )
    assert asked == [("google/paligemma-3b-pt-224", ["tokenizer.model", "tokenizer.json"])]
    given = CheckpointOverrides(prompt="state", vision_heads=4, tokenizer=str(reference.TOKENIZER))
    load_policy(lerobot, overrides=given)
    nowhere = CheckpointOverrides(prompt="state", vision_heads=4, tokenizer=str(tmp_path))
    assert refusal(lerobot, nowhere) == (
        f"there is no tokenizer at {tmp_path / 'tokenizer.model'}; give PaliGemma's tokenizer.model or tokenizer.json "
        "with --tokenizer FILE"
    )
    blind = CheckpointOverrides(**{name: value for name, value in OPENPI.given().items() if name != "tokenizer"})
    assert "does not say: tokenizer (--tokenizer FILE)." in refusal(openpi, blind)


def test_a_tokenizer_that_is_too_large(tmp_path: Path) -> None:
    folder = reference.write_lerobot(tmp_path / "small", reference.Dims(vocab=300))
    assert refusal(folder) == (
        f"{folder}: the tokenizer has 512 pieces, but the network embeds 300; "
        "choose the tokenizer that belongs to the network"
    )


def test_the_hub(lerobot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, list[str]]] = []

    def download(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision, allow_patterns))
        return str(lerobot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    for name in ("hf:owner/name", "hf:owner/name@v1.0", "owner/name"):
        load_policy(name, overrides=LEROBOT)
    patterns = locate.WEIGHT_PATTERNS
    assert asked == [("owner/name", None, patterns), ("owner/name", "v1.0", patterns), ("owner/name", None, patterns)]
    assert not [pattern for pattern in patterns if pattern.endswith((".bin", ".pt", ".pkl", "*"))]
    assert refusal("hf:../name") == (
        "hf:../name is no name of a model; expected hf:owner/name or hf:owner/name@revision"
    )


def test_the_hub_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(repository: str, **more: Any) -> str:
        raise OSError("Name or service not known\nsecond line")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    text = (
        "owner/name cannot be downloaded from the Hugging Face hub: Name or service not known; check the name, the "
        "network and, for a gated model, your login (hf auth login), or give a folder"
    )
    assert refusal("hf:owner/name") == text
    assert refusal("owner/name") == f"owner/name is no folder here, and {text}"


def test_what_is_no_checkpoint(tmp_path: Path, lerobot: Path) -> None:
    nothing = tmp_path / "nothing"
    assert refusal(nothing) == f"{nothing} does not exist; give a checkpoint's folder or hf:owner/name"
    nothing.mkdir()
    assert refusal(nothing) == f"{nothing} holds no policy: model.safetensors is missing"
    (nothing / "params").mkdir()
    assert refusal(nothing) == (
        f"{nothing} is a JAX checkpoint of openpi; convert it with openpi's "
        "examples/convert_jax_model_to_pytorch.py first"
    )
    file = lerobot / "model.safetensors"
    assert refusal(file) == f"{file} is a file; give the folder of the checkpoint"
    save_file({"x": torch.zeros(1)}, nothing / "model.safetensors")
    assert refusal(nothing) == (
        f"{nothing / 'model.safetensors'} holds no pi0.5: no tensor begins with paligemma_with_expert, "
        "as those of openpi and LeRobot do, and config.json is not that of a policy of z1"
    )
    file.write_bytes(file.read_bytes()[:-50])
    assert refusal(lerobot).startswith(f"{file} is damaged: ")


def test_constant_dims_need_a_word(lerobot: Path) -> None:
    for name in (
        "policy_preprocessor_step_3_normalizer_processor",
        "policy_postprocessor_step_0_unnormalizer_processor",
    ):
        file = lerobot / f"{name}.safetensors"
        values = load_file(file)
        values["action.q99"][1] = values["action.q01"][1]
        save_file(values, file)
    message = refusal(lerobot)
    assert "normalisation of action: dim 1 hardly varies" in message
    assert message.endswith("; to follow the checkpoint's own formula all the same, give --allow-constant-dims")
    allowed = CheckpointOverrides(prompt="state", vision_heads=4, allow_constant_dims=True)
    assert load_policy(lerobot, overrides=allowed).processor.allow_constant_dims


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"prompt": "text"}, "prompt is 'text'; it must be one of state, state_padded, no_state"),
        ({"horizon": 0}, "horizon is 0; it must be at least 1"),
        ({"state_dim": -1}, "state_dim is -1; it must be at least 0"),
        ({"resize": "nearest"}, "resize is 'nearest'; it must be one of pil_antialias, torch_bilinear"),
    ],
)
def test_overrides_are_checked(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        CheckpointOverrides(**change)
    assert str(caught.value) == text


def test_every_setting_has_an_origin(lerobot: Path) -> None:
    settings = open_checkpoint(lerobot, LEROBOT).settings
    origins = {name: settings.origin(name) for name in ("horizon", "max_tokens", "action_stats", "prompt", "resize")}
    assert origins == {
        "horizon": "config.json",
        "max_tokens": "policy_preprocessor.json",
        "action_stats": "policy_postprocessor.json",
        "prompt": "given",
        "resize": "LeRobot's way",
    }
