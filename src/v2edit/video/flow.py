"""Optical flow between two frames, by OpenCV's DIS (Kroeger et al. 2016), and pictures warped along it.

Letters: H and W the sides of a frame, C channels."""

from __future__ import annotations

import cv2
import numpy as np

LONG_SIDE = 640  # pixels at which the flow of larger frames is estimated
LEAST_SIDE = 128  # smaller frames are enlarged: DIS compares patches of 8 pixels


def estimate_flow(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return where in the `other` frame each pixel of `one` is, both uint8 [H, W, 3]: an offset (x, y) in pixels,
    float32 [H, W, 2]."""
    height, width = one.shape[:2]
    scale = min(LONG_SIDE / max(height, width), max(1.0, LEAST_SIDE / min(height, width)))
    size = max(1, round(scale * width)), max(1, round(scale * height))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    greys = [
        cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), size, interpolation=interpolation) for frame in (one, other)
    ]
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(greys[0], greys[1], None)
    if size != (width, height):
        flow = cv2.resize(flow, (width, height), interpolation=cv2.INTER_LINEAR)
        flow *= np.array([width / size[0], height / size[1]], np.float32)
    return flow


def warp(picture: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Return what a picture, float32 or uint8 [H, W] or [H, W, C], has at each pixel plus its offset in `flow`
    [H, W, 2]; beyond the edge, what the edge has."""
    height, width = flow.shape[:2]
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return cv2.remap(
        picture, columns + flow[..., 0], rows + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
