"""Self-speculative decoding: the text is what it is without drafts, and the counts are right."""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from scipy import stats

import graphprune as gp
from graphprune.draftcosts import Costs, Trace, speed
from graphprune.draftsearch import find_draft
from graphprune.errors import EditError, RunError
from graphprune.gates import GATES
from graphprune.generator import Generation, generate, generate_steps
from graphprune.language import open_model
from graphprune.recover import recover
from graphprune.sampling import Proposal, Sampling, settle, softmax
from graphprune.settings import Settings
from graphprune.speculation import Drafting, Shortcut
from graphprune.speculator import Speculator
from graphprune.surgery import gate_blocks, sweep
from graphprune.surgery.shortening import add_shortcut
from tests.test_generator import PROMPTS, SOURCES, TEXTS, inputs_of, without, zoo
from tools import zoo_genai, zoo_loaders
from tools.zoo import NotExportableError, families
from tools.zoo_trained import trained

NEW = 14
ONE = Settings(threads=1)
PLAYS = (
    "ROMEO:\nBut soft, what light", "To be, or not to be", "KING HENRY:\n", "Enter two Gentlemen",
    "First Citizen:\nBefore we proceed", "O my good lord,", "The ", "Now is the winter",
)  # fmt: skip


def both(folder: Path, given: dict[str, Any], skip: str, **options: Any) -> tuple[Generation, Generation]:
    """The generation without drafts and with them."""
    options = {"max_new_tokens": NEW, "ignore_eos": True} | options
    plain = generate(open_model(folder, ONE), **given, **options)
    model = open_model(folder, ONE, draft_skip=skip)
    return plain, generate(model, **given, drafting=Drafting(skip, 4, 0.0), **options)


def check(folder: Path, given: dict[str, Any], skip: str = "decoder.-1") -> None:
    plain, drafted = both(folder, given, skip)
    assert drafted.completions == plain.completions
    assert drafted.drafts is not None and plain.drafts is None
    assert drafted.drafts.drafted >= drafted.drafts.accepted
    assert drafted.decoded == drafted.drafts.verifications + drafted.drafts.accepted


@pytest.mark.parametrize("family", [*TEXTS, *SOURCES])
def test_prompts_of_two_lengths_give_what_they_give_without_drafts(family: str) -> None:
    check(zoo(family).folder(), inputs_of(zoo(family)))


@pytest.mark.matrix
@pytest.mark.parametrize("skip", ["decoder.-1", "decoder.1-2"])
@pytest.mark.parametrize(
    "family",
    [name for name, one in families().items() if any(task.endswith("with-past") for task in one.tasks)],
)
def test_all_families_give_what_they_give_without_drafts(family: str, skip: str) -> None:
    try:
        folder = zoo(family).folder()
    except NotExportableError as error:
        pytest.skip(str(error))
    check(folder, inputs_of(zoo(family)), skip)


@pytest.mark.parametrize("left_out", ["nothing", pytest.param("merged", marks=pytest.mark.matrix)])
def test_merged_decoders_and_those_in_two_files(left_out: str, tmp_path: Path) -> None:
    entry = zoo_loaders.entry(zoo_loaders.generating()["llama"], "merged")
    check(without(entry, tmp_path / "bundle", left_out), inputs_of(entry))


@pytest.mark.parametrize(
    "family", ["bart", *(pytest.param(one, marks=pytest.mark.matrix) for one in ("t5", "whisper"))]
)
def test_decoders_with_an_encoder_in_two_files(family: str, tmp_path: Path) -> None:
    check(without(zoo(family), tmp_path / "bundle", "merged"), inputs_of(zoo(family)))


def test_without_a_cache() -> None:
    entry = zoo("gpt2", past=False)
    check(entry.folder(), inputs_of(entry))


def test_a_window_shorter_than_the_text() -> None:
    entry = zoo_loaders.entry(zoo_loaders.generating()["gemma2-window"], "past")
    check(entry.folder(), inputs_of(entry))


def test_models_of_the_genai_builder() -> None:
    pytest.importorskip("onnxruntime_genai", reason="builds the models")
    check(zoo_genai.Build("llama").folder(), {"prompts": PROMPTS})


