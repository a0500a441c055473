from __future__ import annotations

import pytest
import torch

from suite.errors import DataError, UserError
from suite.learn.models import ConvNet, build, clip, denormalise, normalise, pixel_range, to_unit
from suite.spec.datasets import IMAGENET_MEAN, IMAGENET_STD
from tests.helpers import golden

TINY_MEAN, TINY_STD = (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_convnets_have_the_parameter_counts_of_the_reference():
    rows = [r for r in golden("dc_dsa_dm")["convnet.param_counts"].tolist() if r[0] == 3]
    assert len(rows) == 13
    for _, classes, width, depth, size, count in rows:
        assert parameters(build(f"convnet{depth}_w{width}_in", classes, size)) == count


@pytest.mark.parametrize(("group", "norm"), [("batchnorm", "bn"), ("instancenorm", "in")])
def test_convnets_give_the_logits_of_the_reference(group, norm):
    g = golden("dc_dsa_dm")
    prefix = f"convnet.{group}."
    weights = [g[k] for k in sorted(g) if k.startswith(prefix) and not k.endswith((".x", ".logits", ".embed"))]
    model = ConvNet(classes=4, size=32, depth=3, width=8, norm=norm).double().eval()
    named = {k: g[prefix + k] for k in model.state_dict() if not k.endswith("num_batches_tracked")}
    assert len(named) == len(weights)
    model.load_state_dict(named, strict=False)
    with torch.no_grad():
        torch.testing.assert_close(model(g[prefix + "x"]), g[prefix + "logits"], atol=1e-9, rtol=0)
        embedding = model.features(g[prefix + "x"]).flatten(1)
    torch.testing.assert_close(embedding, g[prefix + "embed"], atol=1e-9, rtol=0)


def test_a_convnet_deeper_than_the_image_is_a_user_error():
    assert build("convnet4", 10, 16)(torch.zeros(1, 3, 16, 16)).shape == (1, 10)
    with pytest.raises(UserError, match="at most depth 4"):
        build("convnet5", 10, 16)


@pytest.mark.parametrize(
    ("arch", "count"),
    [("resnet18_cifar", 11_173_962), ("resnet10_cifar", 4_903_242), ("resnet50_cifar", 23_520_842)],
)
def test_cifar_resnets_have_known_sizes_and_keep_the_resolution_of_the_stem(arch, count):
    model = build(arch, 10, 32)
    assert parameters(model) == count
    assert model.conv1.stride == (1, 1) and model.conv1.bias is None
    x = torch.zeros(1, 3, 32, 32)
    assert model.maxpool(model.conv1(x)).shape[-1] == 32
    assert model.eval()(x).shape == (1, 10)


def test_narrow_cifar_resnets_scale_every_stage():
    for arch, last in (("resnet18_cifar_w16", 128), ("resnet50_cifar_w16", 512)):
        model = build(arch, 7, 32).eval()
        assert model.conv1.out_channels == 16
        assert model.fc.in_features == last
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_width_64_is_the_same_network_as_no_width():
    torch.manual_seed(3)
    plain = build("resnet18_cifar", 5, 32).state_dict()
    torch.manual_seed(3)
    named = build("resnet18_cifar_w64", 5, 32).state_dict()
    assert plain.keys() == named.keys()
    assert all(torch.equal(plain[k], named[k]) for k in plain)


@pytest.mark.parametrize("arch", ["resnet18", "shufflenet_v2_x0_5", "mobilenet_v2", "googlenet", "timm.resnet10t"])
def test_library_classifiers_are_built_by_name(arch):
    model = build(arch, 12, 64)
    assert model.training
    assert model.train()(torch.randn(2, 3, 64, 64)).shape == (2, 12)


def test_a_vision_transformer_takes_the_size_of_the_dataset():
    assert build("vit_b_32", 3, 64).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    with pytest.raises(UserError, match="vit_b_32"):
        build("vit_b_32", 3, 40)


@pytest.mark.parametrize("arch", ["alexnet", "inception_v3"])
def test_a_network_that_cannot_take_small_images_is_a_user_error(arch):
    with pytest.raises(UserError, match=f"{arch} cannot take 32 px"):
        build(arch, 10, 32)


def test_unknown_names_are_user_errors():
    for name in ("convnet9", "resnet19", "timm.no_such_network"):
        with pytest.raises(UserError):
            build(name, 10, 32)


def test_missing_weights_name_the_command_that_fetches_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, name, **k: None)
    with pytest.raises(DataError, match=r"torchvision\.models\.resnet18\(weights='IMAGENET1K_V1'\)"):
        build("resnet18", 1000, 224, "IMAGENET1K_V1")
    with pytest.raises(DataError, match=r"timm\.create_model\('resnet10t', pretrained=True\)"):
        build("timm.resnet10t", 1000, 224, "IMAGENET1K_V1")
    assert not any(p.is_file() for p in tmp_path.rglob("*"))


