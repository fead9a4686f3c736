"""The networks of the zoo: small, with random weights, bare as their library builds them. None of them was written for this project."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Entry:
    """A model and what it is called with.

    Attributes:
        model: in eval mode.
        args: example inputs by position.
        kwargs: example inputs by name.
    """

    model: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


WIDTH, LENGTH, WORDS = 64, 16, 200
_TEXT = {"vocab_size": WORDS, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
_ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_VISION = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 64,
    "patch_size": 16,
}


def _ids() -> Tensor:
    return torch.randint(3, WORDS, (4, LENGTH))


def _images(size: int = 64) -> Tensor:
    return torch.randn(4, 3, size, size)


def _transformers(model: str, config: str, **options: Any) -> nn.Module:
    import transformers

    built: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**options))
    return built.eval()


def _encoder(model: str, config: str, **options: Any) -> Entry:
    ids = _ids()
    return Entry(_transformers(model, config, **{**_TEXT, **options}), kwargs={"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def _decoder(model: str, config: str, **options: Any) -> Entry:
    return Entry(_transformers(model, config, **{**_TEXT, **_ENDS, **options}), kwargs={"input_ids": _ids()})


def _vision(model: str, config: str, **options: Any) -> Entry:
    return Entry(_transformers(model, config, **{**_VISION, **options}), kwargs={"pixel_values": _images()})


def _timm(name: str, size: int = 64) -> Entry:
    import timm

    return Entry(timm.create_model(name, pretrained=False, num_classes=10).eval(), (_images(size),))


def _torchvision(name: str, **options: Any) -> Entry:
    from torchvision import models

    return Entry(models.get_model(name, weights=None, **options).eval(), (_images(),))


def _detector(name: str) -> Entry:
    from torchvision import models

    model = models.get_model(name, weights=None, weights_backbone=None, num_classes=5)
    return Entry(model.eval(), ([torch.rand(3, 96, 96)],))


def _lite() -> Entry:
    return _timm("efficientnet_lite0")


class UNet(nn.Module):
    """Image to image, with a skip: float32 [N, 3, H, W] -> [N, 3, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.middle = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(64, 32, 2, stride=2))
        self.up = nn.Sequential(nn.Conv2d(64, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 3, 1))

    def forward(self, image: Tensor) -> Tensor:
        """The new image."""
        skip = self.down(image)
        result: Tensor = self.up(torch.cat([skip, self.middle(skip)], 1))
        return result


