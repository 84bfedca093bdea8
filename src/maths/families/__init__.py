"""The families of networks, a module each, called as its settings are: a sequence of layers that ends in the linear classifier.

`layers(spec, channels, size, classes)` of each raises UserError where the image is too small for it, or the width does not fit
the norm. Sources: DC's and MTT's code for images up to 32x32, MTT's ResNet18ImageNet for the stem of large ones, torchvision
for the residual block. Larger images end in an average pooling; on smaller ones the first halvings are left out, so that both
end in as many pixels as 32x32 does: late norms of one or two pixels would erase what was learnt.
"""
