"""Tiny pipelines of diffusers' real classes with random weights, seeded: one for each family of models."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLLTXVideo,
    AutoencoderKLMochi,
    AutoencoderKLWan,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXConditionPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import format_text_input
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    ByT5Tokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from support.models import pipeline_of, tokenizer_of
from v2edit.backbones import Size
from v2edit.backbones.cogvideox import CogVideoX
from v2edit.backbones.core import PipelineBackbone
from v2edit.backbones.hunyuanvideo import HunyuanVideo
from v2edit.backbones.hunyuanvideo15 import ENCODING, HunyuanVideo15
from v2edit.backbones.ltx import LTX
from v2edit.backbones.ltx_condition import LTXCondition
from v2edit.backbones.mochi import Mochi
from v2edit.backbones.skyreels import SkyReels
from v2edit.backbones.wan import Wan

WIDTH = 32  # of an encoded token


def t5_of(vocabulary: int, unified: bool = False) -> T5EncoderModel | UMT5EncoderModel:
    """Build a tiny T5 or UMT5 encoder with weights that are large enough to tell prompts apart."""
    settings = {
        "vocab_size": vocabulary, "d_model": WIDTH, "d_kv": 8, "num_heads": 2, "d_ff": 32, "num_layers": 1,
        "dropout_rate": 0.0,
    }  # fmt: skip
    encoder = UMT5EncoderModel(UMT5Config(**settings)) if unified else T5EncoderModel(T5Config(**settings))
    torch.nn.init.normal_(encoder.shared.weight)
    return encoder


def unipc_of(shift: float) -> UniPCMultistepScheduler:
    """Build Wan's scheduler as published."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


WAN_TINY: dict[str, Any] = {
    "num_attention_heads": 2, "attention_head_dim": 16, "text_dim": WIDTH, "freq_dim": 16, "ffn_dim": 32,
    "num_layers": 2,
}  # fmt: skip


def wan_transformer_of(channels: int, **settings: Any) -> WanTransformer3DModel:
    """Build a tiny transformer of Wan; `settings` of its configuration replace the tiny ones."""
    return WanTransformer3DModel(**{**WAN_TINY, "in_channels": channels, "out_channels": channels, **settings})


def wan_pipeline_of(experts: int = 1, shift: float = 3.0, seed: int = 0) -> WanPipeline:
    """Build a tiny Wan 2.1 or, with two experts, Wan 2.2 A14B."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = AutoencoderKLWan(
            base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
            latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.5, 1.0, 2.0],
        )  # fmt: skip
        tokenizer = tokenizer_of(512)
        second = wan_transformer_of(4) if experts == 2 else None
        return WanPipeline(
            tokenizer, t5_of(len(tokenizer), unified=True), vae, unipc_of(shift), wan_transformer_of(4), second,
            boundary_ratio=0.875 if experts == 2 else None,
        )  # fmt: skip


def skyreels_pipeline_of(seed: int = 0) -> SkyReelsV2Pipeline:
    """Build a tiny SkyReels-V2 around the parts of a tiny Wan."""
    wan = wan_pipeline_of(seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = SkyReelsV2Transformer3DModel(**WAN_TINY, in_channels=4, out_channels=4)
    return SkyReelsV2Pipeline(wan.tokenizer, wan.text_encoder, transformer, wan.vae, unipc_of(8.0))


def wan_ti2v_pipeline_of(seed: int = 0) -> WanPipeline:
    """Build a tiny Wan 2.2 TI2V-5B: an autoencoder that takes patches of pixels, and residual blocks."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = AutoencoderKLWan(
            base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
            latents_mean=[0.0] * 4, latents_std=[1.0] * 4, is_residual=True, patch_size=2, in_channels=12,
            out_channels=12, decoder_base_dim=8, scale_factor_spatial=16,
        )  # fmt: skip
        tokenizer = tokenizer_of(512)
        return WanPipeline(
            tokenizer,
            t5_of(len(tokenizer), unified=True),
            vae,
            unipc_of(5.0),
            wan_transformer_of(4),
            expand_timesteps=True,
        )


def euler_of(shift: float) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=shift)