class Recurrent(nn.Module):
    """Tokens int64 [N, T] to scores [N, 5] by the last state of an LSTM or GRU."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(WORDS, 32), nn.Linear(64, 5)
        self.layers = kind(32, 64, batch_first=True)  # type: ignore[call-arg]

    def forward(self, tokens: Tensor) -> Tensor:
        """The scores."""
        scores: Tensor = self.head(self.layers(self.embed(tokens))[0][:, -1])
        return scores


class TCN(nn.Module):
    """A temporal convolution network: causal, dilated, residual; float32 [N, 8, T] -> [N, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.entry, self.head = nn.Conv1d(8, 32, 1), nn.Linear(32, 5)
        self.layers = nn.ModuleList(nn.Conv1d(32, 32, 3, padding=2 * d, dilation=d) for d in (1, 2, 4))
        self.norms = nn.ModuleList(nn.BatchNorm1d(32) for _ in self.layers)

    def forward(self, signal: Tensor) -> Tensor:
        """The scores."""
        x = self.entry(signal)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = torch.relu(x + norm(layer(x)[..., : x.shape[-1]]))
        scores: Tensor = self.head(x.mean(-1))
        return scores


def _autoencoder() -> nn.Module:
    encoder = [nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()]
    decoder = [nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(32, 3, 4, 2, 1), nn.Sigmoid()]
    return nn.Sequential(*encoder, *decoder)


def _conv3d() -> nn.Module:
    layers = [nn.Conv3d(1, 16, 3, padding=1), nn.BatchNorm3d(16), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(16, 32, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(32, 5))


def _clip() -> Entry:
    text = {**_TEXT, **_ENDS, "max_position_embeddings": LENGTH, "projection_dim": 32}
    vision = {**_VISION, "projection_dim": 32}
    model = _transformers("CLIPModel", "CLIPConfig", text_config=text, vision_config=vision, projection_dim=32)
    return Entry(model, kwargs={"input_ids": _ids(), "pixel_values": _images(), "attention_mask": torch.ones(4, LENGTH, dtype=torch.int64)})


def _t5(model: str, **inputs: Tensor) -> Entry:
    options = {"vocab_size": WORDS, "d_model": WIDTH, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
    return Entry(_transformers(model, "T5Config", **options), kwargs=inputs)


def _audio(model: str, config: str) -> Entry:
    options = {**_TEXT, "conv_dim": (32, 32, 32), "conv_stride": (5, 4, 4), "conv_kernel": (10, 8, 8), "num_feat_extract_layers": 3}
    options |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    return Entry(_transformers(model, config, **options), kwargs={"input_values": torch.randn(4, 3200)})


def _whisper() -> Entry:
    options = {"d_model": WIDTH, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 128, "max_source_positions": 50}
    whole = _transformers(
        "WhisperModel",
        "WhisperConfig",
        **options,
        vocab_size=WORDS,
        **_ENDS,
        decoder_start_token_id=0,
        decoder_layers=1,
        decoder_attention_heads=4,
    )
    return Entry(whole.get_submodule("encoder"), kwargs={"input_features": torch.randn(4, 80, 100)})


def _detr(model: str, config: str, **options: Any) -> Entry:
    return Entry(_transformers(model, config, **options), kwargs={"pixel_values": _images()})


_DETR = {
    **{"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "d_model": WIDTH, "num_queries": 10},
    **{
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in (("layers", 1), ("attention_heads", 4), ("ffn_dim", 128))
    },
}
_SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
_MOBILEVIT = {"image_size": 64, "hidden_sizes": [32, 48, 64], "neck_hidden_sizes": [8, 16, 24, 32, 48, 64, 128]}
_SEGFORMER = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "decoder_hidden_size": 64}

MODELS: dict[str, Callable[[], Entry]] = {
    "bert": lambda: _encoder("BertModel", "BertConfig"),
    "roberta": lambda: _encoder("RobertaModel", "RobertaConfig"),
    "distilbert": lambda: Entry(
        _transformers("DistilBertModel", "DistilBertConfig", vocab_size=WORDS, dim=WIDTH, n_layers=2, n_heads=4, hidden_dim=128), (_ids(),)
    ),
    "albert": lambda: _encoder("AlbertModel", "AlbertConfig", embedding_size=32),
    "deberta_v2": lambda: _encoder("DebertaV2Model", "DebertaV2Config", relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "electra": lambda: _encoder("ElectraModel", "ElectraConfig", embedding_size=32),
    "mobilebert": lambda: _encoder("MobileBertModel", "MobileBertConfig", embedding_size=32, intra_bottleneck_size=32),
    "mpnet": lambda: _encoder("MPNetModel", "MPNetConfig"),
    "t5_encoder": lambda: _t5("T5EncoderModel", input_ids=_ids()),
    "t5": lambda: _t5("T5Model", input_ids=_ids(), decoder_input_ids=_ids()),
    "gpt2": lambda: Entry(
        _transformers("GPT2LMHeadModel", "GPT2Config", vocab_size=WORDS, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=64, **_ENDS),
        (_ids(),),
    ),
    "opt": lambda: _decoder("OPTForCausalLM", "OPTConfig", ffn_dim=128, word_embed_proj_dim=WIDTH),
    "gpt_neox": lambda: _decoder("GPTNeoXForCausalLM", "GPTNeoXConfig"),
    "llama": lambda: _decoder("LlamaForCausalLM", "LlamaConfig", num_key_value_heads=2),
    "qwen3": lambda: _decoder("Qwen3ForCausalLM", "Qwen3Config", num_key_value_heads=2, head_dim=16),
    "gemma3": lambda: _decoder("Gemma3ForCausalLM", "Gemma3TextConfig", num_key_value_heads=2, head_dim=16),
    "phi": lambda: _decoder("PhiForCausalLM", "PhiConfig"),
    "mistral": lambda: _decoder("MistralForCausalLM", "MistralConfig", num_key_value_heads=2),
    "whisper_encoder": _whisper,
    "wav2vec2": lambda: _audio("Wav2Vec2Model", "Wav2Vec2Config"),
    "hubert": lambda: _audio("HubertModel", "HubertConfig"),
    "vit": lambda: _vision("ViTModel", "ViTConfig"),
    "deit": lambda: _vision("DeiTModel", "DeiTConfig"),
    "swin": lambda: _detr("SwinModel", "SwinConfig", **_SWIN),
    "mobilevit": lambda: _detr("MobileViTModel", "MobileViTConfig", **_MOBILEVIT),
    "clip": _clip,
    "clip_vision": lambda: _vision("CLIPVisionModel", "CLIPVisionConfig"),
    "segformer": lambda: _detr("SegformerForSemanticSegmentation", "SegformerConfig", **_SEGFORMER),
    "yolos": lambda: Entry(
        _transformers("YolosForObjectDetection", "YolosConfig", **{**_VISION, "image_size": [64, 64]}, num_detection_tokens=10),
        kwargs={"pixel_values": _images()},
    ),
    "detr": lambda: _detr("DetrForObjectDetection", "DetrConfig", **_DETR),
    "dinov2": lambda: _vision("Dinov2Model", "Dinov2Config", mlp_ratio=2),
    "siglip": lambda: _vision("SiglipVisionModel", "SiglipVisionConfig"),
    "blip_vision": lambda: _vision("BlipVisionModel", "BlipVisionConfig"),
    "resnet18": lambda: _torchvision("resnet18", num_classes=10),
    "resnet50": lambda: _torchvision("resnet50", num_classes=10),
    "mobilenet_v2": lambda: _torchvision("mobilenet_v2", num_classes=10),
    "mobilenetv3_small": lambda: _timm("mobilenetv3_small_050"),
    "mobilenetv4_conv_small": lambda: _timm("mobilenetv4_conv_small_035"),
    "efficientnet_b0": lambda: _torchvision("efficientnet_b0", num_classes=10),
    "efficientnet_lite0": _lite,
    "convnext_atto": lambda: _timm("convnext_atto"),
    "regnety": lambda: _timm("regnety_002"),
    "densenet121": lambda: _torchvision("densenet121", num_classes=10),
    "shufflenet_v2": lambda: _torchvision("shufflenet_v2_x0_5", num_classes=10),
    "ghostnet": lambda: _timm("ghostnet_050"),
    "mnasnet": lambda: _torchvision("mnasnet0_5", num_classes=10),
    "squeezenet": lambda: _torchvision("squeezenet1_1", num_classes=10),
    "ssdlite": lambda: _detector("ssdlite320_mobilenet_v3_large"),
    "fasterrcnn": lambda: _detector("fasterrcnn_mobilenet_v3_large_320_fpn"),
    "unet": lambda: Entry(UNet().eval(), (_images(),)),
    "lstm": lambda: Entry(Recurrent(nn.LSTM).eval(), (_ids(),)),
    "gru": lambda: Entry(Recurrent(nn.GRU).eval(), (_ids(),)),
    "tcn": lambda: Entry(TCN().eval(), (torch.randn(4, 8, 64),)),
    "autoencoder": lambda: Entry(_autoencoder().eval(), (_images(),)),
    "conv3d": lambda: Entry(_conv3d().eval(), (torch.randn(4, 1, 16, 16, 16),)),
    "transformer_encoder": lambda: Entry(
        nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 4, 128, batch_first=True), 2).eval(), (torch.randn(4, LENGTH, WIDTH),)
    ),
}
