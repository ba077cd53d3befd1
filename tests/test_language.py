"""Which file of a bundle makes text, and in what way; the rest of what the loop promises."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import graphprune as gp
from graphprune.errors import LoadError, RunError
from graphprune.generator import generate, generate_steps
from graphprune.language import open_model
from graphprune.settings import Settings
from tests.test_generator import NEW, PROMPTS, assert_close, inputs_of, run, without, zoo

SHARED = Path(__file__).parent.parent.parent / "shared" / "models"


def shared(name: str) -> Path:
    if not SHARED.is_dir():
        pytest.skip("the folder of shared models is not here")
    return SHARED / name


def check_alone(path: Path, prompts: tuple[tuple[int, ...], ...] = PROMPTS, **options: object) -> None:
    """Each text alone is what it is in the batch, and a full pass gives the scores of the last step."""
    model = open_model(path, Settings(threads=1))
    made, scores = run(model, prompts=prompts, **options)
    for row, prompt in enumerate(prompts):
        alone, own = run(model, prompts=[prompt], **options)
        assert alone.completions[0] == made.completions[row]
        assert_close(own[:, 0], scores[:, row])
    whole = [*prompts[-1], *made.completions[-1].tokens[:-1]]
    _, last = run(model, prompts=[whole], max_new_tokens=1)
    assert_close(last[0, 0], scores[-1, -1])


@pytest.mark.parametrize("name", ["genai_gqa_2l.onnx", "genai_gpt2_fused_fp32.onnx"])
def test_fused_attention_with_stacked_or_half_precision_caches(name: str) -> None:
    model = open_model(shared(name))
    assert model.padding == {"genai_gqa_2l.onnx": "right"}.get(name, "left")
    made, _ = run(model, prompts=PROMPTS, max_new_tokens=5)
    for row, prompt in enumerate(PROMPTS):
        assert run(model, prompts=[prompt], max_new_tokens=5)[0].completions[0] == made.completions[row]
    size = {"genai_gqa_2l.onnx": 2 * 2 * 16 * 2 * 2}.get(name, 5 * 2 * 4 * 8 * 4)  # a token's, in bytes
    assert made.cache_bytes == size * len(PROMPTS) * (max(map(len, PROMPTS)) + 4)


@pytest.mark.parametrize(
    ("family", "padding"), [("gpt2", "left"), ("gemma2", "none"), ("bloom", "left"), ("opt", "left")]
)
def test_prompts_of_different_lengths(family: str, padding: str) -> None:
    folder = zoo(family).folder()
    assert open_model(folder).padding == padding
    check_alone(folder, ((5, 6, 7, 8, 9), (41, 42), (11, 12, 13, 14, 15)), max_new_tokens=6)


def test_a_file_alone_takes_what_its_encoder_would_give() -> None:
    folder = zoo("t5").folder()
    model = open_model(folder)
    ids = np.array([PROMPTS[0]])
    assert model.encoder is not None
    states = model.encoder.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})["last_hidden_state"]
    given = {"encoder_hidden_states": states, "encoder_attention_mask": np.ones_like(ids)}
    file = folder / "decoder_model_merged.onnx"
    alone = generate(file, inputs=given, max_new_tokens=5)
    assert alone.completions == generate(folder, PROMPTS[:1], max_new_tokens=5).completions
    with pytest.raises(RunError, match="there is none beside it"):
        generate(file, PROMPTS)
    with pytest.raises(RunError, match="goes on from a cache: the file that reads the prompt is missing"):
        generate(folder / "decoder_with_past_model.onnx", PROMPTS)
    with pytest.raises(RunError, match="gives no score for each token, but last_hidden_state"):
        generate(folder / "encoder_model.onnx", PROMPTS)


def twice(folder: Path) -> None:
    shutil.copy(folder / "decoder_model_merged.onnx", folder / "other.onnx")


@pytest.mark.parametrize(
    ("family", "change", "reason"),
    [
        ("t5", twice, "several models that make text"),
        ("whisper", lambda folder: None, "takes no tokens, but input_features"),
    ],
)
def test_a_bundle_that_cannot_is_refused(
    family: str, change: Callable[[Path], object], reason: str, tmp_path: Path
) -> None:
    folder = without(zoo(family), tmp_path / "bundle")
    change(folder)
    with pytest.raises(RunError, match=reason):
        generate(folder, PROMPTS)


def masked_model(path: Path, *, causal: bool) -> Path:
    """Scores of 9 tokens: a table's rows, summed over all tokens or over those up to each."""
    total = "CumSum" if causal else "ReduceSum"
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["rows"])]
    if causal:
        nodes.append(helper.make_node("CumSum", ["rows", "one"], ["logits"]))
    else:
        nodes.append(helper.make_node("ReduceSum", ["rows", "one"], ["sum"], keepdims=1))
        nodes.append(helper.make_node("Add", ["rows", "sum"], ["logits"]))
    table = np.random.default_rng(0).standard_normal((9, 9)).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        total,
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", 9])],
        [onnx.numpy_helper.from_array(table, "table"), onnx.numpy_helper.from_array(np.array([1]), "one")],
    )
    if causal:
        graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.array(1), "one"))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_masked_language_model_makes_no_text(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="depend on the tokens after it"):
        generate(masked_model(tmp_path / "model.onnx", causal=False), [[1, 2]])
    made = generate(masked_model(tmp_path / "model.onnx", causal=True), [[1, 2], [3]], max_new_tokens=3)
    table = np.random.default_rng(0).standard_normal((9, 9)).astype(np.float32)
    text = [1, 2]
    for _ in range(3):
        text.append(int(table[text].sum(axis=0).argmax()))
    assert made.completions[0].tokens == tuple(text[2:])
    assert made.cache_bytes == 0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gpt2_past_12l.onnx", "no score for each token, but last_state"),
        ("optimum_tiny_distilbert.onnx", "no score for each token"),
        ("ort_whisper_dec_past.onnx", "takes no input_ids, but input_hidden_states"),
        ("gpt2_greedy_two_subgraphs.onnx", "no score for each token, but sequences"),
    ],
)
def test_models_that_make_no_text_say_why(name: str, reason: str) -> None:
    with pytest.raises(RunError, match=reason):
        generate(shared(name), [[1, 2]])


