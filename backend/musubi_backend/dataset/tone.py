"""Light and colours beyond the standard brought to it: white paper in HDR (203 cd/m2, ITU-R BT.2408) comes out nearly white."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PQ, HLG = 16, 18  # transfer characteristics, ITU-T H.273 table 3
_BT2020, _P3_DCI, _P3 = 9, 11, 12  # colour primaries, ITU-T H.273 table 2
_WHITE = 203.0  # cd/m2 of diffuse white, BT.2408
_PEAK = 1000.0 / _WHITE  # what becomes full white; the nominal peak of HLG and of most PQ material
_KNEE = 0.8  # up to here light is kept as it is
_P3_TO_BT709 = ((1.2249, -0.2249, 0.0), (-0.0421, 1.0421, 0.0), (-0.0196, -0.0786, 1.0983))  # SMPTE RP 431-2 and BT.709, white D65
_TO_BT709 = {  # of linear light; BT.2020's is BT.2087
    _BT2020: ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187)),
    _P3_DCI: _P3_TO_BT709,
    _P3: _P3_TO_BT709,
}


def notes_of(primaries: int, transfer: int) -> tuple[str, ...]:
    """What to say of colours with these numbers of H.273; nothing where they are taken as they are."""
    if transfer in (PQ, HLG):
        return (f"HDR ({'PQ' if transfer == PQ else 'HLG'}): brought to standard range",)
    if primaries in _TO_BT709:
        return (f"wide colours ({'BT.2020' if primaries == _BT2020 else 'P3'}): brought to BT.709",)
    return ()


def to_standard(pixels: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """uint16 R'G'B' [H, W, 3] in full range -> uint8 [H, W, 3] for a BT.1886 display with BT.709 primaries."""
    import numpy as np

    signal = pixels.astype(np.float32) / 65535
    high = transfer in (PQ, HLG)
    light = (_pq(signal) if transfer == PQ else _hlg(signal)) / _WHITE if high else signal**2.4
    if primaries in _TO_BT709:
        light = light @ np.array(_TO_BT709[primaries], np.float32).T
    light = np.maximum(light, 0)
    if high:
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
    light: np.ndarray = 1000 * scene * np.maximum(luminance, 1e-6)[..., None] ** 0.2
    return light
