"""Dataset distillation by matching smooth expert trajectories (AST, arXiv 2310.10541).

The layers, each importing only lower ones: cli, stages, io, maths, ground.

Capital letters of the shapes in this package:
    K classes, S = K * ipc synthetic images, N real images or inner steps (said where), C H W channels, height, width,
    B images of a batch, P parameters of the network, T expert epochs, M epochs matched, G students trained side by side.
"""

from src.ground import torchvision_ops

torchvision_ops.install()
