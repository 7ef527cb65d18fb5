"""Runs every forward pass of a model with a river, by ``Forward.run``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from torch import nn

from river_vllm.compat import (
    CommonAttentionMetadata,
    LinearBase,
    create_forward_context,
    override_forward_context,
)
from river_vllm.errors import UnsupportedModelError
from river_vllm.model.compiled import RoutedForward
from river_vllm.model.graphs import PassGraphs, capturable
from river_vllm.model.head import RiverHeadMethod, lm_head
from river_vllm.model.residency import Residency
from river_vllm.model.rounding import SIZES, Alike, common
from river_vllm.step.router import Router
from river_vllm.step.table import (
    Current,
    Dense,
    Head,
    Pass,
    Path,
    Rows,
    Span,
    StepTable,
    strided_as,
)


class Observer(Protocol):
    """Looks at passes from outside, as a calibration does."""

    def similarity(self, layers_run: int, values: torch.Tensor) -> None:
        """Similarities of the active rows after ``layers_run`` layers, float32 ``[rows]``."""

    def ran(self, done: Pass, hidden: torch.Tensor) -> None:
        """A pass is over; ``hidden`` is ``[rows, hidden]``."""


class River:
    """Decides for a model's decoder layers, during a pass, which rows run in which precision.

    A river is no module, so the model's module tree stays as it was. ``linears`` holds the
    projections of each decoder layer, ``dense`` is a bf16 product of River's own.
    """

    def __init__(
        self,
        current: Current,
        router: Router,
        routed: RoutedForward,
        residency: Residency,
        linears: Sequence[Sequence[LinearBase]],
        dense: Dense | None = None,
    ) -> None:
        self.num_layers = residency.num_layers
        self.current = current
        self.router = router
        self.routed = routed
        self.residency = residency
        self.observer: Observer | None = None
        self._linears = linears
        self._dense = dense
        # Warm-up and dummy runs fetch no weights.
        current.idle.table.limit = residency.resident

    def agreed(self, values: torch.Tensor) -> torch.Tensor:
        """The values that all tensor-parallel ranks decide by."""
        return self.router.agreed(values)

    def rest(self) -> None:
        """End the pass under way, its logits too."""
        self.current.due = self.current.idle

    def alike(self) -> Alike:
        """With how many rows vLLM's products give a row the same bits. One layer is taken for
        all."""
        return common([linear.quant_method.alike(linear) for linear in self._linears[0]])

    def route(self, index: int, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        """Decide the precision of each row in layer ``index``; both tensors ``[rows, hidden]``."""
        table = self.current.due.table
        if index == 0:
            table.path = Path.BACKBONE
        values = self.router.decide(table, index, hidden, residual)
        if values is not None and self.observer is not None:
            self.observer.similarity(index, values)
        if index >= self.residency.resident and table.path is not Path.RIVER:
            self.residency.need(index)

    def route_next(self, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        """``route`` for the next layer of a compiled pass."""
        self.routed.layer += 1
        self.route(self.routed.layer, hidden, residual)

    def linear(self, index: int, x: torch.Tensor, biased: bool) -> torch.Tensor:
        """The product of ``x`` and projection ``index`` of a compiled pass's current layer;
        ``biased``: the projection adds its bias itself."""
        linear: Any = self._linears[self.routed.layer][index]
        return linear.quant_method.product(linear, x, linear.bias if biased else None)

    @cached_property
    def dense(self) -> Dense | None:
        """River's own bf16 product, for passes that need not have stock vLLM's bits.

        None if vLLM has a product for several rows at once: it then keeps packed weights instead of
        plain ones (``layers/utils.py``, ``dispatch_cpu_unquantized_gemm``).
        """
        held = (linear for layer in self._linears[: self.residency.resident] for linear in layer)
        plain = all(linear.quant_method.plain_weight(linear) is not None for linear in held)
        return self._dense if plain else None


@dataclass(frozen=True, slots=True)
class StateArguments:
    """The residual stream's places among the arguments of a decoder layer's ``forward``."""

    hidden: int
    residual: int | None

    def read(
        self, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The layer's hidden states and, where the model has one, its residual, ``[rows, hidden]``.

        vLLM's Transformers backend runs all rows as one sequence, ``[1, rows, hidden]``.
        """
        hidden = args[self.hidden] if self.hidden < len(args) else kwargs["hidden_states"]
        hidden = hidden.flatten(0, -2)
        if self.residual is None:
            return hidden, None
        if self.residual < len(args):
            return hidden, args[self.residual]
        return hidden, kwargs.get("residual")

    def replace(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], hidden: torch.Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The layer's arguments with other hidden states, ``[rows, hidden]``."""
        if self.hidden < len(args):
            before, behind = args[: self.hidden], args[self.hidden + 1 :]
            return (*before, hidden.view_as(args[self.hidden]), *behind), kwargs
        return args, {**kwargs, "hidden_states": hidden.view_as(kwargs["hidden_states"])}


