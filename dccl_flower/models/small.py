"""Two plain convolutional nets of our own: one for 8x8 digits, one for 32x32 images."""

from __future__ import annotations

from torch import Tensor, nn


class PlainCNN(nn.Module):
    """Convolutions with batch norm, global average pooling and one linear head.

    ``widths`` gives the output channels of each 3x3 convolution; ``"pool"`` halves the image.
    """

    def __init__(self, widths: list[int | str], in_channels: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for width in widths:
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2))
            else:
                layers += conv_block(channels, width)
                channels = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes)."""
        return self.head(self.features(x).mean(dim=(2, 3)))


def conv_block(in_channels: int, out_channels: int) -> list[nn.Module]:
    """Return a 3x3 convolution with He initialisation, its batch norm and a ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


def small_cnn(in_channels: int, num_classes: int) -> PlainCNN:
    """Build a net of 0.26 M parameters for images of 8x8 up to 28x28."""
    return PlainCNN([64, 64, "pool", 128, 128], in_channels, num_classes)


def vgg16_cifar(in_channels: int, num_classes: int) -> PlainCNN:
    """Build VGG16 for 32x32 images: 13 convolutions and one linear head.

    After Simonyan and Zisserman, arXiv 1409.1556, without the fully connected layers.
    """
    return _vgg16(64, in_channels, num_classes)


def vgg16_slim(in_channels: int, num_classes: int) -> PlainCNN:
    """Build :func:`vgg16_cifar` at a quarter of its width: 0.92 M parameters."""
    return _vgg16(16, in_channels, num_classes)


def _vgg16(width: int, in_channels: int, num_classes: int) -> PlainCNN:
    widths: list[int | str] = [width, width, "pool", 2 * width, 2 * width, "pool"]
    for stage in (4 * width, 8 * width, 8 * width):
        widths += [stage, stage, stage, "pool"]
    return PlainCNN(widths, in_channels, num_classes)
