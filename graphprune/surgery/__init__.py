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
arrange_layers   run layers in another order, or more than once, their caches along with them
why_not_again    why layers with caches cannot run twice (this one changes nothing)
sweep            remove what nobody reads any more
"""

from graphprune.surgery.caches import remove_caches
from graphprune.surgery.dead import sweep
from graphprune.surgery.drop import drop_block
from graphprune.surgery.gating import gate_blocks
from graphprune.surgery.layers import arrange_layers
from graphprune.surgery.parts import drop_activation, drop_bias, drop_norm_bias, drop_residual
from graphprune.surgery.runs import why_not_again
from graphprune.surgery.sizes import release_shapes
from graphprune.surgery.sums import bypass_norm, drop_branch, drop_term, split_join
from graphprune.surgery.values import constant, detached, replace_value

__all__ = [
    "arrange_layers", "bypass_norm", "constant", "detached", "drop_activation", "drop_bias", "drop_block",
    "drop_branch", "drop_norm_bias", "drop_residual", "drop_term", "gate_blocks", "release_shapes",
    "remove_caches", "replace_value", "split_join", "sweep", "why_not_again",
]  # fmt: skip