def test_a_model_with_gates_is_used_as_it_is(tmp_path: Path) -> None:
    bundle = gp.load(zoo("gpt2").folder())
    (file,) = bundle.files
    gates = gate_blocks(recover(file.model))
    sweep(file.model)
    file.model.metadata_props[GATES] = "[" + ", ".join(f'"{id}"' for id in gates.blocks) + "]"
    ir.save(file.model, tmp_path / "model.onnx")
    for skip, wanted in (("2-3", 4), ("decoder.1.ffn", 1)):
        model = open_model(tmp_path / "model.onnx", ONE, draft_skip=skip)
        assert model.shortcut is not None and len(model.shortcut.blocks) == wanted
        made = generate(model, PROMPTS, max_new_tokens=NEW, drafting=Drafting(skip, 3, 0.0), ignore_eos=True)
        assert made.completions == run_plain().completions
    with pytest.raises(RunError, match="has no gate for '9'"):
        open_model(tmp_path / "model.onnx", ONE, draft_skip="9")


def run_plain(**options: Any) -> Generation:
    options = {"max_new_tokens": NEW, "ignore_eos": True} | options
    return generate(open_model(zoo("gpt2").folder(), ONE), PROMPTS, **options)


def test_steps_are_those_without_drafts_to_the_end_of_each_text() -> None:
    tokens = run_plain().completions[1].tokens
    options: dict[str, Any] = {"max_new_tokens": NEW, "stop_tokens": [tokens[4]], "ignore_eos": True}
    plain = generate_steps(open_model(zoo("gpt2").folder(), ONE), PROMPTS, **options)
    model = open_model(zoo("gpt2").folder(), ONE, draft_skip="2")
    drafted = generate_steps(model, PROMPTS, drafting=Drafting("2", 5, 0.0), **options)
    for one, other in zip(plain, drafted, strict=True):
        assert one.tokens == other.tokens and one.texts == other.texts
    assert drafted.result().completions == plain.result().completions
    assert drafted.result().completions[1].reason == "eos"


@pytest.mark.parametrize("options", [{"max_new_tokens": 1}, {"max_new_tokens": 2}, {"max_new_tokens": 200}])
def test_the_last_token_is_the_same(options: dict[str, int]) -> None:
    plain, drafted = both(zoo("gpt2").folder(), {"prompts": PROMPTS[:1]}, "2", **options)
    assert drafted.completions == plain.completions
    assert drafted.completions[0].reason == ("context" if options["max_new_tokens"] == 200 else "length")


def test_a_repetition_penalty_counts_drafted_tokens_when_they_are_chosen() -> None:
    sampling = Sampling(repetition_penalty=1.4)
    plain, drafted = both(zoo("gpt2").folder(), {"prompts": PROMPTS}, "2", sampling=sampling)
    assert drafted.completions == plain.completions


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_trained_decoders(name: str) -> None:
    plain, drafted = both(trained(name), {"prompts": PLAYS[:3]}, "decoder.5-7")
    assert drafted.completions == plain.completions
    assert drafted.drafts is not None and drafted.drafts.acceptance > 0.3


@pytest.mark.matrix
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_trained_decoders_with_fifty_prompts(name: str) -> None:
    prompts = [f"{start}{more}" for start, more in product(PLAYS, ("", " and", " my", "\n", " so", ", thou"))]
    prompts += ["HAMLET:", "What"]
    plain = generate(open_model(trained(name), ONE), prompts, max_new_tokens=100, ignore_eos=True)
    model = open_model(trained(name), ONE, draft_skip="1,3-7")
    drafted = generate(model, prompts, max_new_tokens=100, ignore_eos=True, drafting=Drafting("1,3-7"))
    assert len(prompts) == 50 and drafted.completions == plain.completions


# What a draft is made of.


@pytest.mark.parametrize("skip", [range(2, 3), (1, 3)])
def test_a_shortcut_scores_as_the_pruned_model_and_the_whole_as_the_source(
    skip: range | tuple[int, ...], tmp_path: Path
) -> None:
    folder = zoo("llama").folder()
    (file,) = gp.load(folder).files
    architecture = recover(file.model)
    ids = {block.id for layer in skip for block in architecture.stacks[0].layers[layer].blocks}
    empty = add_shortcut(architecture, ids)
    sweep(file.model)
    ir.save(file.model, tmp_path / "short.onnx")
    pruned = gp.prune(gp.load(folder), drop_layers=list(skip)).save(tmp_path / "pruned")
    source, short, less = (
        gp.Source(batch=2, sequence=5), tmp_path / "short.onnx", next(pruned.glob("*.onnx"))
    )  # fmt: skip
    dense = gp.run(folder, source)[0]
    feeds = dict(dense.feeds)
    whole = gp.run(short, gp.Source(arrays=feeds))[0].outputs
    for name, array in dense.outputs.items():
        np.testing.assert_array_equal(whole[name], array)
    draft = gp.run(short, gp.Source(arrays=feeds | {"whole": np.array(False)}))[0].outputs
    wanted = gp.run(less, gp.Source(arrays=feeds))[0].outputs
    np.testing.assert_allclose(draft["logits"], wanted["logits"], atol=1e-5)
    assert sorted(empty) == sorted(f"present.{layer}.{one}" for layer in skip for one in ("key", "value"))
    assert all(draft[name].size == 0 for name in empty)


