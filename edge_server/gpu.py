"""The machine's NVIDIA GPUs, under Triton's names, as their driver tells them (NVML). Without a driver there is nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from splitcore.telemetry.exposition import counter

log = logging.getLogger(__name__)

Read = Callable[[Any, Any], float]
GAUGES: dict[str, tuple[str, Read]] = {
    "nv_gpu_utilization": ("Share of the last sample in which a kernel ran", lambda nvml, gpu: _busy(nvml, gpu)),
    "nv_gpu_memory_total_bytes": ("Memory", lambda nvml, gpu: float(nvml.nvmlDeviceGetMemoryInfo(gpu).total)),
    "nv_gpu_memory_used_bytes": ("Memory in use", lambda nvml, gpu: float(nvml.nvmlDeviceGetMemoryInfo(gpu).used)),
    "nv_gpu_power_usage": ("Watts drawn", lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3),
    "nv_gpu_power_limit": ("Watts allowed", lambda nvml, gpu: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1e3),
}
ENERGY = "nv_energy_consumption"


class Gpus(Collector):
    """Asked when somebody scrapes."""

    def __init__(self) -> None:
        self._gpus: dict[str, Any] = {}
        try:
            import pynvml
        except ImportError:
            return
        self._nvml: Any = pynvml
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:  # no driver, no permission: this machine has no GPU to tell of
            log.debug("no figures of GPUs: %s", error)
            return
        for number in range(pynvml.nvmlDeviceGetCount()):
            gpu = pynvml.nvmlDeviceGetHandleByIndex(number)
            self._gpus[str(pynvml.nvmlDeviceGetUUID(gpu))] = gpu

    def collect(self) -> Iterator[Metric]:
        if not self._gpus:
            return
        for name, (documentation, read) in GAUGES.items():
            family = GaugeMetricFamily(name, documentation, labels=["gpu_uuid"])
            for uuid, gpu in self._gpus.items():
                self._add(family, uuid, lambda gpu=gpu, read=read: read(self._nvml, gpu))  # type: ignore[misc]
            yield family
        energy = counter(ENERGY, "Joules since the driver was loaded", ["gpu_uuid"])
        for uuid, gpu in self._gpus.items():
            self._add(energy, uuid, lambda gpu=gpu: self._nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3)  # type: ignore[misc]
        yield energy

    def _add(self, family: Any, uuid: str, read: Callable[[], float]) -> None:
        try:
            family.add_metric([uuid], read())
        except self._nvml.NVMLError:
            return  # older devices do not tell everything


def _busy(nvml: Any, gpu: Any) -> float:
    return float(nvml.nvmlDeviceGetUtilizationRates(gpu).gpu) / 100