def chat_tokenizer_of(text: str) -> PreTrainedTokenizerFast:
    """Build a tokenizer of the words and marks of a text, of a chat's special tokens, and of the prompts' words."""
    split = pre_tokenizers.Whitespace()
    pieces = [piece for piece, _ in split.pre_tokenize_str(text + " a red blue ball cube on the floor")]
    specials = ["<pad>", "<unk>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<s>"]
    words = {piece: k for k, piece in enumerate(dict.fromkeys([*specials, *pieces]))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.add_special_tokens(specials)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


def start_tokens(tokenizer: PreTrainedTokenizerFast, template: str, cropped: int) -> str:
    """Return the tokens that a template needs at its start for its prompt to begin at token `cropped`."""
    return "<s> " * (cropped - len(tokenizer(template.split("{}")[0]).input_ids))


def hunyuanvideo_pipeline_of(seed: int = 0) -> HunyuanVideoPipeline:
    """Build a tiny HunyuanVideo."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        template, cropped = DEFAULT_PROMPT_TEMPLATE["template"], DEFAULT_PROMPT_TEMPLATE["crop_start"]
        tokenizer = chat_tokenizer_of(template)
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            f"{start_tokens(tokenizer, template, cropped)}$A",
            special_tokens=[("<s>", tokenizer.convert_tokens_to_ids("<s>"))],
        )
        llama = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=3,
            num_attention_heads=2, num_key_value_heads=2,
        )  # fmt: skip
        text_encoder = LlamaModel(llama)
        torch.nn.init.normal_(text_encoder.embed_tokens.weight)
        words = {word: k for k, word in enumerate(["<|startoftext|>", "<|endoftext|>", *map(chr, range(97, 123))])}
        words |= {f"{word}</w>": len(words) + k for k, word in enumerate(map(chr, range(97, 123)))}
        clip = CLIPTextConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )  # fmt: skip
        transformer = HunyuanVideoTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
            num_single_layers=2, num_refiner_layers=1, text_embed_dim=WIDTH, pooled_projection_dim=16,
            rope_axes_dim=(4, 6, 6),
        )  # fmt: skip
        vae = AutoencoderKLHunyuanVideo(
            latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
        )
        return HunyuanVideoPipeline(
            text_encoder, tokenizer, transformer, vae, euler_of(7.0), CLIPTextModel(clip),
            CLIPTokenizer(vocab=words, merges=[], model_max_length=77),
        )  # fmt: skip


def hunyuanvideo15_pipeline_of(seed: int = 0) -> HunyuanVideo15Pipeline:
    """Build a tiny HunyuanVideo 1.5."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        system = ENCODING["system_message"]
        tokenizer = chat_tokenizer_of(f"system user assistant {system}")
        tokenizer.chat_template = (
            "{% for m in messages %}<|start_header_id|> {{ m.role }} <|end_header_id|> {{ m.content }} <|eot_id|> "
            "{% endfor %}<|start_header_id|> assistant"
        )
        (template,) = tokenizer.apply_chat_template(format_text_input(["{}"], system), tokenize=False)
        tokenizer.chat_template = start_tokens(tokenizer, template, ENCODING["crop_start"]) + tokenizer.chat_template
        qwen = Qwen2_5_VLTextConfig(
            vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=3,
            num_attention_heads=2, num_key_value_heads=2, rope_scaling={"type": "mrope", "mrope_section": [2, 3, 3]},
        )  # fmt: skip
        text_encoder = Qwen2_5_VLTextModel(qwen)
        torch.nn.init.normal_(text_encoder.embed_tokens.weight)
        letters = ByT5Tokenizer()
        t5 = T5Config(vocab_size=len(letters), d_model=24, d_kv=8, num_heads=2, d_ff=32, num_layers=1, dropout_rate=0.0)
        transformer = HunyuanVideo15Transformer3DModel(
            in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
            num_refiner_layers=1, text_embed_dim=WIDTH, text_embed_2_dim=24, image_embed_dim=8, rope_axes_dim=(4, 6, 6),
            task_type="t2v",
        )  # fmt: skip
        vae = AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1)
        return HunyuanVideo15Pipeline(
            text_encoder, tokenizer, transformer, vae, euler_of(5.0), T5EncoderModel(t5), letters,
            ClassifierFreeGuidance(guidance_scale=6.0),
        )  # fmt: skip


