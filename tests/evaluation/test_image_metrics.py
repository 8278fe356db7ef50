"""Metrics of images against closed forms, and against the libraries used by themselves."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from small_networks import save_classifier, save_clip
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.functional.multimodal import clip_score
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from vargpt_hf.evaluation import image_metrics, networks
from vargpt_hf.evaluation.image_files import as_bytes, as_pixels, files_of_images, read_image
from vargpt_hf.evaluation.metrics import psnr
from vargpt_hf.evaluation.perceptual import FeatureStack, PerceptualDistance, build_lpips
from vargpt_hf.tiny import TINY_FOLDER
from vargpt_hf.tiny.shapes import render, sample_scene


def images(number: int, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [render(sample_scene(rng)) for _ in range(number)]


def gaussian(number: int, mean: list[float], deviations: list[float], seed: int) -> torch.Tensor:
    """Samples whose mean and covariance, diag(deviations²), are exact."""
    samples = torch.randn(number, len(mean), generator=torch.Generator().manual_seed(seed)).double()
    samples = samples - samples.mean(0)
    samples = samples @ torch.linalg.inv(torch.linalg.cholesky(samples.T.cov())).T
    return samples * torch.tensor(deviations).double() + torch.tensor(mean).double()


# ---- pairs


def test_psnr_is_the_training_s():
    pixels, other = torch.rand(3, 3, 16, 16) * 2 - 1, torch.rand(3, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(image_metrics.psnr_of_pairs(other, pixels), psnr(other, pixels))
    error = torch.tensor([0.2, 0.02]).view(2, 1, 1, 1)
    torch.testing.assert_close(image_metrics.psnr_of_pairs(error.expand(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)), torch.tensor([20.0, 40.0]))
    assert image_metrics.psnr_of_pairs(pixels, pixels).tolist() == [image_metrics.MOST_PSNR] * 3


def test_ssim():
    pixels = as_pixels(images(2))
    assert image_metrics.ssim_of_pairs(pixels, pixels).tolist() == pytest.approx([1, 1], abs=1e-5)
    noisy = (pixels + 0.2 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    found = image_metrics.ssim_of_pairs(noisy, pixels)
    alone = [structural_similarity_index_measure(n[None], p[None], data_range=2.0).item() for n, p in zip(noisy, pixels)]
    assert found.tolist() == pytest.approx(alone) and max(alone) < 0.9
    constant = torch.full((1, 3, 16, 16), -0.5), torch.full((1, 3, 16, 16), 0.5)  # only the luminance term is left
    luminance = (2 * -0.25 + 0.02**2) / (0.5 + 0.02**2)
    assert image_metrics.ssim_of_pairs(*constant).item() == pytest.approx(luminance, abs=1e-4)
    assert image_metrics.ssim_of_pairs(pixels[:1], pixels[1:]).shape == (1,)


@pytest.mark.parametrize("metric", [image_metrics.psnr_of_pairs, image_metrics.ssim_of_pairs])
def test_pairs_of_other_shapes_are_refused(metric):
    with pytest.raises(ValueError, match="the same shape"):
        metric(torch.zeros(1, 3, 16, 16), torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match="11 × 11"):
        image_metrics.ssim_of_pairs(torch.zeros(1, 3, 8, 16), torch.zeros(1, 3, 8, 16))


def alex_weights() -> dict[str, torch.Tensor]:
    """As torchvision names them, a classifier of its own included."""
    torch.manual_seed(0)
    stack = FeatureStack(((64, 11, 4, 2), "pool", (192, 5, 1, 2), "pool", (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1)), (3, 2), ())
    return {**stack.state_dict(), "classifier.6.bias": torch.zeros(1000)}


def test_lpips_of_alexnet(tmp_path):
    torch.save(alex_weights(), tmp_path / "alexnet.pth")
    network = networks.lpips_network("alex", tmp_path / "alexnet.pth")
    pixels = as_pixels(images(2))
    other = pixels.flip(0)
    assert image_metrics.lpips_of_pairs(pixels, pixels, network).tolist() == [0, 0]
    found = image_metrics.lpips_of_pairs(pixels, other, network)
    assert found.shape == (2,) and found[0] == pytest.approx(found[1].item()) and found[0] > 0


class Directions(torch.nn.Module):
    """Features that are the sign of a pixel's first channel: (1, 0) or (0, 1), of any length."""

    def forward(self, pixels):
        first = pixels[:, :1]
        return [torch.cat([(first > 0) * 3.0, (first <= 0) * 5.0], dim=1)]


