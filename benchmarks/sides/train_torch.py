"""A training step of the PyTorch twin."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from benchmarks import inputs
from benchmarks.cases import Prepared
from benchmarks.sides.on_torch import device_peak_mb, fastest, finish, forms_of, start
from benchmarks.torch_detector import TorchDetector
from benchmarks.torch_loss import TorchTerms
from benchmarks.torch_step import Maps, TorchBatch, TorchTrainer
from benchmarks.torch_weights import to_torch

__all__ = ["device_peak_mb", "prepare"]


class TrainingMaps(nn.Module):
    """The detector's maps that training looks at, as a network of its own."""

    def __init__(self, model: TorchDetector) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """As `TorchDetector.training_maps`."""
        return self.model.training_maps(image)


def prepare(options: dict[str, Any], device: str) -> Prepared:
    """The step with the network in the precision and form that is fastest; the loss is float32."""
    where = start(device)
    config = inputs.train_config(options)
    params, data = inputs.parameters(config.model), inputs.patches(config)

    def trainer(maps: Maps | None = None) -> tuple[TorchTrainer, TorchBatch]:
        to_torch(params, model)
        made = TorchTrainer(model, config, maps)
        return made, TorchBatch.of(data, made.params[0])

    def choose() -> tuple[Maps, str]:  # a function: the trial's state is freed when it returns
        trial, batch = trainer()

        def use(maps: Maps) -> None:
            trial.maps = maps
            trial.train_step(batch)

        return fastest(forms_of(TrainingMaps(model), casts_each_time=True), use)

    model = TorchDetector(config.model).to(where)
    maps, note = choose()
    timed, batch = trainer(maps)

    def run() -> TorchTerms:
        terms, _ = timed.train_step(batch)
        finish()
        return terms

    return Prepared(run=run, result=lambda terms: float(terms.total), note=note)
