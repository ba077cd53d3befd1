"""`graphprune generate` as a user sees it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from graphprune.cli import run_line
from graphprune.generator import Step, Steps, generate
from tests.test_generator import zoo

BIN = Path(sys.executable).parent / "graphprune"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2 of the zoo with a tokenizer whose word `w07` is token 7."""
    folder = tmp_path_factory.mktemp("gpt2") / "bundle"
    shutil.copytree(zoo("gpt2").folder(), folder)
    tokenizer = Tokenizer(WordLevel({f"w{i:02}": i for i in range(99)}, unk_token="w00"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def line(*arguments: object) -> int:
    return run_line([str(argument) for argument in arguments])


def made(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert line("generate", *arguments, "--json") == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_one_text_goes_to_stdout_and_figures_to_stderr(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert line("generate", bundle, "--prompt", "w05 w06 w07", "--max-new-tokens", 6) == 0
    captured = capsys.readouterr()
    (one,) = generate(bundle, ["w05 w06 w07"], max_new_tokens=6).completions
    assert one.prompt == (5, 6, 7)
    assert captured.out == f"{one.text}\n" == " ".join(f"w{token:02}" for token in one.tokens) + "\n"
    assert captured.err.startswith("6 tokens (length); prompt 3 tokens in ")
    assert "cache 0.01 MB" in captured.err


def test_several_texts_are_numbered(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert line("generate", bundle, "--prompt", "w05 w06", "--prompt", "w09", "--max-new-tokens", 3) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("[0] w") and second.startswith("[1] w")


def test_json_has_tokens_texts_reasons_and_times(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = made(capsys, bundle, "--prompt", "w05 w06", "--prompt", "w09 w03 w04", "--max-new-tokens", 5)
    one, other = result["completions"]
    assert one["prompt"] == [5, 6] and len(one["tokens"]) == 5 and one["reason"] == "length"
    assert other["text"] == " ".join(f"w{token:02}" for token in other["tokens"])
    assert (result["prompt_tokens"], result["decoded_tokens"]) == (5, 8)
    assert result["tokens_per_s"] == pytest.approx(8 / result["decode_s"])
    assert result["prefill_tokens_per_s"] == pytest.approx(5 / result["prefill_s"])
    layers, keys_and_values, texts, tokens, width = 4, 2, 2, 3 + 4, 32
    assert result["cache_bytes"] == layers * keys_and_values * texts * tokens * width * 4


def test_ids_need_no_tokenizer(capsys: pytest.CaptureFixture[str]) -> None:
    folder = zoo("gpt2").folder()
    result = made(capsys, folder, "--ids", "5,6,7", "--max-new-tokens", 4)
    assert result["completions"][0]["text"] is None
    tokens = result["completions"][0]["tokens"]
    assert line("generate", folder, "--ids", "5 6 7", "--max-new-tokens", 4) == 0
    assert capsys.readouterr().out.split() == [str(token) for token in tokens]


def test_stop_strings_and_tokens(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = ("--prompt", "w05 w06 w07 w08", "--max-new-tokens", 12)
    (free,) = made(capsys, bundle, *prompt)["completions"]
    place = next(i for i, token in enumerate(free["tokens"]) if token != free["tokens"][0])
    token = free["tokens"][place]
    (stopped,) = made(capsys, bundle, *prompt, "--stop", f" w{token:02}")["completions"]
    assert stopped["reason"] == "stop"
    assert stopped["text"] == " ".join(f"w{one:02}" for one in free["tokens"][:place])
    (ended,) = made(capsys, bundle, *prompt, "--stop-id", token)["completions"]
    assert (ended["reason"], ended["tokens"]) == ("eos", free["tokens"][: place + 1])
    assert ended["text"] == stopped["text"]


def test_the_same_seed_draws_the_same(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = [
        made(capsys, bundle, "--prompt", "w05", "--temperature", 2, "--top-k", 50, "--seed", seed)[
            "completions"
        ]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_speech_from_features_and_from_a_recording(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from scipy.io import wavfile

    folder = tmp_path / "bundle"
    shutil.copytree(zoo("whisper").folder(), folder)
    sizes = {"feature_size": 12, "chunk_length": 1, "hop_length": 400, "n_fft": 400}
    (folder / "preprocessor_config.json").write_text(json.dumps(sizes))
    wavfile.write(tmp_path / "one.wav", 16000, np.sin(np.arange(16000) / 20).astype(np.float32))
    from graphprune.speech import read_features

    features = read_features(tmp_path / "one.wav", folder)
    assert features.shape == (1, 12, 40)
    np.save(tmp_path / "one.npy", features)
    np.savez(tmp_path / "one.npz", input_features=features)
    options = (("--audio", "one.wav"), ("--audio", "one.npy"), ("--inputs", "one.npz"))
    texts = [
        made(capsys, folder, option, tmp_path / name, "--max-new-tokens", 6)["completions"]
        for option, name in options
    ]
    assert texts[0] == texts[1] == texts[2]
    (started,) = made(capsys, folder, "--audio", tmp_path / "one.npy", "--start-ids", "2,7")["completions"]
    assert started["prompt"] == [2, 7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", "a", "--ids", "1"], "not both"),
        (["--ids", "1,x"], "no list of ids"),
        (["--ids", "5", "--top-k", "3"], "temperature"),
        (["--prompt", "a"], "no tokenizer.json"),
        (["--ids", "5", "--stop", "x"], "stop strings need a tokenizer.json"),
        (["--ids", ",".join(["5"] * 65)], "65 tokens, but model.onnx has 64 positions"),
        ([], "no prompt was given"),
        (["--ids", ""], "begin with"),
        (["--ids", "5", "--start-ids", "3"], "has no encoder"),
        (["--ids", "5", "--inputs", "none.npz"], "none.npz"),
        (["--ids", "5", "--audio", "none.wav"], "none.wav"),
        (["--ids", "123456"], "model.onnx: "),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(zoo("gpt2").folder(), folder)
    if options[:2] == ["--ids", ""]:
        for name in ("config.json", "generation_config.json"):
            (folder / name).unlink()
    assert line("generate", folder, *options) == 2
    captured = capsys.readouterr()
    assert message in " ".join(captured.err.split()).replace("│ ", "")
    assert not captured.out


def test_what_was_made_before_an_interruption_is_shown(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Steps.__next__

    def interrupted(steps: Steps) -> Step:
        if len(steps.result().completions[0].tokens) == 3:
            raise KeyboardInterrupt
        return original(steps)

    monkeypatch.setattr(Steps, "__next__", interrupted)
    assert line("generate", bundle, "--prompt", "w05 w06", "--max-new-tokens", 9) == 130
    captured = capsys.readouterr()
    assert len(captured.out.split()) == 3
    assert "3 tokens (interrupted)" in captured.err
    assert line("generate", bundle, "--prompt", "w05 w06", "--max-new-tokens", 9, "--json") == 130
    (one,) = json.loads(capsys.readouterr().out)["completions"]
    assert (len(one["tokens"]), one["reason"]) == (3, "interrupted")


@pytest.mark.skipif(sys.platform == "win32", reason="interrupts are sent in another way there")
def test_an_interrupt_from_the_keyboard_ends_it() -> None:
    options = ("--ids", "5,6", "--ignore-eos", "--max-new-tokens", "1000000")
    # A shell starts what runs in its background deaf to interrupts; the process is to hear them all the same.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [BIN, "generate", zoo("t5").folder(), *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    signal.signal(signal.SIGINT, heard)
    assert process.stdout is not None
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"(interrupted)" in errors and b"Traceback" not in errors


def test_drafts_are_told_and_change_nothing(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = (bundle, "--prompt", "w05 w06 w07", "--max-new-tokens", 9)
    assert line("generate", *asked) == 0
    plain = capsys.readouterr().out
    assert line("generate", *asked, "--draft-skip", "2", "--draft-tokens", 3, "--draft-confidence", 0) == 0
    captured = capsys.readouterr()
    assert captured.out == plain and "tokens kept (" in captured.err and " a verification (" in captured.err
    drafts = made(capsys, *asked, "--draft-skip", "decoder.3")["drafts"]
    assert drafts["accepted"] + drafts["verifications"] == 8
    assert drafts["acceptance"] == pytest.approx(drafts["accepted"] / drafts["drafted"])


def test_drafts_are_found(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--prompt", "w05 w06", "--max-new-tokens", 4, "--threads", 1)
    assert line("generate", bundle, *asked, "--draft-skip", "auto") == 0
    told = capsys.readouterr().err
    assert "drafts by --draft-skip decoder." in told or "no drafts: " in told


def test_drafts_that_cannot_be_are_told_in_a_line(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for skip, reason in (("40", "layer 40 does not exist"), ("tail", "'tail'"), ("", "is empty")):
        assert line("generate", bundle, "--prompt", "w05", "--draft-skip", skip) != 0
        told = capsys.readouterr().err
        assert reason in told and "Traceback" not in told, told
    assert line("generate", bundle, "--prompt", "w05", "--draft-tokens", 3) == 2
    assert "--draft-skip" in capsys.readouterr().err
