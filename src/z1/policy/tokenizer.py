"""Text to tokens: a sentencepiece model and the prompts of pi0.5."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import sentencepiece

from z1.errors import CheckpointError
from z1.policy.config import PADDED_STATE_DIM, PromptMode

logger = logging.getLogger(__name__)

PAD_ID, BOS_ID = 0, 2
STATE_BINS = 256


def digitise(state: np.ndarray) -> np.ndarray:
    """Bins of a normalised state: ``floor((s + 1) * 128)``, at most 255; values below -1 give -1.

    Args:
        state: float ``[...]``.

    Returns:
        int64 ``[...]``.

    Source: openpi ``models/tokenizer.py``.
    """
    return np.digitize(state, np.linspace(-1.0, 1.0, STATE_BINS + 1)[:-1]) - 1


def build_prompt(instruction: str, state: np.ndarray | None, mode: PromptMode) -> str:
    """The text that the network reads.

    Args:
        instruction: Language instruction.
        state: float ``[S]``, normalised; None in mode ``no_state``.
        mode: What the prompt holds, see ``ProcessorConfig.prompt``.

    Source: openpi ``models/tokenizer.py`` (PaligemmaTokenizer); LeRobot <= 0.4.4 for ``state_padded``.
    """
    text = instruction.strip().replace("_", " ").replace("\n", " ")
    if mode == "no_state":
        return text + "\n"
    assert state is not None, "a prompt with state needs the state"
    if mode == "state_padded":
        state = np.pad(state, (0, max(PADDED_STATE_DIM - len(state), 0)))
    bins = " ".join(str(number) for number in digitise(state))
    return f"Task: {text}, State: {bins};\nAction: "


class Tokenizer:
    """A sentencepiece model with Gemma's special ids: padding 0, end 1, beginning 2, unknown 3.

    Attributes:
        serialised: The model file's content.
    """

    def __init__(self, serialised: bytes, source: str = "tokenizer") -> None:
        """Reads a serialised model.

        Raises:
            CheckpointError: It is damaged or has other special ids.
        """
        self.serialised = serialised
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=serialised)
        except RuntimeError as error:
            raise CheckpointError(f"{source} is not a sentencepiece model: {error}") from None
        if not serialised or (self._model.pad_id(), self._model.bos_id()) != (PAD_ID, BOS_ID):
            raise CheckpointError(
                f"{source} must have padding id {PAD_ID} and beginning id {BOS_ID}; give a Gemma tokenizer"
            )
        self._warned = False

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Reads a ``.model`` file.

        Raises:
            CheckpointError: It is missing or damaged.
        """
        try:
            return cls(path.read_bytes(), str(path))
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None

    @classmethod
    def tiny(cls) -> Tokenizer:
        """The small tokenizer that is shipped with z1, for policies trained from scratch."""
        file = resources.files("z1.policy").joinpath("assets", "tiny_tokenizer.model")
        return cls(file.read_bytes(), "z1's own tokenizer")

    @property
    def size(self) -> int:
        """Number of pieces."""
        return int(self._model.vocab_size())

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of some prompts, each with the beginning token and without an end token.

        A line break at the end is tokenised on its own, as openpi does for prompts without state.
        """
        bodies = [prompt[:-1] if prompt.endswith("\n") else prompt for prompt in prompts]
        encoded = self._model.encode(bodies, add_bos=True, num_threads=1)
        newline = self._model.encode("\n")
        return [ids + newline if prompt.endswith("\n") else ids for ids, prompt in zip(encoded, prompts, strict=True)]

    def batch(self, prompts: Sequence[str], max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of some prompts, padded on the right to the longest of them.

        Longer ones are cut on the right, which loses the end of the prompt; the first time this is logged as a warning.

        Args:
            prompts: B prompts.
            max_tokens: Most tokens of a prompt.

        Returns:
            Ids int64 ``[B, T]`` and bool ``[B, T]``, T <= ``max_tokens``.
        """
        encoded = self.encode(prompts)
        longest = max((len(ids) for ids in encoded), default=1)
        if longest > max_tokens and not self._warned:
            prompt = max(zip(encoded, prompts, strict=True), key=lambda pair: len(pair[0]))[1]
            logger.warning(
                "a prompt has %d tokens, the policy reads %d: its end is cut off; use a policy with more max_tokens, "
                "or a shorter instruction (further warnings are left out). Prompt: %r",
                longest,
                max_tokens,
                prompt,
            )
            self._warned = True
        width = min(longest, max_tokens)
        tokens = np.full((len(prompts), width), PAD_ID, dtype=np.int64)
        mask = np.zeros((len(prompts), width), dtype=bool)
        for row, ids in enumerate(encoded):
            kept = ids[:width]
            tokens[row, : len(kept)] = kept
            mask[row, : len(kept)] = True
        return tokens, mask
