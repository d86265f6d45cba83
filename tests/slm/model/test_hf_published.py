"""Published checkpoint formats: MobileLLM with and without layer sharing, and SmolLM2.

The sizes of MobileLLM are those of configs/ in facebookresearch/MobileLLM, the other keys those of its checkpoints on
the hub. Weights are random and small; names, dtypes and files are those of the published checkpoints.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import slm
from slm.architecture.shapes import count_parameters
from slm.errors import DataError
from slm.files import write_json
from slm.model.hf import llama_shape
from tests.conftest import ROOT, cli_env

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.numeric

MOBILELLM: dict[str, Any] = {
    "architectures": ["MobileLLMForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_mobilellm.MobileLLMConfig",
        "AutoModelForCausalLM": "modeling_mobilellm.MobileLLMForCausalLM",
    },
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "layer_sharing": False,
    "max_position_embeddings": 2048,
    "mlp_bias": False,
    "model_type": "mobilellm",
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "share_embedding": True,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "vocab_size": 32000,
}
SMOLLM2: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "silu",
    "initializer_range": 0.041666666666666664,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 49152,
}
SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
)
PUBLISHED: list[tuple[str, dict[str, Any], tuple[int, ...], int]] = [
    # name, keys, sizes, parameters; the model cards say 124.6M, 345.3M, 603.1M, 1.01B, 1.51B; 135M, 360M
    ("MobileLLM-125M", MOBILELLM, (30, 576, 9, 3, 1536), 124_635_456),
    ("MobileLLM-350M", MOBILELLM, (32, 960, 15, 5, 2560), 345_355_200),
    ("MobileLLM-600M", MOBILELLM, (40, 1152, 18, 6, 3072), 603_188_352),
    ("MobileLLM-1B", MOBILELLM, (54, 1280, 20, 5, 3584), 1_005_461_760),
    ("MobileLLM-1.5B", MOBILELLM, (54, 1600, 25, 5, 4352), 1_511_188_800),
    ("SmolLM2-135M", SMOLLM2, (30, 576, 9, 3, 1536), 134_515_008),
    ("SmolLM2-360M", SMOLLM2, (32, 960, 15, 5, 2560), 361_821_120),
]


@pytest.mark.parametrize(
    ("name", "keys", "sizes", "parameters"), PUBLISHED, ids=lambda x: str(x)[:16]
)
def test_parameters_of_published_models(
    name: str, keys: dict[str, Any], sizes: tuple[int, ...], parameters: int, tmp_path: Path
) -> None:
    write_json(tmp_path / "config.json", {**keys, **dict(zip(SIZES, sizes, strict=True))})
    shape = llama_shape(tmp_path)
    assert count_parameters(shape).params_total == parameters
    assert shape.tied and shape.d_head == 64 and shape.seq_len == keys["max_position_embeddings"]
    assert shape.depth == sizes[0]
    write_json(
        tmp_path / "config.json",
        {**keys, **dict(zip(SIZES, sizes, strict=True)), "layer_sharing": True},
    )
    shared = llama_shape(tmp_path)
    assert count_parameters(shared).params_total == parameters and shared.depth == 2 * sizes[0]


def small(keys: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the config of a published model with small sizes: 3 layers, 6 heads, 2 of keys and values."""
    sizes = dict(zip(SIZES, (3, 48, 6, 2, 80), strict=True))
    return {
        **keys,
        **sizes,
        "head_dim": 8,
        "vocab_size": 97,
        "max_position_embeddings": 32,
        **changes,
    }


def random_weights(config: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return random tensors with the names of a published checkpoint of this config."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return (0.15 * torch.randn(shape, generator=generator)).to(dtype)

    layers, width, heads, kv_heads, inner = (config[key] for key in SIZES)
    kv_width = width // heads * kv_heads
    tensors = {"model.embed_tokens.weight": draw(config["vocab_size"], width)}
    for layer in range(layers):
        shapes = {
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (kv_width, width),
            "self_attn.v_proj": (kv_width, width),
            "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
        }
        prefix = f"model.layers.{layer}"
        tensors |= {f"{prefix}.{name}.weight": draw(*shape) for name, shape in shapes.items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{name}.weight"] = draw(width) + 1
    return {**tensors, "model.norm.weight": draw(width) + 1}


def transformers_logits(
    config: dict[str, Any], weights: dict[str, Tensor], tokens: Tensor
) -> Tensor:
    """Compute logits with transformers' Llama in fp32, with every layer twice in a row if layers are shared."""
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **{
                key: config[key]
                for key in (*SIZES, "vocab_size", "max_position_embeddings", "head_dim")
            },
            rms_norm_eps=config["rms_norm_eps"],
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": float(config["rope_theta"])},
        )
    ).eval()
    table = weights["model.embed_tokens.weight"]
    theirs.load_state_dict({**weights, "lm_head.weight": table})  # also casts to fp32
    if config.get("layer_sharing"):
        layers = theirs.model.layers
        theirs.model.layers = nn.ModuleList(layer for layer in layers for _ in range(2))
        theirs.config.num_hidden_layers *= 2
    with torch.no_grad():
        return theirs(tokens, use_cache=False).logits


