"""The command that makes text: `generate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphprune.cli_common import Json, Model, console, emit, working
from graphprune.cli_groups import Depth, with_groups

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphprune.generator import Completion, Generation, Step, Steps
    from graphprune.sampling import Sampling
    from graphprune.settings import Settings
    from graphprune.speculation import Drafting, Drafts

_EXAMPLES = """Examples: graphprune generate gpt2-onnx --prompt "Once upon a time" --max-new-tokens 40

graphprune generate llama-onnx --prompt "ROMEO:" --temperature 0.8 --top-p 0.95 --stop "JULIET:"

graphprune generate llama-onnx --prompt "ROMEO:" --draft-skip decoder.4-7

graphprune generate whisper-onnx --audio speech.wav"""
_CHOOSING: dict[str, Any] = {"rich_help_panel": "Choosing tokens"}
_DRAFTS: dict[str, Any] = {"rich_help_panel": "Drafts (self-speculative decoding)"}
_SKIP = "Draft tokens without these layers or blocks and verify several at once; auto finds them."
_TOKENS = "Tokens of a draft, at most."
_CONFIDENCE = "A token less probable than this in the draft is the draft's last."
_SAMPLE = 8  # prompts by which auto finds a draft


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(epilog=_EXAMPLES)(with_groups(generate))


@dataclass(frozen=True)
class Choosing:
    """How tokens are chosen."""

    temperature: Annotated[
        float,
        typer.Option(min=0, help="Above 0: draw tokens at random; 0 takes the most likely.", **_CHOOSING),
    ] = 0.0
    top_k: Annotated[
        int, typer.Option(min=0, help="Draw from the k most likely only; 0: from all.", **_CHOOSING)
    ] = 0
    top_p: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Draw from the fewest that have this probability together.", **_CHOOSING
        ),
    ] = 1.0
    repetition_penalty: Annotated[
        float,
        typer.Option(min=0, help="Above 1: tokens that were there before are less likely.", **_CHOOSING),
    ] = 1.0
    seed: Annotated[int, typer.Option(min=0, help="Seed of the drawing.", **_CHOOSING)] = 0

    def sampling(self) -> Sampling:
        """The rule that the options ask for. Raises `RunError`."""
        from graphprune.sampling import Sampling

        return Sampling(self.temperature, self.top_k, self.top_p, self.repetition_penalty, self.seed)


@dataclass(frozen=True)
class DraftOptions:
    """How the model drafts its own text."""

    draft_skip: Annotated[
        str | None, typer.Option(metavar="BLOCKS", help=_SKIP, show_default=False, **_DRAFTS)
    ] = None
    draft_tokens: Annotated[
        int | None, typer.Option(min=1, help=_TOKENS, show_default="6, or found by auto", **_DRAFTS)
    ] = None
    draft_confidence: Annotated[
        float | None,
        typer.Option(min=0, max=1, help=_CONFIDENCE, show_default="0.4, or found by auto", **_DRAFTS),
    ] = None

    def drafting(self, model: Path, prompts: Sequence[Any], settings: Settings) -> Drafting | None:
        """What the options ask for; None where no drafts are wanted, or auto finds none that pay.

        Raises `LoadError`, `RunError`.
        """
        from graphprune.speculation import Drafting

        asked: dict[str, Any] = {"tokens": self.draft_tokens, "confidence": self.draft_confidence}
        given = {name: value for name, value in asked.items() if value is not None}
        if self.draft_skip is None:
            if given:
                raise typer.BadParameter("say which blocks drafts skip, or auto", param_hint="--draft-skip")
            return None
        if self.draft_skip != "auto":
            return Drafting(self.draft_skip, **given)
        return _found(model, prompts, settings, given)


def _found(
    model: Path, prompts: Sequence[Any], settings: Settings, given: Mapping[str, Any]
) -> Drafting | None:
    from graphprune.draftsearch import find_draft

    found = find_draft(model, prompts[:_SAMPLE], settings)
    how = replace(found.drafting, **given)
    if found.speed <= 1:
        console(stderr=True).print("no drafts: none was found by which this model would be faster")
        return None
    console(stderr=True).print(
        f"drafts by --draft-skip {how.skip} --draft-tokens {how.tokens} "
        f"--draft-confidence {how.confidence:g} (expected: {found.speed:.2f} times the tokens a second)"
    )
    return how


def generate(
    model: Model,
    prompt: Annotated[
        list[str] | None, typer.Option(help="A text to go on with; may be given several times.")
    ] = None,
    ids: Annotated[
        list[str] | None, typer.Option(help="A prompt as ids of tokens, such as 1,2,3; several times.")
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(help="An .npz file: arrays by the names of the encoder's inputs.")
    ] = None,
    audio: Annotated[
        Path | None, typer.Option(help="Speech: a .wav file, or features in an .npy file.")
    ] = None,
    start_ids: Annotated[
        str | None, typer.Option(help="Ids that an encoder-decoder's text begins with, such as 50258,50259.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to make, at most.")] = 64,
    stop: Annotated[
        list[str] | None, typer.Option(help="A string that ends the text before it; several times.")
    ] = None,
    stop_id: Annotated[
        list[int] | None, typer.Option(help="A token that ends the text; several times.")
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Never choose the model's own end of a text.")
    ] = False,
    choosing: Choosing = Choosing(),
    drafts: DraftOptions = DraftOptions(),
    runtime: Depth = Depth(),
    as_json: Json = False,
) -> None:
    """Make text: complete prompts, translate or transcribe, token by token with the model's cache."""
    from graphprune.generator import generate_steps

    if prompt and ids:
        raise typer.BadParameter("give texts or ids, not both", param_hint="--ids")
    with working(f"loading {model}"):
        prompts: list[Any] = [*(prompt or (_numbers(one, "--ids") for one in ids or ()))]
        settings = runtime.settings_of(model)
        steps = generate_steps(
            model,
            prompts,
            max_new_tokens=max_new_tokens,
            sampling=choosing.sampling(),
            stop=stop or (),
            stop_tokens=stop_id or (),
            ignore_eos=ignore_eos,
            start=None if start_ids is None else _numbers(start_ids, "--start-ids"),
            inputs=_arrays(model, inputs, audio),
            settings=settings,
            drafting=drafts.drafting(model, prompts, settings),
        )
    _finish(steps, as_json)


