"""Import and export of Llama checkpoints, compared with the models of transformers."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import slm
from slm.__main__ import main
from slm.architecture.shapes import ModelShape
from slm.config.schema import Config, ParametrizationConfig
from slm.data.tokenizers.tokenizer import load_tokenizer
from slm.errors import DataError, RunError
from slm.evaluation.export import export_run
from slm.files import write_json
from slm.model.build import build_model
from slm.model.hf import export_llama
from slm.model.parametrization import Parametrization, initialize
from slm.model.transformer import Transformer
from slm.run.spec import RunSpec
from slm.tracking.run_dir import RunDirectory
from slm.training.runner import train
from tests.in_process import ROOT

transformers = pytest.importorskip("transformers")

# (n_layers, heads, kv heads, d_head, d_ff, vocab_size, seq_len, tied, rope theta, eps); sizes are
# deliberately irregular.
LLAMAS = [
    (1, 4, 4, 8, 48, 64, 16, True, 10_000.0, 1e-5),
    (3, 6, 2, 10, 77, 101, 33, False, 500_000.0, 1e-6),
    (2, 5, 1, 6, 41, 257, 20, True, 100.0, 1e-5),
    (4, 9, 3, 8, 130, 99, 12, True, 10_000.0, 1e-2),
    (2, 3, 3, 14, 55, 1000, 40, False, 10_000.0, 1e-5),
    (5, 8, 4, 4, 96, 31, 64, True, 10_000.0, 1e-5),
]


def hf_llama(layers: int, heads: int, kv: int, d_head: int, d_ff: int, *rest: Any) -> Any:
    vocab_size, seq_len, tied, theta, eps = rest
    config = transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=heads * d_head,
        intermediate_size=d_ff,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=d_head,
        max_position_embeddings=seq_len,
        tie_word_embeddings=tied,
        rms_norm_eps=eps,
        initializer_range=0.2,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )
    torch.manual_seed(layers)
    return transformers.LlamaForCausalLM(config).eval()


def assert_same_weights(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    state, other = ours.state_dict(), theirs.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)


def assert_same_logits(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    # fp32 sums in a different order; the tolerance is relative to the largest logit.
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("dimensions", LLAMAS, ids=str)
def test_import_equals_transformers_and_export_is_bit_exact(
    dimensions: tuple[Any, ...], tmp_path: Path
) -> None:
    theirs = hf_llama(*dimensions)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = slm.load(tmp_path / "theirs")
    assert not ours.training
    batch = torch.randint(dimensions[5], (2, dimensions[6]))
    with torch.no_grad():
        assert_same_logits(ours(batch), theirs(batch).logits)
    export_llama(ours, tmp_path / "ours")
    saved, exported = (load_file(tmp_path / n / "model.safetensors") for n in ("theirs", "ours"))
    assert saved.keys() == exported.keys()
    assert all(torch.equal(saved[name], exported[name]) for name in saved)
    reopened = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert_same_weights(reopened, theirs)
    with torch.no_grad():
        assert_same_logits(reopened(batch).logits, theirs(batch).logits)


@pytest.mark.parametrize("kind", ["standard", "mup", "completep"])
@pytest.mark.parametrize("layer_sharing", [1, 2])
def test_export_folds_multipliers_and_unrolls_shared_blocks(
    kind: str, layer_sharing: int, tmp_path: Path
) -> None:
    shape = ModelShape(3, 48, 6, 2, 8, 100, 61, 20, layer_sharing=layer_sharing)
    config = ParametrizationConfig(kind=kind, base_width=20, base_depth=4)  # type: ignore[arg-type]
    rules = Parametrization.of(config, shape)
    ours = build_model(Config(parametrization=config), shape).eval()
    initialize(ours, rules, seed=0)
    export_llama(ours, tmp_path)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert theirs.config.num_hidden_layers == shape.depth
    batch = torch.randint(61, (2, 20))
    with torch.no_grad():
        assert_same_logits(slm.load(tmp_path)(batch), ours(batch))
        assert_same_logits(theirs(batch).logits, ours(batch))


def test_export_rejects_gelu_and_qk_norm(tmp_path: Path) -> None:
    shape = ModelShape(1, 16, 2, 2, 8, 24, 31, 8)
    for change in ({"mlp": "gelu"}, {"qk_norm": True}):
        with pytest.raises(DataError, match="not supported by the Llama format"):
            export_llama(Transformer(ModelShape(**{**shape.as_dict(), **change})), tmp_path)  # type: ignore[arg-type]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    hf_llama(*LLAMAS[1]).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def convert_to_torch_shards(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {}
    for part, names in enumerate((list(weights)[::2], list(weights)[1::2])):
        shard = f"pytorch_model-{part + 1:05d}-of-00002.bin"
        torch.save({name: weights[name] for name in names}, folder / shard)
        index |= dict.fromkeys(names, shard)
    write_json(folder / "pytorch_model.bin.index.json", {"weight_map": index})


def test_shards_and_torch_files_load_the_same_model(llama: Path, tmp_path: Path) -> None:
    theirs = transformers.LlamaForCausalLM.from_pretrained(llama).eval()
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").exists()
    expected = slm.load(llama)
    assert_same_weights(slm.load(tmp_path / "sharded"), expected)
    convert_to_torch_shards(llama)
    assert_same_weights(slm.load(llama), expected)


def test_mobilellm_keys(tmp_path: Path) -> None:
    """share_embedding overrides tie_word_embeddings; layer_sharing runs each block twice."""
    theirs = hf_llama(*LLAMAS[3])
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    mobile = {"model_type": "mobilellm", "share_embedding": True, "tie_word_embeddings": False}
    write_json(tmp_path / "config.json", {**config, **mobile, "layer_sharing": True})
    ours = slm.load(tmp_path)
    assert ours.shape.tied and ours.shape.layer_sharing == 2 and ours.shape.n_layers == 4
    export_llama(ours, tmp_path / "unrolled")
    unrolled = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "unrolled").eval()
    assert unrolled.config.num_hidden_layers == 8
    batch = torch.randint(99, (2, 12))
    with torch.no_grad():
        assert_same_logits(ours(batch), unrolled(batch).logits)


def test_import_executes_no_pickled_code(llama: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'executed'}",)

    (llama / "model.safetensors").unlink()
    (llama / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(), protocol=2))
    with pytest.raises(DataError, match="more than tensors"):
        slm.load(llama)
    assert not (tmp_path / "executed").exists()


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, **changes})


def remove_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors")


def add_unknown_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "model.extra": torch.ones(2)}, folder / "model.safetensors")


def break_index(folder: Path) -> None:
    convert_to_torch_shards(folder)
    write_json(folder / "pytorch_model.bin.index.json", {"weights": {}})


BROKEN: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: change_config(f, model_type="gpt2"), "model_type=gpt2"),
    (lambda f: change_config(f, attention_bias=True), "attention_bias=true"),
    (lambda f: change_config(f, rms_norm_eps=None), "rms_norm_eps=null must be a number above 0"),
    (
        lambda f: change_config(f, rope_parameters=None, rope_theta="abc"),
        'rope_theta="abc" must be',
    ),
    (lambda f: change_config(f, rope_parameters={"rope_theta": None}), "rope_theta=null must be"),
    (lambda f: change_config(f, rope_parameters=[1]), r"rope_parameters=\[1\] must be an object"),
    (lambda f: change_config(f, rope_scaling="linear"), 'rope_scaling="linear" must be an object'),
    (
        lambda f: change_config(f, rope_scaling={"type": "linear", "factor": 2}),
        "rope_scaling=.*linear",
    ),
    (lambda f: change_config(f, partial_rotary_factor=0.5), "partial_rotary_factor=0.5 is not"),
    (lambda f: change_config(f, sliding_window=8), "sliding_window=8 is not supported"),
    (lambda f: change_config(f, num_hidden_layers=True), "num_hidden_layers=true must be"),
    (
        lambda f: change_config(f, layer_sharing=True, layer_sharing_repeats="2"),
        "layer_sharing_rep",
    ),
    (
        lambda f: change_config(f, layer_sharing=True, layer_sharing_repeats=0),
        "=0 must be an integer",
    ),
    (lambda f: change_config(f, model_type=1, architectures="Gpt"), r"model_type=1 \(Gpt\)"),
    (lambda f: change_config(f, rope_parameters={"rope_type": "yarn"}), "yarn"),
    (lambda f: change_config(f, intermediate_size=78), r"mlp\..*has shape .*77.*requires .*78"),
    (lambda f: change_config(f, num_hidden_layers=4), "9 missing tensors"),
    (lambda f: write_json(f / "config.json", [1]), "must contain a JSON object"),
    (lambda f: change_config(f, hidden_size="60"), "must be an integer"),
    (lambda f: change_config(f, num_hidden_layers="3"), "num_hidden_layers"),
    (lambda f: change_config(f, vocab_size=None), "vocab_size"),
    (break_index, "not a shard index"),
    (remove_tensor, "the first is model.norm.weight"),
    (add_unknown_tensor, "the first is model.extra"),
    (lambda f: (f / "config.json").write_text("{"), "invalid JSON"),
    (lambda f: (f / "model.safetensors").unlink(), "no weights; need model.safetensors"),
    (lambda f: (f / "model.safetensors").write_bytes(b"\x08" * 40), "damaged file"),
    (lambda f: (f / "config.json").unlink(), "neither a run"),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_error_names_the_damage_of_a_checkpoint(
    llama: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(llama)
    with pytest.raises(DataError, match=message):
        slm.load(llama)


@pytest.mark.parametrize(
    "tokenizer", [{"kind": "ascii"}, {"kind": "byte"}, {"kind": "bpe", "vocab_size": 300}]
)
def test_export_run_includes_the_tokenizer(
    tiny_spec: Callable[..., RunSpec], tokenizer: dict[str, Any], tmp_path: Path
) -> None:
    """A trained run opened in `transformers` has the same logits, token ids and decoded text."""
    spec = tiny_spec(
        data={"source": "text_files", "files": [f"{ROOT}/docs/*.md"]},
        tokenizer=tokenizer,
        budget={"tokens": 512},
        parametrization={"kind": "completep"},
    )
    run = RunDirectory.of(spec)
    with pytest.raises(DataError, match="no such folder"):
        slm.load(run.path)
    with run.claim(spec):
        train(spec, run)
    export_run(run.path, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(theirs).__name__ == "LlamaForCausalLM"
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "Four score\tand seven — years…\n ago; naïve 日本 <|endoftext|>?"
    prepared = Path(json.loads((run.path / "data.json").read_text())["folder"])
    plain = text.replace("<|endoftext|>", "")  # transformers parses it as the special token
    ids = load_tokenizer(prepared).encode_batch([plain])[0].tolist()
    assert reader.encode(plain, add_special_tokens=False) == ids
    assert reader.decode(ids) == plain
    assert reader.eos_token_id == spec.eot_id == theirs.config.eos_token_id
    batch = torch.tensor([ids[:32]])
    with torch.no_grad():
        assert_same_logits(slm.load(run.path)(batch), theirs(batch).logits)
    with pytest.raises(DataError, match="not empty"):
        export_run(run.path, tmp_path / "out")
    with pytest.raises(DataError, match="format=gguf accepts it"):
        export_run(tmp_path / "out", tmp_path / "again")
    for checkpoint in run.checkpoints.glob("*"):
        checkpoint.unlink()
    with pytest.raises(RunError, match="no checkpoint yet"):
        slm.load(run.path)


def test_export_command(
    tiny_spec: Callable[..., RunSpec],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = tiny_spec(budget={"tokens": 256})
    run = RunDirectory.of(spec)
    with run.claim(spec):
        train(spec, run)
    for arguments, code, message in (
        ([f"run={run.path}"], 2, "required: --out"),
        ([f"rn={run.path}", f"out={tmp_path / 'b'}"], 2, "did you mean run?"),
        ([f"run={tmp_path}", f"out={tmp_path / 'b'}"], 1, "neither a run directory"),
        (
            [f"run={run.path}", f"out={tmp_path / 'out'}"],
            0,
            f"model card: {tmp_path}/out/README.md",
        ),
    ):
        monkeypatch.setattr("sys.argv", ["slm", "export", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        assert stopped.value.code == code and message in printed.out + printed.err
    tokenizer_files = {"tokenizer.json", "tokenizer_config.json"}
    names = {"README.md", "config.json", "model.safetensors", *tokenizer_files}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert not (tmp_path / "b").exists()
