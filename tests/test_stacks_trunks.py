"""Every line of the table of docs/stacks.md, on the real libraries: the features that are meant, trained, consolidated.

Networks have random weights: what would be downloaded is made from a small configuration of the same family.
"""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_metric_learning import losses

from pml_s2sd import S2SDEmbeddings, collect_features, consolidate, count_features, s2sd

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision", exc_type=ImportError)
transformers = pytest.importorskip("transformers")
sentence_transformers = pytest.importorskip("sentence_transformers")
PAGE = (Path(__file__).parent.parent / "docs" / "stacks.md").read_text()
TABLE = PAGE.split("| you have | write |")[1].split("\n\n")[0]
LINES = {
    row.split(" | ")[0].strip("| "): re.findall(r"`([^`]+)`", row.split(" | ", 1)[1])
    for row in TABLE.splitlines()
    if "`" in row
}
LABELS = torch.tensor([0, 0, 1, 1])
HIDDEN = 96
SMALL = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
IMAGE = {"image_size": 32, "patch_size": 8}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "small", "space", "learns", "from", "a", "larger"]
TEXTS = ["one small space", "a", "one small space learns from a larger space", "larger"]


def average(maps):
    return maps.flatten(2).mean(2)


def average_and_maximum(maps):
    return average(maps) + maps.flatten(2).amax(2)


def of_each(tokens, mask, meant):
    """What is meant of the tokens of each sample, the padded ones cut off."""
    return torch.stack([meant(x[: int(length)]) for x, length in zip(tokens, mask.sum(1), strict=True)])


def mean_of_texts(output, inputs):
    return of_each(output.last_hidden_state, inputs["attention_mask"], lambda x: x.mean(0))


def mean_and_maximum_of_texts(output, inputs):
    return of_each(output["token_embeddings"], output["attention_mask"], lambda x: x.mean(0) + x.amax(0))


# what the features are of each line, of the trunk's output and input
MEANT = {
    "timm: any network": lambda output, _: output,
    "timm: a convolutional network, for MSDFA": lambda output, _: average_and_maximum(output),
    "timm: a transformer's class token": lambda output, _: output[:, 0],
    "timm: the mean of its tokens": lambda output, _: output.mean(1),
    "timm: a transformer, for MSDFA: mean + maximum": lambda output, _: output.mean(1) + output.amax(1),
    "timm: Swin and others with channels last": lambda output, _: output.mean((1, 2)) + output.amax((1, 2)),
    "timm: a list of feature maps": lambda output, _: average(output[4]),
    "torchvision: a network without its classifier": lambda output, _: output,
    "torchvision: a feature extractor's dict": lambda output, _: average_and_maximum(output["layer4"]),
    "torchvision: Swin, channels last": lambda output, _: output.mean((1, 2)),
    "Hugging Face images: the pooled output": lambda output, _: output.pooler_output,
    "… the class token, before pooling": lambda output, _: output[0][:, 0],
    "… the mean of the tokens; mean + maximum": lambda output, _: output[0].mean(1) + output[0].amax(1),
    "… a convolutional network's maps": lambda output, _: average_and_maximum(output[0]),
    "… CLIP's image embeddings": lambda output, _: output.image_embeds,
    "Hugging Face texts: the mean of the tokens": mean_of_texts,
    "… the class token": lambda output, _: output[0][:, 0],
    "sentence-transformers": lambda output, _: output["sentence_embedding"],
    "… its tokens, for MSDFA": mean_and_maximum_of_texts,
    "features that were computed before, (N, F)": lambda output, _: output,
}


def of_hugging_face(name):
    """What AutoModel makes of a configuration of the same family."""
    if "dinov2" in name:
        config = transformers.Dinov2Config(**SMALL, **IMAGE)
    elif "convnextv2" in name:
        config = transformers.ConvNextV2Config(hidden_sizes=[16, HIDDEN], depths=[1, 1], num_stages=2)
    else:
        config = transformers.BertConfig(**SMALL, vocab_size=len(WORDS))
    return transformers.AutoModel.from_config(config)


def clip(name):
    config = transformers.CLIPVisionConfig(**SMALL, **IMAGE, projection_dim=64)
    return transformers.CLIPVisionModelWithProjection(config)


