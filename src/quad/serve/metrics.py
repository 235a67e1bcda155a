"""Prometheus' text format, version 0.0.4. Source: prometheus.io, "Exposition formats"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from quad.core.memory import peak_ram_bytes
from quad.serve.admission.admitter import Admitter
from quad.serve.service import Service

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_OF_NOW = ("waiting", "running", "most_overtaken", "loaded_bytes", "registered")  # what other rooms tell that does not only grow


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric: its samples by label value, or one without a label."""

    name: str
    kind: Literal["counter", "gauge"]
    says: str
    samples: Mapping[str, float]
    label: str = ""


def show(metrics: list[Metric]) -> str:
    """All of them, each with its help and its type."""
    lines = []
    for metric in metrics:
        lines += [f"# HELP {metric.name} {metric.says}", f"# TYPE {metric.name} {metric.kind}"]
        for value, number in metric.samples.items():
            label = f'{{{metric.label}="{_escaped(value)}"}}' if metric.label else ""
            lines.append(f"{metric.name}{label} {number:.17g}")
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def exposition(service: Service) -> str:
    """The metrics of a server, its scheduler and its adapters, in text."""
    registry, live = service.registry, service.registry.live
    running = sum(record.state == "running" for record in live)
    return show(
        [
            Metric(
                name="quad_requests_total",
                kind="counter",
                says="Requests that ended, by how.",
                samples=_by_name(registry.ended),
                label="state",
            ),
            Metric(
                name="quad_request_seconds_total",
                kind="counter",
                says="Seconds from the first step of requests to their end.",
                samples={"": registry.seconds},
            ),
            Metric(name="quad_requests_queued", kind="gauge", says="Requests that wait.", samples={"": len(live) - running}),
            Metric(name="quad_requests_running", kind="gauge", says="Requests that run.", samples={"": running}),
            Metric(
                name="quad_connections_open",
                kind="gauge",
                says="Connections of callers, and of strangers, who have shown no token.",
                samples=service.places.open,
                label="kind",
            ),
            Metric(
                name="quad_strangers_closed_total",
                kind="counter",
                says="Connections of strangers that were closed to make room.",
                samples={"": service.places.strangers_closed},
            ),
            Metric(name="quad_streams_open", kind="gauge", says="Clients that wait for a request.", samples={"": service.streams}),
            Metric(
                name="quad_held_bytes",
                kind="gauge",
                says="Bodies being read, and pictures of unfinished requests.",
                samples={"": service.budget.held_bytes},
            ),
            Metric(
                name="quad_answers_total",
                kind="counter",
                says="HTTP answers by status.",
                samples=_by_name(dict(service.answers)),
                label="code",
            ),
            *_admissions(service.admitter),
            Metric(name="quad_peak_ram_bytes", kind="gauge", says="Largest resident size so far.", samples={"": peak_ram_bytes()}),
            *_numbers("quad_scheduler", asdict(service.scheduler.metrics())),
            *_numbers("quad_adapters", asdict(service.pipe.adapter_metrics())),
        ]
    )


def _admissions(admitter: Admitter) -> list[Metric]:
    return [
        Metric(
            name="quad_admissions_total",
            kind="counter",
            says="LoRA files that were admitted, and that were refused.",
            samples=_by_name(admitter.outcomes),
            label="outcome",
        ),
        Metric(
            name="quad_admissions_running",
            kind="gauge",
            says="LoRA files that are being admitted, one at most.",
            samples={"": admitter.running},
        ),
        Metric(
            name="quad_admission_peak_ram_bytes",
            kind="gauge",
            says="Largest resident size of a process that admitted a LoRA file.",
            samples={"": admitter.peak_ram_bytes},
        ),
    ]


def _by_name(counts: Mapping[Any, int]) -> dict[str, float]:
    return {str(name): count for name, count in counts.items()}


def _numbers(prefix: str, facts: Mapping[str, Any]) -> list[Metric]:
    """The numbers among the facts that another room tells of itself, by their own names."""
    return [_number(prefix, name, value) for name, value in facts.items() if isinstance(value, int | float)]


def _number(prefix: str, name: str, value: float) -> Metric:
    says = f"{name.replace('_', ' ')}, as {prefix} tells."
    if name in _OF_NOW:
        return Metric(name=f"{prefix}_{name}", kind="gauge", says=says, samples={"": value})
    return Metric(name=f"{prefix}_{name}_total", kind="counter", says=says, samples={"": value})