def test_cached_torchvision_weights_are_loaded_without_network(tmp_path, monkeypatch):
    from torchvision.models import ShuffleNet_V2_X0_5_Weights

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: pytest.fail("nothing may be downloaded"))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    source = build("shufflenet_v2_x0_5", 1000, 224)
    url = ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1.url
    torch.save(source.state_dict(), folder / url.rpartition("/")[2])
    loaded = build("shufflenet_v2_x0_5", 1000, 224, "IMAGENET1K_V1").state_dict()
    assert all(torch.equal(v, loaded[k]) for k, v in source.state_dict().items())
    with pytest.raises(UserError, match="know 1000 classes, the dataset has 10"):
        build("shufflenet_v2_x0_5", 10, 224, "IMAGENET1K_V1")


def test_cached_timm_weights_are_loaded_without_network(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    source = build("timm.resnet10t", 1000, 224)
    file = tmp_path / "model.safetensors"
    save_file(source.state_dict(), file)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, name, **k: str(file))
    loaded = build("timm.resnet10t", 1000, 224, "IMAGENET1K_V1").state_dict()
    assert all(torch.equal(v, loaded[k]) for k, v in source.state_dict().items())


@pytest.mark.parametrize(
    ("arch", "weights"), [("convnet3", "IMAGENET1K_V1"), ("resnet18_cifar", "x"), ("resnet18", "IMAGENET1K_V9")]
)
def test_weights_that_do_not_exist_are_user_errors(arch, weights):
    with pytest.raises(UserError):
        build(arch, 1000, 32, weights)


def test_clip_and_denormalise_equal_the_reference():
    g = golden("bn_matching")
    for name, mean, std in (("imagenet", IMAGENET_MEAN, IMAGENET_STD), ("tiny", TINY_MEAN, TINY_STD)):
        clipped = clip(g["clip_in"], mean, std)
        torch.testing.assert_close(clipped, g[f"clip_{name}"], atol=1e-9, rtol=0)
        torch.testing.assert_close(to_unit(g["clip_in"], mean, std), g[f"denorm_{name}"], atol=1e-9, rtol=0)
        low, high = pixel_range(mean, std, dtype=torch.float64)
        assert bool(((clipped >= low) & (clipped <= high)).all())
    pixels = denormalise(g["clip_in"], IMAGENET_MEAN, IMAGENET_STD)[0].permute(1, 2, 0)
    assert torch.equal(pixels, g["uint8_first_hwc"])


def test_pixels_survive_the_round_trip_up_to_truncation():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    x = normalise(pixels, IMAGENET_MEAN, IMAGENET_STD)
    assert x.dtype == torch.float32
    torch.testing.assert_close(normalise(pixels.double() / 255, IMAGENET_MEAN, IMAGENET_STD).float(), x)
    lost = pixels.int() - denormalise(x, IMAGENET_MEAN, IMAGENET_STD).int()
    assert lost.min() >= 0 and lost.max() <= 1


def test_normalise_takes_part_in_autograd_after_inference_mode():
    mean, std = (0.11, 0.12, 0.13), (0.31, 0.32, 0.33)
    with torch.inference_mode():
        normalise(torch.zeros(1, 3, 2, 2), mean, std)
    x = torch.zeros(1, 3, 2, 2, requires_grad=True)
    normalise(x, mean, std).sum().backward()
    torch.testing.assert_close(x.grad[0, :, 0, 0], 1 / torch.tensor(std))
