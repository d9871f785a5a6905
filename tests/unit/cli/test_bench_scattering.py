"""Features that no data chose: what the scattering transform keeps, and what it does not see."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmq.cli.bench.privacy.features import featured, group_norm
from fedmq.cli.bench.privacy.scattering import CHANNELS, PLACES, scattering
from fedmq.cli.demo.data import Dataset, Shard
from fedmq.fedcore.errors import ConfigError

Images = NDArray[np.float32]


def picture(row: int = 9, column: int = 8) -> Images:
    """A bright bar with a soft edge, somewhere."""
    rows, columns = np.mgrid[:28, :28]
    bar = np.exp(-(((rows - row - 5) / 3) ** 2) - ((columns - column - 5) / 6) ** 2)
    return bar.astype(np.float32)


def waves(angle: float, frequency: float) -> Images:
    """Stripes whose crests run across a direction."""
    rows, columns = np.mgrid[:28, :28]
    return np.cos(frequency * (rows * np.cos(angle) + columns * np.sin(angle))).astype(np.float32)


def test_an_image_becomes_81_channels_of_7_by_7() -> None:
    """1 mean, 2 octaves of 8 directions, and 64 pairs; whichever way the pixels are handed in."""
    images = np.stack([picture(), picture(3, 3), waves(0.3, 1.0)])
    found = scattering(images)
    assert found.shape == (3, CHANNELS, PLACES, PLACES) == (3, 81, 7, 7)
    assert found.dtype == np.float32
    assert np.array_equal(found, scattering(images.reshape(3, 784)))


def test_it_is_fixed() -> None:
    """An image has the same features alone, in a batch, and with whatever neighbours: no statistic of others enters."""
    images = np.random.default_rng(0).random((70, 28, 28), np.float32)  # more than a batch
    together = scattering(images)
    for index in (0, 63, 64, 69):
        assert np.allclose(together[index], scattering(images[index]), atol=1e-6)
    assert np.array_equal(scattering(images), together)


def test_a_flat_image_has_a_mean_and_nothing_else() -> None:
    """Wavelets have the mean zero, and reflected edges are none."""
    found = scattering(np.full((1, 28, 28), 0.7, np.float32))[0]
    assert np.allclose(found[0], 0.7, atol=1e-5)
    assert np.abs(found[1:]).max() < 1e-5


def test_brightness_scales_all_features() -> None:
    """It is made of convolutions and moduli."""
    assert np.allclose(scattering(3 * picture()), 3 * scattering(picture()), atol=1e-5)


def test_a_shift_of_a_pixel_hardly_shows() -> None:
    """Of a texture under a soft edge: another picture by its pixels, the same one by its features."""
    texture = picture() * waves(0.4, 2.0)

    def changed(before: Images, after: Images) -> float:
        return float(np.linalg.norm(after - before) / np.linalg.norm(before))

    here = scattering(texture)
    moved = [np.roll(texture, pixels, axis=1) for pixels in (1, 2, 4)]
    found = [changed(here, scattering(image)) for image in moved]
    assert changed(texture, moved[0]) > 0.5
    assert found[0] < 0.3 * changed(texture, moved[0])
    assert found == sorted(found)


def test_energy_is_not_made_up() -> None:
    """The transform does not expand: channels together, at every fourth pixel, have no more energy than the image."""
    rng = np.random.default_rng(1)
    for image in (picture(), waves(0.9, 1.5), rng.standard_normal((28, 28)).astype(np.float32)):
        energy = 16 * float((scattering(image) ** 2).sum())  # each place stands for 4 x 4 pixels
        assert energy < 1.1 * float((image**2).sum())


@pytest.mark.parametrize("direction", range(8))
def test_stripes_are_seen_by_the_wavelet_of_their_direction(direction: int) -> None:
    """Of the first octave, at the frequency that it is tuned to."""
    found = scattering(waves(np.pi * direction / 8, 0.75 * np.pi))[0, 1:9].mean(axis=(1, 2))
    assert int(found.argmax()) == direction


def test_group_norm_is_of_each_example_alone() -> None:
    """Mean 0 and variance 1 in each group; the norm of a row is at most the root of its length, whatever it was."""
    rows = np.random.default_rng(2).random((5, 81, 7, 7), np.float32) * np.float32(9)
    rows[3] = 0
    found = group_norm(rows)
    groups = found.reshape(5, 27, -1)
    assert np.allclose(groups.mean(axis=2), 0, atol=1e-5)
    assert np.allclose(groups[[0, 1, 2, 4]].std(axis=2), 1, atol=1e-3)
    assert (np.linalg.norm(found, axis=1) <= np.sqrt(81 * 49) * 1.00001).all()
    assert np.allclose(found[1], group_norm(rows[1:2])[0], atol=1e-6)


def shard(count: int, features: int = 784) -> Shard:
    x = np.random.default_rng(count).random((count, features), np.float32)
    return Shard(x, np.zeros(count, np.int64))


def test_features_are_kept_and_found_again(tmp_path: Path) -> None:
    """The second time from the folder, and the same; other images are not taken for them."""
    told: list[tuple[int, int]] = []
    dataset = Dataset("fashion-mnist", shard(7), shard(3))
    first = featured(dataset, cache=tmp_path, done=lambda count, total: told.append((count, total)))
    assert told[-1] == (10, 10)
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == 2
    again = featured(dataset, cache=tmp_path, done=lambda count, total: None)
    assert np.array_equal(first.train.x, again.train.x)
    assert first.train.x.shape == (7, 3969)
    featured(Dataset("fashion-mnist", shard(8), shard(3)), cache=tmp_path, done=lambda count, total: None)
    assert len(list(tmp_path.iterdir())) == 3


def test_other_images_are_refused() -> None:
    """Handwritten digits of 8 x 8 pixels have no such features."""
    with pytest.raises(ConfigError, match="28 x 28"):
        featured(Dataset("digits", shard(4, 64), shard(2, 64)), cache=None, done=lambda count, total: None)


def test_a_folder_that_takes_no_features_is_told_of_before_they_are_made(tmp_path: Path) -> None:
    """Not a minute later; and nothing half-written stays."""
    told: list[int] = []
    gone = tmp_path / "gone"
    with pytest.raises(ConfigError, match="cannot be written"):
        featured(
            Dataset("fashion-mnist", shard(7), shard(3)),
            cache=gone,
            done=lambda count, total: told.append(count),
        )
    assert not told


def test_features_that_were_not_finished_are_not_kept(tmp_path: Path) -> None:
    """Ctrl-C in the middle of them."""

    def done(count: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        featured(Dataset("fashion-mnist", shard(7), shard(3)), cache=tmp_path, done=done)
    assert not list(tmp_path.iterdir())
