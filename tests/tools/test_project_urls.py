"""Links of the package's page on PyPI."""

from __future__ import annotations

from tools.project_urls import absolute

HOME, TAG = "https://example.com/river/river-vllm", "v1.2.3"


def test_links_lead_to_the_tag_and_others_stay() -> None:
    text = "[a](docs/a.md#x) ![b](docs/b.svg) [c](https://c) [d](#d) [e](mailto:e)"
    assert absolute(text, HOME, TAG) == (
        f"[a]({HOME}/blob/{TAG}/docs/a.md#x) ![b]({HOME}/raw/{TAG}/docs/b.svg) "
        "[c](https://c) [d](#d) [e](mailto:e)"
    )
