import math

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

from pyramid.levels import Level, Pyramid
from pyramid.metrics import MS_SSIM_WEIGHTS, CodeUsage, ms_ssim, ms_ssim_scales, psnr, raw_bits, ssim


def noisy(height=32, width=40, frames=3, clips=2, noise=0.2):
    """Smooth clips, and the same with noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(clips, 3, frames, height // 4, width // 4, generator=generator)
    video = torch.nn.functional.interpolate(coarse, (frames, height, width), mode="trilinear") * 1.6 - 0.8
    return video, (video + noise * torch.randn(video.shape, generator=generator)).clamp(-1, 1)


def windowed(image: np.ndarray) -> np.ndarray:
    """Gaussian means, 11 taps of standard deviation 1.5, borders reflected."""
    taps = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()
    for axis in (0, 1):
        image = correlate1d(image, taps, axis=axis, mode="mirror")
    return image


def maps_by_hand(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(structure and contrast, luminance) of two images in [0, 1], float64: Wang et al. 2004, equation 12."""
    c1, c2 = 0.01**2, 0.03**2
    mx, my = windowed(x), windowed(y)
    vx, vy, cov = windowed(x * x) - mx**2, windowed(y * y) - my**2, windowed(x * y) - mx * my
    return (2 * cov + c2) / (vx + vy + c2), (2 * mx * my + c1) / (mx**2 + my**2 + c1)


def images(video):
    """(B, 3, T, H, W) in [-1, 1] -> [clip][frame][channel] images in [0, 1], float64."""
    return ((video.double() + 1) / 2).movedim(2, 1).numpy()


def test_psnr_by_hand():
    video = torch.zeros(2, 3, 1, 4, 4)
    other = video.clone()
    other[0] += 0.2  # 0.1 of the range everywhere: 20 dB
    other[1, :, :, 0] += 0.2  # in a quarter of the pixels: 20 + 10 log10(4)
    expected = torch.tensor([20.0, 20 + 10 * math.log10(4)])
    torch.testing.assert_close(psnr(other, video), expected, atol=1e-4, rtol=0)


def test_ssim_by_hand():
    video, other = noisy()
    by_hand = [
        np.mean([(c * l).mean() for f, g in zip(x, y, strict=True) for c, l in map(maps_by_hand, f, g)])
        for x, y in zip(images(video), images(other), strict=True)
    ]
    assert 0.2 < min(by_hand) < max(by_hand) < 0.95
    assert ssim(other, video).tolist() == pytest.approx(by_hand, abs=2e-4)


def halved(image):
    h, w = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    return image[:h, :w].reshape(h // 2, 2, w // 2, 2).mean(axis=(1, 3))


@pytest.mark.parametrize(("height", "width", "scales"), [(32, 40, 2), (64, 48, 3), (176, 180, 5)])
def test_ms_ssim_by_hand(height, width, scales):
    """The product over scales of the mean contrast terms (over whole windows), at the last one of SSIM, each to its
    weight."""
    assert ms_ssim_scales(height, width) == scales
    video, other = noisy(height, width, frames=2, clips=1)
    total = []
    for x, y in zip(images(video)[0], images(other)[0], strict=True):
        value = 1.0
        for scale in range(scales):
            maps = [maps_by_hand(a, b) for a, b in zip(x, y, strict=True)]
            if scale == scales - 1:
                term = np.mean([(c * l).mean() for c, l in maps])
            else:
                term = np.mean([c[5:-5, 5:-5].mean() for c, _ in maps])
            value *= term ** (MS_SSIM_WEIGHTS[scale] / sum(MS_SSIM_WEIGHTS[:scales]))
            x, y = ([halved(image) for image in frame] for frame in (x, y))
        total.append(value)
    assert ms_ssim(other, video).item() == pytest.approx(np.mean(total), abs=5e-4)


def test_equal_clips_have_the_best_figures_and_noise_lowers_each():
    video, _ = noisy(64, 64)
    assert (psnr(video, video) == 100).all()
    ones = torch.ones(2)
    torch.testing.assert_close(ssim(video, video), ones)
    torch.testing.assert_close(ms_ssim(video, video), ones)
    for figure in (psnr, ssim, ms_ssim):
        little, much = (figure(noisy(64, 64, noise=noise)[1], video) for noise in (0.05, 0.4))
        assert (much < little).all() and (little < figure(video, video)).all()


@pytest.mark.parametrize("figure", [psnr, ssim, ms_ssim])
def test_each_clip_has_its_own_figure(figure):
    video, other = noisy()
    alone = [figure(o[None], v[None]).item() for o, v in zip(other, video, strict=True)]
    assert figure(other, video).tolist() == pytest.approx(alone, rel=1e-5)
    assert alone[0] != pytest.approx(alone[1], rel=1e-5)


def test_the_scales_that_fit_hold_a_whole_window():
    least = {scales: min(s for s in range(1, 200) if ms_ssim_scales(s, 300) >= scales) for scales in range(1, 6)}
    assert least == {1: 11, 2: 22, 3: 44, 4: 88, 5: 176}
    assert ms_ssim_scales(300, 45) == ms_ssim_scales(45, 300) == 3


@pytest.mark.parametrize(("height", "width"), [(32, 32), (45, 70), (180, 192)])
def test_torchmetrics_gives_the_same(height, width):
    from torchmetrics.functional import image

    video, other = noisy(height, width, frames=2)
    x, y = (((v + 1) / 2).movedim(2, 1).flatten(0, 1) for v in (other, video))
    theirs = image.structural_similarity_index_measure(x, y, data_range=1.0, reduction="none").reshape(2, 2).mean(dim=1)
    torch.testing.assert_close(ssim(other, video), theirs, atol=2e-5, rtol=0)
    weights = MS_SSIM_WEIGHTS[: ms_ssim_scales(height, width)]
    options = {"betas": tuple(w / sum(weights) for w in weights), "normalize": "relu", "reduction": "none"}
    theirs = image.multiscale_structural_similarity_index_measure(x, y, data_range=1.0, **options)
    torch.testing.assert_close(ms_ssim(other, video), theirs.reshape(2, 2).mean(dim=1), atol=2e-5, rtol=0)


def test_frames_too_small_are_refused():
    small = torch.zeros(1, 3, 2, 10, 40)
    with pytest.raises(ValueError, match="ssim: expected frames of at least 11x11 pixels, got 10x40"):
        ssim(small, small)
    with pytest.raises(ValueError, match="ms_ssim: expected frames of at least 22 pixels a side, got 10x40"):
        ms_ssim(small, small)


def test_raw_bits_by_hand():
    first, second = Pyramid((Level(1, 1, 1), Level(1, 2, 2))), Pyramid((Level(1, 1, 1), Level(2, 2, 2)))
    assert raw_bits([first, second], [16, 1000], 1) == 2 * 4
    assert raw_bits([first, second], [16, 1000]) == pytest.approx(2 * 4 + 12 * math.log2(1000))
    with pytest.raises(ValueError, match="raw_bits: detail must be from 1 to 2, got 3"):
        raw_bits([first], [16, 1000], 3)


def test_usage_and_perplexity_by_hand():
    usage = CodeUsage(8)
    usage.update(torch.tensor([[0, 1], [0, 0]]))
    usage.update(torch.tensor([1, 5]))
    entropy = -(3 / 6 * math.log(3 / 6) + 2 / 6 * math.log(2 / 6) + 1 / 6 * math.log(1 / 6))
    assert usage.compute() == {"usage": 3 / 8, "perplexity": pytest.approx(math.exp(entropy))}
