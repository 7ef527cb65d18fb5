"""Which tokens a model really uses: all that the LM head of its drafts has to rank.

A model says a fraction of its vocabulary, so a draft can be picked from the tokens that it says
often (Zhao et al., "FR-Spec", 2025). Here they are counted on its own answers. ``vocabulary.py``
adds the tokens of a request's own text.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from river_vllm.config import RiverConfig
from river_vllm.errors import RiverError
from river_vllm.guarantee import ModelRecord
from river_vllm.weights.cache import weights_folder
from river_vllm.weights.fingerprint import served_checkpoint

FILE_NAME = "draft-tokens.json"
"""In a folder of 4-bit weights."""
COVERAGE = 0.995
"""Share of an answer's tokens that are to be in the list, or earlier in the answer's own text."""
MULTIPLE = 64
"""Of tokens in a list: every 4-bit kernel takes as many outputs."""
LARGEST = 0.5
"""Share of the vocabulary above which a list is not worth a second LM head."""

Ids: TypeAlias = npt.NDArray[np.int64]
Text: TypeAlias = tuple[Sequence[int], Sequence[int]]
"""The tokens of a prompt and of the model's answer to it."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class CountedRecord(_Part):
    """What a list was counted on.

    Attributes:
        prompts: where they are from, and whose answers they got where there are several models.
        answers, tokens: how many answers, and how many tokens they have together.
        coverage: share of the answer tokens that were in the list or earlier in their own text; of
            every other answer, with a list of the same size that had been counted on the rest.
    """

    prompts: str
    answers: int
    tokens: int
    coverage: float