def state_arguments(layer: nn.Module, stale_residual: bool = False) -> StateArguments:
    """The places of hidden states and residual among the arguments of ``layer.forward``.

    A ``stale_residual`` is an argument of that name that is no part of the state that is read.

    Raises:
        UnsupportedModelError: it has no argument ``hidden_states``.
    """
    names = list(inspect.signature(layer.forward).parameters)
    if "hidden_states" not in names:
        raise UnsupportedModelError(
            f"{type(layer).__name__}.forward takes no 'hidden_states' (it takes {names})"
        )
    live = "residual" in names and not stale_residual
    residual = names.index("residual") if live else None
    return StateArguments(names.index("hidden_states"), residual)


class Decision:
    """Pre-hook of decoder layer ``depth``: decides which rows run it in which precision.

    While traced, it reads nothing that differs between layers, so one trace serves all of them.
    """

    def __init__(self, river: River, depth: int, arguments: StateArguments) -> None:
        self._river = river
        self._depth = depth
        self._arguments = arguments

    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not torch.compiler.is_compiling():
            self._river.route(self._depth, *self._arguments.read(args, kwargs))
            return None
        if not self._river.current.routed:
            return None
        hidden, residual = self._arguments.read(args, kwargs)
        return self._arguments.replace(args, kwargs, torch.ops.river.route(hidden, residual))


