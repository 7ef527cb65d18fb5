"""Pictures, and the tokenizer and processor with which a tiny random checkpoint sees them."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SPECIAL = [
    *("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"),
    *("<start_of_image>", "<image_soft_token>", "<end_of_image>"),
    *("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
]
LINES = ["\n", "\n\n", "\n\n\n", "\n\n\n\n"]
"""Gemma 3's processor joins them around a picture."""
ID = {word: index for index, word in enumerate(SPECIAL)}
PATCH = 14

PLACEHOLDER = {
    "Mistral3ForConditionalGeneration": "[IMG]",
    "Qwen2_5_VLForConditionalGeneration": "<|vision_start|><|image_pad|><|vision_end|>",
    "Qwen3VLForConditionalGeneration": "<|vision_start|><|image_pad|><|vision_end|>",
    "Gemma3ForConditionalGeneration": "<start_of_image>",
}
"""The text of a picture in a prompt, for each architecture that sees."""

_TEMPLATE = """{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}\
{% for part in message.content %}\
{% if part.type == 'image' %}PLACEHOLDER{% else %}{{ part.text }}{% endif %}\
{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def picture(seed: int, width: int = 56, height: int = 84) -> Image.Image:
    """Random stripes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 7, 1, 3), dtype=np.uint8)
    return Image.fromarray(pixels.repeat(7, axis=0).repeat(width, axis=1))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def broken_png() -> bytes:
    """A PNG whose data ends before its pixels do: Pillow raises ``SyntaxError``."""
    whole = png(picture(0))
    length = whole.index(b"IDAT") - 1
    return whole[:length] + b"\x10" + whole[length + 1 :]


def data_url(data: bytes) -> str:
    """A URL that holds a PNG, as a chat's client sends it."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def save_processor(architecture: str, folder: Path, vocabulary: int) -> None:
    """Write a tokenizer (a token for each byte), a processor and a chat template to ``folder``."""
    import transformers

    # Gemma 3's processor asks its tokenizer for these, Qwen's only if the tokenizer has them.
    own = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    }
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=_bytes(vocabulary),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=own if architecture.startswith("Gemma3") else {},
    )
    side = {"height": 8 * PATCH, "width": 8 * PATCH}
    area = {"shortest_edge": (2 * PATCH) ** 2, "longest_edge": 16 * (2 * PATCH) ** 2}
    common = {
        "tokenizer": tokenizer,
        "chat_template": _TEMPLATE.replace("PLACEHOLDER", PLACEHOLDER[architecture]),
    }
    processor: Any
    if architecture.startswith("Gemma3"):
        images = transformers.Gemma3ImageProcessor(size=side)
        processor = transformers.Gemma3Processor(images, image_seq_length=16, **common)
    elif architecture.startswith("Mistral3"):
        images = transformers.PixtralImageProcessor(
            size={"longest_edge": 8 * PATCH}, patch_size=PATCH
        )
        processor = transformers.PixtralProcessor(
            images, patch_size=PATCH, spatial_merge_size=2, **common
        )
    else:
        images = transformers.Qwen2VLImageProcessor(size=area, patch_size=PATCH)
        three = architecture.startswith("Qwen3")
        video = transformers.Qwen3VLVideoProcessor if three else transformers.Qwen2VLVideoProcessor
        cls = transformers.Qwen3VLProcessor if three else transformers.Qwen2_5_VLProcessor
        processor = cls(images, video_processor=video(patch_size=PATCH), **common)
    processor.save_pretrained(folder)


def _bytes(vocabulary: int) -> Any:
    """A tokenizer of ``SPECIAL``, ``LINES`` and the bytes, filled up to ``vocabulary`` words."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    words = [*SPECIAL, *LINES, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [f"w{index}" for index in range(len(words), vocabulary)]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in LINES])
    tokenizer.add_special_tokens([AddedToken(word, normalized=False) for word in SPECIAL])
    return tokenizer
