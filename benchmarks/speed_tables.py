"""Markdown tables of a result of policy_speed.py.

python benchmarks/speed_tables.py benchmarks/results/policy_speed_cpu.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HEAD = ("", "ms", "GFLOP/s", "of the limit", "times faster", "predicted", "kept for backward, MB")


def table(groups: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of a table: a row per case, a heading per group."""
    kept = any("kept_for_backward_mb" in case for group in groups.values() for case in group.values())
    head = HEAD if kept else HEAD[:-1]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, group in groups.items():
        lines.append(f"| **{name}** |" + " |" * (len(head) - 1))
        for label, case in group.items():
            cells = [
                label,
                f"{case['ms']:,.1f}",
                f"{case['tflops'] * 1e3:,.0f}",
                f"{case['share_of_limit']:.0%}",
                f"{case['times_faster']:.2f}",
                f"{case['times_faster_predicted']:.2f}",
            ]
            if kept:
                cells.append(f"{case.get('kept_for_backward_mb', '')}")
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Prints the tables."""
    result = json.loads(Path(sys.argv[1]).read_text())
    for title, part in (("Acting", "acting"), ("Updating", "update"), ("SFT", "sft")):
        print("\n".join([f"{title}:", "", *table(result[part]), ""]))


if __name__ == "__main__":
    main()