class Forward:
    """Runs passes of the model of ``runner``, a V1 runner of vLLM's."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._model = runner.get_model()
        self.river: River = self._model.river
        self.graphs: PassGraphs | None = None
        """CUDA graphs of routed passes; None where there are none."""
        if capturable(runner) and not self.river.residency.offloads:
            self.graphs = PassGraphs(self._routed, int(runner.max_model_len))

    def alike(self) -> Alike | None:
        """With how many rows layers and LM head give a verified row the same bits, on all ranks;
        None where River does not know the LM head."""
        head: Any = lm_head(self._model)
        if not isinstance(getattr(head, "quant_method", None), RiverHeadMethod):
            return None
        if self.river.dense is not None:
            # Its rows do not depend on each other, and it serves the LM head too.
            return Alike(1, SIZES[-1])
        with torch.inference_mode():
            found = common([self.river.alike(), head.quant_method.alike(head)])
        return Alike(*map(int, self.river.agreed(torch.tensor(found, dtype=torch.float)).tolist()))

    def run(self, due: Pass) -> torch.Tensor:
        """Run a pass, in the forward that it needs.

        If no row may leave, vLLM's own forward runs, as in stock vLLM. The routed forward runs if
        all rows may leave, if nothing is compiled, or if River's own bf16 product serves the pass.
        Otherwise both run. A compiled forward with stock's bits cannot branch, so vLLM's runs all
        rows, and rows that may leave run again in the routed one, over their own K/V slots.

        Returns:
            ``[rows, hidden]``; the table holds the depth of each row.
        """
        river, table = self.river, due.table
        free = table.free
        due.dense = None if due.exact else river.dense
        river.current.due = due
        if due.dense is None and not free.any() and not river.residency.offloads:
            hidden = self._call(due, self._runner.model)
            table.close()
        elif due.dense is not None or free.all() or not river.routed.within_compiled:
            graphs = self.graphs if river.observer is None else None
            hidden = self._routed(due) if graphs is None else graphs.run(due)
            river.current.due = due  # a capture has a pass of its own
        else:
            river.rest()
            pictures = self._picture_states(table.num_rows)
            hidden = self._call(due, self._runner.model)
            groups, part = due.leaving_part()
            if pictures is not None:
                self._model._set_deepstack_input_embeds(pictures[:, table.rows_of(groups)])
            hidden[table.rows_of(groups)] = self._routed(part)
            river.current.due = due
            table.close()
            table.exit_layer[groups] = part.table.exit_layer
        if river.observer is not None:
            river.observer.ran(due, hidden)
        return hidden

    def logits(self, due: Pass) -> torch.Tensor:
        """Run a pass of River's own and make the logits of each row, ``[rows, vocabulary]``."""
        logits = self._model.compute_logits(self.run(due))
        self.river.rest()
        return logits

    def decode(
        self,
        spans: Sequence[Span],
        tokens: torch.Tensor,
        layers: int,
        head: Head,
        *,
        exact: bool = True,
    ) -> Pass:
        """A pass of River's own over tokens that all leave after ``layers`` backbone layers.

        ``tokens`` are integers ``[rows]``; the K/V slots of ``spans`` are allocated.
        """
        runner, river = self._runner, self.river
        owners = [span.request for span in spans for _ in range(span.rows)]
        table = StepTable.forced(river.num_layers, owners, layers, tokens.device)
        rows = Rows.of(spans, runner.device)
        # vLLM's compiled forward checks no types: it would read other integers as int32.
        positions = self._rotary_positions(spans, rows.positions).to(runner.positions.dtype)
        inputs = {
            "input_ids": tokens.to(runner.input_ids.gpu.dtype),
            "positions": positions,
            "intermediate_tensors": None,  # as vLLM's runner: some models have no default
        }
        return Pass(table, spans, inputs, head=head, exact=exact, rows=rows)

    def following(self, due: Pass, tokens: torch.Tensor) -> Pass:
        """The pass over the ``tokens`` that a draft pass of one row a request has found.

        It is made in device memory: the host neither knows them nor waits.
        """
        assert due.rows is not None
        positions = due.inputs["positions"]
        inputs = {
            **due.inputs,
            "input_ids": tokens.to(due.inputs["input_ids"].dtype),
            "positions": strided_as(positions, positions + 1),
        }
        spans = [span._replace(start=span.start + 1) for span in due.spans]
        owners = [span.request for span in spans]
        table = StepTable.forced(self.river.num_layers, owners, 0, tokens.device)
        return Pass(table, spans, inputs, head=due.head, exact=due.exact, rows=due.rows.next())

    def idle(self, rows: int, layers: int, head: Head, *, exact: bool = True) -> Pass:
        """A pass on no request; it writes to vLLM's null block."""
        tokens = torch.zeros(rows, dtype=torch.int64, device=self._runner.device)
        # No more requests than a batch has: for so many a GPU's attention has buffers.
        requests = min(rows, int(self._runner.max_num_reqs))
        shares = [rows // requests + (i < rows % requests) for i in range(requests)]
        return self.decode([Span(0, 0, n) for n in shares], tokens, layers, head, exact=exact)

    def _embedded(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A pass's arguments with its tokens as vLLM feeds them to its model
        (``v1/worker/gpu_model_runner.py``, ``_preprocess``): the compiled forward was traced so.
        A part of a step has been embedded."""
        runner, model = self._runner, self._model
        embeds = runner.supports_mm_inputs or runner.enable_prompt_embeds
        if not embeds or "inputs_embeds" in inputs:
            return inputs
        tokens = inputs["input_ids"]
        raw = runner.supports_mm_inputs and model.requires_raw_input_tokens
        embeddings = model.embed_input_ids(tokens)
        return {**inputs, "input_ids": tokens if raw else None, "inputs_embeds": embeddings}

    def _adapt(self, spans: Sequence[Span]) -> None:
        """Have vLLM's LoRA layers apply to each row of a pass the adapter of its request.

        They keep to it until the next pass: logits have adapters too. The step has loaded the
        adapters of its requests. Where vLLM serves adapters River compiles nothing, so no step
        has a part that runs again.
        """
        runner = self._runner
        if runner.lora_config is None:
            return
        places = [span.request for span in spans for _ in range(span.rows)]
        adapters = tuple(runner.input_batch.request_lora_mapping[places].tolist())
        runner._set_active_loras(adapters, adapters, set())

    def _rotary_positions(self, spans: Sequence[Span], positions: torch.Tensor) -> torch.Tensor:
        """The positions of generated tokens as vLLM's model takes them, int64 ``[rows]``; with
        M-RoPE ``[3, rows]``, where a picture takes fewer positions than tokens."""
        runner = self._runner
        if not runner.uses_mrope:
            return positions
        ids, states = runner.input_batch.req_ids, runner.requests
        # A pass that is only timed has no request.
        deltas = [states[ids[s.request]].mrope_position_delta if ids else 0 for s in spans]
        rows = torch.tensor([s.rows for s in spans])
        by_row = torch.tensor(deltas).repeat_interleave(rows, output_size=len(positions))
        held = runner.mrope_positions.gpu
        return strided_as(held, (positions + by_row.to(runner.device)).expand(len(held), -1))

    def _picture_states(self, rows: int) -> torch.Tensor | None:
        """States that Qwen3-VL adds to its first layers for pictures, ``[layers, rows, hidden]``;
        None for a pass without pictures. The model's forward reads them from a buffer and clears
        the buffer."""
        if not getattr(self._model, "deepstack_input_embeds_num_tokens", 0):
            return None
        return torch.stack([layer[:rows] for layer in self._model.deepstack_input_embeds])

    def _routed(self, due: Pass) -> torch.Tensor:
        self.river.current.due = due
        due.table.limit = self.river.residency.limit
        hidden = self._call(due, self._model, self.river.routed)
        due.table.close()
        return hidden

    def _call(
        self, due: Pass, model: Any, kind: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> torch.Tensor:
        """Call ``model`` in the forward context of a pass and, inside it, that of a ``kind``."""
        if due.in_step:
            with kind():
                return model(**due.inputs)
        self._adapt(due.spans)
        with self._context(due), kind():
            return model(**self._embedded(due.inputs))

    @contextmanager
    def _context(self, due: Pass) -> Iterator[None]:
        """vLLM's forward context for rows that are not the step's."""
        runner, spans = self._runner, due.spans
        rows = due.rows or Rows.of(spans, runner.device)
        counts = torch.tensor([span.rows for span in spans], dtype=torch.int32)
        starts = torch.zeros(len(spans) + 1, dtype=torch.int32)
        torch.cumsum(counts, dim=0, out=starts[1:])
        lengths = torch.tensor([span.start + span.rows for span in spans], dtype=torch.int32)
        common = partial(
            CommonAttentionMetadata,
            query_start_loc=rows.starts,
            query_start_loc_cpu=starts,
            seq_lens=rows.lengths,
            seq_lens_cpu_upper_bound=lengths,  # exact; FlexAttention has to have it
            num_reqs=len(spans),
            num_actual_tokens=len(rows.positions),
            max_query_len=max(span.rows for span in spans),
            max_seq_len=max(span.start + span.rows for span in spans),
            causal=True,
        )
        metadata: dict[str, Any] = {}
        slots: dict[str, torch.Tensor] = {}
        for kind, groups in enumerate(runner.attn_groups):
            block_table = runner.input_batch.block_table[kind]
            blocks = block_table.block_table.gpu[rows.requests]
            size = block_table.block_size
            of_rows = blocks[rows.owners, rows.positions // size]
            places = of_rows.long() * size + rows.positions % size
            inputs = common(block_table_tensor=blocks, slot_mapping=places)
            for group in groups:
                built = group.build_metadata(inputs)
                metadata |= dict.fromkeys(group.layer_names, built)
                slots |= dict.fromkeys(group.layer_names, places)
        context = create_forward_context(metadata, runner.vllm_config, slot_mapping=slots)
        with override_forward_context(context):
            yield
