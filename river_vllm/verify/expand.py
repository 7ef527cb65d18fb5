"""Temperature, top-k and top-p of a request for each of its drafted tokens.

A replacement for one function of vLLM 0.32, on the CPU only. Its stand-in for a Triton kernel
(``utils/cpu_triton_utils.py``, ``_expand_kernel_impl``) hands the C++ kernel a copy of its result
in int64 wherever the result has another type, and drops that copy: temperature, top-k and top-p of
sampled drafts are then whatever lay in memory, and nearly every draft is rejected.
To be removed
when ``tests/unit/verify/test_expand.py::test_vllms_own_is_still_wrong`` fails. Upstream:
https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/utils/cpu_triton_utils.py
"""

from __future__ import annotations

import torch
from vllm.v1.sample import rejection_sampler


def install() -> None:
    """Put ``expand_batch_to_tokens`` in the place of vLLM's, in this process."""
    rejection_sampler.expand_batch_to_tokens = expand_batch_to_tokens


def expand_batch_to_tokens(
    x: torch.Tensor,
    cu_num_tokens: torch.Tensor,
    num_tokens: int,
    replace_from: int = 0,
    replace_to: int = 0,
) -> torch.Tensor:
    """Each request's value once for each of its tokens.

    Args:
        x: ``[requests]``.
        cu_num_tokens: int ``[requests]``, tokens of the requests up to each.
        num_tokens: of all requests.
        replace_from: a value of ``x`` that becomes ``replace_to``.

    Returns:
        ``[num_tokens]``, of the type of ``x``.
    """
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    expanded = x.repeat_interleave(counts, output_size=num_tokens)
    return expanded.masked_fill(expanded == replace_from, replace_to)
