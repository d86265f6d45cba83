"""One training step of slm, of transformers' Llama and of litgpt's GPT, from the same weights.

A step is the forward pass, mean cross-entropy in fp32, the backward pass, clipping of the global norm, and
fused AdamW. For slm it is the step of the training loop, without the loop (`engine.build_step`). The
peers use a minimal loop: no label shift, one parameter group, no check for divergence, and in compiled modes
`model.compile()` of the whole model.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.architecture.shapes import count_parameters
from slm.config.hydra import CONF_DIR, compose_config
from slm.model.build import build_model
from slm.model.hf import export_llama
from slm.model.parametrization import Parametrization, initialize
from slm.model.transformer import Transformer
from slm.run.spec import RunSpec, resolve
from slm.training.device.accelerator import peak_memory_bytes
from tests.benchmarks import engine
from tests.benchmarks.paired import Measure, Result, run_for

Step = Callable[[], Tensor]
LIBRARIES = ("slm", "transformers", "litgpt")
INSTALL = {
    "transformers": "pip install -e '.[dev]'",
    "litgpt": "pip install --no-deps litgpt==0.5.13 psutil",
}
WARMUP_STEPS = {False: 2, True: 3}  # by `compiled`


@dataclass(frozen=True)
class Mode:
    precision: str
    compiled: bool

    @classmethod
    def named(cls, name: str) -> Mode:
        """Parse a name such as `fp32-eager` or `bf16-compiled`."""
        precision, _, kind = name.partition("-")
        return cls(precision, kind == "compiled")

    @property
    def name(self) -> str:
        return f"{self.precision}-{'compiled' if self.compiled else 'eager'}"

    def overrides(self, device: str) -> list[str]:
        """Return the overrides with which slm runs this mode on a device."""
        trainer = "gpu" if device == "cuda" else "cpu"
        if trainer == "cpu" and self.precision == "bf16" and has_option("trainer", "cpu_bf16"):
            trainer = "cpu_bf16"
        return [
            f"trainer={trainer}",
            f"trainer.precision={self.precision}",
            f"trainer.compile={'on' if self.compiled else 'off'}",
        ]


@dataclass(frozen=True)
class Case:
    """The shape and batch that all libraries train, as overrides of slm's config."""

    overrides: tuple[str, ...]
    device: str
    weights: Path
    """Folder of a Llama checkpoint with the initial weights."""
    slm_overrides: tuple[str, ...] = ()
    """Further overrides for slm only; they take precedence."""

    def spec(self, library: str, mode: Mode) -> RunSpec:
        extra = self.slm_overrides if library == "slm" else ()
        return resolve(compose_config([*self.overrides, *mode.overrides(self.device), *extra]))


def has_option(group: str, name: str) -> bool:
    return (CONF_DIR / group / f"{name}.yaml").is_file()


def is_installed(library: str) -> bool:
    return library == "slm" or importlib.util.find_spec(library) is not None


def export_weights(spec: RunSpec, folder: Path) -> int:
    """Write slm's initial weights in the Llama format for the peers; return the parameter count."""
    export_llama(initial_model(spec), folder)
    return count_parameters(spec.shape).params_total


def initial_model(spec: RunSpec, seed: int = 0) -> Transformer:
    model = build_model(spec.config, spec.shape)
    initialize(model, Parametrization.of(spec.config.parametrization, spec.shape), seed)
    return model


@torch.no_grad()
def first_loss(spec: RunSpec) -> float:
    """Compute the loss of slm's initial model in nats per token, in fp32 from all logits."""
    inputs, targets = fixed_batch(spec, "cpu").unbind(1)
    logits = initial_model(spec)(inputs)
    return float(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))


def contender(library: str, mode_name: str, case: Case) -> tuple[Result, Measure]:
    """Build a library's training step for a `Worker`.

    Returns the parameter count and first loss, and the function that measures tokens/s and peak memory.
    """
    mode = Mode.named(mode_name)
    spec = case.spec(library, mode)
    step, params = STEPS[library](spec, mode, case)
    loss = float(step())
    for _ in range(WARMUP_STEPS[mode.compiled] - 1):
        step()

    def measure(seconds: float) -> Result:
        steps, elapsed_seconds = run_for(step, seconds)
        result = {
            "tokens_per_second": steps * spec.batch_tokens / elapsed_seconds,
            "step_seconds": elapsed_seconds / steps,
        }
        accelerator = "gpu" if case.device == "cuda" else "cpu"
        return {**result, "peak_memory_bytes": peak_memory_bytes(accelerator)}

    return {"params": params, "first_loss": loss}, measure


def fixed_batch(spec: RunSpec, device: str, seed: int = 0) -> Tensor:
    """Return inputs and targets of random tokens, (batch_sequences, 2, seq_len), int64."""
    generator = torch.Generator().manual_seed(seed)
    size = (spec.batch_sequences, spec.shape.seq_len + 1)
    tokens = torch.randint(spec.shape.vocab_size, size, generator=generator)
    return torch.stack([tokens[:, :-1], tokens[:, 1:]], dim=1).to(device)


