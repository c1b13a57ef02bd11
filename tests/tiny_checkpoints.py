"""Tiny random foundation models in transformers' format, and what transformers itself makes of them."""

import importlib
import json

import torch

from merfast.models.checkpoints import FAMILIES

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.2,
}
CONVOLUTIONS = {
    "conv_dim": [16, 16, 16],
    "conv_kernel": [10, 3, 3],
    "conv_stride": [5, 2, 2],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
FIELD = 40  # samples that one vector is made from, with these convolutions
LARGE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}  # as the large models have it
PICTURE = {"image_size": 32, "patch_size": 8}

CONFIGS = {
    "hubert": ("hubert", SMALL | CONVOLUTIONS),
    "hubert-large": ("hubert", SMALL | CONVOLUTIONS | LARGE),
    "wav2vec2": ("wav2vec2", SMALL | CONVOLUTIONS),
    "wav2vec2-large": ("wav2vec2", SMALL | CONVOLUTIONS | LARGE),
    "wavlm": ("wavlm", SMALL | CONVOLUTIONS),
    "vit": ("vit", SMALL | PICTURE),
    "clip": ("clip_vision_model", SMALL | PICTURE),
    "dinov2": ("dinov2", {k: v for k, v in (SMALL | PICTURE).items() if k != "intermediate_size"}),
    "resnet": ("resnet", {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}),
}
AUDIO = [name for name, (family, _) in CONFIGS.items() if FAMILIES[family][0] == "audio"]
VIDEO = [name for name in CONFIGS if name not in AUDIO]

COLOURS = {"image_mean": [0.48, 0.45, 0.4], "image_std": [0.27, 0.26, 0.28]}
PROCESSORS = {
    "audio": {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16_000, "do_normalize": True},
    "vit": {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, "resample": 2, **COLOURS},
    "clip": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
        "do_center_crop": True,
        "resample": 3,
        **COLOURS,
    },
    "dinov2": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 36},
        "crop_size": {"height": 32, "width": 32},
        "do_center_crop": True,
        "resample": 3,
        **COLOURS,
    },
    "resnet": {
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 28},
        "crop_pct": 0.875,
        "resample": 3,
        **COLOURS,
    },
}


def processor_of(name):
    return PROCESSORS["audio" if name in AUDIO else name]


def make(name, seed=0, **changes):
    """A random model of transformers, in evaluation mode."""
    transformers = importlib.import_module("transformers")
    family, values = CONFIGS[name]
    _, config_class, model_class, arguments = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = getattr(transformers, config_class)(**(values | changes))
        model = getattr(transformers, model_class)(config, **arguments)
        for key, tensor in model.state_dict().items():
            if key.endswith(("running_var", "cls_token", "class_embedding")):
                tensor.uniform_(0.5, 1.5)
            elif key.endswith("running_mean"):
                tensor.uniform_(-0.2, 0.2)
    return model.eval()


def write(folder, name, seed=0, processor=None, **changes):
    """Write a random checkpoint with transformers' own means; returns the folder."""
    make(name, seed, **changes).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor or processor_of(name)))
    return folder


def image_processor(entries):
    """transformers' own image processor on Pillow, without torchvision."""
    base = entries["image_processor_type"].removesuffix("ImageProcessor")
    package = f"transformers.models.{base.lower()}"
    try:
        module, name = importlib.import_module(f"{package}.image_processing_pil_{base.lower()}"), "ImageProcessorPil"
    except ImportError:  # before 5.1 or so
        module, name = importlib.import_module(f"{package}.image_processing_{base.lower()}"), "ImageProcessor"
    return getattr(module, base + name)(**{k: v for k, v in entries.items() if k != "image_processor_type"})


def own_states(folder, name, inputs):
    """transformers' own hidden states for prepared inputs, and all that its model gives, loaded by its own means."""
    transformers = importlib.import_module("transformers")
    _, _, model_class, arguments = FAMILIES[CONFIGS[name][0]]
    model = getattr(transformers, model_class).from_pretrained(folder, **arguments).eval()
    with torch.inference_mode():
        return model(inputs, output_hidden_states=True)


def expected_vectors(name, out, layer="last"):
    """Vectors that an encoder is to give, from transformers' output, written down anew for each family."""
    if name in AUDIO:
        states = [h[0] for h in out.hidden_states[:-1]] + [out.last_hidden_state[0]]
    elif name == "resnet":
        states = [h.mean((2, 3)) for h in out.hidden_states[:-1]] + [out.pooler_output[:, :, 0, 0]]
    else:
        last = out.pooler_output if name == "clip" else out.last_hidden_state[:, 0]
        states = [h[:, 0] for h in out.hidden_states[:-1]] + [last]
    if layer == "mean":
        return sum(states[1:]) / len(states[1:])
    return states[-1 if layer == "last" else layer]