def test_what_others_need_cannot_be_passed_by() -> None:
    (file,) = gp.load(zoo("llama").folder()).files
    with pytest.raises(EditError, match=r"decoder\.0\.attention cannot be passed by: others read the size"):
        add_shortcut(recover(file.model), {"decoder.0.attention"})
    with pytest.raises(RunError, match="no draft without 0"):
        open_model(zoo("llama").folder(), draft_skip="0")


def test_bad_input_is_told() -> None:
    with pytest.raises(RunError, match="a draft of 0 tokens"):
        Drafting("2", 0)
    with pytest.raises(RunError, match=r"confidence 1\.5"):
        Drafting("2", confidence=1.5)
    with pytest.raises(RunError, match="was not opened for drafts"):
        generate(open_model(zoo("gpt2").folder()), PROMPTS, drafting=Drafting("2"))
    with pytest.raises(gp.GraphpruneError, match="layer 40 does not exist"):
        open_model(zoo("gpt2").folder(), draft_skip="40")


class Chain:
    """A lane whose next token depends on the last one by a table of scores; drafts have their own."""

    name, room = "chain", 99

    def __init__(self, whole: np.ndarray, draft: np.ndarray, *, apart: float = 0.0) -> None:
        self.whole, self.draft, self.apart, self.text = whole, draft, apart, [0]

    def begin(self) -> np.ndarray:
        return self.whole[[0]]

    def mark(self) -> Any:
        return type("Mark", (), {"width": len(self.text), "text": list(self.text)})

    def rewind(self, mark: Any) -> None:
        self.text = list(mark.text)

    def crop(self, length: int) -> None:
        del self.text[length:]

    def extend(self, tokens: Any, *, shortcut: bool = False) -> np.ndarray:
        self.text += tokens[0]
        scores = (self.draft if shortcut else self.whole)[tokens[0]][None]
        return scores + self.apart * (len(tokens[0]) > 1)


def text_of(lane: Any, sampling: Sampling, length: int, seed: int, drafting: Drafting) -> tuple[int, ...]:
    """Tokens after token 0, and the speculator that helped to make them."""
    random = np.random.default_rng(seed)
    speculator = Speculator(
        lane, Shortcut((), {}), drafting, lambda s, t: sampling.propose(s, t, random), [0], length + 1
    )  # fmt: skip
    scores, text = speculator.begin(), []
    while True:
        text += sampling.choose(scores, [text], [random], speculator.proposals)
        if len(text) == length:
            lane.made = speculator.drafts
            return tuple(text)
        scores = speculator.advance(text[-1:])


def test_counts_where_every_draft_is_right() -> None:
    table = np.roll(np.eye(5, dtype=np.float32), 1, axis=1) * 9
    lane = Chain(table, table)
    assert text_of(lane, Sampling(), 16, 0, Drafting("x", 4, 0.0)) == tuple(n % 5 for n in range(1, 17))
    made: Any = lane.made
    assert (made.verifications, made.drafted, made.accepted) == (3, 12, 12)  # 1 + 3 · (4 + 1)
    assert made.acceptance == 1 and made.tokens_per_verification == 5


def test_counts_where_every_draft_is_wrong_or_unsure() -> None:
    table = np.roll(np.eye(5, dtype=np.float32), 1, axis=1) * 9
    lane = Chain(table, np.roll(table, 1, axis=1))
    assert text_of(lane, Sampling(), 6, 0, Drafting("x", 3, 0.0)) == (1, 2, 3, 4, 0, 1)
    made: Any = lane.made
    assert (made.verifications, made.accepted) == (5, 0)
    assert made.drafted == 3 + 3 + 2 + 1 + 0  # never beyond the end
    lane = Chain(table, table / 9)
    text_of(lane, Sampling(), 6, 0, Drafting("x", 3, 0.9))
    made = lane.made
    assert (made.verifications, made.drafted, made.accepted) == (3, 2, 2)  # an unsure token is the last