def test_lpips_is_the_weighted_distance_of_directions():
    metric = PerceptualDistance(Directions(), channels=(2,))
    metric.lins[0].model[-1].weight.data = torch.tensor([0.25, 0.5]).view(1, 2, 1, 1)
    dark, half = torch.full((1, 3, 4, 4), -1.0), torch.full((1, 3, 4, 4), -1.0)
    half[..., :2] = 1.0  # where directions are at right angles, both channels differ by 1
    assert image_metrics.lpips_of_pairs(dark, half, metric).item() == pytest.approx((0.25 + 0.5) / 2, abs=1e-6)


def test_lpips_says_which_file_it_needs(tmp_path):
    with pytest.raises(ValueError, match="alexnet-owt-7be5be79.pth"):
        networks.lpips_network("alex", None)
    with pytest.raises(ValueError, match="must be one of alex, vgg"):
        networks.lpips_network("squeeze", None)
    with pytest.raises(OSError, match="vgg16-397923af.pth"):
        networks.lpips_network("vgg", tmp_path / "none.pth")
    with pytest.raises(ValueError, match='not the weights of "vgg"'):
        build_lpips("vgg", alex_weights())
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match="no file of weights"):
        networks.lpips_network("alex", tmp_path / "text.pth")


# ---- sets


def test_fid_of_a_set_with_itself_is_zero():
    features = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    assert image_metrics.frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    assert image_metrics.frechet_distance(features, features.flip(0)) == pytest.approx(0, abs=1e-6)


def test_fid_of_two_gaussians():
    first, second = gaussian(200, [0, 1, 2], [1, 2, 0.5], 0), gaussian(150, [1, 1, 0], [1, 0.5, 2], 1)
    squares = (1 + 0 + 4) + (0 + 1.5**2 + 1.5**2)  # of distances between means and between deviations
    assert image_metrics.frechet_distance(first, second) == pytest.approx(squares, rel=1e-6)


class FirstPixels(torch.nn.Module):
    """A feature network in torchmetrics' sense: some of the pixels."""

    num_features = 6

    def forward(self, pixels):
        return pixels[:, :, 20:22, 24].flatten(1).float()


def test_distances_of_images_are_the_library_s():
    drawn, real = images(30), images(40, seed=1)
    network = FirstPixels()
    sets = [image_metrics.features_of(pictures, network, batch_size=7) for pictures in (drawn, real)]
    metrics = FrechetInceptionDistance(feature=network), KernelInceptionDistance(feature=network, subsets=1, subset_size=30)
    for metric in metrics:
        metric.update(torch.stack([as_bytes(picture) for picture in real]), real=True)
        metric.update(torch.stack([as_bytes(picture) for picture in drawn]), real=False)
    assert image_metrics.frechet_distance(*sets) == pytest.approx(metrics[0].compute().item(), rel=1e-6)
    torch.manual_seed(7)
    alone = metrics[1].compute()[0].item()
    assert image_metrics.kernel_distance(*sets, subsets=1, seed=7) == pytest.approx(alone, rel=1e-4)


def test_kid_follows_its_formula():
    first, second = (torch.randn(20, 4, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1))

    def kernel(a, b):
        return (a @ b.T / 4 + 1) ** 3

    within = sum((kernel(s, s).sum() - kernel(s, s).diag().sum()) / (20 * 19) for s in (first, second))
    assert image_metrics.kernel_distance(first, second) == pytest.approx((within - 2 * kernel(first, second).mean()).item(), rel=1e-6)
    state = torch.random.get_rng_state()
    image_metrics.kernel_distance(first, second)
    assert torch.equal(state, torch.random.get_rng_state())


def test_inception_score():
    sure = 100 * torch.eye(5).repeat(20, 1)
    assert image_metrics.inception_score(sure, splits=1) == pytest.approx(5)
    assert image_metrics.inception_score(torch.ones(40, 5), splits=4) == pytest.approx(1)
    assert image_metrics.inception_score(sure[:10], splits=100) == pytest.approx(1)  # one sample a split


def test_precision_and_recall():
    rng = torch.Generator().manual_seed(0)
    real = torch.randn(60, 2, generator=rng)
    part, far = real[:30] + 1e-4, torch.randn(30, 2, generator=rng) + 100
    assert image_metrics.precision_recall(real + 1e-6, real)["recall"] == 1
    assert image_metrics.precision_recall(part, real)["precision"] == 1
    half = image_metrics.precision_recall(torch.cat([part, far]), real)
    assert half["precision"] == 0.5 and half["recall"] > 0.5
    apart = image_metrics.precision_recall(far, real)
    assert apart["precision"] == apart["recall"] == apart["coverage"] == 0
    with pytest.raises(ValueError, match="at least 5 images"):
        image_metrics.precision_recall(real[:4], real)


