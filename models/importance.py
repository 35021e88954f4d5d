"""How much a trained network relies on each of its blocks, heads and channels.

Three measures, none of which needs labels, compared in docs/accuracy.md:

- `magnitude`: the norm of the weights that read a channel, as "Once-for-All" sorts by (Sec. 3.3, arXiv 1908.09791);
- `activation`: the same, times the root mean square of what they read, as in "A Simple and Effective Pruning Approach for
  Large Language Models" (Sec. 3, arXiv 2306.11695);
- `fisher`: the square, for each image, of the loss's derivative by a factor at the channel ("Faster gaze prediction with
  dense networks and Fisher pruning", Sec. 2.1, arXiv 1801.05787), for a class drawn from the network's own prediction.

Shape letters: B images, F features, H heads, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.hilo import HiLo
from models.litv2 import Block, LITv2, Stage

Measure = Literal["magnitude", "activation", "fisher"]
MEASURES: tuple[Measure, ...] = ("magnitude", "activation", "fisher")
READERS = ("fc1", "fc2", "h_qkv", "h_proj", "l_q", "l_kv", "l_proj", "dconv", "head")  # layers whose inputs are recorded
WRITERS = ("h_qkv", "l_q", "l_kv", "attn", "mlp")  # layers whose outputs are

Importance = dict[str, Tensor]
"""By name, of any scale, larger is more important. Of the channels of stage i: `layers.i.channels`. Of its block j, below
`layers.i.blocks.j`: `block` itself, `hidden` channels, `heads`, (H,), Hi-Fi heads first, and of each head the channels of
its `queries` and keys, and of its `values`, (H, D)."""

Factors = Callable[[str, str, Tensor], Tensor]
"""Takes a layer's name, "input" or "output", and the norm of the weights at each feature, (F,). Returns a number for each
image, or one for all, (B or 1, F); those of several layers that read the same features are added before they are squared."""


def importance(network: LITv2, measure: Measure, batches: Iterable[Tensor]) -> Importance:
    """Return the importance of the parts of a network.

    Args:
        network: A trained network with a classifier; it is not changed.
        measure: How to measure it.
        batches: Images, (B, in_chans, H, W).
    """
    total: Importance = {}
    generator = torch.Generator().manual_seed(0)
    with _in_evaluation(network), _recorded(network) as records:
        for images in batches:
            with torch.enable_grad():
                logits = network(images.detach().requires_grad_())
                classes = torch.multinomial(logits.detach().softmax(1).cpu(), 1, generator=generator)[:, 0]
                loss = F.cross_entropy(logits, classes.to(logits.device), reduction="sum")
            gradients = torch.autograd.grad(loss, list(records.values()), allow_unused=True)
            factors = partial(_factors, measure, records, dict(zip(records, gradients, strict=True)))
            for name, score in _scores(network, factors).items():
                total[name] = total.get(name, 0) + score.detach().cpu()
    return total


def _factors(
    measure: Measure,
    records: Mapping[tuple[str, str], Tensor],
    gradients: Mapping[tuple[str, str], Tensor | None],
    layer: str,
    side: str,
    norms: Tensor,
) -> Tensor:
    """`Factors` of a measure."""
    if measure == "magnitude":
        return norms[None]
    x, gradient = records.get((layer, side)), gradients.get((layer, side))
    if x is None or (gradient is None and measure == "fisher"):  # the query of a single window is not computed
        return torch.zeros_like(norms)[None]
    if measure == "activation":
        return norms[None] * x.detach().flatten(0, -2).square().mean(0).sqrt()
    return (x.detach() * cast(Tensor, gradient)).flatten(1, -2).sum(1) if x.ndim > 2 else x.detach() * cast(Tensor, gradient)


def _scores(network: LITv2, factors: Factors) -> Importance:
    scores: Importance = {}
    for i, stage in enumerate(network.layers):
        readers = []
        for j, block in enumerate(cast(Stage, stage).blocks):
            name = f"layers.{i}.blocks.{j}"
            scores |= {f"{name}.{part}": score for part, score in _block_scores(name, cast(Block, block), factors).items()}
            readers += [f"{name}.{layer}" for layer in ("attn.h_qkv", "attn.l_q", "attn.l_kv", "mlp.fc1")]
        readers.append("head" if i == len(network.layers) - 1 else f"layers.{i}.downsample.dconv")
        modules = dict(network.named_modules())
        read = [factors(reader, "input", _column_norms(modules[reader])) for reader in readers if reader in modules]
        scores[f"layers.{i}.channels"] = _squared(sum(read, torch.zeros(())))
    return scores


def _block_scores(name: str, block: Block, factors: Factors) -> Importance:
    """Importance of the parts of a block."""
    fc2 = block.mlp.fc2
    scores = {"hidden": _squared(factors(f"{name}.mlp.fc2", "input", _column_norms(fc2)))}
    written = factors(f"{name}.mlp", "output", fc2.weight.detach().norm(dim=1)).sum(1)
    if block.has_attention:
        attn = f"{name}.attn"
        branches = [branch for branch in ("h", "l") if hasattr(block.attn, f"{branch}_proj")]
        layers = [getattr(block.attn, f"{branch}_proj") for branch in branches]
        values = [
            factors(f"{attn}.{branch}_proj", "input", _column_norms(layer))
            for branch, layer in zip(branches, layers, strict=True)
        ]
        by_head = torch.cat(values, 1)  # (B, H * D)
        by_head = by_head.view(len(by_head), -1, block.attn.head_dim)  # (B, H, D)
        scores |= {"values": _squared(by_head), "heads": _squared(by_head.sum(2))}
        scores["queries"] = _query_scores(attn, block.attn, factors)
        norms = torch.cat([layer.weight.detach().norm(dim=1) for layer in layers])
        written = written + factors(attn, "output", norms).sum(1)
    return {**scores, "block": _squared(written)}


def _query_scores(name: str, attn: HiLo, factors: Factors) -> Tensor:
    """Importance of the channels of queries and keys, (H, D): products of both."""
    products = []
    if attn.hi_heads:
        weight = attn.h_qkv.weight.detach().norm(dim=1)
        query, key, _ = factors(f"{name}.h_qkv", "output", weight).chunk(3, 1)
        products.append(query * key)
    if attn.lo_heads:
        query = factors(f"{name}.l_q", "output", attn.l_q.weight.detach().norm(dim=1))
        key, _ = factors(f"{name}.l_kv", "output", attn.l_kv.weight.detach().norm(dim=1)).chunk(2, 1)
        products.append(query * key)
    return torch.cat([product.abs().mean(0) for product in products]).view(-1, attn.head_dim)


def _column_norms(layer: nn.Module) -> Tensor:
    """Norm of the weights that read each input feature, (F,)."""
    weight = cast(Tensor, layer.weight).detach()
    norms: Tensor = weight.transpose(0, 1).flatten(1).norm(dim=1)
    return norms


def _squared(factors: Tensor) -> Tensor:
    return factors.square().sum(0)


@contextmanager
def _in_evaluation(network: nn.Module) -> Iterator[None]:
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


@contextmanager
def _recorded(network: LITv2) -> Iterator[dict[tuple[str, str], Tensor]]:
    """Record what layers read and write, by layer and side, each time that the network runs."""
    records: dict[tuple[str, str], Tensor] = {}

    def record(name: str, layer: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if layer in READERS:
            records[name, "input"] = inputs[0]
        if layer in WRITERS:
            records[name, "output"] = output

    handles = [
        module.register_forward_hook(partial(record, name, name.rpartition(".")[2]))
        for name, module in network.named_modules()
        if name.rpartition(".")[2] in (*READERS, *WRITERS)
    ]
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()
