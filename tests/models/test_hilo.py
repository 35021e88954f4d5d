"""Properties of HiLo attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.hilo import HiLo, join_windows, to_windows


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 9), (8, 8), (3, 16)])
@pytest.mark.parametrize("window_size", [1, 2, 3, 7])
@pytest.mark.parametrize("alpha", [0.0, 0.34, 1.0])
def test_any_map_keeps_its_shape(height: int, width: int, window_size: int, alpha: float) -> None:
    layer = HiLo(12, 3, window_size, alpha)
    assert layer(torch.randn(2, height, width, 12)).shape == (2, height, width, 12)


def test_windows_round_trip() -> None:
    x = torch.randn(2, 6, 9, 5)
    for size in (1, 2, 3, 4):  # some need padding
        windows = to_windows(x, size)
        assert torch.equal(join_windows([windows], size, 6, 9), x)
        assert torch.equal(join_windows([windows[..., :2], windows[..., 2:]], size, 6, 9), x)


def test_window_one_is_plain_attention() -> None:
    layer = HiLo(16, 4, window_size=1, alpha=0.3)
    x = torch.randn(2, 4, 6, 16)
    tokens = x.flatten(1, 2)
    k, v = layer.l_kv(tokens).reshape(2, 24, 2, 4, 4).permute(2, 0, 3, 1, 4)
    q = layer.l_q(tokens).reshape(2, 24, 4, 4).transpose(1, 2)
    weights = F.softmax(q @ k.transpose(-2, -1) / 2, dim=-1)
    expected = layer.l_proj((weights @ v).transpose(1, 2).reshape(2, 4, 6, 16))
    torch.testing.assert_close(layer(x), expected)


def test_hifi_sees_its_window_only() -> None:
    layer = HiLo(8, 2, window_size=2, alpha=0.0)
    x = torch.randn(1, 4, 4, 8)
    changed = x.clone()
    changed[:, :2, :2] += 1
    differs = (layer(x) - layer(changed)).abs().amax((0, 3)) > 1e-6
    assert differs[:2, :2].all()
    assert not differs[2:].any()
    assert not differs[:, 2:].any()


def test_lofi_keys_are_window_averages() -> None:
    layer = HiLo(8, 2, window_size=2, alpha=1.0)
    x = torch.randn(1, 4, 4, 8)
    noise = torch.randn(1, 1, 1, 8)
    changed = x.clone()
    changed[:, 0, 0] += noise[0, 0]
    changed[:, 1, 1] -= noise[0, 0]  # the window's average stays
    torch.testing.assert_close(layer(x)[:, 2:], layer(changed)[:, 2:])


def test_every_parameter_gets_a_gradient() -> None:
    layer = HiLo(16, 4, window_size=2, alpha=0.5)
    layer(torch.randn(1, 5, 5, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((10, 3), "dim=10.*num_heads=3"), ((8, 2, 0), "window_size=0"), ((8, 2, 2, 1.5), "alpha=1.5"), ((8, 0), "num_heads=0")],
)
def test_impossible_layers_name_the_value(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HiLo(*arguments)