def mochi_pipeline_of(seed: int = 0) -> MochiPipeline:
    """Build a tiny Mochi."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = tokenizer_of(256)
        transformer = MochiTransformer3DModel(
            num_attention_heads=2, attention_head_dim=16, num_layers=2, pooled_projection_dim=16, in_channels=4,
            text_embed_dim=WIDTH, time_embed_dim=16, max_sequence_length=256,
        )  # fmt: skip
        torch.nn.init.normal_(transformer.pos_frequencies)
        vae = AutoencoderKLMochi(
            latent_channels=4, encoder_block_out_channels=(32, 32, 32, 32), decoder_block_out_channels=(32, 32, 32, 32),
            layers_per_block=(1, 1, 1, 1, 1), latents_mean=(0.1, -0.2, 0.3, 0.0), latents_std=(1.5, 0.5, 1.0, 2.0),
        )  # fmt: skip
        scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
        return MochiPipeline(
            scheduler, vae, t5_of(len(tokenizer)), tokenizer, transformer, force_zeros_for_empty_prompt=True
        )


# The autoencoder of LTX 0.9.5 and later, with the noise of 0.9.1 in the decoder's layers, and that of 0.9.0.
LTX_095 = {
    "block_out_channels": (8,) * 5, "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
    "layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 4, "spatio_temporal_scaling": (True,) * 4,
    "decoder_block_out_channels": (8, 16, 32), "decoder_spatio_temporal_scaling": (True,) * 3,
    "decoder_inject_noise": (True, True, True, False), "upsample_residual": (True,) * 3, "upsample_factor": (2,) * 3,
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"), "timestep_conditioning": True,
    "spatial_compression_ratio": 32, "temporal_compression_ratio": 8,
}  # fmt: skip
LTX_090 = {
    "block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4, "layers_per_block": (1,) * 5,
    "decoder_layers_per_block": (1,) * 5, "scaling_factor": 1.5,
}  # fmt: skip


def ltx_pipeline_of(later: bool, seed: int = 0) -> LTXPipeline | LTXConditionPipeline:
    """Build a tiny LTX-Video 0.9.0, or one of the `later` ones: noise in the decoder and a pipeline of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = AutoencoderKLLTXVideo(latent_channels=4, **(LTX_095 if later else LTX_090))
        vae.latents_mean.uniform_(-0.2, 0.2)
        vae.latents_std.uniform_(0.5, 2)
        for name, parameter in vae.named_parameters():
            if "per_channel_scale" in name:
                torch.nn.init.normal_(parameter)
        tokenizer = tokenizer_of(128)
        transformer = LTXVideoTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32,
            num_layers=2, caption_channels=WIDTH,
        )  # fmt: skip
        scheduler = FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=not later, shift_terminal=None if later else 0.1, base_shift=0.95, max_shift=2.05,
            base_image_seq_len=1024, max_image_seq_len=4096,
        )  # fmt: skip
        kind = LTXConditionPipeline if later else LTXPipeline
        return kind(scheduler, vae, t5_of(len(tokenizer)), tokenizer, transformer)


def with_size(backbone: PipelineBackbone, size: Size) -> PipelineBackbone:
    """Return a backbone as if it had been trained on clips of a small size."""
    backbone.native_size = size
    return backbone


SMALL = Size(9, 32, 32)
# By name: a function that builds a backbone with the same weights each time.
FAMILIES: dict[str, Callable[[], PipelineBackbone]] = {
    "CogVideoX 2b": lambda: CogVideoX(pipeline_of("2b")),
    "CogVideoX 5b": lambda: CogVideoX(pipeline_of("5b")),
    "CogVideoX 1.5": lambda: with_size(CogVideoX(pipeline_of("1.5")), SMALL),
    "Wan 2.1": lambda: with_size(Wan(wan_pipeline_of()), SMALL),
    "Wan A14B": lambda: with_size(Wan(wan_pipeline_of(experts=2, shift=5.0)), SMALL),
    "SkyReels-V2": lambda: with_size(SkyReels(skyreels_pipeline_of()), SMALL),
    "Wan TI2V": lambda: with_size(Wan(wan_ti2v_pipeline_of()), Size(9, 64, 64)),
    "HunyuanVideo": lambda: with_size(HunyuanVideo(hunyuanvideo_pipeline_of()), SMALL),
    "HunyuanVideo 1.5": lambda: with_size(HunyuanVideo15(hunyuanvideo15_pipeline_of()), Size(9, 64, 64)),
    "Mochi": lambda: with_size(Mochi(mochi_pipeline_of()), Size(13, 32, 32)),
    "LTX 0.9.0": lambda: with_size(LTX(ltx_pipeline_of(later=False)), Size(17, 64, 64)),
    "LTX 0.9.7": lambda: with_size(LTXCondition(ltx_pipeline_of(later=True)), Size(17, 64, 64)),
}
