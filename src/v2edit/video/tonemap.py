"""Tone mapping of HDR pictures, in the PQ curve (HDR10, Dolby Vision) or the HLG curve (phones, broadcast), to SDR."""

from __future__ import annotations

import numpy as np

PQ, HLG = 16, 18  # transfer curves of HDR, by FFmpeg's numbers
WHITE = 203.0  # cd/m2 of diffuse white, by ITU-R BT.2408; SDR shows nothing brighter
PQ_PEAK = 10_000.0  # cd/m2
M1, M2 = 2610 / 16384, 2523 / 4096 * 128  # of SMPTE ST 2084
C1, C2, C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
BT709_FROM_BT2020 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)
HLG_A, HLG_B, HLG_C = 0.17883277, 0.28466892, 0.55991073  # of ITU-R BT.2100
HLG_PEAK, HLG_GAMMA = 1000.0, 1.2  # cd/m2 of the display that HLG is shown on here, and its system gamma
LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of BT.2020 colours
GAMMA = 2.4  # of an SDR display, by ITU-R BT.1886
LEVELS = 65536


def decode_pq(signal: np.ndarray | float) -> np.ndarray:
    """Return the luminance in cd/m2 of PQ signal values from 0 to 1, by SMPTE ST 2084."""
    power = np.power(signal, 1 / M2)
    return PQ_PEAK * np.power(np.maximum(power - C1, 0) / (C2 - C3 * power), 1 / M1)


def encode_pq(luminance: np.ndarray | float) -> np.ndarray:
    """Return the PQ signal values, from 0 to 1, of luminances in cd/m2."""
    power = np.power(np.asarray(luminance) / PQ_PEAK, M1)
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


def decode_hlg(signal: np.ndarray | float) -> np.ndarray:
    """Return the scene light, from 0 to 1, of HLG signal values from 0 to 1: the inverse OETF of ITU-R BT.2100."""
    return np.where(signal <= 0.5, np.square(signal) / 3, (np.exp((signal - HLG_C) / HLG_A) + HLG_B) / 12)


class ToneMap:
    """A map from PQ or HLG pictures to SDR ones, the same for all pictures of a video, which do not flicker then. Hues
    stay: the brightest of a pixel's colours is compressed, and the others in its proportion."""

    def __init__(self, transfer: int, peak: float = WHITE) -> None:
        self.transfer = transfer  # PQ or HLG
        self.peak = peak  # cd/m2, of the brightest pixel of the video
        signal = np.arange(LEVELS) / (LEVELS - 1)
        self._light = (decode_hlg(signal) if transfer == HLG else decode_pq(signal) / WHITE).astype(np.float32)
        # These two are indexed by the root of light, which spaces dark levels more nearly as eyes do.
        luminance = PQ_PEAK * signal**2
        compressed = decode_pq(compress_highlights(encode_pq(luminance), peak))
        self._gain = (compressed / np.maximum(luminance, 1e-9)).clip(0, 1).astype(np.float32)
        self._shown = np.rint(255 * signal ** (2 / GAMMA)).astype(np.uint8)

    def light(self, picture: np.ndarray) -> np.ndarray:
        """Return the light that a display gives for a picture, uint16 [H, W, 3]: float32, in units of white."""
        light = self._light[picture]
        if self.transfer == HLG:  # the OOTF of BT.2100
            light *= (HLG_PEAK / WHITE) * np.power(light @ LUMINANCE, HLG_GAMMA - 1)[..., None]
        return light

    def __call__(self, picture: np.ndarray, is_bt2020: bool = True) -> np.ndarray:
        """Return an SDR picture, uint8 [H, W, 3], of BT.709 colours, for an HDR one, uint16 [H, W, 3]."""
        light = self.light(picture)
        light *= self._gain[_index_root(light.max(-1) * (WHITE / PQ_PEAK))][..., None]
        if is_bt2020:
            light = light @ BT709_FROM_BT2020.T
        return self._shown[_index_root(light)]


def _index_root(share: np.ndarray) -> np.ndarray:
    """Return indices into a table of LEVELS by the root of values from 0 to 1."""
    return (np.sqrt(share.clip(0, 1)) * (LEVELS - 1) + 0.5).astype(np.uint16)
