"""Architectures that vLLM serves and River refuses by name, with the reason."""

from __future__ import annotations

EXPERTS = "mixture of experts: experts are no linear projections that every token runs"
HYBRID = "state-space or convolution layers: they have no K/V that an exit river could write"
LATENT = "latent attention: its K/V come out of projections of another shape"
LAYERS = "its decoder layers are of another shape"

_REASONS: dict[str, tuple[str, ...]] = {
    EXPERTS: (
        "AfmoeForCausalLM",
        "BailingMoeForCausalLM",
        "BailingMoeV2ForCausalLM",
        "Cohere2MoeForCausalLM",
        "DbrxForCausalLM",
        "DeepseekForCausalLM",
        "DeepseekV2ForCausalLM",
        "DeepseekV3ForCausalLM",
        "DeepseekV32ForCausalLM",
        "DeepseekV4ForCausalLM",
        "Ernie4_5_MoeForCausalLM",
        "ExaoneMoeForCausalLM",
        "ExaoneMoEForCausalLM",
        "FlexOlmoForCausalLM",
        "Glm4MoeForCausalLM",
        "Glm4MoeLiteForCausalLM",
        "GlmMoeDsaForCausalLM",
        "GptOssForCausalLM",
        "GraniteMoeForCausalLM",
        "GraniteMoeSharedForCausalLM",
        "GraniteMoeSWAForCausalLM",
        "HunYuanMoEV1ForCausalLM",
        "HYV3ForCausalLM",
        "LagunaForCausalLM",
        "Llama4ForCausalLM",
        "Llama4ForConditionalGeneration",
        "LongcatFlashForCausalLM",
        "MellumForCausalLM",
        "MiMoV2FlashForCausalLM",
        "MiniMaxM2ForCausalLM",
        "MistralLarge3ForCausalLM",
        "MixtralForCausalLM",
        "OlmoeForCausalLM",
        "PanguProMoEV2ForCausalLM",
        "PanguUltraMoEForCausalLM",
        "Param2MoEForCausalLM",
        "PhiMoEForCausalLM",
        "Qwen2MoeForCausalLM",
        "Qwen3MoeForCausalLM",
        "SarvamMoEForCausalLM",
        "Step3TextForCausalLM",
    ),
    HYBRID: (
        "BailingMoeV2_5ForCausalLM",
        "BailingMoeV3ForCausalLM",
        "FalconH1ForCausalLM",
        "FalconMambaForCausalLM",
        "GraniteMoeHybridForCausalLM",
        "JambaForCausalLM",
        "KimiLinearForCausalLM",
        "Lfm2ForCausalLM",
        "Lfm2MoeForCausalLM",
        "Mamba2ForCausalLM",
        "MambaForCausalLM",
        "NemotronHForCausalLM",
        "OlmoHybridForCausalLM",
        "Qwen3NextForCausalLM",
        "Qwen3_5ForCausalLM",
        "Qwen3_5MoeForCausalLM",
        "Zamba2ForCausalLM",
    ),
    LATENT: ("MiniCPM3ForCausalLM",),
    LAYERS: (
        "DeciLMForCausalLM",
        "Gemma3nForCausalLM",
        "Gemma4ForCausalLM",
        "HrmTextForCausalLM",
        "IQuestLoopCoderForCausalLM",
        "WhisperForConditionalGeneration",
    ),
}

REFUSED: dict[str, str] = {
    architecture: reason for reason, names in _REASONS.items() for architecture in names
}
