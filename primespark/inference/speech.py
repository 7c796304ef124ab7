"""Speech in a recording, with Silero's voice activity detector."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from primespark.inference.engine import InferenceEngine
from primespark.inference.predictions import SpeechSegment

SAMPLE_RATE = 16_000
CHUNK = 512
_CONTEXT = 64
_STATE_SHAPE = (2, 1, 128)
# The thresholds of Silero's own `get_speech_timestamps`: speech begins at the upper one and ends below the lower one.
_BEGINS = 0.5
_ENDS = 0.35
_SHORTEST_SPEECH_S = 0.25
_LONGEST_PAUSE_S = 0.1


class SpeechDetector:
    """Answers where somebody speaks.

    Args:
        engine: From float32 `input` [1, 576] (64 samples before, 512 new), `state` [2, 1, 128] and int64 `sr` to
            `output` [1, 1], the probability of speech, and the next state.
    """

    def __init__(self, engine: InferenceEngine) -> None:
        self._engine = engine

    def __call__(self, samples: NDArray[np.float32]) -> list[SpeechSegment]:
        """Segments of at least 0.25 s, pauses up to 0.1 s included.

        Args:
            samples: float32 [n] in -1..1 at 16 kHz.
        """
        return find_segments(np.fromiter(self.probabilities(samples), dtype=np.float64), len(samples) / SAMPLE_RATE)

    def probabilities(self, samples: NDArray[np.float32]) -> Iterator[float]:
        """The probability of speech in each chunk of 32 ms, the last one filled up with silence."""
        state = np.zeros(_STATE_SHAPE, dtype=np.float32)
        rate = np.array(SAMPLE_RATE, dtype=np.int64)
        chunks = -(-len(samples) // CHUNK)
        padded = np.zeros(_CONTEXT + chunks * CHUNK, dtype=np.float32)
        padded[_CONTEXT : _CONTEXT + len(samples)] = samples
        for start in range(0, chunks * CHUNK, CHUNK):
            heard = padded[np.newaxis, start : start + _CONTEXT + CHUNK]
            output, state = self._engine.run({"input": heard, "state": state, "sr": rate})
            yield float(output[0, 0])


def find_segments(probabilities: NDArray[np.float64], duration_s: float) -> list[SpeechSegment]:
    """Where speech is, from the probability in each chunk of 32 ms."""
    chunk_s = CHUNK / SAMPLE_RATE
    found: list[SpeechSegment] = []
    for first, last in _joined(_spoken(probabilities), round(_LONGEST_PAUSE_S / chunk_s)):
        start, end = first * chunk_s, min(last * chunk_s, duration_s)
        if end - start >= _SHORTEST_SPEECH_S:
            score = float(probabilities[first:last].mean())
            found.append({"start_s": round(start, 3), "end_s": round(end, 3), "score": round(score, 4)})
    return found


def _spoken(probabilities: NDArray[np.float64]) -> Iterator[tuple[int, int]]:
    """Runs of chunks [first, last) that begin at the upper threshold and end below the lower one."""
    first: int | None = None
    for chunk, probability in enumerate(probabilities.tolist()):
        if first is None and probability >= _BEGINS:
            first = chunk
        elif first is not None and probability < _ENDS:
            yield first, chunk
            first = None
    if first is not None:
        yield first, len(probabilities)


def _joined(runs: Iterator[tuple[int, int]], longest_pause: int) -> Iterator[tuple[int, int]]:
    """The runs, those joined that are at most `longest_pause` chunks apart."""
    held: tuple[int, int] | None = None
    for first, last in runs:
        if held is not None and first - held[1] <= longest_pause:
            held = (held[0], last)
            continue
        if held is not None:
            yield held
        held = (first, last)
    if held is not None:
        yield held
