"""Trains the small tokenizer that is shipped with z1, on sentences generated here. It always gives the same file.

    python tools/train_tiny_tokenizer.py

The flags are those of Gemma's tokenizer: BPE, digits split, bytes as fallback, text as it is, no dummy prefix.
"""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import sentencepiece

from z1.policy.config import TINY_VOCAB
from z1.policy.tokenizer import build_prompt
from z1.sims.suites import all_tasks, instruction

OUT = Path(__file__).parents[1] / "src" / "z1" / "policy" / "assets" / "tiny_tokenizer.model"

VERBS = ("open", "close", "push", "pull", "press", "turn on", "turn off", "pick up", "slide", "wipe", "move to")
OBJECTS = (
    "drawer", "left drawer", "right drawer", "cabinet", "double door", "single door", "microwave", "faucet",
    "sink faucet", "stove", "front left burner", "rear right burner", "stove knob", "coffee machine", "start button",
    "counter", "sink", "fridge", "oven", "toaster", "mug", "cup", "bowl", "plate", "pan", "pot", "lid", "kettle",
    "bottle", "can", "apple", "vegetable", "bread", "cheese", "egg", "spoon", "knife", "fork", "sponge", "towel",
    "block", "cube", "red block", "green block", "blue block", "ball", "box", "basket", "shelf", "tray", "rack",
    "window", "handle", "lever", "hammer", "nail", "peg", "ring", "hole", "wall", "stick", "gripper", "robot arm",
)  # fmt: skip
PLACES = ("on the counter", "into the sink", "in the microwave", "on the plate", "to the left", "to the right",
          "from the counter to the cabinet", "in the drawer", "on the stove", "under the coffee machine",
          "from the sink to the counter", "in front of the box", "on top of the shelf", "behind the wall")  # fmt: skip


def sentences() -> list[str]:
    """Instructions and full prompts."""
    plain = [instruction(task) for task in all_tasks()] * 8
    plain += [f"{verb} the {thing}" for verb, thing in itertools.product(VERBS, OBJECTS)]
    plain += [f"put the {thing} {place}" for thing, place in itertools.product(OBJECTS, PLACES)]
    rng = np.random.Generator(np.random.Philox(key=1))
    prompts = [
        build_prompt(text, rng.uniform(-1.0, 1.0, size=int(rng.integers(4, 10))), "state")
        for text in rng.permutation(plain)[:600].tolist()
    ]
    return plain + prompts + [text.capitalize() + "." for text in plain[:200]]


def main() -> None:
    """Writes the model file."""
    model = io.BytesIO()
    # One sentence per line break inside sentencepiece, so the prompts' own line break is given as a symbol.
    lines = [part for text in sentences() for part in text.split("\n")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=TINY_VOCAB,
        split_digits=True,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        user_defined_symbols=["\n"],
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        num_threads=1,
        minloglevel=2,
    )
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_bytes(model.getvalue())
    print(f"{OUT}: {len(model.getvalue())} bytes, {TINY_VOCAB} pieces")


if __name__ == "__main__":
    main()