SWIN = {"embed_dim": HIDDEN // 2, "depths": (1, 1), "num_heads": (1, 2)}
OF_TIMM = {
    "resnet50": ("resnet18", {}),
    "vit_small_patch16_224": ("vit_tiny_patch16_224", {"img_size": 64, "depth": 2}),
    "swin_tiny_patch4_window7_224": ("swin_tiny_patch4_window7_224", {"img_size": 56, **SWIN}),
}


def of_timm(name, pretrained, **options):
    smaller, less = OF_TIMM[name]
    return timm.create_model(smaller, **less, **options)


def of_torchvision(name):
    if name == "swin_t":
        return torchvision.models.SwinTransformer(patch_size=[4, 4], window_size=[7, 7], **SWIN)
    return torchvision.models.resnet18(weights=None)


@pytest.fixture(scope="module")
def sentence_transformer(tmp_path_factory):
    """Of a small BERT and a tokenizer of twelve words."""
    folder = tmp_path_factory.mktemp("bert")
    of_hugging_face("bert").save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    modules = sentence_transformers.sentence_transformer.modules
    transformer = modules.Transformer(str(folder))
    return sentence_transformers.SentenceTransformer(
        modules=[transformer, modules.Pooling(transformer.get_embedding_dimension(), "mean")], device="cpu"
    )


@pytest.fixture
def names(sentence_transformer):
    found = {
        "AutoModel": SimpleNamespace(from_pretrained=of_hugging_face),
        "CLIPVisionModelWithProjection": SimpleNamespace(from_pretrained=clip),
        "SentenceTransformer": lambda name: sentence_transformer,
        "count_features": count_features,
        "create_feature_extractor": torchvision.models.feature_extraction.create_feature_extractor,
        "features": torch.randn(4, HIDDEN),
        "loss": losses.MultiSimilarityLoss(),
        "s2sd": s2sd,
        "timm": SimpleNamespace(create_model=of_timm),
        "torch": torch,
        "torchvision": SimpleNamespace(
            models=SimpleNamespace(
                resnet50=lambda weights: of_torchvision("resnet50"), swin_t=lambda weights: of_torchvision("swin_t")
            )
        ),
    }
    (own,) = re.findall(r"```python\n(import torch\n\n\ndef without_classifier.*?)```", PAGE, re.DOTALL)
    exec(own, found)
    return found


def inputs_of(line, trunk):
    """What the trunk is given: images, texts, or features."""
    if line == "features that were computed before, (N, F)":
        return torch.randn(4, HIDDEN)
    call = LINES[line][2:]
    if not call:
        side = 32 if "from_pretrained" in LINES[line][0] else 56 if "swin" in LINES[line][0] else 64
        return torch.rand(4, 3, side, side)
    if "**inputs" not in call[0]:
        return trunk.preprocess(TEXTS)
    mask = (torch.arange(7) < torch.tensor([[3], [7], [5], [1]])).long()
    return {"input_ids": torch.randint(5, len(WORDS), (4, 7)) * mask, "attention_mask": mask}


def batches_of(line, inputs):
    """As a loader gives them, and how they are read."""
    if isinstance(inputs, torch.Tensor):
        return [(inputs, LABELS)], None
    if "**inputs" in LINES[line][2]:
        return [{**inputs, "labels": LABELS}], None
    (read,) = re.findall(r"`read=(lambda batch: \(\(batch.*?)`", PAGE)
    return [{"inputs": inputs, "labels": LABELS}], eval(read)


def test_every_line_is_tested():
    assert LINES.keys() == MEANT.keys()
    assert all(len(code) in (2, 3) for code in LINES.values())


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_the_table(line, names):
    make, heads, *call = LINES[line]
    trunk = names["trunk"] = eval(make, names).eval()
    inputs = names["inputs"] = names["images"] = inputs_of(line, trunk)
    if line.startswith("features"):
        names["features"] = inputs
    embedder, loss_func = eval(heads, names)
    names["embedder"] = embedder
    expression = call[0] if call else "torch.nn.Sequential(trunk, embedder)(images)"

    batch = eval(expression, names)
    assert isinstance(batch, S2SDEmbeddings) and batch.shape == (4, 64)
    with torch.no_grad():
        output = trunk(**inputs) if "**inputs" in expression else trunk(inputs)
        meant = MEANT[line](output, inputs)
    torch.testing.assert_close(batch.features, meant, rtol=1e-4, atol=1e-5)

    loss_func(batch, LABELS).backward()
    gradients = [p.grad for p in trunk.parameters() if p.grad is not None]
    assert any(gradient.abs().sum() > 0 for gradient in gradients) or not list(trunk.parameters())

    batches, read = batches_of(line, inputs)
    features, labels = collect_features(trunk, batches, embedder=embedder, read=read)
    assert torch.equal(labels, LABELS)
    maximum = features.amax((2, 3)) if embedder.aggregate_pooling else 0
    torch.testing.assert_close((features.mean((2, 3)) if features.ndim == 4 else features) + maximum, meant)
    with torch.no_grad():
        for deployed in (embedder.deploy(), consolidate(embedder, features, labels, steps=5)):
            names["embedder"] = deployed
            z = eval(expression, names)
            torch.testing.assert_close(z, deployed(features), rtol=1e-3, atol=1e-4)
        assert z.shape == (4, 64)


def test_sizes_that_a_library_names_are_those_of_another_layer():
    """What the documentation of count_features says."""
    trunk = timm.create_model("mobilenetv3_large_100", num_classes=0)
    assert (trunk.num_features, count_features(trunk, torch.zeros(1, 3, 64, 64))) == (960, 1280)
