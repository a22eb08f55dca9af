"""High dynamic range to the standard one, so that white paper in an HDR clip (203 cd/m2, ITU-R BT.2408) comes out nearly white."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PQ, HLG = 16, 18  # transfer characteristics, ITU-T H.273 table 3
_BT2020 = 9  # colour primaries, ITU-T H.273 table 2
_WHITE = 203.0  # cd/m2 of diffuse white, BT.2408
_PEAK = 1000.0 / _WHITE  # what becomes full white; the nominal peak of HLG and of most PQ material
_KNEE = 0.8  # up to here light is kept as it is
_TO_BT709 = ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187))  # BT.2087, linear light


def to_standard(pixels: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """uint16 R'G'B' [H, W, 3] in full range -> uint8 [H, W, 3] for a BT.1886 display with BT.709 primaries."""
    import numpy as np

    signal = pixels.astype(np.float32) / 65535
    light = (_pq(signal) if transfer == PQ else _hlg(signal)) / _WHITE
    if primaries == _BT2020:
        light = light @ np.array(_TO_BT709, np.float32).T
    light = np.maximum(light, 0)
    brightest = light.max(axis=-1, keepdims=True)
    light = light * (_rolled_off(brightest) / np.maximum(brightest, 1e-6))  # one factor per pixel keeps the hue
    return np.rint(255 * np.clip(light, 0, 1) ** (1 / 2.4)).astype(np.uint8)


def _rolled_off(light: np.ndarray) -> np.ndarray:
    """Light above the knee, compressed so that the peak becomes 1 (Reinhard et al. 2002, equation 4, from the knee on)."""
    import numpy as np

    peak = (_PEAK - _KNEE) / (1 - _KNEE)
    above = np.clip((light - _KNEE) / (1 - _KNEE), 0, peak)
    return np.where(light > _KNEE, _KNEE + (1 - _KNEE) * above * (1 + above / peak**2) / (1 + above), light)


def _pq(signal: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084: signal 0..1 -> cd/m2."""
    import numpy as np

    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = signal ** (1 / m2)
    return 10000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def _hlg(signal: np.ndarray) -> np.ndarray:
    """ITU-R BT.2100 table 5: signal 0..1 -> cd/m2 of a display of 1000 cd/m2 (system gamma 1.2)."""
    import numpy as np

    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((np.maximum(signal, 0.5) - c) / a) + b) / 12)
    luminance = scene @ np.array((0.2627, 0.678, 0.0593), np.float32)
    return 1000 * scene * np.maximum(luminance, 1e-6)[..., None] ** 0.2
