"""What denoising before the network costs, and what it gives back of a noisy photograph.

No demand: denoising is a choice, and its price is told. It is done on the resized image, so 640x640 is what a
detector pays; 1080p is what it would cost on the frame.
Prediction: at 640x640 6 ms for the bilateral filter, 130 ms for LARK and 250 for non-local means, five times that at
1080p; 4 dB and more where the noise has a standard deviation of 10 or 20 grey levels.

The calls are interleaved. Noise is Gaussian, independent for each pixel and colour, of one seed; quality is the peak
signal-to-noise ratio against the photograph before the noise, in dB.
"""

from __future__ import annotations

from functools import partial

import click
import cv2
import numpy as np
from common import Report, interleave, photographs

SIZES = {"640x640": (640, 640), "1920x1080": (1080, 1920)}
REDUCED = (300, 400)  # for quality: smaller than every photograph, so that none is blurred by being enlarged


def add_noise(clean: np.ndarray, sigma: float) -> np.ndarray:
    """A photograph with Gaussian noise of `sigma` grey levels."""
    noise = np.random.default_rng(0).normal(0, sigma, clean.shape)
    return np.rint(clean + noise).clip(0, 255).astype(np.uint8)


def psnr(clean: np.ndarray, found: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB."""
    return float(10 * np.log10(255**2 / np.mean((clean.astype(np.float64) - found) ** 2)))


@click.command()
@click.option("--rounds", default=20, show_default=True, help="Timed calls of each at 640x640; a quarter at 1080p.")
@click.option("--sigma", default=[5.0, 10.0, 20.0], show_default=True, multiple=True, help="Of the noise, grey levels.")
@click.option("--how", default=[], multiple=True, help="NAME[:P=V,...] as --denoise takes it; default: all three.")
def main(rounds: int, sigma: list[float], how: list[str]) -> None:
    """Measure the cost and the gain of each denoiser."""
    from edgevtx.denoise import KINDS, denoise, parse_denoise

    asked = {text: parse_denoise(text) for text in (how or KINDS)}
    settings = {"rounds": rounds, "OpenCV threads": cv2.getNumThreads()}
    report = Report("denoise", "Denoising before the network", settings)
    table = report.table("Milliseconds a call", "denoising", "size", "median", "p95", "ns a pixel")
    for name, size in SIZES.items():
        noisy = add_noise(photographs(size)[0], 10)
        count = rounds if name == "640x640" else max(2, rounds // 4)
        times = interleave({text: partial(denoise, noisy, rule) for text, rule in asked.items()}, count, warmup=1)
        for text, spent in times.items():
            median = float(np.median(spent))
            table.add(text, name, median, float(np.percentile(spent, 95)), 1e6 * median / (size[0] * size[1]))
        report.raw[name] = times
    quality = report.table("PSNR of noisy photographs, dB, means", "denoising", *(f"{s:g}" for s in sigma))
    clean = photographs(REDUCED)
    noisy = {level: [add_noise(photo, level) for photo in clean] for level in sigma}
    quality.add("none", *(float(np.mean([psnr(*pair) for pair in zip(clean, noisy[s], strict=True)])) for s in sigma))
    for text, rule in asked.items():
        means = []
        for level in sigma:
            pairs = zip(clean, noisy[level], strict=True)
            means.append(float(np.mean([psnr(photo, denoise(frame, rule)) for photo, frame in pairs])))
        quality.add(text, *means)
    report.notes.append("parameters: " + "; ".join(f"{text} {rule}" for text, rule in asked.items()))
    report.finish()


if __name__ == "__main__":
    main()