def _finish(steps: Steps, as_json: bool) -> None:
    """Take all steps, and show what they made."""
    interrupted = _follow(steps, silent=as_json)
    result = steps.result()
    if as_json:
        emit(_as_json(result))
    else:
        _show(result)
    if interrupted:
        raise typer.Exit(130)


def _follow(steps: Steps, *, silent: bool) -> bool:
    """Take all steps; a single text is printed as it comes. Whether the user broke it off."""
    try:
        for step in steps:
            if not silent and len(step.tokens) == 1:
                typer.echo(_piece(step, steps), nl=False)
    except KeyboardInterrupt:
        return True
    return False


def _piece(step: Step, steps: Steps) -> str:
    """What a step adds to the only text: characters, or the id where no tokenizer tells them."""
    return step.texts[0] if steps.has_text else f"{step.tokens[0]} "


def _show(result: Generation) -> None:
    """End the text that was printed as it came, or print all of several; then what it took, on stderr."""
    several = len(result.completions) > 1
    for number, one in enumerate(result.completions if several else ()):
        typer.echo(f"[{number}] {' '.join(map(str, one.tokens)) if one.text is None else one.text}")
    if not several:
        typer.echo()
    reasons = ", ".join(dict.fromkeys(_reason(one) for one in result.completions))
    console(stderr=True).print(
        f"{sum(len(one.tokens) for one in result.completions)} tokens ({reasons}); "
        f"prompt {result.prompt_tokens} tokens in {result.prefill_s:.3f} s ({result.prefill_per_s:.0f}/s), "
        f"then {result.decoded} in {result.decode_s:.3f} s ({result.tokens_per_s:.1f}/s); "
        f"cache {result.cache_bytes / 1e6:.2f} MB"
    )
    if (drafts := result.drafts) is not None:
        console(stderr=True).print(
            f"drafts: {drafts.accepted} of {drafts.drafted} tokens kept ({drafts.acceptance:.0%}), "
            f"{drafts.tokens_per_verification:.2f} tokens a verification ({drafts.verifications})"
        )


def _reason(one: Completion) -> str:
    """Why a text ended; here only the user leaves one unfinished."""
    return "interrupted" if one.reason == "unfinished" else one.reason


def _as_json(result: Generation) -> dict[str, Any]:
    return {
        "completions": [asdict(one) | {"reason": _reason(one)} for one in result.completions],
        "prompt_tokens": result.prompt_tokens,
        "decoded_tokens": result.decoded,
        "prefill_s": result.prefill_s,
        "decode_s": result.decode_s,
        "prefill_tokens_per_s": result.prefill_per_s,
        "tokens_per_s": result.tokens_per_s,
        "cache_bytes": result.cache_bytes,
    } | ({"drafts": _drafts_json(result.drafts)} if result.drafts else {})


def _drafts_json(drafts: Drafts) -> dict[str, Any]:
    return asdict(drafts) | {
        "acceptance": drafts.acceptance,
        "tokens_per_verification": drafts.tokens_per_verification,
    }


def _numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.replace(",", " ").split())
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no list of ids such as 1,2,3", param_hint=option) from error


def _arrays(model: Path, inputs: Path | None, audio: Path | None) -> Mapping[str, NDArray[Any]]:
    """The arrays of an .npz file, and the features of a recording."""
    from graphprune.play import Source

    arrays = dict(Source.of_npz(inputs).arrays) if inputs else {}
    if audio is not None:
        from graphprune.speech import read_features

        arrays["input_features"] = read_features(audio, model)
    return arrays
