"""An adaptive order-1 model of the stream (PPM-C, Moffat 1990, without exclusion), mixed into the network's.

Both distributions are normalised and the weight is fixed, so the mixture is normalised; counts see a target only after
it was scored (pr398's ablation; its order-2 setting had no effect there).
"""

import numpy as np


class Ppm:
    """Counts of the targets so far: V^2 int32."""

    def __init__(self, vocab_size: int) -> None:
        self.pairs = np.zeros((vocab_size, vocab_size), dtype=np.int32)  # [previous, target]
        self.after = np.zeros((vocab_size, 2), dtype=np.int64)  # of each previous: targets, distinct ones
        self.single = np.zeros(vocab_size, dtype=np.int64)
        self.all = np.zeros(2, dtype=np.int64)  # targets, distinct ones

    def probability(self, previous: int, target: int | slice) -> np.ndarray | float:
        """Of one target, or of all with `slice(None)`: order 1, escaping to order 0, escaping to uniform."""
        p, escape = 0.0 * self.single[target], 1.0
        for counts, (total, distinct) in ((self.pairs[previous], self.after[previous]), (self.single, self.all)):
            if total:
                p = p + escape * counts[target] / (total + distinct)
                escape *= distinct / (total + distinct)
        return p + escape / len(self.single)

    def see(self, previous: int, target: int) -> None:
        self.after[previous] += (1, self.pairs[previous, target] == 0)
        self.all += (1, self.single[target] == 0)
        self.pairs[previous, target] += 1
        self.single[target] += 1

    def mix(self, weight: float, log_p: np.ndarray, previous: np.ndarray, target: np.ndarray) -> np.ndarray:
        """float64 ln p of (1 - weight) network + weight counts, from the network's; counts the targets as it goes.

        `log_p` (n,) is of the next targets, or (n, V) of all tokens in their places.
        """
        counted = np.empty(log_p.shape)
        for i, (a, b) in enumerate(zip(previous.tolist(), target.tolist(), strict=True)):
            counted[i] = self.probability(a, b if log_p.ndim == 1 else slice(None))
            self.see(a, b)
        return np.log((1 - weight) * np.exp(log_p.astype(np.float64)) + weight * counted)
