"""What the directories of LeRobot and openpi that z1 writes have in common."""

from __future__ import annotations

from pathlib import Path

from z1.files import write_json
from z1.policy.checkpoints.sizes import PUBLISHED
from z1.policy.config import PolicyConfig
from z1.policy.policy import Policy

TOKENIZER_FOLDER = "tokenizer"
CUSTOM = "custom"
"""Name of sizes that have none."""


def variants(config: PolicyConfig) -> tuple[str, str]:
    """The names of the two transformers' sizes; ``CUSTOM``, which nobody else can build, where they have none."""
    vlm = "gemma_2b" if config.vlm == PUBLISHED.vlm else CUSTOM
    return vlm, "gemma_300m" if config.expert == PUBLISHED.expert and vlm == "gemma_2b" else CUSTOM


def precision(policy: Policy) -> str:
    """The dtype of the network's matrices."""
    return str(policy.model.vlm.embedding.dtype).removeprefix("torch.")


def write_tokenizer(policy: Policy, folder: Path) -> None:
    """Writes the tokenizer as a folder that transformers' AutoTokenizer reads."""
    folder.mkdir()
    tokenizer = policy.tokenizer
    (folder / tokenizer.file_name).write_bytes(tokenizer.serialised)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "GemmaTokenizer",
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "padding_side": "right",
        },
    )
