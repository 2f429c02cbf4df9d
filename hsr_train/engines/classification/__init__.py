"""The engine of `task=classify`: image classifiers of torchvision and timm."""
