"""What is learned: data, labels, networks, losses and metrics."""

import sys

from downpour.model.vision import labels, losses, metrics, records, resnet

# Recipes may go on importing these by their shorter names: `from downpour.model.resnet import ResNet`.
for _module in (labels, losses, metrics, records, resnet):
    sys.modules[f"{__name__}.{_module.__name__.rpartition('.')[2]}"] = _module
