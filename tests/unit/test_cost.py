"""The cost model against published numbers, against torch's own counter, and against the network's parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from z1.policy.config import PolicyConfig
from z1.policy.cost import H200, UPDATES, CostModel, page
from z1.policy.gemma import ActionExpert, Vlm
from z1.policy.past import JoinedPast
from z1.policy.pi05 import ModelInput, Pi05
from z1.policy.siglip import VisionEncoder

FULL = PolicyConfig.pi05()
LONG, LONG_10 = (CostModel(config=FULL, cameras=3, text=200, horizon=h) for h in (50, 10))
SHORT, SHORT_10 = (CostModel(config=FULL, cameras=2, text=40, horizon=h) for h in (50, 10))


def tera(value: float) -> float:
    return round(value / 1e12, 3)


def test_full_size() -> None:
    """Numbers of FLOP counters and parameter counts on the reference implementations at full size."""
    assert LONG.prefix_tokens == 968
    assert SHORT.prefix_tokens == 552
    assert LONG.image == pytest.approx(220.2e9, rel=1e-3)
    assert LONG.vlm_token == pytest.approx(3.964e9, rel=1e-3)
    assert LONG.action_token == pytest.approx(0.623e9, rel=1e-3)
    assert LONG.modulation == pytest.approx(0.233e9, rel=2e-3)
    assert (tera(LONG.prefix(tail=True)), tera(LONG.prefix())) == (4.635, 4.417)
    assert (tera(SHORT.prefix(tail=True)), tera(SHORT.prefix())) == (2.673, 2.550)
    assert LONG.step() == pytest.approx(38.89e9, rel=1e-3)
    assert LONG_10.step() == pytest.approx(7.91e9, rel=1e-3)
    assert SHORT.step() == pytest.approx(35.8e9, rel=2e-3)
    assert SHORT_10.step() == pytest.approx(7.3e9, rel=1e-2)
    assert LONG.prefix_bytes() / 1e6 == pytest.approx(17.84, abs=5e-3)
    assert SHORT.prefix_bytes() / 1e6 == pytest.approx(10.17, abs=5e-3)
    assert LONG.encode_bytes() / 1e9 == pytest.approx(4.79, abs=5e-3)


def test_full_size_updates() -> None:
    """The reference's passes were counted: 4.682 forward, 3.992 backward with a frozen VLM, 8.956 without."""
    joint, expert = LONG.update("reference joint"), LONG.update("reference expert")
    assert (tera(joint.forward), tera(joint.backward)) == (4.682, 8.956)
    assert (tera(expert.forward), tera(expert.backward)) == (4.682, 3.992)
    assert LONG_10.update("reference expert").total / 1e12 == pytest.approx(8.56, abs=0.02)
    assert tera(LONG.update("cached expert").total) == 0.117
    assert tera(LONG_10.update("cached expert").total) == 0.024
    tail = LONG.tail / 1e12
    assert LONG.update("split expert").total / 1e12 == pytest.approx(4.75 - tail, abs=5e-3)
    assert SHORT_10.update("split expert").total / 1e12 == pytest.approx(2.70 - SHORT_10.tail / 1e12, abs=5e-3)
    assert LONG.update("split joint").total / 1e12 == pytest.approx(14.0 - 3 * tail, abs=0.03)
    assert LONG.update("split joint checkpointed").total / 1e12 == pytest.approx(18.7 - 4 * tail, abs=0.03)


@pytest.mark.parametrize(
    ("model", "rows", "steps", "milliseconds"),
    [
        (LONG, 1, 10, 8.0),
        (LONG, 16, 5, 97.8),
        (LONG, 64, 10, 407.0),
        (LONG_10, 1, 5, 6.9),
        (LONG_10, 16, 10, 96.7),
        (LONG_10, 64, 10, 382.0),
        (SHORT_10, 16, 10, 56.7),
        (SHORT, 64, 10, 246.0),
    ],
)
def test_sampling_on_an_h200(model: CostModel, rows: int, steps: int, milliseconds: float) -> None:
    assert model.sampling_seconds(H200, rows=rows, steps=steps) * 1e3 == pytest.approx(milliseconds, rel=0.01)