def test_scores_that_depend_on_later_tokens_cannot_verify() -> None:
    table = np.eye(5, dtype=np.float32)
    with pytest.raises(RunError, match="chain cannot verify drafts"):
        text_of(Chain(table, table, apart=0.1), Sampling(), 3, 0, Drafting("x"))


def test_a_cache_that_does_not_hold_all_tokens_cannot_go_back() -> None:
    model = open_model(zoo("gpt2").folder(), ONE)
    steps = generate_steps(model, PROMPTS[:1], max_new_tokens=4, ignore_eos=True)
    next(steps), next(steps)
    lane: Any = steps._lanes[0]
    lane._width += 1
    with pytest.raises(RunError, match="holds 8 of 9 tokens"):
        lane.crop(7)


# Drawing at random keeps the distribution of the whole model.


def fits(counts: Counter[Any], shares: dict[Any, float]) -> float:
    """How likely counts as far from these probabilities are."""
    total = counts.total()
    result = stats.chisquare([counts[key] for key in shares], [share * total for share in shares.values()])
    return float(result.pvalue)


def test_what_is_settled_has_the_distribution_of_the_whole_model() -> None:
    rng = np.random.default_rng(0)
    scores, drafted = rng.normal(size=(2, 6)).astype(np.float32) * 1.5
    q = softmax(drafted.astype(np.float64))
    found: Counter[int] = Counter()
    kept = 0
    for _ in range(20000):
        token = int(rng.choice(6, p=q))
        chosen = settle(scores, rng, Proposal(token, float(q[token]), q))
        found[chosen] += 1
        kept += chosen == token
    p = softmax(scores.astype(np.float64))
    assert fits(found, dict(enumerate(p))) > 1e-3
    assert abs(kept / 20000 - np.minimum(p, q).sum()) < 0.02  # Leviathan et al., theorem 3.5


@pytest.mark.parametrize("confidence", [0.0, 0.5])
def test_texts_drawn_with_drafts_have_the_distribution_of_the_whole_model(confidence: float) -> None:
    rng = np.random.default_rng(1)
    whole, draft = rng.normal(size=(2, 3, 3)).astype(np.float32)
    sampling = Sampling(temperature=0.8)
    found = Counter(
        text_of(Chain(whole, draft), sampling, 3, seed, Drafting("x", 2, confidence)) for seed in range(6000)
    )
    p = softmax(whole.astype(np.float64) / 0.8)
    shares = {(a, b, c): p[0, a] * p[a, b] * p[b, c] for a, b, c in product(range(3), repeat=3)}
    assert fits(found, shares) > 1e-3


def test_drawn_texts_of_a_model_are_reproducible_and_use_drafts() -> None:
    model = open_model(zoo("gpt2").folder(), ONE, draft_skip="2")
    options: dict[str, Any] = {
        "max_new_tokens": NEW, "drafting": Drafting("2", 3, 0.0),
        "sampling": Sampling(temperature=0.7, top_k=20, seed=3),
    }  # fmt: skip
    one, other = (generate(model, PROMPTS, **options) for _ in range(2))
    assert one.completions == other.completions
    assert one.drafts is not None and one.drafts.drafted


# What to leave out.


def test_the_speed_of_rounds_is_counted() -> None:
    right = np.array([True, True, False, True])
    trace = Trace(right, np.array([0.9, 0.9, 0.9, 0.1]))
    costs = Costs(step=10.0, several=16.0, kinds={"ffn": 1.0})
    assert costs.verify(3) == 14.0 and costs.draft(["decoder.1.ffn", "decoder.2.ffn"]) == 8.0
    # Two drafted and right (2 + 1 tokens), then one: 3 drafts of 2 ms, runs of 3 and of 2 tokens.
    assert speed([trace], costs, 2.0, 2, 0.0) == pytest.approx(5 * 10 / (3 * 2 + 14 + 12))
    assert speed([trace], costs, 2.0, 2, 0.95) == pytest.approx(5 * 10 / (3 * 2 + 3 * 12))


def test_a_draft_is_found_for_a_model(tmp_path: Path) -> None:
    found = find_draft(zoo("gpt2").folder(), PROMPTS, ONE, max_new_tokens=8)
    model = open_model(zoo("gpt2").folder(), ONE, draft_skip=found.drafting.skip)
    assert found.speed > 0 and model.shortcut is not None
    assert ",".join(model.shortcut.blocks) == found.drafting.skip