def test_a_text_ends_where_no_position_is_left() -> None:
    folder = zoo("gpt2").folder()
    made, _ = run(folder, prompts=[tuple(range(3, 63))], max_new_tokens=40)
    (one,) = made.completions
    assert (len(one.prompt), len(one.tokens), one.reason) == (60, 5, "context")  # the 65th needs no position
    with pytest.raises(RunError, match=r"65 tokens, but model\.onnx has 64 positions"):
        generate(folder, [tuple(range(3, 68))])


def test_a_prompt_that_its_encoder_cannot_take_is_refused() -> None:
    with pytest.raises(RunError, match=r"65 tokens, but encoder_model\.onnx has 64 positions"):
        generate(zoo("bart").folder(), [tuple(range(3, 68))])


def test_a_prompt_without_tokens_begins_with_bos(tmp_path: Path) -> None:
    folder = zoo("gpt2").folder()
    assert (
        generate(folder, [()], max_new_tokens=3).completions
        == generate(folder, [(1,)], max_new_tokens=3).completions
    )


def test_steps_can_be_looked_at_one_by_one() -> None:
    model = open_model(zoo("gpt2").folder())
    steps = generate_steps(model, PROMPTS, max_new_tokens=4, stop_tokens=[18], ignore_eos=True)
    first = next(steps)
    assert first.scores.shape == (2, 99) and first.texts == ("", "")
    assert [one.reason for one in steps.result().completions].count("unfinished") == sum(
        token != 18 for token in first.tokens
    )
    rest = list(steps)
    made = steps.result()
    for row, one in enumerate(made.completions):
        told = [step.tokens[row] for step in (first, *rest)]
        assert tuple(token for token in told if token is not None) == one.tokens
        assert all(token is None for token in told[len(one.tokens) :])
    assert next(steps, None) is None
    assert made.decoded == sum(len(one.tokens) - 1 for one in made.completions)


def test_the_public_names_do_it_too() -> None:
    sampling = gp.Sampling(temperature=1.0, top_k=5, seed=1)
    folder = zoo("gpt2").folder()
    one = gp.generate(folder, PROMPTS, max_new_tokens=4, sampling=sampling)
    assert (
        one.completions
        == gp.generate(gp.open_model(folder), PROMPTS, max_new_tokens=4, sampling=sampling).completions
    )
    assert one.tokens_per_s > 0 and one.prefill_per_s > 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
        ({"stop": ("",)}, "a stop string is empty"),
        ({"prompts": ["a", (1, 2)]}, "not both"),
        ({"prompts": []}, "no prompt was given"),
        ({"prompts": "text"}, "put the one into a list"),
        ({"prompts": [5, 6]}, "put the one into a list"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], reason: str) -> None:
    with pytest.raises(RunError, match=reason):
        generate(zoo("gpt2").folder(), **({"prompts": PROMPTS} | options))


def test_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    folder = without(zoo("gpt2"), tmp_path / "bundle")
    (folder / "tokenizer.json").write_text(json.dumps({"model": 3}))
    with pytest.raises(LoadError, match="not a tokenizer"):
        generate(folder, PROMPTS)


def test_an_input_without_a_value_is_named(tmp_path: Path) -> None:
    path = masked_model(tmp_path / "model.onnx", causal=True)
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("extra", TensorProto.FLOAT, [1]))
    model.graph.node.append(helper.make_node("Add", ["logits", "extra"], ["more"]))
    model.graph.output[0].name = "more"
    onnx.save(model, path)
    with pytest.raises(RunError, match="inputs without a value: extra"):
        generate(path, [[1, 2]])
    given = {"extra": np.zeros(1, np.float64)}
    assert len(generate(path, [[1, 2]], inputs=given, max_new_tokens=NEW).completions[0].tokens) == NEW


def test_inputs_say_how_many_texts_there_are() -> None:
    entry = zoo("whisper")
    assert len(generate(entry.folder(), max_new_tokens=2, **inputs_of(entry)).completions) == 2
    with pytest.raises(RunError, match="give a prompt, or arrays for: input_features"):
        generate(entry.folder(), max_new_tokens=2)
