"""Our tokenizers in the format of the library `tokenizers`, which `transformers` opens.

A byte-level BPE is in that format already. The byte tokenizers become a BPE without merges over
GPT-2's alphabet of bytes, in which each byte is one printable character; the escape of the ascii one
is a rewriting of the text before and after.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slm.data.tokenizers.hf_files import END_OF_TEXT, byte_characters
from slm.data.tokenizers.tokenizer import FILE_NAME, ByteTokenizer, LibraryTokenizer, Tokenizer
from slm.files import write_json

ESCAPE = "\ue000"  # of Unicode's private area, so that no text spells it
HALVES = 16


def save_for_transformers(tokenizer: Tokenizer, out: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json to the folder `out`."""
    end_of_text = END_OF_TEXT
    if isinstance(tokenizer, ByteTokenizer):
        byte_library_tokenizer(tokenizer).save(str(out / FILE_NAME))
    elif isinstance(tokenizer, LibraryTokenizer):
        tokenizer.save(out)
        end_of_text = tokenizer.end_of_text
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end_of_text,
        "eos_token": end_of_text,
        "clean_up_tokenization_spaces": False,
    }
    write_json(out / "tokenizer_config.json", settings)


def byte_library_tokenizer(ours: ByteTokenizer) -> Any:
    """A `tokenizers.Tokenizer` with the ids of ours."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    character = byte_characters()
    vocabulary = {character[byte]: index for index, byte in enumerate(ours.alphabet)}
    before: list[Any] = [normalizers.ByteLevel()]
    after: list[Any] = [decoders.Fuse()]
    if ours.escapes:
        vocabulary[ESCAPE] = ours.escape_id
        digit = [character[byte] for byte in ours.alphabet[:HALVES]]
        for byte in sorted(set(range(256)) - set(ours.alphabet)):
            spelled = ESCAPE + digit[byte >> 4] + digit[byte & 15]
            before.append(normalizers.Replace(character[byte], spelled))
            after.append(decoders.Replace(spelled, character[byte]))
    library = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    library.normalizer = normalizers.Sequence(before)
    library.decoder = decoders.Sequence([*after, decoders.ByteLevel()])
    library.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return library
