"""Named model sizes: `model.preset` in a recipe names one of these functions.

A preset fixes the shapes of the parts; TransV, weights and tokenizer are the recipe's.
"""

from __future__ import annotations

from collections.abc import Callable

from timeviper.config.model import DecoderConfig, ModelConfig, TowerConfig


def tiny() -> ModelConfig:
    """About 1.5 M parameters: the whole architecture at a size that a laptop CPU trains in minutes."""
    tower = TowerConfig(
        family="vit",
        image_size=32,
        patch_size=8,
        width=96,
        layers=2,
        heads=4,
        mlp_width=192,
        feature_layer=-1,
        tokens=4,
    )
    decoder = DecoderConfig(
        layout="M-M*-M-M*-",
        vocab_size=1792,
        width=128,
        mlp_width=384,
        heads=4,
        kv_heads=2,
        head_dim=32,
        ssm_heads=4,
        ssm_head_dim=32,
        ssm_state=32,
        ssm_groups=2,
        conv_kernel=4,
        chunk_size=64,
        tie_embeddings=True,
        max_tokens=16384,
    )
    return ModelConfig(preset="tiny", towers={"main": tower}, decoder=decoder)


def siglip_so400m() -> TowerConfig:
    """SigLIP so400m at 384 pixels: 27 x 27 patches of 14 pixels, merged to 16 tokens a frame."""
    return TowerConfig(
        family="siglip",
        image_size=384,
        patch_size=14,
        width=1152,
        layers=27,
        heads=16,
        mlp_width=4304,
        feature_layer=-2,
        tokens=16,
    )


def nano9b() -> ModelConfig:
    """Nemotron-Nano-9B-v2 with SigLIP: the published model. 27 Mamba-2, 25 MLP and 4 attention blocks."""
    decoder = DecoderConfig(
        layout="M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-",
        width=4480,
        mlp_width=15680,
        heads=40,
        ssm_heads=128,
        ssm_head_dim=80,
    )
    return ModelConfig(preset="nano9b", towers={"main": siglip_so400m()}, decoder=decoder)


def nano12b() -> ModelConfig:
    """Nemotron-Nano-12B-v2 with SigLIP: 28 Mamba-2, 28 MLP and 6 attention blocks."""
    decoder = DecoderConfig(
        layout="M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M-",
        width=5120,
        mlp_width=20480,
        heads=40,
        ssm_heads=128,
        ssm_head_dim=80,
    )
    return ModelConfig(preset="nano12b", towers={"main": siglip_so400m()}, decoder=decoder)


def nemotron_h_8b() -> ModelConfig:
    """Nemotron-H-8B-Base-8K with SigLIP: 24 Mamba-2, 24 MLP and 4 attention blocks."""
    decoder = DecoderConfig(
        layout="M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
        width=4096,
        mlp_width=21504,
        heads=32,
        ssm_heads=128,
        ssm_head_dim=64,
        chunk_size=256,
        max_tokens=8192,
    )
    return ModelConfig(preset="nemotron_h_8b", towers={"main": siglip_so400m()}, decoder=decoder)


def qwen25_7b() -> ModelConfig:
    """Qwen2.5-7B with SigLIP: the transformer that the paper compares with, under the same recipe."""
    decoder = DecoderConfig(
        family="qwen2",
        layout="*-" * 28,
        vocab_size=152064,
        width=3584,
        mlp_width=18944,
        heads=28,
        kv_heads=4,
        head_dim=128,
        norm_eps=1e-6,
        rope_theta=1e6,
        max_tokens=32768,
    )
    return ModelConfig(preset="qwen25_7b", towers={"main": siglip_so400m()}, decoder=decoder)


def smollm2_135m() -> ModelConfig:
    """SmolLM2-135M with SigLIP: the smallest pretrained control."""
    decoder = DecoderConfig(
        family="llama",
        layout="*-" * 30,
        vocab_size=49152,
        width=576,
        mlp_width=1536,
        heads=9,
        kv_heads=3,
        head_dim=64,
        rope_theta=100000.0,
        tie_embeddings=True,
        max_tokens=8192,
    )
    return ModelConfig(preset="smollm2_135m", towers={"main": siglip_so400m()}, decoder=decoder)


PRESETS: dict[str, Callable[[], ModelConfig]] = {
    build.__name__: build for build in (tiny, nano9b, nano12b, nemotron_h_8b, qwen25_7b, smollm2_135m)
}
