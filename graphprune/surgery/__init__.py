"""The few verbs that change a graph. Each leaves a valid graph behind; dead nodes stay until `sweep`.

replace_value    let everybody who reads one value read another
drop_block       take a block's branches out of the stream, its caches along with them
drop_term        take one operand out of a sum, plain or fused
split_join       take a fused sum-and-norm apart
bypass_norm      let a norm pass its input on
remove_caches    take KV inputs and outputs away, and number the others anew
release_shapes   read sizes off the stream instead of off nodes that go
drop_bias, drop_norm_bias, drop_activation, drop_residual
                 take one part of a block away
gate_blocks      let an input say which blocks run
add_skips        the same for good: chosen blocks, by further rules, in subgraphs too
remove_gates     let all of them run again
why_no_gates, why_no_gate
                 why a model, or which of its blocks, cannot have gates (these change nothing)
arrange_layers   run layers in another order, or more than once, their caches along with them
why_not_again    why layers with caches cannot run twice (this one changes nothing)
output_projections, post_norm, place_for
                 what of a block can be refitted, or replaced (these change nothing)
refit_projections, refit_norm
                 give a block's output projections, or the norm behind it, other weights
ffn_neurons      what belongs to each neuron of an FFN (this one changes nothing)
keep_neurons     let the others of an FFN's neurons go
replace_block    put a linear map or a constant in the place of a block
mergeable        which parameters of two layers have the same place (this one changes nothing)
merge_parameters add onto one layer's parameters what sets another one's apart
run_beside       let blocks that follow each other read one value of the stream
why_not_parallel why they cannot (this one changes nothing)
add_exits        let samples leave between layers
why_no_exits     why they cannot (this one changes nothing)
sweep            remove what nobody reads any more

Fitted weights come from a file: `FittedValues` opens it, `read_…` takes what belongs to one block.
"""

from graphprune.surgery.caches import remove_caches
from graphprune.surgery.dead import sweep
from graphprune.surgery.drop import drop_block
from graphprune.surgery.exitfile import BATCH_MODES, CRITERIA, BatchMode, Criterion, read_heads
from graphprune.surgery.exiting import add_exits
from graphprune.surgery.exitsite import why_no_exits
from graphprune.surgery.fitted import output_projections, post_norm
from graphprune.surgery.gating import gate_blocks
from graphprune.surgery.layers import arrange_layers
from graphprune.surgery.merging import merge_parameters, mergeable
from graphprune.surgery.neurons import Neurons, ffn_neurons, keep_neurons, neuron_macs
from graphprune.surgery.parallel import run_beside, why_not_parallel
from graphprune.surgery.parts import drop_activation, drop_bias, drop_norm_bias, drop_residual
from graphprune.surgery.refitting import refit_norm, refit_projections
from graphprune.surgery.runs import why_not_again
from graphprune.surgery.sizes import release_shapes
from graphprune.surgery.skips import Gate, Skips, add_skips, remove_gates, why_no_gate, why_no_gates
from graphprune.surgery.skipscores import Cosine, Router, Score, has_phase
from graphprune.surgery.standins import Place, macs_of, place_for, replace_block
from graphprune.surgery.sums import bypass_norm, drop_branch, drop_term, split_join
from graphprune.surgery.valuefile import FittedValues, fingerprint
from graphprune.surgery.valuereading import read_linear, read_neurons, read_norm, read_projections
from graphprune.surgery.values import constant, detached, replace_value

__all__ = [
    "BATCH_MODES", "CRITERIA", "BatchMode", "Cosine", "Criterion", "FittedValues", "Gate", "Neurons",
    "Place", "Router", "Score", "Skips", "add_exits", "add_skips", "arrange_layers", "bypass_norm",
    "constant", "detached", "drop_activation", "drop_bias", "drop_block", "drop_branch",
    "drop_norm_bias", "drop_residual", "drop_term", "ffn_neurons", "fingerprint", "gate_blocks",
    "has_phase", "keep_neurons", "macs_of", "merge_parameters", "mergeable", "neuron_macs",
    "output_projections", "place_for", "post_norm", "read_heads", "read_linear", "read_neurons",
    "read_norm", "read_projections", "refit_norm", "refit_projections", "release_shapes",
    "remove_caches", "remove_gates", "replace_block", "replace_value", "run_beside", "split_join",
    "sweep", "why_no_exits", "why_no_gate", "why_no_gates", "why_not_again", "why_not_parallel",
]  # fmt: skip
