"""A stock vLLM engine whose worker records Hessians of its projections and quantises them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from river_vllm.model.architectures import river_architecture
from river_vllm.plugin import checkpoint_architecture

EXTENSION = "river_vllm.engine.quantize.QuantizeExtension"
GIB = 2**30


class QuantizingEngine:
    """vLLM's ``LLM`` in this process, not compiled, so that hooks on its modules run.

    Raises:
        RiverError: the model cannot be read, or River does not carry its architecture.
    """

    def __init__(
        self, model: str, revision: str | None, max_model_len: int, kv_cache_gib: float
    ) -> None:
        from vllm import LLM

        options: dict[str, Any] = {} if revision is None else {"revision": revision}
        river_architecture(*checkpoint_architecture(model, options))
        self.llm = LLM(
            model,
            worker_extension_cls=EXTENSION,
            enforce_eager=True,
            # Every pass over the text must compute all of it.
            enable_prefix_caching=False,
            max_model_len=max_model_len,
            max_num_seqs=64,
            max_num_batched_tokens=2048,
            kv_cache_memory_bytes=int(kv_cache_gib * GIB),
            disable_log_stats=True,
            seed=0,
            **options,
        )
        self._folder = checkpoint_folder(model, revision)

    def answers(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """The model's own greedy answers, ``tokens`` long at most."""
        return self._generate(prompts, tokens) if tokens else [[] for _ in prompts]

    def quantize(
        self,
        texts: Sequence[Sequence[int]],
        out: Path,
        group_size: int,
        integer_zeros: bool,
        hessian_gib: float,
    ) -> Iterator[dict[str, Any]]:
        """Write every decoder layer's weights to ``out``; yields the report of each layer.

        One pass over the texts serves as many layers as ``hessian_gib`` has room for.
        """
        settings = (str(self._folder), str(out), group_size, integer_zeros)
        for layers in _batches(self._call("river_hessian_bytes"), hessian_gib * GIB):
            self._call("river_record_hessians", layers)
            self._generate(texts, 1)
            for layer in layers:
                yield self._call("river_quantize_layer", layer, *settings)

    def _generate(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        from vllm import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=tokens, detokenize=False)
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self.llm.generate(inputs, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def _call(self, method: str, *args: Any) -> Any:
        return self.llm.collective_rpc(method, args=args)[0]


def checkpoint_folder(model: str, revision: str | None) -> Path:
    """The folder of a checkpoint's files, once an engine has loaded it."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, revision=revision, local_files_only=True))


def _batches(sizes: Sequence[int], limit: float) -> list[list[int]]:
    """Runs of indices whose sizes add up to ``limit`` at most; a larger one is alone."""
    batches: list[list[int]] = []
    room = 0.0
    for index, size in enumerate(sizes):
        if not batches or size > room:
            batches.append([])
            room = limit
        batches[-1].append(index)
        room -= size
    return batches
