"""Reading weights needs the network's own memory and little more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import reference_checkpoints as reference

LARGE = reference.Dims(vlm=512, vlm_mlp=2048, vocab=20_000, expert=256, expert_mlp=1024, head_dim=64, layers=5)

MEASURE = """
import gc, resource, sys
from pathlib import Path
from z1.policy import CheckpointOverrides, load_policy
def rss():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
overrides = CheckpointOverrides(prompt="state", vision_heads=4)
load_policy(sys.argv[1], overrides=overrides)  # everything that is imported and cached at first use
gc.collect()
before, peak = rss(), 0
def watch(done, total):
    global peak
    peak = max(peak, rss())
policy = load_policy(sys.argv[2], overrides=overrides, on_bytes=watch)
own = sum(parameter.nbytes for parameter in policy.model.parameters())
print(peak - before, own)
"""


def test_peak_memory(tmp_path: Path) -> None:
    """A file of some 200 MB: at most its largest tensor and what is mapped at a time come on top of the network."""
    small, large = reference.write_lerobot(tmp_path / "small"), reference.write_lerobot(tmp_path / "large", LARGE)
    size = (large / "model.safetensors").stat().st_size
    assert 180e6 < size < 260e6
    command = [sys.executable, "-c", MEASURE, str(small), str(large)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    peak, own = (int(number) for number in answer.stdout.split())
    assert 80e6 < own < size
    assert own * 0.9 < peak < own + 100e6, (peak, own, size)
    assert peak < own + 1.1 * size