def save_bin(weights: dict[str, Tensor], folder: Path) -> None:
    torch.save(weights, folder / "pytorch_model.bin")


def save_legacy_bin(weights: dict[str, Tensor], folder: Path) -> None:
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def save_safetensors(weights: dict[str, Tensor], folder: Path) -> None:
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("config", "dtype", "save"),
    [
        (small(MOBILELLM), torch.float16, save_bin),
        (small(MOBILELLM), torch.float16, save_legacy_bin),
        (small(MOBILELLM, layer_sharing=True), torch.float16, save_bin),
        (small(SMOLLM2), torch.bfloat16, save_safetensors),
    ],
    ids=["MobileLLM", "MobileLLM-legacy-file", "MobileLLM-LS", "SmolLM2"],
)
def test_logits_equal_transformers(
    config: dict[str, Any],
    dtype: torch.dtype,
    save: Callable[[dict[str, Tensor], Path], None],
    tmp_path: Path,
) -> None:
    weights = random_weights(config, dtype)
    save(weights, tmp_path)
    write_json(tmp_path / "config.json", config)
    write_json(tmp_path / "generation_config.json", {"temperature": 0.7, "max_length": 3})
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    tokens = torch.randint(97, (2, 32), generator=torch.Generator().manual_seed(1))
    ours = slm.load(tmp_path)
    assert ours.head.weight is ours.embedding.weight
    with torch.no_grad():
        logits = ours(tokens)
    assert logits.dtype == torch.float32
    theirs = transformers_logits(config, weights, tokens)
    assert theirs.std() > 0.1  # the logits are no constants that any model would give
    assert (logits - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_checkpoint_without_any_key_for_its_shared_table_says_what_to_set(tmp_path: Path) -> None:
    """Code of MobileLLM's repository that does not save share_embedding writes such checkpoints."""
    config = small(MOBILELLM, model_type="llama")
    del config["share_embedding"]
    save_bin(random_weights(config, torch.float16), tmp_path)
    write_json(tmp_path / "config.json", config)
    with pytest.raises(DataError, match=r"no lm_head\.weight; .* set tie_word_embeddings to true"):
        slm.load(tmp_path)


def test_head_that_is_stored_beside_a_shared_table(tmp_path: Path) -> None:
    config = small(SMOLLM2)
    weights = random_weights(config, torch.bfloat16)
    write_json(tmp_path / "config.json", config)
    save_safetensors(
        {**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()}, tmp_path
    )
    assert slm.load(tmp_path).shape.tied
    save_safetensors(
        {**weights, "lm_head.weight": weights["model.embed_tokens.weight"] + 1}, tmp_path
    )
    with pytest.raises(DataError, match="lm_head and embed_tokens differ"):
        slm.load(tmp_path)


@pytest.fixture
def mobilellm(tmp_path: Path) -> Path:
    """A small MobileLLM checkpoint in two torch shards."""
    config = small(MOBILELLM)
    write_json(tmp_path / "config.json", config)
    weights = random_weights(config, torch.float16)
    names = list(weights)
    index = {}
    for part, chosen in enumerate((names[::2], names[1::2]), start=1):
        shard = f"pytorch_model-{part:05d}-of-00002.bin"
        torch.save({name: weights[name] for name in chosen}, tmp_path / shard)
        index |= dict.fromkeys(chosen, shard)
    write_json(tmp_path / "pytorch_model.bin.index.json", {"weight_map": index})
    return tmp_path


SECOND_SHARD = "pytorch_model-00002-of-00002.bin"


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, **changes})


