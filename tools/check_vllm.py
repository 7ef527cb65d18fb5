#!/usr/bin/env python3
"""List what River uses of vLLM and another vLLM lacks: imports, functions, attributes.

    python tools/check_vllm.py vllm-0.33.0-….whl   a wheel: pip download --no-deps vllm==0.33.0
    python tools/check_vllm.py FOLDER              a source tree that holds the folder "vllm"

The script imports no vLLM. It reads the imports of ``river_vllm`` and ``server``, and looks for
each module and name in the other vLLM's source, then for what ``CALLED`` and ``READ`` list. Changed
behaviour needs the tests (``.github/workflows/next-vllm.yml``).

Exit status: 0 if everything is there, 1 if something is gone, 2 if there is no vLLM to read.
"""

from __future__ import annotations

import ast
import re
import sys
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("river_vllm", "server")

RUNNER = "v1/worker/gpu_model_runner.py"

CALLED = {
    RUNNER: {
        "GPUModelRunner.__init__": "vllm_config device",
        "GPUModelRunner.execute_model": "scheduler_output",
        "GPUModelRunner._model_forward": "input_ids positions inputs_embeds",
        "GPUModelRunner.sample_tokens": "grammar_output",
        "GPUModelRunner._sample": "logits spec_decode_metadata",
        "GPUModelRunner.propose_draft_token_ids": "scheduler_output sampled_token_ids",
        "GPUModelRunner.take_draft_token_ids": "",
        "GPUModelRunner._input_fits_in_drafter": "common_attn_metadata",
        "GPUModelRunner.profile_run": "",
        "GPUModelRunner._dummy_run": "num_tokens is_profile",
        "GPUModelRunner._dummy_sampler_run": "hidden_states",
    },
    "v1/worker/gpu_worker.py": {
        "Worker._make_model_runner": "",
        "Worker.load_model": "",
        "Worker.reload_weights": "",
        "Worker.compile_or_warm_up_model": "",
    },
    "v1/worker/utils.py": {"AttentionGroup.build_metadata": "common_attn_metadata"},
    "v1/core/sched/scheduler.py": {
        "Scheduler.add_request": "request",
        "Scheduler.update_from_output": "scheduler_output model_runner_output",
        "Scheduler._update_request_as_session": "session update",
        "Scheduler._handle_stopped_request": "request",
    },
    "v1/spec_decode/llm_base_proposer.py": {
        "SpecDecodeBaseProposer.load_model": "target_model",
        "SpecDecodeBaseProposer.initialize_attn_backend": "kv_cache_config kernel_block_sizes",
        "SpecDecodeBaseProposer.initialize_cudagraph_keys": "cudagraph_mode",
        "SpecDecodeBaseProposer.dummy_run": "num_tokens",
        "SpecDecodeBaseProposer.propose": "next_token_ids common_attn_metadata sampling_metadata "
        "num_rejected_tokens_gpu",
    },
    "v1/request.py": {"Request.update_block_hashes": ""},
    "v1/engine/async_llm.py": {
        "AsyncLLM.generate": "prompt sampling_params request_id",
        "AsyncLLM.shutdown": "timeout",
    },
    "v1/engine/output_processor.py": {
        "OutputProcessor.add_request": "request",
        "OutputProcessor.process_outputs": "engine_core_outputs",
    },
    "v1/engine/core_client.py": {"AsyncMPClient.get_output_async": ""},
    "v1/sample/rejection_sampler.py": {
        "expand_batch_to_tokens": "x cu_num_tokens num_tokens replace_from replace_to"
    },
    "v1/sample/thinking_budget_state.py": {"ThinkingBudgetStateHolder.sync_batch": "batch_update"},
    "sampling_params.py": {"SamplingParams._validate_spec_decode": "speculative_config"},
    "forward_context.py": {"create_forward_context": "attn_metadata vllm_config slot_mapping"},
    "compilation/decorators.py": {"_try_load_aot_compiled_fn": "model aot_compilation_path"},
    "plugins/__init__.py": {"load_endpoint_plugins": ""},
    "entrypoints/launchers/api_server/entry.py": {"run_server_worker": ""},
    "model_executor/layers/linear.py": {"LinearMethodBase.apply": "layer x bias"},
    "model_executor/layers/quantization/compressed_tensors/schemes/compressed_tensors_wNa16.py": {
        "CompressedTensorsWNA16.__init__": "strategy num_bits group_size symmetric layer_name",
        "CompressedTensorsWNA16.create_weights": "layer output_size input_size params_dtype "
        "output_partition_sizes input_size_per_partition weight_loader",
        "CompressedTensorsWNA16.apply_weights": "layer x bias",
    },
}
"""Functions of vLLM that River overrides, replaces or calls, with the arguments that it names."""

READ = {
    RUNNER: "attn_groups cache_config device discard_request_mask drafter enable_prompt_embeds "
    "input_batch input_ids max_model_len max_num_reqs max_num_tokens positions query_start_loc "
    "requests sampler supports_mm_inputs use_async_scheduling _draft_token_ids "
    "_model_runner_output",
    "v1/worker/block_table.py": "block_size block_table",
    "v1/worker/gpu_input_batch.py": "block_table generators logitsprocs num_computed_tokens_cpu "
    "num_prompt_tokens num_reqs req_ids sampling_metadata token_ids_cpu",
    "v1/spec_decode/llm_base_proposer.py": "_last_draft_probs speculative_config",
    "v1/core/sched/scheduler.py": "dynamic_sd_lookup hash_block_size max_num_running_reqs "
    "num_spec_tokens requests",
    "v1/request.py": "_block_hasher block_hashes num_computed_tokens resumable",
}
"""Attributes of vLLM's objects that River reads or sets, by the file that defines them."""


