"""vLLM's drafter seam of model runner V2. Not run on a GPU so far; unit-tested with fakes.

vLLM's speculator for a draft model of its own (``v1/worker/gpu/spec_decode/standalone_ar``) keeps
buffers, sampling and the loop over tokens. The river needs neither its model nor its first pass,
which reads what was accepted into a second K/V cache: the target's blocks have it already, so the
first draft step is like the others, one row for each request.

It drafts K tokens always, for every request: depths by measured cost (``verify/depth.py``) would
make the host wait for the device after each token.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.forward_context import set_forward_context
from vllm.v1.worker.gpu.attn_utils import build_slot_mappings_by_layer
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor
from vllm.v1.worker.gpu.spec_decode.standalone_ar.speculator import StandaloneARSpeculator

from river_vllm.router.batch import StepBatch


class RiverSpeculator(StandaloneARSpeculator):
    """Drafts with the target model's own river, on the target's own blocks.

    vLLM names the class of its speculator, so the instance gets this one after its construction
    (``worker/gpu.py``); it has no state besides.
    """

    num_extra_query_per_req = 0

    def load_model(self, target_model: Any) -> None:
        """There is nothing to load: the draft model is the target."""
        self.model = target_model
        self.draft_attn_layer_names: set[str] = set()

    def set_attn(
        self,
        model_state: Any,
        kv_cache_config: Any,
        block_tables: Any,
        target_input_buffers: Any,
        target_attn_groups: Any,
    ) -> None:
        """Drafts are attended to by the target's layers, with metadata of their own."""
        self.model_state = model_state
        self.kv_cache_config = kv_cache_config
        self.block_tables = block_tables
        self.target_input_buffers = target_input_buffers
        self.target_attn_groups = self.attn_groups = target_attn_groups
        self._configure_decode_metadata_update()

    def measure_costs(self) -> None:
        """Nothing depends on them here."""

    def info(self) -> dict[str, Any]:
        """What drafting goes by, for operators."""
        return {"max_tokens": self.num_speculative_steps, "adaptive": False}

    def compute_draft_logits(self, hidden_states: torch.Tensor, spec_step_idx: int) -> torch.Tensor:
        with self.model.river.plan.with_head("draft_head"):
            logits: torch.Tensor = self.model.compute_logits(hidden_states)
        return logits

    def _prefill(
        self,
        input_batch: Any,
        num_rejected: torch.Tensor,
        last_sampled: torch.Tensor,
        num_reqs: int,
        skip_attn: bool,
        num_tokens_across_dp: torch.Tensor | None,
    ) -> None:
        """The first draft step: from the token that the backbone has just sampled, whose K/V the
        next verifying pass will write."""
        buffers, requests = self.input_buffers, input_batch.idx_mapping[:num_reqs]
        kept = input_batch.seq_lens[:num_reqs] - num_rejected[:num_reqs]
        positions = kept.clamp(max=self.max_model_len - 1)
        buffers.input_ids[:num_reqs].copy_(last_sampled.view(-1)[requests])
        buffers.positions[:num_reqs].copy_(positions)
        buffers.seq_lens[:num_reqs].copy_(positions + 1)
        starts = buffers.query_start_loc[: num_reqs + 1]
        starts.copy_(self.arange_gpu[: num_reqs + 1])
        # The later steps go on from here (``_multi_step_decode``).
        self.last_token_indices[:num_reqs].copy_(self.arange_gpu[:num_reqs])
        self.expanded_positions[:num_reqs].copy_(positions)
        metadata = slots = None
        if not skip_attn:
            mappings = self.block_tables.compute_slot_mappings(
                input_batch.idx_mapping, starts, buffers.positions[:num_reqs], num_reqs
            )
            slots = build_slot_mappings_by_layer(mappings, self.kv_cache_config)
            metadata = self._build_uniform_attn_metadata(
                batch_desc=BatchExecutionDescriptor(
                    cg_mode=CUDAGraphMode.NONE,
                    num_tokens=num_reqs,
                    num_reqs=num_reqs,
                    uniform_token_count=1,
                ),
                num_reqs=num_reqs,
                num_query_per_req=1,
                seq_lens_cpu_upper_bound=input_batch.seq_lens_cpu_upper_bound,
                step=1,
            )
        hidden = self._run_model(
            buffers.input_ids[:num_reqs],
            buffers.positions[:num_reqs],
            metadata,
            slots,
            num_tokens_across_dp,
        )
        self.current_draft_step.fill_(0)
        self.draft_tokens[:num_reqs, 0] = self.sample_draft(
            hidden[:num_reqs],
            buffers.positions[:num_reqs],
            self.idx_mapping[:num_reqs],
            self.temperature,
            self.seeds,
            self.current_draft_step,
            self.draft_logits,
        )

    def _run_model(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        attn_metadata: dict[str, Any] | None,
        slot_mappings: dict[str, torch.Tensor] | None,
        num_tokens_across_dp: torch.Tensor | None,
    ) -> torch.Tensor:
        rows = input_ids.shape[0]
        batch = StepBatch.forced(rows, self.model.river.config.draft_layers)
        with set_forward_context(
            attn_metadata,
            self.vllm_config,
            num_tokens=rows,
            cudagraph_runtime_mode=CUDAGraphMode.NONE,
            num_tokens_across_dp=num_tokens_across_dp,
            slot_mapping=slot_mappings,
        ):
            hidden: torch.Tensor = self.model(
                input_ids=input_ids, positions=positions, river_batch=batch
            )
        return hidden


def take_over(runner: Any) -> None:
    """Have a V2 runner that speculates draft with the river; before its model is loaded."""
    speculator = getattr(runner, "speculator", None)
    if type(speculator) is StandaloneARSpeculator:
        speculator.__class__ = RiverSpeculator
