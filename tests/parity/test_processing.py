"""Prompts, token ids, time features, time draws and letterboxed images against the reference code bases."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from z1.policy import flow
from z1.policy.images import letterbox
from z1.policy.pi05 import embed_time
from z1.policy.tokenizer import Tokenizer, build_prompt, digitise


@pytest.fixture(scope="module")
def prompts(fixtures: Path) -> dict[str, Any]:
    return json.loads((fixtures / "prompts.json").read_text())


@pytest.fixture(scope="module")
def tokenizer(fixtures: Path) -> Tokenizer:
    return Tokenizer.load(fixtures / "synthetic_tokenizer.model")


def test_prompts_and_token_ids(prompts: dict[str, Any], tokenizer: Tokenizer) -> None:
    texts = [build_prompt(c["task"], np.array(c["normalised"], np.float32), "state") for c in prompts["cases"]]
    assert texts == [case["prompt"] for case in prompts["cases"]]
    tokens, mask = tokenizer.batch(texts, 200)
    for case, row, valid in zip(prompts["cases"], tokens, mask, strict=True):
        assert row[valid].tolist() == case["tokens"]
        assert valid.tolist() == [True] * case["n_tokens"] + [False] * (len(valid) - case["n_tokens"])
        assert not row[~valid].any()


def test_prompts_without_state(prompts: dict[str, Any], tokenizer: Tokenizer) -> None:
    texts = [build_prompt(case["task"], None, "no_state") for case in prompts["cases"]]
    assert tokenizer.encode(texts) == [case["openpi_tokens_no_state"] for case in prompts["cases"]]


def test_padded_state(prompts: dict[str, Any]) -> None:
    text = build_prompt("go", np.array([0.5, -0.5]), "state_padded")
    assert text == "Task: go, State: 192 64 " + " ".join(["128"] * 30) + ";\nAction: "
    assert text != build_prompt("go", np.array([0.5, -0.5]), "state")


def test_bin_edges(prompts: dict[str, Any]) -> None:
    edges = prompts["digitize_edge_cases"]
    assert digitise(np.array(edges["value"])).tolist() == edges["bin"]


def test_truncation(prompts: dict[str, Any], tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    example = prompts["truncation_example"]
    text = prompts["cases"][0]["prompt"]
    tokenizer = Tokenizer(tokenizer.serialised)
    with caplog.at_level(logging.WARNING):
        tokens, mask = tokenizer.batch([text], example["max_len"])
        tokenizer.batch([text], example["max_len"])
    assert tokens[0].tolist() == example["tokens"]
    assert mask[0].tolist() == example["mask"]
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "a prompt has 33 tokens, the policy reads 8: its end is cut off"
    ]


def test_a_prompt_that_fits_is_not_warned_about(
    prompts: dict[str, Any], tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        Tokenizer(tokenizer.serialised).batch([prompts["cases"][0]["prompt"]], 33)
    assert not caplog.records


@pytest.fixture(scope="module")
def times(fixtures: Path) -> dict[str, Tensor]:
    return load_file(fixtures / "time_embedding.safetensors")


@pytest.mark.parametrize("width", [32, 1024])
def test_time_features(times: dict[str, Tensor], width: int) -> None:
    ours = embed_time(times["time"], width)
    torch.testing.assert_close(ours, times[f"sincos_{width}_fp32"], rtol=0, atol=1e-7)
    in_float32 = embed_time(times["time"].to(torch.bfloat16).float(), width)
    assert float((in_float32 - ours).abs().max()) > 0.1


@pytest.mark.parametrize("steps", [4, 10])
def test_time_grid_is_lerobots(times: dict[str, Tensor], steps: int) -> None:
    assert torch.equal(flow.time_grid(steps)[:-1], times[f"sampler_time_lerobot_{steps}"])


def test_time_draws_have_lerobots_distribution(times: dict[str, Tensor]) -> None:
    """Largest distance of two empirical distributions of 4096 draws: below 0.03 when equal (Kolmogorov-Smirnov)."""
    theirs = times["beta_time_seed0_n4096"].sort().values
    uniform = torch.from_numpy(np.random.Generator(np.random.Philox(key=5)).random(4096, dtype=np.float32))

    def distance(ours: Tensor) -> float:
        grid = torch.linspace(0, 1, 1001)
        share = torch.searchsorted(ours.sort().values, grid) - torch.searchsorted(theirs, grid)
        return float(share.abs().max()) / 4096

    assert distance(flow.sample_time(uniform)) < 0.03
    assert distance(uniform) > 0.1


@pytest.mark.parametrize("size", [32, 56])
@pytest.mark.parametrize("source", ["40x64", "64x24"])
def test_letterbox(fixtures: Path, source: str, size: int) -> None:
    lerobot = load_file(fixtures / "resize_lerobot.safetensors")
    openpi = load_file(fixtures / "resize_openpi.safetensors")
    image = lerobot[f"src_u8_{source}"].permute(0, 3, 1, 2)
    floats = letterbox(image, size, "torch_bilinear").permute(0, 2, 3, 1)
    torch.testing.assert_close(floats, lerobot[f"lerobot_{source}_to_{size}"], rtol=0, atol=1e-6)
    eight_bit = letterbox(image, size, "pil_antialias").permute(0, 2, 3, 1)
    assert eight_bit.dtype == torch.uint8
    difference = (eight_bit.int() - openpi[f"openpi_client_pil_u8_{source}_to_{size}"].int()).abs()
    assert int(difference.max()) <= 1
    assert float(difference.float().mean()) < 0.1
    other = (floats + 1.0) * 127.5 - eight_bit
    assert float(other.abs().max()) > 2.0