def test_steps_of_an_h200() -> None:
    """Small batches are limited by memory, large ones by arithmetic; members of one observation read one prefix."""
    at = [H200.seconds(rows * LONG_10.step(), LONG_10.step_bytes(rows)) * 1e3 for rows in (1, 16, 64)]
    assert at == [pytest.approx(0.205, abs=1e-3), pytest.approx(0.286, abs=1e-3), pytest.approx(0.641, abs=1e-3)]
    assert LONG.step_bytes(1) / H200.bandwidth * 1e3 == pytest.approx(0.210, abs=1e-3)
    saved = LONG_10.step_bytes(16) - LONG_10.step_bytes(16, prefixes=1)
    assert saved == 15 * LONG_10.prefix_bytes()
    table = LONG_10.step_bytes(1) - LONG_10.step_bytes(1, modulation=False)
    assert table / LONG_10.step_bytes(1) == pytest.approx(0.27, abs=0.01)


def test_parameters() -> None:
    counts = LONG.parameters(tail=True)
    assert sum(counts.values()) == 3_353_433_872
    assert (counts["image encoder"], counts["projector"], counts["embedding"]) == (412_442_352, 2_361_344, 526_647_296)
    assert counts["expert"] + counts["modulation"] + counts["ends"] == 430_098_464
    for config in (FULL, PolicyConfig.tiny()):
        own = sum(parameter.numel() for parameter in Pi05.blank(config).parameters())
        assert sum(CostModel(config=config, cameras=1, text=1, horizon=1).parameters().values()) == own


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("model", [LONG, SHORT_10])
def test_the_full_network_does_what_the_model_counts(model: CostModel) -> None:
    """On the meta device. The tail of the VLM's last layer is not computed."""
    with torch.device("meta"), torch.no_grad():
        vision, vlm, expert = VisionEncoder(FULL.vision), Vlm(FULL.vlm), ActionExpert(FULL.expert, FULL.vlm)
        projector = torch.nn.Linear(FULL.vision.width, FULL.vlm.width)
        images = torch.empty(model.cameras, 3, 224, 224)
        tokens = torch.empty(1, model.prefix_tokens, FULL.vlm.width)
        keys = torch.empty(1, FULL.vlm.depth, model.prefix_tokens, FULL.vlm.head_dim)
        x, row = torch.empty(1, model.horizon, FULL.expert.width), torch.empty(1, FULL.expert.width)

        def encode() -> None:
            projector(vision(images))
            vlm(tokens, None)

        def step() -> None:
            expert(x, expert.modulation(row), JoinedPast(keys, keys, None, model.horizon, FULL.vlm))

        prefix_flops, step_flops = counted(encode), counted(step)
    assert prefix_flops == model.prefix()
    assert prefix_flops < 0.97 * model.prefix(tail=True)
    ends = 4 * model.horizon * FULL.expert.width * FULL.action_dim + 4 * FULL.expert.width**2
    assert step_flops + ends == model.step()


def test_updates_of_a_small_network() -> None:
    """Forward and backward pass as torch counts them; what is left out of the counts is below two percent."""
    config = PolicyConfig.tiny(image_size=32, patch=16, width=128, depth=3, vision_width=64, expert_width=128)
    cost = CostModel(config=config, cameras=2, text=20, horizon=config.horizon)
    model = Pi05.blank(config).to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    inputs = ModelInput(
        images=torch.zeros(1, 2, 3, 32, 32),
        image_mask=torch.ones(1, 2, dtype=torch.bool),
        tokens=torch.ones(1, 20, dtype=torch.int64),
        token_mask=torch.ones(1, 20, dtype=torch.bool),
    )
    x, t = torch.zeros(1, config.horizon, config.action_dim), torch.tensor([0.5])

    def joint() -> None:
        model.velocity(model.encode_prefix(inputs), x, t).square().mean().backward()

    def expert() -> None:
        with torch.no_grad():
            prefix = model.encode_prefix(inputs)
        model.velocity(prefix, x, t).square().mean().backward()

    for run, kind in ((joint, "split joint"), (expert, "split expert")):
        assert counted(run) == pytest.approx(cost.update(kind).total, rel=0.02), kind


def test_the_kinds_of_updates_are_in_order() -> None:
    """What z1 does costs less than what it replaces, at every size."""
    for model in (LONG, LONG_10, SHORT_10, CostModel(config=PolicyConfig.tiny(), cameras=2, text=40, horizon=10)):
        total = {kind: model.update(kind).total for kind in UPDATES}
        assert total["cached expert"] < total["split expert"] < total["reference expert"] < total["reference joint"]
        assert total["split joint"] < total["reference joint"]
        assert total["split joint"] < total["split joint checkpointed"]


def test_page_is_up_to_date() -> None:
    assert (Path(__file__).parents[2] / "docs" / "cost.md").read_text() == page(), (
        "run: python -m z1.policy.cost > docs/cost.md"
    )
