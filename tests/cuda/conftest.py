"""vLLM's configuration and process group, as for the unit tests."""

from tests.unit.conftest import _variables_are_read_anew, vllm_world, warnings  # noqa: F401