def slm_step(spec: RunSpec, mode: Mode, case: Case) -> tuple[Step, int]:
    """Build slm's training step; the spec already contains the mode."""
    built = engine.build_step(spec, case.device)
    batch, steps = fixed_batch(spec, case.device), itertools.cycle(range(spec.steps))
    return lambda: built.take(next(steps), batch).loss, params_of(engine.model_of(built))


def plain_step(spec: RunSpec, mode: Mode, case: Case) -> tuple[Step, int]:
    """Build a step of slm's model that computes all logits, in the loop of the peers."""
    import slm.training.runner  # noqa: F401  load the same libraries as slm_step, for equal memory

    model = initial_model(spec, spec.config.seed)
    return peer_step(model, spec, mode, case.device, lambda logits: logits)


def transformers_step(spec: RunSpec, mode: Mode, case: Case) -> tuple[Step, int]:
    return llama_step(spec, mode, case.weights, case.device, nn.Module.compile)


def llama_step(
    spec: RunSpec, mode: Mode, weights: Path, device: str, compile_model: Callable[[Any], None]
) -> tuple[Step, int]:
    """Build the step of transformers' Llama from a checkpoint folder; compiled modes call `compile_model`."""
    transformers = importlib.import_module("transformers")
    transformers.utils.logging.disable_progress_bar()
    model = transformers.LlamaForCausalLM.from_pretrained(
        weights, attn_implementation=attention_of(spec), dtype=torch.float32
    )
    model.config.use_cache = False
    return peer_step(
        model, spec, mode, device, lambda output: output.logits, compile_model=compile_model
    )


def compile_layers(model: Any) -> None:
    """Compile each layer of a Llama alone: one compilation of seconds, where the whole model takes minutes."""
    for layer in model.model.layers:
        layer.compile()


def attention_of(spec: RunSpec) -> str:
    return "flash_attention_2" if spec.config.model.attention == "flash" else "sdpa"


def litgpt_step(spec: RunSpec, mode: Mode, case: Case) -> tuple[Step, int]:
    litgpt = importlib.import_module("litgpt.model")
    model = litgpt.GPT(litgpt_config(spec))
    if spec.shape.tied:  # as in litgpt's pretraining script
        model.transformer.wte.weight = model.lm_head.weight
    missing, unexpected = model.load_state_dict(litgpt_weights(case.weights), strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    return peer_step(model, spec, mode, case.device, lambda logits: logits)


def litgpt_config(spec: RunSpec) -> Any:
    shape, model = spec.shape, spec.config.model
    return importlib.import_module("litgpt.config").Config(
        name="benchmark",
        block_size=shape.seq_len,
        vocab_size=shape.vocab_size,
        padded_vocab_size=shape.vocab_size,
        n_layer=shape.n_layers,
        n_embd=shape.d_model,
        n_head=shape.n_heads,
        n_query_groups=shape.n_kv_heads,
        head_size=shape.d_head,
        intermediate_size=shape.d_ff,
        mlp_class_name="LLaMAMLP",
        norm_class_name="RMSNorm",
        norm_eps=model.norm_eps,
        rope_base=int(model.rope_theta),
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
    )


def litgpt_weights(folder: Path) -> dict[str, Tensor]:
    """Load Llama weights under litgpt's names; litgpt has one matrix for queries, keys and values."""
    from safetensors.torch import load_file

    names = {
        "self_attn.o_proj": "attn.proj",
        "mlp.gate_proj": "mlp.fc_1",
        "mlp.up_proj": "mlp.fc_2",
        "mlp.down_proj": "mlp.proj",
        "input_layernorm": "norm_1",
        "post_attention_layernorm": "norm_2",
    }
    outer = {"embed_tokens": "transformer.wte", "norm": "transformer.ln_f"}
    weights: dict[str, Tensor] = {}
    llama = load_file(folder / "model.safetensors")
    for key, tensor in llama.items():
        name = key.removeprefix("model.").removesuffix(".weight")
        if name in outer:
            weights[f"{outer[name]}.weight"] = tensor
        elif name == "lm_head":
            weights[key] = tensor
        else:
            _, layer, part = name.split(".", 2)
            if part in names:
                weights[f"transformer.h.{layer}.{names[part]}.weight"] = tensor
            elif part == "self_attn.q_proj":
                three = [llama[key.replace("q_proj", f"{p}_proj")] for p in "qkv"]
                weights[f"transformer.h.{layer}.attn.qkv.weight"] = torch.cat(three)
    return weights


def peer_step(
    model: nn.Module,
    spec: RunSpec,
    mode: Mode,
    device: str,
    logits_of: Callable[[Any], Tensor],
    *,
    compile_model: Callable[[Any], None] = nn.Module.compile,
) -> tuple[Step, int]:
    """Build a plain training step of any model; return it with the parameter count."""
    config = spec.config.optimizer
    model.to(device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
    if mode.compiled:
        compile_model(model)
    inputs, targets = (part.contiguous() for part in fixed_batch(spec, device).unbind(1))

    def step() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=mode.precision == "bf16"):
            logits = logits_of(model(inputs))
            loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step, params_of(model)


def params_of(model: nn.Module) -> int:
    """Count the parameters; a tensor that modules share counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


STEPS = {
    "slm": slm_step,
    "plain": plain_step,
    "transformers": transformers_step,
    "litgpt": litgpt_step,
}
