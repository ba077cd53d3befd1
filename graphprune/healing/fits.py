"""Closed-form fits to gathered moments: each says how sure the data make it, and none can come out as NaN."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import RunError
from graphprune.healing.moments import Affine, Channels, Moments

Wide = NDArray[np.float64]

# Shares of the mean eigenvalue that are tried as λ, in turn, for as long as the held-out rows like it better.
STRENGTHS = (10.0, 1.0, 1e-1, 1e-2)
# Of the largest eigenvalue: below, a matrix of covariances counts as singular.
_SINGULAR = 1e-9
# The share of all inputs that goes at once where there are too many.
_AT_ONCE = 0.04

log = logging.getLogger(__name__)


def ridge(moments: Moments, strength: float = 1e-2) -> Affine:
    """The affine map x → y of least squares, its weight drawn toward 0.

    Minimizes Σ‖y − xW − c‖² + λ‖W‖², λ being `strength` times the mean eigenvalue of the covariance of x;
    the bias is free. With fewer rows than inputs it is still defined, and nearer to 0. Where y is what a map
    leaves over, this draws toward that map (the identity: ReplaceMe, 2025, https://arxiv.org/abs/2505.02819).
    Hoerl and Kennard, 1970. Raises `RunError` where there are no rows.
    """
    return next(ridges(moments, (strength,)))


def ridges(moments: Moments, strengths: tuple[float, ...] = STRENGTHS) -> Iterator[Affine]:
    """`ridge` of one strength after another. Raises `RunError` where there are no rows."""
    from scipy.linalg import cho_factor, cho_solve

    if not moments.count:
        raise RunError("there are no rows to fit to: give more data")
    gram, cross = moments.covariances()
    inputs = len(gram)
    mean = float(np.trace(gram)) / max(inputs, 1)
    if mean <= 0:  # x is constant: nothing can be said of the weight
        yield from (moments.through_mean(np.zeros(cross.shape)) for _ in strengths)
        return
    if moments.count <= inputs:
        log.info("%d rows for %d inputs: the fit rests on its regularization", moments.count, inputs)
    for strength in strengths:
        damped = gram.copy()
        damped[np.diag_indices(inputs)] += max(strength, _SINGULAR) * mean
        yield moments.through_mean(cho_solve(cho_factor(damped, overwrite_a=True), cross))


def narrowed(
    moments: Moments, own: Affine, count: int, strength: float = 1e-1
) -> tuple[NDArray[np.int64], Affine]:
    """The `count` inputs by which y is told best, and the map x → y that reads no other.

    The map is drawn toward `own` as `ridge` draws toward 0. Inputs go a few at a time, those first whose
    going costs the least once the others have made up for it: optimal brain surgery (Hassibi and Stork, 1992)
    on whole neurons, as in ZipLM (Kurtic et al. 2023, https://arxiv.org/abs/2302.04089). Raises `RunError`
    where there are no rows.
    """
    from scipy.linalg.lapack import dpotrf, dpotri

    if not moments.count:
        raise RunError("there are no rows to fit to: give more data")
    gram, cross = moments.covariances()
    mean = max(float(np.trace(gram)) / len(gram), _SINGULAR)
    gram[np.diag_indices(len(gram))] += max(strength, _SINGULAR) * mean
    half, _ = dpotri(dpotrf(gram)[0])
    inverse = np.triu(half) + np.triu(half, 1).T
    weight = inverse @ (cross + strength * mean * own.weight)
    left = np.arange(len(gram))
    while len(left) > count:
        cost = np.einsum("ij,ij->i", weight, weight) / np.diagonal(inverse)
        order = np.argsort(cost, kind="stable")
        some = max(1, min(len(left) - count, round(_AT_ONCE * len(gram))))
        gone, stay = np.sort(order[:some]), np.sort(order[some:])
        share = np.linalg.solve(inverse[np.ix_(gone, gone)], inverse[np.ix_(gone, stay)]).T
        weight = weight[stay] - share @ weight[gone]
        inverse = inverse[np.ix_(stay, stay)] - share @ inverse[np.ix_(gone, stay)]
        left = left[stay]
    whole = np.zeros(cross.shape)
    whole[left] = weight
    return left, moments.through_mean(whole)


def low_rank(moments: Moments, fitted: Affine, rank: int) -> tuple[Wide, Wide]:
    """The two factors [inputs, rank] and [rank, outputs] whose product is nearest to `fitted` on the data.

    Nearest in what comes out: reduced-rank regression (Izenman, 1975), that is, the first principal
    directions of the fitted outputs.
    """
    gram, _ = moments.covariances()
    outputs = fitted.weight.T @ gram @ fitted.weight
    _, vectors = np.linalg.eigh((outputs + outputs.T) / 2)
    kept = vectors[:, ::-1][:, :rank]
    return fitted.weight @ kept, kept.T


def scale_and_shift(channels: Channels, scale: Wide, shift: Wide) -> tuple[Wide, Wide]:
    """The γ and β [width] of least squares; where a channel does not vary, γ stays as given.

    Raises `RunError` where there are no rows.
    """
    if not channels.count:
        raise RunError("there are no rows to fit to: give more data")
    s, n = channels.sums, channels.count
    varies = s["xx"] - s["x"] ** 2 / n
    follows = s["xy"] - s["x"] * s["y"] / n
    firm = varies > _SINGULAR * np.maximum(s["xx"], 1e-30)
    fitted = np.where(firm, follows / np.where(firm, varies, 1), scale)
    return fitted, (s["y"] - fitted * s["x"]) / n


def only_scale(channels: Channels, scale: Wide) -> Wide:
    """The γ [width] of least squares for a norm that has no β."""
    s = channels.sums
    firm = s["xx"] > 0
    result: Wide = np.where(firm, s["xy"] / np.where(firm, s["xx"], 1), scale)
    return result
