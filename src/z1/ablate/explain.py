"""The study file explained, for ``z1 ablate --help``: made from the dataclasses that read it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import textwrap
from collections.abc import Sequence
from typing import Any

from z1.ablate.study import Study, StudyTask, Variant, is_needed

EXAMPLE = """{
  "name": "rollout-plans",
  "tasks": [{"task": "metaworld/door-open", "horizon": 150, "demonstrations": 12, "sft_steps": 250},
            {"task": "metaworld/lever-pull", "horizon": 120, "policy": "runs/sft-lever"}],
  "recipe": "tiny",
  "set": {"rollout.groups": 6},
  "variants": [{"name": "flat", "set": {"rollout.plan": "flat", "rollout.prefix": 0}},
               {"name": "tree", "set": {"rollout.plan": "tree", "rollout.prefix": 6}}],
  "seeds": [0, 1, 2],
  "env_step_budget": 60000
}"""
"""A study file."""


def study_help() -> str:
    """What a study file is, for the command's help: an example and a line per key."""
    return keys_help(
        "The study file, for example:",
        EXAMPLE,
        ((Study, "Its keys"), (StudyTask, "Keys of a task"), (Variant, "Keys of a variant")),
    )


def keys_help(title: str, example: str, records: Sequence[tuple[type, str]]) -> str:
    """What a file of records is: an example and a line per key.

    Args:
        title: Line above the example.
        example: A file.
        records: Dataclasses whose fields are the keys, each with a title.
    """
    lines = [title, "", example, ""]
    for cls, title in records:
        lines.append(f"{title}:")
        texts = _texts(cls)
        for f in dataclasses.fields(cls):
            text = f"{f.name}: {texts[f.name]} {_default(f)}"
            lines.append(textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="      "))
        lines.append("")
    return "\n".join(lines).rstrip()


def _default(f: dataclasses.Field[Any]) -> str:
    """What holds if the key is left out."""
    if is_needed(f):
        return "(needed)"
    default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
    return f"(default: {json.dumps(default)})"


def _texts(cls: type) -> dict[str, str]:
    """The text below each field of a dataclass, on one line."""
    (definition,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for f, text in itertools.pairwise(definition.body):
        if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name) and isinstance(text, ast.Expr):
            texts[f.target.id] = " ".join(str(ast.literal_eval(text.value)).split()).replace("``", "")
    return texts
