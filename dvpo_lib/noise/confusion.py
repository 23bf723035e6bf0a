"""Error rates of noise sources: received rewards against true ones."""

from __future__ import annotations

import numpy as np


def confusion_rates(true: np.ndarray, noisy: np.ndarray, length: np.ndarray | None = None) -> dict[str, float]:
    """Error rates of a noise source, its rewards read as labels at 0.5.

    Args:
        true: (n,) true rewards.
        noisy: (n,) received rewards; NaN if missing.
        length: (n,) lengths of the responses.

    Returns:
        tp, fp, fn, tn, missing: Shares of all responses; their sum is 1.
        corrupted: Share of received rewards that differ from the true ones, missing ones included.
        accuracy: Of the labels received.
        false_positives: Share of wrong responses labelled right.
        false_negatives: Share of right responses labelled wrong.
        length_reward, length_error: With `length`, correlation of the reward and of its error with the length; 0 if
            either is constant.
    """
    true, noisy = np.asarray(true, dtype=float), np.asarray(noisy, dtype=float)
    given = ~np.isnan(noisy)
    t, y, n = true[given] >= 0.5, noisy[given] >= 0.5, max(len(true), 1)
    counts = dict(tp=(t & y).sum(), fp=(~t & y).sum(), fn=(t & ~y).sum(), tn=(~t & ~y).sum(), missing=(~given).sum())
    found = {name: float(count / n) for name, count in counts.items()}
    found |= dict(
        corrupted=float((true != noisy).mean()),
        accuracy=float((t == y).mean()) if len(t) else float("nan"),
        false_positives=float(counts["fp"] / max((~t).sum(), 1)),
        false_negatives=float(counts["fn"] / max(t.sum(), 1)),
    )
    if length is not None:
        length = np.asarray(length, dtype=float)[given]
        found |= dict(
            length_reward=_correlation(noisy[given], length), length_error=_correlation((noisy - true)[given], length)
        )
    return found


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1]) if len(x) > 1 and x.std() > 0 and y.std() > 0 else 0.0