def test_sets_are_compared_with_intervals():
    drawn, real = (torch.randn(80, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    found = image_metrics.compare_sets(drawn, real, resamples=20)
    assert list(found) == ["FID", "KID", "precision", "recall", "density", "coverage"]
    assert all(estimate.low < estimate.value < estimate.high and estimate.number == 80 for estimate in found.values())
    assert found["FID"].library.startswith("torchmetrics ") and not found["FID"].higher_is_better and found["recall"].higher_is_better
    assert image_metrics.compare_sets(drawn, real, resamples=20) == found


@pytest.mark.parametrize(
    ("features", "message"),
    [(torch.zeros(1, 2), "at least two images"), (torch.full((3, 2), math.nan), "NaN"), (torch.zeros(3, 4), "one network for both")],
)
def test_broken_features_are_refused(features, message):
    with pytest.raises(ValueError, match=message):
        image_metrics.frechet_distance(features, torch.zeros(3, 2))


# ---- networks


def test_clip_score_is_torchmetrics(tmp_path):
    clip = networks.clip_network(save_clip(tmp_path))
    pictures, texts = images(3), ["a red circle", "a green cross above a blue square", "a blue square"]
    found = image_metrics.clip_scores(pictures, texts, clip, batch_size=2)

    class Tensors:
        """The model as torchmetrics wants it: features as tensors."""

        config = clip.model.config

        def to(self, device):
            return self

        def get_image_features(self, pixels):
            return clip.model.get_image_features(pixels).pooler_output

        def get_text_features(self, ids, mask):
            return clip.model.get_text_features(ids, mask).pooler_output

    alone = [clip_score(as_bytes(picture), text, lambda: (Tensors(), clip.processor)).item() for picture, text in zip(pictures, texts)]
    assert found.tolist() == pytest.approx(alone, abs=1e-3) and clip.cut == 0
    clip.texts(["a red circle above a green cross above a blue square above a red square"])
    assert clip.cut == 1
    with pytest.raises(ValueError, match="3 images for 1 texts"):
        image_metrics.clip_scores(pictures, ["a"], clip)


def test_clip_score_of_a_model_fed_with_its_own_features():
    class Same:
        def images(self, pictures):
            return torch.eye(3)[: len(pictures)]

        def texts(self, texts):
            return torch.stack([torch.eye(3)[len(text) % 3] for text in texts])

    scores = image_metrics.clip_scores(images(3), ["aaa", "aa", "aa"], Same())
    assert scores.tolist() == [100, 0, 100]


@pytest.mark.parametrize("kind", ["clip", "vit", "vargpt"])
def test_features_of_a_vision_model(kind, tmp_path):
    folder = {"clip": save_clip, "vit": save_classifier, "vargpt": lambda _: TINY_FOLDER}[kind](tmp_path)
    network = networks.feature_network(folder)
    pictures = images(3)
    found = image_metrics.features_of([*pictures, pictures[0].resize((20, 20))], network)
    torch.testing.assert_close(found[:1], image_metrics.features_of(pictures[:1], network), atol=1e-5, rtol=1e-5)
    assert found.shape[0] == 4 and not torch.allclose(found[0], found[1])
    if kind == "clip":
        torch.testing.assert_close(found[:3], networks.clip_network(folder).images(pictures))


def test_logits_of_a_classifier(tmp_path):
    network = networks.class_network(save_classifier(tmp_path))
    assert 1 <= image_metrics.inception_score(image_metrics.features_of(images(6), network)) <= 4


def test_inception_says_which_file_it_needs(tmp_path):
    with pytest.raises(ValueError, match="weights-inception-2015-12-05-6726825d.pth"):
        networks.inception_network(None)
    with pytest.raises(OSError, match="weights-inception-2015-12-05-6726825d.pth"):
        networks.inception_network(tmp_path / "none.pth")
    with pytest.raises(ValueError, match='"features" or "logits"'):
        networks.inception_network(None, output="pool")


@pytest.mark.parametrize("network", [networks.clip_network, networks.feature_network, networks.class_network])
def test_networks_that_are_not_there(network, tmp_path):
    with pytest.raises(ValueError, match="give the folder of"):
        network(None)
    with pytest.raises(ValueError, match="there is no folder"):
        network(tmp_path / "none")
    with pytest.raises((ValueError, OSError)):
        network(tmp_path)


def test_files_of_a_folder(tmp_path):
    (tmp_path / "b").mkdir()
    images(1)[0].save(tmp_path / "b" / "one.png")
    images(1)[0].save(tmp_path / "two.jpg")
    (tmp_path / "notes.txt").write_text("none")
    assert [path.name for path in files_of_images(tmp_path)] == ["one.png", "two.jpg"]
    assert read_image(tmp_path / "two.jpg").size == (48, 48)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="broken.png is no image"):
        read_image(tmp_path / "broken.png")
    with pytest.raises(ValueError, match="no folder"):
        files_of_images(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        files_of_images(tmp_path / "empty")
