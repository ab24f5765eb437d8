"""Tone mapping of HDR pictures in the PQ curve (HDR10, Dolby Vision) to SDR."""

from __future__ import annotations

import numpy as np

WHITE = 203.0  # cd/m2 of diffuse white, by ITU-R BT.2408; SDR shows nothing brighter
M1, M2 = 2610 / 16384, 2523 / 4096 * 128  # of SMPTE ST 2084
C1, C2, C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
BT709_FROM_BT2020 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)
GAMMA = 2.4  # of an SDR display, by ITU-R BT.1886
LEVELS = 65536


def decode_pq(signal: np.ndarray | float) -> np.ndarray:
    """Return the luminance in cd/m2 of PQ signal values from 0 to 1, by SMPTE ST 2084."""
    power = np.power(signal, 1 / M2)
    return 10_000 * np.power(np.maximum(power - C1, 0) / (C2 - C3 * power), 1 / M1)


def encode_pq(luminance: np.ndarray | float) -> np.ndarray:
    """Return the PQ signal values, from 0 to 1, of luminances in cd/m2."""
    power = np.power(np.asarray(luminance) / 10_000, M1)
    return np.power((C1 + C2 * power) / (1 + C3 * power), M2)


def compress_highlights(signal: np.ndarray, peak: float, target: float = WHITE) -> np.ndarray:
    """Return PQ signal values that reach `peak` cd/m2, brought below `target` by the EETF of ITU-R BT.2390, section
    5.4.1: a straight line, then a Hermite spline from its knee to the target."""
    scale = encode_pq(peak)
    brightest = encode_pq(target) / scale
    if brightest >= 1:
        return signal
    value, knee = signal / scale, 1.5 * brightest - 0.5
    t = np.clip((value - knee) / (1 - knee), 0, 1)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * brightest
    return np.where(value < knee, value, spline) * scale


class ToneMap:
    """A map from PQ pictures to SDR ones, the same for all pictures of a video, which do not flicker then. Hues stay:
    the brightest of a pixel's colours is compressed, and the others in its proportion."""

    def __init__(self, peak: float) -> None:
        self.peak = peak  # cd/m2, of the brightest pixel of the video
        signal = np.arange(LEVELS) / (LEVELS - 1)
        light = decode_pq(signal) / WHITE
        self._light = light.astype(np.float32)
        compressed = decode_pq(compress_highlights(signal, peak)) / WHITE
        self._gain = (compressed / np.maximum(light, 1e-12)).astype(np.float32)
        # Indexed by the root of light, which spaces dark levels more nearly as eyes do.
        self._shown = np.rint(255 * signal ** (2 / GAMMA)).astype(np.uint8)

    def __call__(self, picture: np.ndarray, is_bt2020: bool = True) -> np.ndarray:
        """Return an SDR picture, uint8 [H, W, 3], of BT.709 colours, for a PQ one, uint16 [H, W, 3]."""
        light = self._light[picture] * self._gain[picture.max(-1)][..., None]
        if is_bt2020:
            light = light @ BT709_FROM_BT2020.T
        return self._shown[(np.sqrt(light.clip(0, 1)) * (LEVELS - 1) + 0.5).astype(np.uint16)]