def truncate(folder: Path) -> None:
    content = (folder / SECOND_SHARD).read_bytes()
    (folder / SECOND_SHARD).write_bytes(content[: len(content) // 2])


def quantize(folder: Path) -> None:
    saved = torch.load(folder / SECOND_SHARD)
    torch.save(
        {name: tensor.to(torch.int8) for name, tensor in saved.items()}, folder / SECOND_SHARD
    )


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: (f / SECOND_SHARD).unlink(), f"1 of 2 shards are missing, first {SECOND_SHARD}"),
    (
        lambda f: (f / SECOND_SHARD).write_text(POINTER),
        f"{SECOND_SHARD}: a Git LFS pointer.*git lfs pull",
    ),
    (lambda f: (f / SECOND_SHARD).write_bytes(b""), f"{SECOND_SHARD}: damaged file of 0 bytes"),
    (truncate, f"{SECOND_SHARD}: damaged file of [0-9,]+ bytes"),
    (lambda f: torch.save([1], f / SECOND_SHARD), "a list instead of named tensors"),
    (
        lambda f: torch.save({"step": 5}, f / SECOND_SHARD),
        "step is int; slm loads floating-point tensors only",
    ),
    (quantize, "is torch.int8; slm loads floating-point tensors only"),
    (
        lambda f: torch.save({"a": re.compile("x")}, f / SECOND_SHARD),
        r"pickled code \(re._compile\).*does not run",
    ),
    (
        lambda f: change_config(f, num_attention_heads=5),
        "num_attention_heads=5 must divide hidden_size=48",
    ),
    (
        lambda f: change_config(f, num_key_value_heads=4),
        "num_key_value_heads=4 must divide num_attention_heads=6",
    ),
    (
        lambda f: change_config(f, head_dim=16),
        "head_dim=16 times num_attention_heads=6 must be hidden_size=48",
    ),
    (
        lambda f: change_config(f, head_dim=3, num_attention_heads=16, num_key_value_heads=4),
        "head_dim=3 must be even",
    ),
    (
        lambda f: change_config(f, num_key_value_heads=3),
        r"k_proj.* has shape \(16, 48\).*requires \(24, 48\)",
    ),
    (
        lambda f: change_config(f, num_hidden_layers=2),
        "9 unexpected tensors; the first is model.layers.2.",
    ),
    (lambda f: change_config(f, vocab_size=98), r"embed_tokens.weight has shape \(97, 48\)"),
    (lambda f: change_config(f, vocab_size=0), "vocab_size=0 must be an integer of at least 1"),
    (
        lambda f: change_config(f, quantization_config={"bits": 4}),
        "quantization_config=.*not supported",
    ),
    (
        lambda f: change_config(f, model_type="llama4_text", architectures=["Llama4ForCausalLM"]),
        r"model_type=llama4_text \(Llama4ForCausalLM\).*llama and mobilellm.*not MobileLLM-R1",
    ),
]


@pytest.mark.parametrize(
    ("damage", "message"), DAMAGES, ids=[message[:40] for _, message in DAMAGES]
)
def test_error_names_the_damage(
    mobilellm: Path, damage: Callable[[Path], object], message: str
) -> None:
    slm.load(mobilellm)
    damage(mobilellm)
    with pytest.raises(DataError, match=message) as error:
        slm.load(mobilellm)
    assert "\n" not in str(error.value)


PEAK_OF_LOADING = """
import re, sys, torch
from pathlib import Path
from slm.evaluation.load import load_model

def memory_kib(key):  # not getrusage, whose peak includes that of the parent process
    return int(re.search(rf"{key}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

before = memory_kib("VmRSS")
model = load_model(sys.argv[1])
model_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
print((memory_kib("VmHWM") - before) * 1024 / model_bytes)
"""


@pytest.mark.slow
@pytest.mark.parametrize("save", [save_bin, save_safetensors])
def test_memory_of_loading_is_one_fp32_model_and_the_file(
    save: Callable[[dict[str, Tensor], Path], None], tmp_path: Path
) -> None:
    """A second fp32 copy of the model would double the peak; the mapped fp16 file is half of a model."""
    config = small(MOBILELLM, hidden_size=576, intermediate_size=1536, num_hidden_layers=12)
    config["head_dim"] = 96
    write_json(tmp_path / "config.json", config)
    save(random_weights(config, torch.float16), tmp_path)
    command = [sys.executable, "-c", PEAK_OF_LOADING, str(tmp_path)]
    run = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=ROOT, env=cli_env()
    )
    assert 0.9 < float(run.stdout) < 1.8, run.stdout
