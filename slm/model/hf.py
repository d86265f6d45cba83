"""Import and export of checkpoints in the Llama format of Hugging Face.

A checkpoint folder contains config.json (`slm.model.hf_config`) and the weights (`slm.model.hf_weights`). Import
copies tensor by tensor into fp32 parameters, so that memory holds one model and one tensor.

Export folds into the weights what Llama does not have: the logit multiplier is multiplied into the
gain of the final norm, the branch multiplier into the last matrix of each branch, and a shared block
is written once per pass. Logits then differ by rounding only; they are equal if the multipliers are
powers of two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from slm.architecture.shapes import ModelShape
from slm.errors import DataError
from slm.files import atomic_write, write_json
from slm.model.dtypes import DTYPES
from slm.model.hf_config import CONFIG, parse_norm_eps, parse_rope_theta, parse_shape, read_config
from slm.model.hf_weights import SAFETENSORS as WEIGHTS
from slm.model.hf_weights import find_weight_files, read_tensors
from slm.model.logical_names import to_logical
from slm.model.transformer import Transformer

HEAD = "lm_head.weight"
MODEL_NAMES = {  # slm -> Llama
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": HEAD,
}
BLOCK_NAMES = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.query.weight": "self_attn.q_proj.weight",
    "attention.key.weight": "self_attn.k_proj.weight",
    "attention.value.weight": "self_attn.v_proj.weight",
    "attention.output.weight": "self_attn.o_proj.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    "mlp.gate.weight": "mlp.gate_proj.weight",
    "mlp.up.weight": "mlp.up_proj.weight",
    "mlp.down.weight": "mlp.down_proj.weight",
}
BRANCH_OUTPUTS = {"attention.output.weight", "mlp.down.weight"}
IGNORED_SUFFIX = "rotary_emb.inv_freq"  # a buffer in old checkpoints


def is_llama_folder(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def export_llama(
    model: Transformer, folder: Path, eot_id: int | None = None, dtype: str = "fp32"
) -> None:
    """Write config.json and model.safetensors for `transformers.LlamaForCausalLM`, in fp32, fp16 or bf16.

    Raises:
        DataError: if the model has a GELU MLP or qk_norm, which the Llama format does not support.
    """
    check_llama_format(model.shape)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.to(DTYPES[dtype]) for name, tensor in llama_tensors(model)}
    with atomic_write(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)  # safetensors creates files that only the owner can read
    write_json(folder / CONFIG, llama_config(model, eot_id, dtype))


def check_llama_format(shape: ModelShape) -> None:
    """Raise a DataError if the model has a GELU MLP or qk_norm, which the Llama format does not support."""
    unsupported = {"model.mlp=gelu": shape.mlp != "swiglu", "model.qk_norm=true": shape.qk_norm}
    for setting, is_set in unsupported.items():
        if is_set:
            raise DataError(
                f"{setting}: not supported by the Llama format; use the checkpoint of the run instead"
            )


def llama_config(
    model: Transformer, eot_id: int | None = None, dtype: str = "fp32"
) -> dict[str, Any]:
    """Return the content of config.json."""
    shape = model.shape
    torch_name = str(DTYPES[dtype]).removeprefix("torch.")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.d_model,
        "intermediate_size": shape.d_ff,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "head_dim": shape.d_head,
        "max_position_embeddings": shape.seq_len,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "tie_word_embeddings": shape.tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": eot_id,
        "eos_token_id": eot_id,
        "dtype": torch_name,
        "torch_dtype": torch_name,
    }


def llama_tensors(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Yield Llama's names and fp32 tensors, with the multipliers folded in.

    Raises:
        DataError: if the model has a GELU MLP or qk_norm.
    """
    check_llama_format(model.shape)
    for name, parameter in to_logical(model.state_dict(), model.shape).items():
        tensor = parameter.detach().float().cpu()
        if name == "norm.weight":
            tensor = tensor * model.logit_multiplier
        if name == "head.weight" and model.shape.tied:
            continue
        if name in MODEL_NAMES:
            yield MODEL_NAMES[name], tensor.contiguous()
            continue
        _, layer, rest = name.split(".", 2)
        if rest in BRANCH_OUTPUTS:
            tensor = tensor * model.branch_multiplier
        for repeat in range(model.shape.layer_sharing):
            index = int(layer) * model.shape.layer_sharing + repeat
            # One copy per pass: safetensors rejects tensors that share memory.
            yield f"model.layers.{index}.{BLOCK_NAMES[rest]}", tensor.clone().contiguous()


def import_llama(folder: Path) -> Transformer:
    """Load a local Llama or MobileLLM checkpoint, in fp32 and eval mode.

    Raises:
        DataError: if the checkpoint is incomplete or of another kind; it names the file and the key.
    """
    config = read_config(folder / CONFIG)
    shape = parse_shape(config, folder / CONFIG)
    files = find_weight_files(folder)
    theta, eps = parse_rope_theta(config, folder / CONFIG), parse_norm_eps(config, folder / CONFIG)
    with SkipInitialization():
        model = Transformer(shape, rope_theta=theta, norm_eps=eps)
    _copy_weights(files, model, folder)
    return model.eval()


def llama_shape(folder: Path) -> ModelShape:
    """Read the shape in the config.json of a Llama or MobileLLM checkpoint, without the weights.

    Raises:
        DataError: if config.json is missing, damaged or of another kind of model.
    """
    return parse_shape(read_config(folder / CONFIG), folder / CONFIG)


class SkipInitialization(TorchFunctionMode):
    """Context in which `torch.nn.init` does nothing, because all weights are read from files.

    The initialization takes longer than reading the weights.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@torch.no_grad()
def _copy_weights(files: list[Path], model: Transformer, folder: Path) -> None:
    """Copy every tensor of the files into its parameter; each is converted on its own.

    Raises:
        DataError: if tensors are missing, unexpected, or have the wrong shape.
    """
    parameters = to_logical(dict(model.named_parameters()), model.shape)
    targets = {_llama_name(name): tensor for name, tensor in parameters.items()}
    unexpected: list[str] = []
    head = None  # of a tied model: a copy of the table
    for name, tensor in read_tensors(files):
        target = targets.pop(name, None)
        if target is not None:
            if tensor.shape != target.shape:
                found, required = tuple(tensor.shape), tuple(target.shape)
                raise DataError(
                    f"{folder}: {name} has shape {found}, but {CONFIG} requires {required}"
                )
            target.copy_(tensor)
        elif name == HEAD and model.shape.tied:
            head = tensor
        elif not name.endswith(IGNORED_SUFFIX):
            unexpected.append(name)
    if targets:
        raise DataError(_missing(sorted(targets), folder))
    if unexpected:
        raise DataError(
            f"{folder}: {len(unexpected)} unexpected tensors; the first is {min(unexpected)}"
        )
    if head is not None and not torch.equal(head.float(), parameters["embedding.weight"]):
        raise DataError(f"{folder}: {CONFIG} ties the head, but lm_head and embed_tokens differ")


def _missing(names: list[str], folder: Path) -> str:
    if names == [HEAD]:
        return f"{folder}: no {HEAD}; if the head is the embedding table, set tie_word_embeddings to true in {CONFIG}"
    return f"{folder}: {len(names)} missing tensors; the first is {names[0]}"


def _llama_name(name: str) -> str:
    if name in MODEL_NAMES:
        return MODEL_NAMES[name]
    _, layer, rest = name.split(".", 2)
    return f"model.layers.{layer}.{BLOCK_NAMES[rest]}"
