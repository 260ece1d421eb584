from __future__ import annotations

import pytest
import torch
from torch import nn

from surgeon.benchmarks.nets import SmallConvNet
from surgeon.errors import IncompatibleError
from surgeon.gates import Gates
from surgeon.methods.base import new_edit
from surgeon.sites import bottleneck_sites, module_sites, unit_sites, weight_sites
from surgeon.surgery import sparsity
from tests.nets import NETS


@pytest.fixture(scope="module", params=NETS)
def subject(request, pico):
    net, side, kwargs = NETS[request.param]
    return pico(net, side, **kwargs)


def images(subject, n=2):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, *subject.preprocessing.input_size, generator=generator)


def shake(gates, seed=0):
    """Close about a third of the gates."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for logit in gates.logits:
            logit.copy_(torch.rand(logit.shape, generator=generator) * 3 - 1)


def gates_of(subject, kind, *, hard, initial=0.0):
    sites = {
        "weights": lambda: weight_sites(subject),
        "units": lambda: unit_sites(subject),
        "modules": lambda: module_sites(subject),
        "own": lambda: module_sites(subject, own_output=True),
    }[kind]()
    return Gates(subject, sites, initial=initial, hard=hard)


@pytest.mark.parametrize("kind", ["weights", "units", "modules", "own"])
@pytest.mark.parametrize("hard", [True, False])
@torch.no_grad()
def test_open_gates_change_nothing(subject, kind, hard):
    x = images(subject)
    gates = gates_of(subject, kind, hard=hard, initial=0.02 if hard else 0.0)
    features, logits = subject.forward(x)
    for overrides in (gates.overrides(), gates.frozen()):
        assert set(overrides) <= set(subject.tensors())
        gated = subject.forward(x, overrides)
        assert torch.equal(gated[0], features)
        assert torch.equal(gated[1], logits)
    assert gates.sparsity() == 0
    shake(gates)
    assert not torch.equal(subject.forward(x, gates.overrides())[1], logits)


def test_every_encoder_weight_is_gated_and_nothing_else(subject):
    sites = {site.name: site.shape for site in weight_sites(subject)}
    tensors = subject.tensors()
    expected = {
        name
        for name, value in subject.net.named_parameters()
        if value.dim() >= 2 and name.endswith("weight") and not name.startswith(f"{subject.head}.")
    }
    assert set(sites) == expected
    assert all(tuple(tensors[name].shape) == shape for name, shape in sites.items())
    head = {site.name for site in weight_sites(subject, gate_head=True)} - expected
    assert head == {f"{subject.head}.weight"}


@pytest.mark.parametrize(
    ("net", "side", "expected"),
    [
        (SmallConvNet, 14, ["features.10"]),
        ("test_efficientnet", 64, ["conv_head"]),
        # Their features are sums along residual connections.
        ("test_resnet", 64, []),
        ("test_convnext", 64, []),
    ],
)
def test_bottleneck_units_are_those_that_make_one_feature_each(pico, net, side, expected):
    subject = pico(net, side)
    sites = bottleneck_sites(subject)
    assert [site.name for site in sites] == expected
    for site in sites:
        keep = torch.ones(site.shape)
        keep[[0, 5]] = 0
        tensors = subject.tensors()
        closed = {f.parameter: f.scale(tensors[f.parameter], keep) for f in site.folds}
        features, _ = subject.forward(images(subject), closed)
        gone = (features.std(0) == 0).nonzero().flatten().tolist()
        assert {0, 5} <= set(gone)
        assert len(gone) < len(keep) // 2


def multiply(subject, sites, factors, x):
    """Run the network with hooks that multiply units where a gate should act."""
    handles = []
    modules = dict(subject.net.named_modules())
    for site, factor in zip(sites, factors, strict=True):
        where = site.folds[0].parameter.rpartition(".")[0]
        module = modules[where]

        each = factor.repeat_interleave(site.folds[0].block)

        def scale(value, module=module, factor=each):
            wide = isinstance(module, nn.LayerNorm) and "2d" not in type(module).__name__
            dim = -1 if wide or isinstance(module, nn.Linear) else 1
            shape = [1] * value.dim()
            shape[dim] = -1
            return value * factor.reshape(shape)

        if site.folds[0].dim == 1:
            hook = module.register_forward_pre_hook(lambda _, i, f=scale: (f(i[0]), *i[1:]))
        else:
            hook = module.register_forward_hook(lambda _, i, o, f=scale: f(o))
        handles.append(hook)
    try:
        return subject.forward(x)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", [n for n in NETS if n != "attention"])
@pytest.mark.parametrize("kind", ["units", "modules", "own"])
def test_unit_gate_multiplies_where_it_should(name, kind, pico):
    net, side, kwargs = NETS[name]
    subject = pico(net, side, **kwargs)
    x = images(subject)
    # An activation inside the normalisation module bends a soft gate, and keeps a zero.
    hard = name == "test_efficientnet"
    gates = gates_of(subject, kind, hard=hard)
    shake(gates)
    factors = [
        (logit >= 0).float() if hard else (2 * torch.sigmoid(logit)).clamp_max(1)
        for logit in gates.logits
    ]
    with torch.no_grad():
        expected = multiply(subject, gates.sites, factors, x)
        found = subject.forward(x, gates.overrides())
        vanilla = subject.forward(x)[1]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))
    assert not torch.allclose(found[1], vanilla, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "unit", "parameters"),
    [
        ("test_resnet", "layer2.0.conv2", ["layer2.0.bn2.weight", "layer2.0.bn2.bias"]),
        ("test_convnext", "stem.0", ["stem.1.weight", "stem.1.bias"]),
        (  # depthwise, its normalisation behind a permutation
            "test_convnext",
            "stages.1.blocks.0.conv_dw",
            ["stages.1.blocks.0.norm.weight", "stages.1.blocks.0.norm.bias"],
        ),
        ("test_convnext", "stages.1.blocks.0.mlp.fc1", ["stages.1.blocks.0.mlp.fc2.weight"]),
        (  # followed by the layer scale, which is no normalisation
            "test_convnext",
            "stages.1.blocks.0.mlp.fc2",
            ["stages.1.blocks.0.mlp.fc2.weight", "stages.1.blocks.0.mlp.fc2.bias"],
        ),
        ("test_vit", "blocks.0.mlp.fc1", ["blocks.0.mlp.fc2.weight"]),
        ("test_vit", "blocks.0.attn.qkv", ["blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias"]),
        ("test_efficientnet", "conv_stem", ["bn1.weight", "bn1.bias"]),
        ("small_conv_net", "features.0", ["features.1.weight", "features.1.bias"]),
        ("attention", "encoder.layers.encoder_layer_0.mlp.0", None),
    ],
)
def test_unit_gate_sits_behind_the_normalisation(name, unit, parameters, pico):
    net, side, kwargs = NETS[name]
    subject = pico(net, side, **kwargs)
    parameters = parameters or [f"{unit[:-1]}3.weight"]
    site = next(site for site in module_sites(subject) if site.name == unit)
    assert [fold.parameter for fold in site.folds] == parameters
    own = next(site for site in module_sites(subject, own_output=True) if site.name == unit)
    assert own.folds[0].parameter == f"{unit}.weight"
    assert own.shape[0] == len(subject.tensors()[f"{unit}.weight"])


class Odd(nn.Module):
    """A normalisation without scale, one shared by two layers, and a layer never called."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Conv2d(3, 4, 3, padding=1)
        self.bare = nn.BatchNorm2d(4, affine=False)
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.shared = nn.BatchNorm2d(4)
        self.unused = nn.Conv2d(4, 5, 1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        x = self.bare(self.plain(x)).relu()
        x = self.shared(self.first(x)).relu()
        x = self.shared(self.second(x)).relu()
        return self.fc(x.mean((2, 3)))


def test_sites_of_an_odd_network(pico):
    subject = pico(Odd, 8)
    found = {site.name: site.folds[0].parameter for site in module_sites(subject)}
    # A unit before a normalisation without scale cannot be switched off there.
    assert found == {n: f"{n}.weight" for n in ("first", "second", "unused")}
    assert "plain" in {site.name for site in module_sites(subject, own_output=True)}


def test_a_layer_never_called_keeps_all_its_weights(pico):
    subject = pico(Odd, 8)
    gates = gates_of(subject, "weights", hard=True)
    loss = subject.forward(images(subject), gates.overrides())[1].square().sum()
    grads = torch.autograd.grad(loss, gates.logits, materialize_grads=True)
    by_name = {site.name: grad for site, grad in zip(gates.sites, grads, strict=True)}
    assert not by_name["unused.weight"].any()
    assert by_name["plain.weight"].any()
    assert gates.masks()["unused.weight"].all()


def test_a_network_without_layers_is_refused(pico):
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(x.mean((2, 3)))

    for sites in (weight_sites, unit_sites):
        with pytest.raises(IncompatibleError, match="nothing to gate"):
            sites(pico(Flat, 8))


def one_gate(subject, *, hard, temperature=1.0):
    gates = Gates(subject, weight_sites(subject)[:1], initial=0.0, hard=hard)
    gates.temperature = temperature
    values = torch.linspace(-2, 2, gates.logits[0].numel())
    values[3] = 0
    values = values.reshape(gates.logits[0].shape)
    with torch.no_grad():
        gates.logits[0].copy_(values)
    name = gates.sites[0].name
    upstream = torch.randn(values.shape, generator=torch.Generator().manual_seed(0))
    out = gates.overrides()[name]
    (grad,) = torch.autograd.grad(out, gates.logits[0], upstream)
    return gates.logits[0].detach(), subject.tensors()[name], upstream, out.detach(), grad


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_soft_gate_is_clamped_and_its_gradient_is_not(pico, temperature):
    m, weight, upstream, out, grad = one_gate(
        pico(SmallConvNet, 14), hard=False, temperature=temperature
    )
    s = torch.sigmoid(m / temperature)
    torch.testing.assert_close(out, weight * torch.clamp(2 * s, max=1))
    assert torch.equal(out[m >= 0], weight[m >= 0])
    torch.testing.assert_close(grad, upstream * weight * 2 * s * (1 - s) / temperature)
    assert grad[m > 1].abs().max() > 1e-4


def test_hard_gate_passes_the_gradient_to_every_gate(pico):
    m, weight, upstream, out, grad = one_gate(pico(SmallConvNet, 14), hard=True)
    assert torch.equal(out, torch.where(m >= 0, weight, 0.0))
    assert out.reshape(-1)[3] == weight.reshape(-1)[3] != 0
    assert torch.equal(grad, upstream * weight)


def test_soft_and_hard_agree_as_the_temperature_falls(pico):
    subject = pico(SmallConvNet, 14)
    gates = gates_of(subject, "weights", hard=False)
    shake(gates)
    x = images(subject)
    hard = subject.forward(x, gates.frozen())[1]
    gates.temperature = 1e-6
    torch.testing.assert_close(subject.forward(x, gates.overrides())[1].detach(), hard)


def test_sparsity_counts_the_weights_behind_each_gate(pico):
    subject = pico(SmallConvNet, 14)
    gates = gates_of(subject, "units", hard=True)
    with torch.no_grad():
        gates.logits[0][:4] = -1e-9  # 4 units of 3 * 9 weights
        gates.logits[3][0] = -1  # 1 unit of 64 * 9 weights
        gates.logits[1][:] = 0.0
    total = 9 * (3 * 16 + 16 * 32 + 32 * 64 + 64 * 128)
    assert gates.sparsity() == (4 * 27 + 576) / total
    units = gates.units()
    assert units["features.0"].keep.tolist() == [False] * 4 + [True] * 12
    assert not gates.masks()
    kept = gates.snapshot()
    shake(gates)
    assert gates.sparsity() > 0.2
    gates.restore(kept)
    assert gates.sparsity() == (4 * 27 + 576) / total
    assert gates.logits[0].requires_grad


def test_a_weight_closed_twice_counts_once(pico):
    subject = pico(SmallConvNet, 14)
    sites = [*weight_sites(subject), *unit_sites(subject)]
    gates = Gates(subject, sites, initial=0.0, hard=True)
    shake(gates)
    edit = new_edit(subject, "test", masks=gates.masks(), units=gates.units())
    encoder = [name for name in subject.tensors() if name in gates.masks()]
    closed = total = 0
    for name in encoder:
        unit = gates.units()[name.removesuffix(".weight")].keep
        gone = ~gates.masks()[name] | ~unit[:, None, None, None]
        closed, total = closed + int(gone.sum()), total + gone.numel()
    found = sparsity(subject, edit)
    every = sum(p.numel() for p in subject.net.parameters())
    assert gates.sparsity() == found.gated == closed / total
    assert found.all == closed / every
