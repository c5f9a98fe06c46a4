"""Architectures small enough for a test."""

LITE = {"width": 8, "blocks": 1, "denoiser_width": 8, "denoiser_blocks": 1}
DIFFFUSR = {
    "base": 8,
    "mults": [1, 2],
    "res_blocks": 1,
    "groups": 4,
    "attention_strides": [2],
    "features": 8,
    "growth": 4,
    "encoder_blocks": 1,
    "degradation_base": 4,
}
