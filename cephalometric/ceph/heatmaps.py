"""Heatmaps of landmarks: encoding at sub-pixel centres, DARK decoding, conversion between input and heatmap px.

Points are xy with pixel centres at integers. DARK: Zhang et al. 2020, "Distribution-Aware Coordinate Representation
for Human Pose Estimation".
"""

import torch


def to_heatmap(points: torch.Tensor, stride: float) -> torch.Tensor:
    """Input px (..., 2) to heatmap px, with aligned pixel areas: u / stride alone is (stride - 1) / 2 input px off."""
    return (points + 0.5) / stride - 0.5


def to_input(points: torch.Tensor, stride: float) -> torch.Tensor:
    """Heatmap px (..., 2) to input px."""
    return (points + 0.5) * stride - 0.5


def encode_heatmaps(points: torch.Tensor, size: tuple[int, int] | int, sigma: float) -> torch.Tensor:
    """Gaussians of height 1 at unrounded points: (B, K, 2) in heatmap px -> (B, K, H, W).

    `size`: (H, W), or one number for both; `sigma` in heatmap px. Rounded centres, as is common, would add errors of up
    to half a heatmap px. Heatmaps of points that are NaN or over 3 sigma outside are zero.
    """
    height, width = (size, size) if isinstance(size, int) else size
    x = torch.arange(width, device=points.device, dtype=points.dtype)
    y = torch.arange(height, device=points.device, dtype=points.dtype)
    across = torch.exp(-((x - points[..., 0:1]) ** 2) / (2 * sigma**2))  # (B, K, W)
    down = torch.exp(-((y - points[..., 1:2]) ** 2) / (2 * sigma**2))  # (B, K, H)
    limit = points.new_tensor([width, height]) - 1 + 3 * sigma
    seen = ((points >= -3 * sigma) & (points <= limit)).all(-1)  # NaN compares false
    maps = down[..., :, None] * across[..., None, :]
    return torch.where(seen[..., None, None], maps, torch.zeros_like(maps))


def decode_dark(heatmaps: torch.Tensor, sigma: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Sub-pixel peaks of heatmaps (B, K, H, W): points (B, K, 2) xy in heatmap px, confidence (B, K).

    The heatmap is smoothed with a Gaussian around its maximum (DARK's modulation); the point is the vertex m - H⁻¹∇ of
    a parabola through its logarithm, with central differences as in the paper. Only the 5×5 neighbourhood is smoothed
    (the paper's rescaling to the old maximum is a constant of the logarithm), and nothing if the kernel crosses the
    border. The maximum itself is returned if the curvature is not that of a peak, or the vertex is over 1.5 px away.
    Confidence is the maximum. Raises ValueError for heatmaps smaller than 5×5.
    """
    batch, count, height, width = heatmaps.shape
    if min(height, width) < 5:
        raise ValueError(f"heatmaps of {height}×{width} are too small to decode; 5×5 at least")
    maps = heatmaps.detach().float().reshape(batch * count, height, width)
    # The maximum in two steps: `amax` is 4 times faster than `max` with indices.
    confidence, peak_y = maps.amax(dim=2).max(dim=1)
    peak_x = maps[torch.arange(batch * count, device=maps.device), peak_y].argmax(dim=1)
    x, y = peak_x.clamp(2, width - 3), peak_y.clamp(2, height - 3)  # centre of the 5×5 neighbourhood

    radius = int(3 * sigma - 1)  # kernels of 7, 11, 17 px for sigma 1.5, 2, 3, as in the paper's code
    reach = radius + 2
    inside = (x >= reach) & (x < width - reach) & (y >= reach) & (y < height - reach)
    steps = torch.arange(-reach, reach + 1, device=maps.device)
    columns, rows = (x[:, None] + steps).clamp(0, width - 1), (y[:, None] + steps).clamp(0, height - 1)
    patch = maps.flatten(1).gather(1, (rows[:, :, None] * width + columns[:, None, :]).flatten(1))
    patch = patch.reshape(-1, 2 * reach + 1, 2 * reach + 1).clamp_min(1e-10)  # (B·K, 2·reach+1, 2·reach+1)
    smooth = _smoothing_matrix(radius, sigma, maps.device)  # (5, 2·reach+1)
    log = torch.where(
        inside[:, None, None], smooth @ patch @ smooth.T, patch[:, radius : radius + 5, radius : radius + 5]
    ).log()

    dx, dy = (log[:, 2, 3] - log[:, 2, 1]) / 2, (log[:, 3, 2] - log[:, 1, 2]) / 2
    dxx = (log[:, 2, 4] - 2 * log[:, 2, 2] + log[:, 2, 0]) / 4
    dyy = (log[:, 4, 2] - 2 * log[:, 2, 2] + log[:, 0, 2]) / 4
    dxy = (log[:, 3, 3] - log[:, 1, 3] - log[:, 3, 1] + log[:, 1, 1]) / 4
    determinant = dxx * dyy - dxy * dxy
    is_peak = (determinant > 1e-12) & (dxx < 0)
    determinant = torch.where(is_peak, determinant, torch.ones_like(determinant))
    top = torch.stack([x + (dxy * dy - dyy * dx) / determinant, y + (dxy * dx - dxx * dy) / determinant], dim=-1)
    highest = torch.stack([peak_x, peak_y], dim=-1).float()
    good = is_peak & ((top - highest).abs() <= 1.5).all(dim=1)
    points = torch.where(good[:, None], top, highest)
    return points.reshape(batch, count, 2), confidence.reshape(batch, count)


def _smoothing_matrix(radius: int, sigma: float, device: torch.device) -> torch.Tensor:
    """(5, 2·radius+5): row i is the Gaussian kernel centred at radius+i."""
    offset = torch.arange(2 * radius + 5, device=device) - radius - torch.arange(5, device=device)[:, None]
    kernel = torch.exp(-(offset.float() ** 2) / (2 * sigma**2)) * (offset.abs() <= radius)
    return kernel / kernel.sum(dim=1, keepdim=True)
