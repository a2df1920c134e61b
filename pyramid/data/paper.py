"""Papers and inks for handwriting: what a pen could have been writing on, and with.

Papers are light and inks dark: the contrast of any pair is at least `MIN_CONTRAST`, and a test holds it. Fibres are
noise whose spectrum falls with frequency, a little longer along the paper's grain.
"""

from __future__ import annotations

import numpy as np

MIN_CONTRAST = 3.0  # ratio of luminances, rules and shade included; what WCAG 2.1 asks of graphics (1.4.11)

INKS = {
    "black": (0.08, 0.08, 0.10),
    "blue": (0.10, 0.16, 0.62),
    "red": (0.64, 0.06, 0.09),
    "green": (0.04, 0.36, 0.16),
    "purple": (0.38, 0.10, 0.52),
    "brown": (0.36, 0.20, 0.08),
}
PAPERS = ("plain", "lined", "grid", "fibre")

_TONES = np.array([(1.0, 1.0, 1.0), (0.97, 0.95, 0.88), (0.93, 0.95, 0.97), (0.95, 0.91, 0.80), (0.91, 0.93, 0.86)])
_RULES = np.array([(0.62, 0.74, 0.88), (0.72, 0.72, 0.75), (0.64, 0.80, 0.72)])  # of lined and squared paper
_MARGIN = np.array((0.90, 0.58, 0.58))


def make_ink(name: str, rng: np.random.Generator) -> np.ndarray:
    """The colour `INKS[name]`, or somewhat darker: float64 (3,) in [0, 1]."""
    return np.clip(np.array(INKS[name]) * rng.uniform(0.75, 1.0), 0, 1)


def make_paper(kind: str, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """An empty sheet, float32 (H, W, 3) in [0, 1]: a tone and soft light, and on it the rules or fibres of its kind.

    Raises ValueError for a kind that is none of `PAPERS`.
    """
    if kind not in PAPERS:
        raise ValueError(f"make_paper: expected one of {', '.join(PAPERS)}, got {kind!r}")
    short = min(height, width)
    y = (np.arange(height) + 0.5)[:, None]
    x = (np.arange(width) + 0.5)[None, :]
    sheet = np.broadcast_to(_TONES[rng.integers(len(_TONES))] * rng.uniform(0.97, 1.0), (height, width, 3)).copy()
    if kind in ("lined", "grid"):
        period = short * (rng.uniform(0.16, 0.24) if kind == "lined" else rng.uniform(0.1, 0.16))
        weight = max(1.0, short / 120) * rng.uniform(0.8, 1.2)
        rule = _RULES[rng.integers(len(_RULES))]
        mask = _rules(y, period, rng.uniform(0, period), weight)
        if kind == "grid":
            mask = np.maximum(mask, _rules(x, period, rng.uniform(0, period), weight))
        sheet += (mask * rng.uniform(0.5, 0.75))[..., None] * (rule - sheet)
        if kind == "lined" and rng.random() < 0.5:
            margin = np.clip(0.5 + weight / 2 - np.abs(x - rng.uniform(0.08, 0.2) * width), 0, 1)
            sheet += 0.6 * margin[..., None] * (_MARGIN - sheet)
    if kind == "fibre":
        noise = np.clip(_fibres(height, width, rng), -2, 2)
        sheet *= 0.94 + rng.uniform(0.02, 0.03) * noise[..., None]  # at most 1: white paper shows its fibres too
    angle, depth = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.06)
    light = (x / width - 0.5) * np.cos(angle) + (y / height - 0.5) * np.sin(angle)  # at most 0.71 off the middle
    return np.clip(sheet * (1 - depth * (light + 0.71))[..., None], 0, 1).astype(np.float32)


def _rules(at: np.ndarray, period: float, phase: float, weight: float) -> np.ndarray:
    """Coverage in [0, 1] of pixels at `at` by lines of width `weight`, one every `period`."""
    distance = np.abs((at - phase + period / 2) % period - period / 2)
    return np.clip(0.5 + weight / 2 - distance, 0, min(1.0, weight))


def _fibres(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Noise (H, W) of mean 0 and deviation 1, its amplitude as 1 / frequency ** 0.7, longer along the grain."""
    spectrum = np.fft.rfft2(rng.standard_normal((height, width)))
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    grain = rng.uniform(0, np.pi)
    along, across = fx * np.cos(grain) + fy * np.sin(grain), fy * np.cos(grain) - fx * np.sin(grain)
    spectrum /= (np.hypot(1.6 * along, across) + 1 / 64) ** 0.7
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, s=(height, width))
    return noise / max(noise.std(), 1e-12)


def contrast(a: np.ndarray, b: np.ndarray) -> float:
    """WCAG 2's contrast of two sRGB colours in [0, 1], from 1 to 21."""

    def luminance(colour: np.ndarray) -> float:
        linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
        return float(linear @ np.array((0.2126, 0.7152, 0.0722)))

    dark, light = sorted((luminance(np.asarray(a)), luminance(np.asarray(b))))
    return (light + 0.05) / (dark + 0.05)
