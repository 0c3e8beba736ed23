"""Networks by name, ready to train."""

from fastconv.models.digits import DigitsNet as DigitsNet
from fastconv.models.lenet import LeNet5 as LeNet5
from fastconv.models.resnet import ResNet as ResNet
