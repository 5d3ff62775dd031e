"""What the tests of `examples/stacks` compare a library's training with: the same steps, written out."""

import functools

import torch
from digits import FEATURES, SIZE, EpochSampler, dataset, make_trunk
from pytorch_metric_learning import losses
from torch import nn
from torch.utils.data import DataLoader, Subset

from pml_s2sd import consolidate, s2sd

quickly = functools.partial(consolidate, steps=3)


def make_model(variant=None, objective=losses.MultiSimilarityLoss, **options):
    torch.manual_seed(0)
    embedder, loss_func = s2sd(objective(), FEATURES, SIZE, variant, aux_sizes=(16,), **options)
    return make_trunk(), embedder, loss_func


def epoch_loader(batch_size, process=0, processes=1):
    """Four batches of 20 an epoch, or two of 40: 80 of the first digits that are trained on, fours of a class."""
    digits = dataset(train=True)
    sampler = EpochSampler(digits.tensors[1][:200], m=4, length_before_new_iter=80)
    sampler.process, sampler.processes = process, processes
    return DataLoader(Subset(digits, range(200)), batch_size, sampler=sampler)


def batches_of_epochs(loader, epochs):
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        yield from loader


def trained_by_hand(trunk, embedder, loss_func, batches, *, accumulated=2, bf16=False, widened=False, clip=None):
    """Adam on the mean gradient of `accumulated` batches; the loss outside autocast, of float32 if `widened`."""
    model = nn.Sequential(trunk, embedder).train()
    parameters = [*model.parameters(), *loss_func.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    batches = list(batches)
    for first in range(0, len(batches), accumulated):
        of_step = batches[first : first + accumulated]
        values = []
        for images, labels in of_step:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                embeddings = model(images)
            values.append(loss_func(embeddings.float() if widened else embeddings, labels))
        gradients = torch.autograd.grad(torch.stack(values).sum() / accumulated, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if clip is not None:
            nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
    return model


def assert_same(model, expected, rtol=1e-5, atol=1e-6):
    """All parameters and buffers."""
    torch.testing.assert_close(dict(model.state_dict()), dict(expected.state_dict()), rtol=rtol, atol=atol)