Names = tuple[tuple[str, str], ...]
"""Modules and names of which one has to be there."""


def imports(root: Path) -> dict[Names, list[str]]:
    """Places of River's imports from vLLM; ``import a.b`` has the name "".

    An import in a ``try`` and those in its ``except`` stand for one another.
    """
    found: dict[Names, list[str]] = defaultdict(list)
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        choices: dict[tuple[str, str], Names] = {}
        # Breadth first: a ``try`` comes before what it holds.
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Try):
                bodies = [node.body, *(handler.body for handler in node.handlers)]
                some = [name for body in bodies for inner in body for name in imported(inner)]
                choices |= dict.fromkeys(some, tuple(some))
            for name in imported(node):
                found[choices.get(name, (name,))].append(f"{path.relative_to(root)}:{node.lineno}")
    return found


def imported(node: Any) -> list[tuple[str, str]]:
    """Modules and names that a statement imports from vLLM."""
    if isinstance(node, ast.ImportFrom) and not node.level:
        names = [(node.module or "", alias.name) for alias in node.names]
    elif isinstance(node, ast.Import):
        names = [(alias.name, "") for alias in node.names]
    else:
        return []
    return [name for name in names if name[0].split(".")[0] == "vllm"]


def read(path: Path) -> dict[str, str]:
    """Source of vLLM's modules by file, from a wheel or a source tree.

    Raises:
        OSError: there is no vLLM in ``path``.
        zipfile.BadZipFile: ``path`` is a file and no wheel.
    """
    if path.is_dir():
        files = sorted((path / "vllm").rglob("*.py"))
        found = {str(file.relative_to(path)): file.read_text(encoding="utf-8") for file in files}
    else:
        with zipfile.ZipFile(path) as wheel:
            names = [n for n in wheel.namelist() if n.startswith("vllm/") and n.endswith(".py")]
            found = {name: wheel.read(name).decode() for name in names}
    if "vllm/__init__.py" not in found:
        raise FileNotFoundError(f"no vllm/__init__.py in {path}")
    return found


def has(files: dict[str, str], module: str, name: str) -> bool:
    """Whether ``from module import name``, or ``import module`` without a name, would work."""
    stem = module.replace(".", "/")
    file = f"{stem}/__init__.py" if f"{stem}/__init__.py" in files else f"{stem}.py"
    if file not in files:
        return False
    if not name or files.keys() & {f"{stem}/{name}.py", f"{stem}/{name}/__init__.py"}:
        return True
    package = file.rpartition("/")[0].replace("/", ".")
    waiting: list[ast.AST] = [ast.parse(files[file])]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name == name:
                return True
            continue  # names inside it are its own
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == name:
            return True
        if isinstance(node, ast.alias) and name == (node.asname or node.name):
            return True
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            star = resolve_name("." * node.level + (node.module or ""), package)
            if has(files, star, name):
                return True
        waiting.extend(ast.iter_child_nodes(node))
    return False


def homes(files: dict[str, str], name: str) -> list[str]:
    """Files that define ``name`` at their top level."""
    defined = re.compile(rf"^(?:class |def |async def )?{name}\b\s*[=:(]", re.MULTILINE)
    return [file for file, text in files.items() if defined.search(text)]


def functions(tree: ast.Module) -> dict[str, set[str]]:
    """The functions of a module by name, ``Class.method`` in classes, with their arguments."""
    found = {}
    for node in tree.body:
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for one in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = (*one.args.posonlyargs, *one.args.args, *one.args.kwonlyargs)
                found[prefix + one.name] = {argument.arg for argument in arguments}
    return found


def changes(files: dict[str, str]) -> Iterator[str]:
    """A line for each entry of ``CALLED`` and ``READ`` that is gone or lacks an argument."""
    trees = {path: ast.parse(files.get(f"vllm/{path}", "")) for path in sorted({*CALLED, *READ})}
    for path, calls in CALLED.items():
        there = functions(trees[path])
        for name, arguments in calls.items():
            lacks = sorted(set(arguments.split()) - there.get(name, set()))
            if name not in there:
                yield f"{path} {name}"
            elif lacks:
                yield f"{path} {name} without {', '.join(lacks)}"
    for path, names in READ.items():
        attributes = {n.attr for n in ast.walk(trees[path]) if isinstance(n, ast.Attribute)}
        yield from (f"{path} .{name}" for name in names.split() if name not in attributes)


def main(arguments: list[str]) -> int:
    """Command line entry."""
    try:
        (path,) = map(Path, arguments)
        files = read(path)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        print(f"error: {error}\nusage: check_vllm.py WHEEL_OR_FOLDER", file=sys.stderr)
        return 2
    used = imports(ROOT)
    gone = [names for names in used if not any(has(files, *name) for name in names)]
    for names in gone:
        module, name = names[0]
        now = homes(files, name) if name else []
        there = f", now in {', '.join(now)}" if now else ""
        print(f"gone: {f'{module} {name}'.strip()}{there} ({', '.join(used[names])})")
    changed = list(changes(files))
    for line in changed:
        print(f"changed: {line}")
    print(f"{path.name}: {len(used) - len(gone)} of {len(used)} imports are there")
    return 1 if gone or changed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
