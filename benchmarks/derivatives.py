"""Ways to the derivative of gradient matching, d/dX <v, g(X)>: time, memory, and how far each is from double backward.

    python benchmarks/derivatives.py [MODEL ...] [--images 40] [--side 32] [--threads 1] [--device cpu]

With g the parameter gradient of the cross-entropy on synthetic images X, and v = 2 (g(X) - g(R)) held constant:

- double: backward through g's own graph, what the condenser does;
- double, bfloat16: the same with the forward pass under autocast;
- forward over reverse: torch.func.jvp, along v, of the gradient with respect to X;
- reverse over forward: the gradient with respect to X of torch.func.jvp of the loss along v.

Each model from scratch, batch norm calibrated, attention plain. Prints a Markdown table: medians of seven, in turn;
memory is counted from every allocation; error is the norm of the difference to double backward over the norm, cosine
likewise.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, jvp

from hmdc_hub import rng
from hmdc_hub.catalog import load_model
from hmdc_hub.condenser.cost import peak_bytes
from hmdc_hub.condenser.matching import plain_attention
from hmdc_hub.models import PoolModel, build_model


def made(name: str, side: int, device: torch.device) -> PoolModel:
    """Build a model from fresh weights, its batch norm calibrated."""
    spec = load_model(name).model_copy(update={"weights": "none", "revision": None})
    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)
    model = build_model(spec, num_classes=10, source_size=side, channels=3, mean=mean, std=std)
    model.reset(rng.generator(0, "derivatives", name))
    model = model.to(device)
    model.calibrate([model.prepare(torch.randn(16, 3, side, side).to(device))])
    return model.eval()


def ways(model: PoolModel, real: Tensor, synthetic: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Give every way as a function that returns the derivative."""
    names, parameters = zip(*model.trained().items(), strict=True)

    def labels(x: Tensor) -> Tensor:
        return torch.ones(len(x), dtype=torch.int64, device=x.device)

    def loss(values: tuple[Tensor, ...], x: Tensor) -> Tensor:
        given = functional_call(model, dict(zip(names, values, strict=True)), (model.prepare(x),))
        return F.cross_entropy(given.logits.float(), labels(x))

    def gradient(x: Tensor, *, create_graph: bool = False) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(parameters, x), parameters, create_graph=create_graph)

    direction = tuple(2 * (a - b) for a, b in zip(gradient(synthetic), gradient(real), strict=True))

    def double(dtype: torch.dtype = torch.float32) -> Tensor:
        x = synthetic.detach().requires_grad_()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=dtype != torch.float32):
            value = loss(parameters, x)
        given = torch.autograd.grad(value, parameters, create_graph=True)
        return torch.autograd.grad(given, x, direction)[0]

    def forward_over_reverse() -> Tensor:
        fixed = tuple(p.detach() for p in parameters)
        derivative: Tensor = jvp(lambda values: grad(loss, argnums=1)(values, synthetic), (fixed,), (direction,))[1]
        return derivative

    def reverse_over_forward() -> Tensor:
        fixed = tuple(p.detach() for p in parameters)

        def along(x: Tensor) -> Tensor:
            value: Tensor = jvp(lambda values: loss(values, x), (fixed,), (direction,))[1]
            return value

        derivative: Tensor = grad(along)(synthetic)
        return derivative

    return {
        "double": double,
        "double, bfloat16": lambda: double(torch.bfloat16),
        "forward over reverse": forward_over_reverse,
        "reverse over forward": reverse_over_forward,
    }


def milliseconds(work: Callable[[], Any], device: torch.device) -> float:
    """Time work once."""
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - began)


@click.command()
@click.argument("names", nargs=-1)
@click.option("--images", default=40, show_default=True, help="Real ones, and as many synthetic ones.")
@click.option("--side", default=32, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--device", default="cpu", show_default=True)
def main(names: tuple[str, ...], images: int, side: int, threads: int, device: str) -> None:
    """Measure and print."""
    torch.set_num_threads(threads)
    place = torch.device(device)
    print(f"{images} + {images} images of {side} pixels, {device}, {threads} threads, torch {torch.__version__}\n")
    print("| model | way | ms | to double | MiB | error | cosine |\n|---|---|---:|---:|---:|---:|---:|")
    for name in names or ("convnet3_narrow", "vit_micro", "resnet_narrow"):
        model = made(name, side, place)
        draws = (torch.randn(images, 3, side, side, generator=rng.generator(i, "derivatives")) for i in range(2))
        real, synthetic = (draw.to(place) for draw in draws)
        with plain_attention():
            found = ways(model, real, synthetic)
            results = {way: work() for way, work in found.items()}
            took: dict[str, list[float]] = {way: [] for way in found}
            for _ in range(7):
                for way, work in found.items():
                    took[way].append(milliseconds(work, place))
            peaks = {way: peak_bytes(work) for way, work in found.items()}
        wanted = results["double"].flatten()
        for way, result in results.items():
            got, ms = result.flatten(), statistics.median(took[way])
            error, cosine = float((got - wanted).norm() / wanted.norm()), float(F.cosine_similarity(got, wanted, dim=0))
            ratio, peak = ms / statistics.median(took["double"]), peaks[way] / 2**20
            print(f"| {name} | {way} | {ms:.0f} | {ratio:.2f} | {peak:.0f} | {error:.0e} | {cosine:.4f} |")


if __name__ == "__main__":
    main()
