"""A bundle that makes text: which file reads the prompt, which one takes the further tokens.

    | files                                   | prompt              | further tokens               |
    |-----------------------------------------|---------------------|------------------------------|
    | one, with a cache (optimum's, genai's)  | it, an empty cache  | it                           |
    | one, without a cache                    | it                  | it, with all tokens again    |
    | merged (`use_cache_branch`)             | it, the flag false  | it, the flag true            |
    | decoder and decoder with past           | the former          | the latter                   |

each with or without an encoder before it. Told by what files take and give, not by their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graphprune.errors import RunError
from graphprune.genconfig import GenerationRules, read_rules
from graphprune.ports import Padding, Ports, inputs_of, position_limits, read_padding, read_ports
from graphprune.session import Session, open_session
from graphprune.speculation import open_with_shortcut

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from graphprune.bundle import ModelFile
    from graphprune.settings import Settings
    from graphprune.speculation import Shortcut


# Tokens to try whether a model is causal, and what later ones may do, as a share of what earlier ones do.
_PROBE, _SHARE = 8, 0.25


@dataclass(frozen=True, eq=False)
class Decoder:
    """A loaded decoder file: its session, and what its inputs and outputs mean."""

    session: Session
    ports: Ports


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A loaded bundle that makes text. `first` reads the prompt, `step` the further tokens.

    `step` is None where every token needs a full pass. `padding` says on which side prompts of
    different lengths are filled up ("none": they cannot be), and `context` how long a text may
    get, where that is known. `tokenizer` is None where there is none beside the model. `shortcut` says
    how blocks are passed by in drafts; it is None where none can be.
    """

    path: Path
    encoder: Session | None
    first: Decoder
    step: Decoder | None
    padding: Padding
    context: int | None
    rules: GenerationRules
    tokenizer: Tokenizer | None
    shortcut: Shortcut | None = None


def open_model(
    path: str | Path, settings: Settings | None = None, *, draft_skip: str | None = None
) -> LanguageModel:
    """Load a bundle that makes text: only those of its files that are needed.

    `draft_skip` selects layers and blocks that drafts pass by (`Drafting`): `decoder.4-7`, say.
    Raises `LoadError` where it cannot be read, `RunError` where it makes no text, or cannot draft so.
    """
    from graphprune.bundle import load
    from graphprune.fileset import require_set

    bundle = load(path)
    require_set(bundle)
    files = bundle.files
    first, step = _choose(files, Path(path))
    encoder = find_encoder(files) if first.ports.reads_encoder else None
    opened: dict[str, Session] = {}
    shortcut = None
    if draft_skip is not None:
        drafting = (step or first).file
        opened[drafting.name], shortcut = open_with_shortcut(drafting, draft_skip, settings)

    def session(file: ModelFile) -> Session:
        if file.name not in opened:
            opened[file.name] = open_session(file.path, file.name, settings)
        return opened[file.name]

    rules = read_rules(path)
    reader = Decoder(session(first.file), first.ports)
    if step is None and not first.ports.reads_encoder:
        _require_causal(reader)
    return LanguageModel(
        path=Path(path),
        encoder=session(encoder) if encoder else None,
        first=reader,
        step=Decoder(session(step.file), step.ports) if step else None,
        padding=read_padding(first.file, first.ports),
        context=min((size for size in (rules.context, *position_limits(first.file)) if size), default=None),
        rules=rules,
        tokenizer=_tokenizer(path),
        shortcut=shortcut,
    )


def _tokenizer(path: str | Path) -> Tokenizer | None:
    from graphprune.text import find_tokenizer, load_tokenizer

    return load_tokenizer(path) if find_tokenizer(path) else None


def _require_causal(decoder: Decoder) -> None:
    """Raise `RunError` where scores change with later tokens as with earlier ones: a masked language model.

    Later tokens also reach a causal model, by activations that are quantized as they come, but hardly.
    """
    import numpy as np

    from graphprune.inputs import make_inputs

    session, ids = decoder.session, decoder.ports.ids
    feeds = make_inputs(session.runtime, batch=1, sequence=_PROBE)
    middle = feeds[ids].shape[-1] // 2
    if not middle:  # the file reads one token at a time
        return

    def scores(changed: slice) -> NDArray[np.float32]:
        given = feeds[ids].copy()
        given[:, changed] = np.where(given[:, changed] > 0, given[:, changed] - 1, 1)
        return session.run({**feeds, ids: given})[decoder.ports.logits][:, middle]

    whole = scores(slice(0, 0))
    earlier, later = (
        float(np.abs(scores(part) - whole).max()) for part in (slice(0, middle), slice(middle + 1, None))
    )
    if later > _SHARE * earlier:
        raise RunError(
            f"{session.name} makes no text: its scores for a token depend on the tokens after it, "
            "as those of BERT and other encoders do"
        )


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A file that takes tokens and gives scores."""

    file: ModelFile
    ports: Ports


def _choose(files: Sequence[ModelFile], path: Path) -> tuple[_Candidate, _Candidate | None]:
    """The file for the prompt, and the one for further tokens."""
    candidates = _candidates(files)
    merged = [one for one in candidates if one.ports.branch]
    plain = [one for one in candidates if not one.ports.pasts]
    cached = [one for one in candidates if one.ports.pasts and not one.ports.branch]
    for group in (merged, plain, cached):
        if len(group) > 1:
            names = ", ".join(one.file.name for one in group)
            raise RunError(f"{path} holds several models that make text ({names}): name the file")
    if merged:
        return merged[0], merged[0]
    if plain and cached and not set(cached[0].ports.pasts) - set(plain[0].ports.presents):
        return plain[0], cached[0]
    if cached and cached[0].ports.begins:
        return cached[0], cached[0]
    if not plain:
        raise RunError(
            f"{cached[0].file.name} goes on from a cache: the file that reads the prompt is missing"
        )
    return plain[0], None


def _candidates(files: Sequence[ModelFile]) -> list[_Candidate]:
    """The files that make text. Raises `RunError` with the reason of the likeliest where none does."""
    found, reasons = [], {}
    for file in files:
        try:
            found.append(_Candidate(file, read_ports(file)))
        except RunError as error:
            reasons["input_ids" not in inputs_of(file)] = error
    if not found:
        raise reasons[min(reasons)]
    return found


def find_encoder(files: Sequence[ModelFile]) -> ModelFile | None:
    """The file whose output the decoders read: it takes neither a cache nor anything of an encoder."""
    starts = ("encoder_", "past")
    found = [file for file in files if not any(name.startswith(starts) for name in inputs_of(file))]
    return found[0] if len(found) == 1 else None
