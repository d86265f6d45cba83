"""Export of tokenizers to the format of the library `tokenizers`, which `transformers` loads.

A BPE is already in that format. A byte tokenizer becomes a BPE without merges over GPT-2's byte
characters. The escapes of the ascii tokenizer become replacements in its normalizer and decoder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slm.data.tokenizers.hf_files import END_OF_TEXT, TOKENIZER_FILE, byte_characters
from slm.data.tokenizers.tokenizer import ByteTokenizer, HFTokenizer, Tokenizer
from slm.files import write_json

ESCAPE = "\ue000"  # Unicode private use area: does not occur in text
HALF_BYTE_VALUES = 16


def save_for_transformers(tokenizer: Tokenizer, out: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json to the folder `out`."""
    end_of_text = END_OF_TEXT
    if isinstance(tokenizer, ByteTokenizer):
        build_hf_byte_tokenizer(tokenizer).save(str(out / TOKENIZER_FILE))
    elif isinstance(tokenizer, HFTokenizer):
        tokenizer.save(out)
        end_of_text = tokenizer.end_of_text
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end_of_text,
        "eos_token": end_of_text,
        "clean_up_tokenization_spaces": False,
    }
    write_json(out / "tokenizer_config.json", settings)


def build_hf_byte_tokenizer(tokenizer: ByteTokenizer) -> Any:
    """Build a `tokenizers.Tokenizer` that gives the same ids as a byte tokenizer."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    character = byte_characters()
    vocabulary = {character[byte]: index for index, byte in enumerate(tokenizer.alphabet)}
    normalizing: list[Any] = [normalizers.ByteLevel()]
    decoding: list[Any] = [decoders.Fuse()]
    if tokenizer.escapes:
        vocabulary[ESCAPE] = tokenizer.escape_id
        digit = [character[byte] for byte in tokenizer.alphabet[:HALF_BYTE_VALUES]]
        for byte in sorted(set(range(256)) - set(tokenizer.alphabet)):
            escaped = ESCAPE + digit[byte >> 4] + digit[byte & 15]
            normalizing.append(normalizers.Replace(character[byte], escaped))
            decoding.append(decoders.Replace(escaped, character[byte]))
    hf_tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    hf_tokenizer.normalizer = normalizers.Sequence(normalizing)
    hf_tokenizer.decoder = decoders.Sequence([*decoding, decoders.ByteLevel()])
    hf_tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return hf_tokenizer
