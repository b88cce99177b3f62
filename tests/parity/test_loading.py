"""Weight files of openpi and LeRobot: what is taken, what is refused."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from z1.errors import CheckpointError
from z1.policy.config import PolicyConfig
from z1.policy.pi05 import ModelInput, Pi05
from z1.policy.weights import (
    EMBEDDING,
    VLM_HEAD,
    foreign_rules,
    load_foreign,
    to_foreign,
    unused_foreign_names,
)


def test_both_files_give_the_same_network(config: PolicyConfig, fixtures: Path) -> None:
    ours = load_foreign(config, fixtures / "tiny_model_lerobot.safetensors").state_dict()
    theirs = load_foreign(config, fixtures / "tiny_model_openpi.safetensors").state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_stale_head_is_not_the_embedding(config: PolicyConfig, fixtures: Path) -> None:
    file = load_file(fixtures / "tiny_model_lerobot.safetensors")
    model = load_foreign(config, fixtures / "tiny_model_lerobot.safetensors")
    assert torch.equal(model.vlm.embedding, file[f"model.{EMBEDDING}"])
    assert not torch.equal(model.vlm.embedding, file[f"model.{VLM_HEAD}"])


def test_names_go_back_and_forth(config: PolicyConfig, fixtures: Path) -> None:
    file = load_file(fixtures / "tiny_model_openpi.safetensors")
    model = load_foreign(config, fixtures / "tiny_model_openpi.safetensors")
    back = to_foreign(config, model.state_dict())
    assert back.keys() == (file.keys() - unused_foreign_names(config)) | {EMBEDDING}
    for name, tensor in back.items():
        assert torch.equal(tensor, file[VLM_HEAD if name == EMBEDDING else name]), name


def test_every_parameter_has_a_rule(config: PolicyConfig) -> None:
    for sizes in (config, PolicyConfig.tiny(), PolicyConfig.pi05()):
        shapes = {name: tuple(p.shape) for name, p in Pi05.blank(sizes).named_parameters()}
        assert {rule.name: rule.shape for rule in foreign_rules(sizes)} == shapes


def test_full_size_counts() -> None:
    """812 tensors as openpi stores them; 3,353,433,872 parameters, of which the VLM's last layer's tail is dead."""
    sizes = PolicyConfig.pi05()
    parts = [part for rule in foreign_rules(sizes) for part in rule.parts]
    assert len(parts) + len(unused_foreign_names(sizes)) == 813
    width, mlp, queries = sizes.vlm.width, sizes.vlm.mlp, sizes.vlm.heads * sizes.vlm.head_dim
    dead = 2 * queries * width + 3 * width * mlp + 2 * width
    assert sum(prod(shape) for _, shape in parts) == 3_353_433_872 - dead


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "_orig_mod.model.", "model.module."])
def test_wrapping_prefixes_are_removed(config: PolicyConfig, fixtures: Path, tmp_path: Path, prefix: str) -> None:
    file = load_file(fixtures / "tiny_model_openpi.safetensors")
    path = tmp_path / "model.safetensors"
    save_file({prefix + name: tensor for name, tensor in file.items()}, path)
    loaded = load_foreign(config, path).state_dict()
    expected = load_foreign(config, fixtures / "tiny_model_openpi.safetensors").state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_dtype_is_converted(config: PolicyConfig, fixtures: Path) -> None:
    """All but what openpi keeps in float32: patches, positions, the VLM's norms, adaptive norms, projections."""
    model = load_foreign(config, fixtures / "tiny_model_openpi.safetensors", dtype=torch.bfloat16)
    kept = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16, torch.float32}
    assert kept == {
        *(f"vision.{name}" for name in ("patch.weight", "patch.bias", "position")),
        *(f"vlm.layers.{i}.norm{j}.weight" for i in (0, 1) for j in (1, 2)),
        "vlm.last.norm1.weight",
        *(f"{name}.{kind}" for name in ("expert.modulation", "action_in", "action_out") for kind in ("weight", "bias")),
        *(f"{name}.{kind}" for name in ("time_in", "time_out") for kind in ("weight", "bias")),
    }


def test_bfloat16_computes_what_openpi_computes_within_its_noise(
    config: PolicyConfig, fixtures: Path, inputs: ModelInput, lerobot: dict[str, Tensor]
) -> None:
    """openpi's own bfloat16 differs from float32 by 0.04 of 3.4; half of that again is allowed."""
    model = load_foreign(config, fixtures / "tiny_model_openpi.safetensors", dtype=torch.bfloat16)
    with torch.no_grad():
        prefix = model.encode_prefix(inputs)
        v = model.velocity(prefix, lerobot["denoise.tmix.x_t"], lerobot["denoise.tmix.time"])
    assert prefix.keys.dtype == torch.bfloat16
    assert v.dtype == torch.float32
    error = float((v - lerobot["denoise.tmix.v_t"]).abs().max())
    assert 1e-4 < error < 0.06


def test_all_mismatches_are_one_error(config: PolicyConfig, fixtures: Path, tmp_path: Path) -> None:
    file = load_file(fixtures / "tiny_model_openpi.safetensors")
    del file["action_in_proj.bias"]
    file["state_proj.weight"] = torch.zeros(32, 8)
    file["time_mlp_in.bias"] = torch.zeros(31)
    path = tmp_path / "model.safetensors"
    save_file(file, path)
    with pytest.raises(CheckpointError) as caught:
        load_foreign(config, path)
    assert str(caught.value) == (
        f"{path} does not fit the network: 1 tensors missing (action_in_proj.bias); 1 tensors unknown "
        "(state_proj.weight); 1 tensors of another shape (time_mlp_in.bias is (31,), expected (32,)). "
        "Use the config.json that belongs to these weights."
    )


def test_an_embedding_is_needed(config: PolicyConfig, fixtures: Path, tmp_path: Path) -> None:
    file = load_file(fixtures / "tiny_model_openpi.safetensors")
    del file[VLM_HEAD]
    path = tmp_path / "model.safetensors"
    save_file(file, path)
    with pytest.raises(CheckpointError, match=r"1 tensors missing \(.*embed_tokens.weight\)"):
        load_foreign(config, path)


def test_names_that_differ_by_a_prefix_only_are_refused(config: PolicyConfig, fixtures: Path, tmp_path: Path) -> None:
    file = load_file(fixtures / "tiny_model_openpi.safetensors")
    file["model.time_mlp_in.bias"] = torch.zeros(32)
    path = tmp_path / "model.safetensors"
    save_file(file, path)
    with pytest.raises(CheckpointError, match=r"holds time_mlp_in\.bias twice"):
        load_foreign(config, path)


def test_another_size_is_refused(config: PolicyConfig, fixtures: Path) -> None:
    with pytest.raises(CheckpointError, match="tensors of another shape"):
        load_foreign(replace(config, action_dim=7), fixtures / "tiny_model_openpi.safetensors")
