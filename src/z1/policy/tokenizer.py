"""Text to tokens: a sentencepiece model or a ``tokenizer.json``, and the prompts of pi0.5."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece

from z1.errors import CheckpointError, MissingExtraError
from z1.policy.config import PADDED_STATE_DIM, PromptMode

logger = logging.getLogger(__name__)

SENTENCEPIECE_FILE, JSON_FILE = "tokenizer.model", "tokenizer.json"

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


class _Backend(Protocol):
    """What turns text into ids."""

    @property
    def size(self) -> int:
        """Number of pieces that text can turn into."""
        ...

    @property
    def specials(self) -> tuple[int | None, int | None]:
        """Ids of padding and of the beginning."""
        ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of some texts, without special ones."""
        ...


class _Sentencepiece:
    """A sentencepiece model."""

    def __init__(self, serialised: bytes, source: str) -> None:
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=serialised)
        except RuntimeError as error:
            raise CheckpointError(f"{source} is not a sentencepiece model: {error}") from None

    @property
    def size(self) -> int:
        return int(self._model.vocab_size())

    @property
    def specials(self) -> tuple[int | None, int | None]:
        return self._model.pad_id(), self._model.bos_id()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._model.encode(list(texts), num_threads=1)


class _JsonTokenizer:
    """A ``tokenizer.json``. Names of special pieces within a text are text, as in sentencepiece."""

    def __init__(self, serialised: bytes, source: str) -> None:
        try:
            from tokenizers import Tokenizer as Model
        except ImportError:
            raise MissingExtraError(
                f'{source} needs the package tokenizers; install it: pip install "tokenizers>=0.20", '
                "or give the sentencepiece file tokenizer.model instead"
            ) from None
        try:
            self._model = Model.from_str(serialised.decode())
            self._model.encode_special_tokens = True
            self._model.no_padding()
            self._model.no_truncation()
        except Exception as error:  # the package raises bare exceptions
            raise CheckpointError(f"{source} is not a tokenizer of the tokenizers package: {error}") from None

    @property
    def size(self) -> int:
        return int(self._model.get_vocab_size(with_added_tokens=False))

    @property
    def specials(self) -> tuple[int | None, int | None]:
        return self._model.token_to_id("<pad>"), self._model.token_to_id("<bos>")

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._model.encode(text, add_special_tokens=False).ids for text in texts]


class Tokenizer:
    """Pieces with Gemma's special ids: padding 0, end 1, beginning 2, unknown 3.

    Attributes:
        serialised: The file's content: a sentencepiece model, or JSON of the tokenizers package.
        file_name: What the file is called in a folder, ``tokenizer.model`` or ``tokenizer.json``.
    """

    def __init__(self, serialised: bytes, source: str = "tokenizer") -> None:
        """Reads a serialised tokenizer.

        Raises:
            CheckpointError: It is damaged or has other special ids.
            MissingExtraError: It is JSON, and the package that reads it is not installed.
        """
        self.serialised = serialised
        is_json = serialised.lstrip()[:1] == b"{"
        self.file_name = JSON_FILE if is_json else SENTENCEPIECE_FILE
        self._backend: _Backend = (_JsonTokenizer if is_json else _Sentencepiece)(serialised, source)
        if not serialised or self._backend.specials != (PAD_ID, BOS_ID):
            raise CheckpointError(
                f"{source} must have padding id {PAD_ID} and beginning id {BOS_ID}; give a Gemma tokenizer"
            )
        self._warned = False

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Reads a ``.model`` or ``.json`` file.

        Raises:
            CheckpointError: It is missing or damaged.
            MissingExtraError: It is JSON, and the package that reads it is not installed.
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
        return self._backend.size

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of some prompts, each with the beginning token and without an end token.

        A line break at the end is tokenised on its own, as openpi does for prompts without state.
        """
        bodies = [prompt[:-1] if prompt.endswith("\n") else prompt for prompt in prompts]
        *encoded, newline = self._backend.encode([*bodies, "\n"])
        return [
            [BOS_ID, *ids, *newline] if prompt.endswith("\n") else [BOS_ID, *ids]
            for ids, prompt in zip(encoded, prompts, strict=True)
        ]

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


def stored_tokenizer(folder: Path) -> Path:
    """The tokenizer's file in a folder: ``tokenizer.model``, or ``tokenizer.json`` where there is only that."""
    only_json = (folder / JSON_FILE).is_file() and not (folder / SENTENCEPIECE_FILE).is_file()
    return folder / (JSON_FILE if only_json else SENTENCEPIECE_FILE)
