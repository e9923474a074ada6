"""An NL I3D ResNet written from the paper (table 1, figure 2, sections 3 and 4.1), to hold the product against.

It shares nothing with nlzoo but names of tensors (torchvision's, with `nlI` after residual block I). Everything is
written out plainly: temporal padding by repeating frames, the non-local block by its formula through all pairs.
"""

import torch
from torch import nn

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
WIDTHS = (64, 128, 256, 512)
# reference, section 3: residual blocks with a temporal kernel, e.g. 1 0 1 0 1 0
TEMPORAL = {0: lambda i: 1, 1: lambda i: 1 - i % 2, 2: lambda i: 1 - i % 2, 3: lambda i: i % 2}


class Conv(nn.Module):
    """A convolution t x k x k; the clip's first and last frame are repeated, space is padded with zeros."""

    def __init__(self, c_in, c_out, t, k, time_stride=1, stride=1, padding="replicate"):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(c_out, c_in, t, k, k))
        self.t, self.k, self.strides, self.padding = t, k, (time_stride, stride, stride), padding

    def forward(self, x):
        for _ in range(self.t // 2):
            first, last = x[:, :, :1], x[:, :, -1:]
            if self.padding == "zeros":
                first, last = first * 0, last * 0
            x = torch.cat([first, x, last], 2)
        return torch.conv3d(x, self.weight, None, self.strides, (0, self.k // 2, self.k // 2))


class Residual(nn.Module):
    """Basic (two 3x3) or bottleneck (1x1, 3x3, 1x1) block; the stride sits on the bottleneck's 3x3."""

    def __init__(self, c_in, width, stride, taps, arch, bottleneck, padding):
        super().__init__()
        c_out = width * 4 if bottleneck else width
        if bottleneck:
            first, middle = (1, taps) if arch == "i3d-333" else (taps, 1)
            self.conv1, self.bn1 = Conv(c_in, width, first, 1, padding=padding), nn.BatchNorm3d(width)
            self.conv2, self.bn2 = Conv(width, width, middle, 3, stride=stride, padding=padding), nn.BatchNorm3d(width)
            self.conv3, self.bn3 = Conv(width, c_out, 1, 1), nn.BatchNorm3d(c_out)
        else:
            self.conv1, self.bn1 = Conv(c_in, width, taps, 3, stride=stride, padding=padding), nn.BatchNorm3d(width)
            self.conv2, self.bn2 = Conv(width, c_out, 1, 3), nn.BatchNorm3d(c_out)
        self.downsample = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(Conv(c_in, c_out, 1, 1, stride=stride), nn.BatchNorm3d(c_out))

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).clamp_min(0)))
        if hasattr(self, "conv3"):
            y = self.bn3(self.conv3(y.clamp_min(0)))
        return (y + (x if self.downsample is None else self.downsample(x))).clamp_min(0)


class NonLocal(nn.Module):
    """z_i = BN(W_z y_i) + x_i (equation 6); keys from a 2x2 max-pool of x; embedded gaussian with d^-0.5, or other."""

    def __init__(self, channels, form="embedded"):
        super().__init__()
        inner = channels // 2
        self.form = form
        if form != "gaussian":
            self.theta, self.phi = nn.Conv3d(channels, inner, 1), nn.Conv3d(channels, inner, 1)
        self.g, self.w_z, self.bn = (
            nn.Conv3d(channels, inner, 1),
            nn.Conv3d(inner, channels, 1),
            nn.BatchNorm3d(channels),
        )
        if form == "concat":
            self.w_f = nn.Conv1d(2 * inner, 1, 1, bias=False)

    def forward(self, x):
        pooled = nn.functional.max_pool3d(x, (1, 2, 2))
        q, k = (x, pooled) if self.form == "gaussian" else (self.theta(x), self.phi(pooled))
        q, k, g = q.flatten(2), k.flatten(2), self.g(pooled).flatten(2)
        if self.form == "concat":
            d = q.shape[1]
            w = self.w_f.weight.flatten()
            f = (
                torch.einsum("bci,c->bi", q, w[:d])[:, :, None] + torch.einsum("bcj,c->bj", k, w[d:])[:, None]
            ).clamp_min(0)
        else:
            f = torch.einsum("bci,bcj->bij", q, k)
        if self.form in ("dot", "concat"):
            weights = f / f.shape[2]
        else:
            f = f * q.shape[1] ** -0.5
            weights = f.exp() / f.exp().sum(2, keepdim=True)
        y = torch.einsum("bij,bcj->bci", weights, g)
        return self.bn(self.w_z(y.unflatten(2, x.shape[2:]))) + x


class I3D(nn.Module):
    """`(B, 3, T, H, W)` to `(B, classes)`. `blocks`: {(stage 0-3, residual block): form of the block after it}.

    `widths`: of the stages, for a smaller network than the paper's.
    """

    def __init__(
        self,
        depth,
        classes,
        arch="i3d",
        pools="none",
        padding="replicate",
        blocks=None,
        pool1_padding=1,
        widths=WIDTHS,
    ):
        super().__init__()
        bottleneck, blocks = depth >= 50, blocks or {}
        self.pools, self.pool1_padding = pools, pool1_padding
        self.conv1 = Conv(3, 64, 1 if arch == "c2d" else 5, 7, 1 if pools in ("none", "8x8") else 2, 2, padding)
        self.bn1 = nn.BatchNorm3d(64)
        channels = 64
        for stage, (count, width) in enumerate(zip(DEPTHS[depth], widths, strict=True)):
            layer = nn.Sequential()
            for i in range(count):
                taps = 3 if arch != "c2d" and TEMPORAL[stage](i) else 1
                layer.add_module(
                    str(i), Residual(channels, width, 2 if stage and not i else 1, taps, arch, bottleneck, padding)
                )
                channels = width * 4 if bottleneck else width
                if (stage, i) in blocks:
                    layer.add_module(f"nl{i}", NonLocal(channels, blocks[stage, i]))
            self.add_module(f"layer{stage + 1}", layer)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x):
        pool, p = nn.functional.max_pool3d, self.pool1_padding
        x = self.bn1(self.conv1(x)).clamp_min(0)
        if self.pools == "paper":
            x = pool(x, (3, 3, 3), 2, (1, p, p))
        elif self.pools == "authors":
            x = pool(x, (2, 3, 3), 2, (0, p, p))
        else:
            x = pool(x, (1, 3, 3), (2 if self.pools == "mmaction2" else 1, 2, 2), (0, p, p))
        x = self.layer1(x)
        if self.pools == "paper":
            x = pool(x, (3, 1, 1), (2, 1, 1), (1, 0, 0))
        elif self.pools != "none":
            x = pool(x, (2, 1, 1), (2, 1, 1))
        x = self.layer4(self.layer3(self.layer2(x)))
        return self.fc(x.mean((2, 3, 4)))
