"""Texts of tokens that come one by one, against the tokenizer's own decoding of them all."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from graphprune.text import Transcript, tokenize

CORPUS = ["the cat sat on the mat, naïve café 日本語 🦊🦊 and then some. " * 3, "don't stop, won't stop"]
KINDS = ("byte-level", "metaspace", "byte-fallback", "wordpiece")


@cache
def tokenizer(kind: str) -> Tokenizer:
    if kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.pre_tokenizer, made.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=["<unk>", "</s>"])
    elif kind == "byte-level":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["</s>"], initial_alphabet=alphabet)
    else:
        bytes_ = [f"<0x{i:02X}>" for i in range(256)] if kind == "byte-fallback" else []
        made = Tokenizer(models.BPE(byte_fallback=bool(bytes_), unk_token=None if bytes_ else "<unk>"))
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        parts = [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
        made.decoder = decoders.Sequence(parts) if bytes_ else decoders.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["</s>", "<unk>", *bytes_])
    made.train_from_iterator(CORPUS, trainer)
    return made


def pieces(kind: str, tokens: list[int], *stops: str) -> tuple[list[str], Transcript]:
    """What is told at every step and at the end."""
    transcript, told = Transcript(tokenizer(kind), stops), []
    for token in tokens:
        transcript.add(token)
        told.append(transcript.safe)
        if transcript.stopped:
            break
    transcript.end()
    return [*told, transcript.safe], transcript


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
def test_the_text_is_the_tokenizers_and_only_grows(kind: str, data: st.DataObject) -> None:
    size = tokenizer(kind).get_vocab_size()
    tokens = data.draw(st.lists(st.integers(0, size - 1), max_size=25))
    told, transcript = pieces(kind, tokens)
    assert transcript.text == told[-1]
    assert all(later.startswith(sooner) for sooner, later in pairwise(told))
    whole = tokenizer(kind).decode(tokens)
    if "\ufffd" not in whole:  # how many stand for bytes that are no character depends on where they are cut
        assert transcript.text == whole


@pytest.mark.parametrize("kind", KINDS)
def test_characters_come_whole(kind: str) -> None:
    text = "naïve café 日本語 🦊" if kind != "wordpiece" else "the cat sat"
    (tokens,) = tokenize(tokenizer(kind), [text])
    told, transcript = pieces(kind, list(tokens))
    assert transcript.text == text.strip()
    assert not any("\ufffd" in one for one in told)


@given(
    st.text(alphabet="abc ", max_size=30),
    st.lists(st.text(alphabet="abc ", min_size=1, max_size=3), max_size=3),
)
def test_a_text_stops_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    (tokens,) = tokenize(tokenizer("byte-level"), [text])
    told, transcript = pieces("byte-level", list(tokens), *stops)
    ends = [text.find(stop) for stop in stops if stop in text]
    assert transcript.stopped == bool(ends)
    if ends:
        assert not any(stop in transcript.text for stop in stops)
        assert text.startswith(transcript.text)
    else:
        assert transcript.text == text
    assert all(transcript.text.startswith(one) for one in told)


def test_half_a_character_at_the_end_is_told() -> None:
    (tokens,) = tokenize(tokenizer("byte-level"), ["\U0001f40d"])  # no character of the corpus
    told, transcript = pieces("byte-level", list(tokens[:2]))
    assert told[:2] == ["", ""]
    assert set(transcript.text) == {"\ufffd"}