class TokenList(_Part):
    """A list, as it is written (JSON).

    Attributes:
        models: the checkpoints that it is for, which share a tokenizer.
        vocabulary: of their LM head.
        tokens: how many are listed.
        bits: base64 of a bit for each token of the vocabulary, the lowest bit of a byte first.
    """

    format: Literal["river-tokens-1"] = "river-tokens-1"
    models: Annotated[tuple[ModelRecord, ...], Field(strict=False)]
    vocabulary: int = Field(gt=0)
    tokens: int = Field(gt=0, multiple_of=MULTIPLE)
    counted: CountedRecord
    bits: str

    @model_validator(mode="after")
    def _complete(self) -> Self:
        try:
            size = len(base64.b64decode(self.bits, validate=True))
        except binascii.Error as error:
            raise ValueError(f"'bits': {error}") from None
        if size != -(-self.vocabulary // 8) or len(self.ids) != self.tokens:
            raise ValueError(f"'bits' are not {self.tokens} of {self.vocabulary} tokens")
        return self

    @classmethod
    def of(
        cls, ids: Ids, vocabulary: int, models: Iterable[ModelRecord], counted: CountedRecord
    ) -> TokenList:
        """A list of ``ids``."""
        flags = np.zeros(vocabulary, dtype=np.bool_)
        flags[ids] = True
        bits = base64.b64encode(np.packbits(flags, bitorder="little").tobytes()).decode()
        return cls(
            models=tuple(models), vocabulary=vocabulary, tokens=len(ids), counted=counted, bits=bits
        )

    @property
    def ids(self) -> Ids:
        """The tokens, ascending."""
        data = np.frombuffer(base64.b64decode(self.bits), dtype=np.uint8)
        flags = np.unpackbits(data, count=self.vocabulary, bitorder="little")
        return np.flatnonzero(flags).astype(np.int64)

    def write(self, file: Path) -> None:
        """As ``read`` takes it."""
        text = self.model_dump_json(indent=1, exclude_none=True)
        file.write_text(text + "\n", encoding="utf-8")


def read(file: Path) -> TokenList:
    """A list that was written.

    Raises:
        RiverError: it cannot be read, or is none.
    """
    try:
        return TokenList.model_validate_json(file.read_bytes())
    except OSError as error:
        raise RiverError(f"token list '{file}': {error.strerror or error}") from None
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise RiverError(f"token list '{file}': {reason} (without it every token counts)") from None


def shipped() -> list[Path]:
    """The files; each names the checkpoints that it was counted on."""
    return sorted((Path(__file__).parent / "token_lists").glob("*.json"))


def list_for(config: RiverConfig, model_config: Any) -> TokenList | None:
    """The list of an engine's drafts: the one in its folder of 4-bit weights, as ``river-vllm
    quantize`` writes it, or one that is shipped for the checkpoint, which is known by the hashes of
    its configuration and weights.

    Args:
        model_config: vLLM's.

    Raises:
        RiverError: a list is damaged, or of a model with another vocabulary.
    """
    folder = weights_folder(config, model_config.model)
    if folder is not None and (folder / FILE_NAME).exists():
        found, vocabulary = read(folder / FILE_NAME), model_config.get_vocab_size()
        if found.vocabulary != vocabulary:
            raise RiverError(
                f"token list '{folder / FILE_NAME}' is of {found.vocabulary} tokens, the model has "
                f"{vocabulary}; remove it, or make it again with 'river-vllm quantize'"
            )
        return found
    served = served_checkpoint(model_config)
    known = map(read, shipped())
    return next((one for one in known if any(m.proves(served) for m in one.models)), None)


def tokens_of_drafts(config: RiverConfig, vllm_config: Any) -> torch.Tensor | None:
    """The tokens that an engine's drafts are picked from, int64; None where no list names any."""
    found = list_for(config, vllm_config.model_config)
    if found is None:
        return None
    return torch.from_numpy(found.ids).to(vllm_config.device_config.device)


def counted(
    texts: Sequence[Text],
    vocabulary: int,
    always: Iterable[int],
    models: Iterable[ModelRecord],
    prompts: str,
    ordinary: Ids | None = None,
) -> TokenList | None:
    """The list that answers amount to (``choose``); None where they are too few.

    Args:
        models: that the list is for.
        prompts: where they are from, for people.
    """
    found = choose(texts, vocabulary, always, ordinary)
    if found is None:
        return None
    ids, coverage = found
    record = CountedRecord(
        prompts=prompts,
        answers=len(texts),
        tokens=sum(len(answer) for _, answer in texts),
        coverage=round(coverage, 4),
    )
    return TokenList.of(ids, vocabulary, models, record)


def choose(
    texts: Sequence[Text],
    vocabulary: int,
    always: Iterable[int] = (),
    ordinary: Ids | None = None,
) -> tuple[Ids, float] | None:
    """The shortest list that covers ``COVERAGE`` of answers that were not counted.

    Tokens are ranked by how often the answers have them, then by ``ordinary``, then by their
    number, since tokenizers that merge give frequent ones the lower numbers. The size is found with
    half of the answers counted and the other half covered, and taken of the order of them all.

    Args:
        always: listed in any case: what a tokenizer has beside its text.
        ordinary: how often other text has each token of the vocabulary.

    Returns:
        The tokens, ascending, and the share that was covered; None where it would take more than
        ``LARGEST`` of the vocabulary, as with too few answers.
    """
    first = list(always)
    known, others = texts[::2], texts[1::2]
    place = np.empty(vocabulary, dtype=np.int64)
    place[_ranked(known, vocabulary, first, ordinary)] = np.arange(vocabulary)
    total = sum(len(answer) for _, answer in others)
    new = [token for text in others for token in _new_tokens(text)]
    found = np.sort(place[np.array(new, dtype=np.int64)])
    misses = int((1 - COVERAGE) * total)
    needed = int(found[-1 - misses]) + 1 if misses < len(found) else 1
    size = -(-max(needed, len(first)) // MULTIPLE) * MULTIPLE
    if not total or size > LARGEST * vocabulary:
        return None
    covered = 1 - int((found >= size).sum()) / total
    return np.sort(_ranked(texts, vocabulary, first, ordinary)[:size]), covered


def _ranked(texts: Sequence[Text], vocabulary: int, first: list[int], ordinary: Ids | None) -> Ids:
    """Every token: ``first``, then by how often the answers have it, and so on (``choose``)."""
    counts = np.zeros(vocabulary, dtype=np.int64)
    for _, answer in texts:
        np.add.at(counts, np.asarray(answer, dtype=np.int64), 1)
    counts[first] = np.iinfo(np.int64).max
    others = np.zeros_like(counts) if ordinary is None else ordinary
    return np.lexsort((-others, -counts))


def _new_tokens(text: Text) -> list[int]:
    """The answer's tokens that stand nowhere before in the text."""
    prompt, answer = text
    seen, found = set(prompt), []
    for token in answer:
        if token not in seen:
            seen.add(token)
            found.append(token)
    return found
