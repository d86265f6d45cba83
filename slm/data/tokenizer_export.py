"""Our tokenizers in the format of the library `tokenizers`, which `transformers` opens.

A byte-level BPE is in that format already. The byte tokenizers become a BPE without merges over
GPT-2's alphabet of bytes, in which each byte is one printable character; the escape of the ascii one
is a rewriting of the text before and after.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from slm.data.tokenizer import END_OF_TEXT, FILE_NAME, ByteTokenizer
from slm.errors import DataError
from slm.files import write_json
from slm.schema import TokenizerConfig

ESCAPE = "\ue000"  # of Unicode's private area, so that no text spells it
HALVES = 16


def save_for_transformers(config: TokenizerConfig, prepared: Path, out: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json; `prepared` holds a trained bpe.

    Raises:
        DataError: if the trained tokenizer is gone.
    """
    if config.kind == "bpe":
        if not (prepared / FILE_NAME).is_file():
            raise DataError(
                f"{prepared / FILE_NAME}: the run's tokenizer is gone; prepare it again"
            )
        shutil.copy(prepared / FILE_NAME, out / FILE_NAME)
    else:
        byte_library_tokenizer(ByteTokenizer(config.kind)).save(str(out / FILE_NAME))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
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


def byte_characters() -> list[str]:
    """GPT-2's character for each byte: itself if printable in Latin-1, else one from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
