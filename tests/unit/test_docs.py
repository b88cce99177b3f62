"""The example of docs/checkpoints.md runs, and its claims about itself hold."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from toy import toy_policy

DOCS = Path(__file__).parents[2] / "docs"


def test_the_example_of_the_checkpoints_page(tmp_path: Path) -> None:
    toy_policy().save(tmp_path / "policy")
    text = (DOCS / "checkpoints.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, object] = {}
    exec(code.replace("CHECKPOINT", str(tmp_path / "policy")), names)
    policy, actions = names["policy"], names["actions"]
    assert actions.shape == (2, policy.config.horizon, policy.processor.action_dim)
    assert torch.equal(names["log_prob"].detach(), names["drawn"].log_prob)
    assert names["log_prob"].requires_grad


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md", DOCS.parent / "benchmarks" / "README.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"
