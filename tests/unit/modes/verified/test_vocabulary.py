"""What drafts are picked from: the list, and what the requests have said."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from river_vllm.modes.verified.draft import Draft
from river_vllm.modes.verified.vocabulary import Vocabulary

LISTED = torch.arange(100, 164)
SIZE = 2000


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary(LISTED, SIZE)


def draft(text: list[int], name: str = "a", limit: int = 4) -> Draft:
    """At the end of ``text``, whose last token the backbone has just sampled."""
    known = np.array(text[:-1], dtype=np.int32)
    return Draft(name, 0, len(known), text[-1], limit, greedy=True, rate=0.9, known=known)


def added(found: torch.Tensor | None) -> list[int]:
    """The tokens beside those of the list, which come first."""
    assert found is not None
    assert found.dtype == torch.int64
    assert torch.equal(found[: len(LISTED)], LISTED)
    own: list[int] = found[len(LISTED) :].tolist()
    return own


def test_a_requests_own_text_can_be_drafted(vocabulary: Vocabulary) -> None:
    """Its prompt from the start, its answer as it comes; each token once."""
    prompt = [1500, 120, 7, 7, 1999]
    assert added(vocabulary.tokens([draft([*prompt, 130])])) == [7, 1500, 1999]
    longer = [*prompt, 130, 8, 131, 7, 163]
    assert added(vocabulary.tokens([draft(longer)])) == [7, 8, 1500, 1999]
    # Computed again after a preemption.
    assert added(vocabulary.tokens([draft(longer[:7])])) == [7, 8, 1500, 1999]
    # A prompt may have tokens beyond the LM head.
    assert added(vocabulary.tokens([draft([7, SIZE, SIZE + 5, 130], "b")])) == [7]


def test_a_step_has_what_its_requests_have(vocabulary: Vocabulary) -> None:
    both = [draft([1, 100], "a"), draft([2, 1, 101], "b")]
    assert added(vocabulary.tokens(both)) == [1, 2]
    assert added(vocabulary.tokens([both[1], draft([3, 100], "off", limit=0)])) == [1, 2]
    vocabulary.forget(["a", "b"])
    assert added(vocabulary.tokens([draft([5, 100], "a")])) == [5]


def test_an_answer_that_leaves_the_list_has_the_whole_vocabulary(vocabulary: Vocabulary) -> None:
    """As long as it does; and with it whoever drafts beside it."""
    text, other = [1, 2, 100], draft([100, 101], "b")
    assert vocabulary.tokens([draft(text)]) is not None
    for token in range(500, 503):
        text.append(token)
        assert vocabulary.tokens([draft(text), other]) is not None
    for token in (503, 504):
        text.append(token)
        found = vocabulary.tokens([draft(text), other])
    assert found is None
    assert added(vocabulary.tokens([other])) == []
    # What it has said before it can draft again, and common tokens.
    text += [500, 501, 110] * 50
    assert added(vocabulary.tokens([draft(text), other])) == [1, 2, 500, 501, 502, 503, 504]


def test_one_token_in_fifty_outside_is_too_few(vocabulary: Vocabulary) -> None:
    text = [100]
    for index in range(40):
        text += [*[101] * 49, 200 + index]
        assert vocabulary.tokens([draft(text)]) is not None


def test_a_text_of_rare_tokens_has_the_whole_vocabulary(vocabulary: Vocabulary) -> None:
    """To read its rows would take longer than to read all in 4 bit."""
    most = (SIZE - len(LISTED)) // 8
    assert len(added(vocabulary.tokens([draft([*range(500, 500 + most), 100])]))) == most
    assert vocabulary.tokens([draft([*range(500, 501 + most), 100], "b")]) is None
