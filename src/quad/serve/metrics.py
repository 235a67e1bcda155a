"""Prometheus' text format, version 0.0.4. Source: prometheus.io, "Exposition formats"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from quad.core.memory import peak_ram_bytes
from quad.serve.service import Service

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_OF_NOW = ("waiting", "running", "most_overtaken", "loaded_bytes", "registered")  # what other rooms tell that does not only grow


@dataclass(frozen=True)
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
    """What a server tells of itself, its scheduler and its adapters."""
    book, live = service.book, service.book.live
    running = sum(entry.state == "running" for entry in live)
    return show([
        Metric("quad_requests_total", "counter", "Requests that ended, by how.", _by_name(book.ended), "state"),
        Metric("quad_request_seconds_total", "counter", "Seconds from the first step of requests to their end.", {"": book.seconds}),
        Metric("quad_requests_queued", "gauge", "Requests that wait.", {"": len(live) - running}),
        Metric("quad_requests_running", "gauge", "Requests that run.", {"": running}),
        Metric("quad_streams_open", "gauge", "Clients that wait for a request.", {"": service.streams}),
        Metric("quad_held_bytes", "gauge", "Bodies being read, and pictures of unfinished requests.", {"": service.budget.held_bytes}),
        Metric("quad_answers_total", "counter", "HTTP answers by status.", _by_name(dict(service.answers)), "code"),
        Metric("quad_peak_ram_bytes", "gauge", "Largest resident size so far.", {"": peak_ram_bytes()}),
        *_numbers("quad_scheduler", asdict(service.scheduler.metrics())),
        *_numbers("quad_adapters", asdict(service.pipe.adapter_metrics())),
    ])  # fmt: skip


def _by_name(counts: Mapping[Any, int]) -> dict[str, float]:
    return {str(name): count for name, count in counts.items()}


def _numbers(prefix: str, facts: Mapping[str, Any]) -> list[Metric]:
    """The numbers among the facts that another room tells of itself, by their own names."""
    return [_number(prefix, name, value) for name, value in facts.items() if isinstance(value, int | float)]


def _number(prefix: str, name: str, value: float) -> Metric:
    says = f"{name.replace('_', ' ')}, as {prefix} tells."
    if name in _OF_NOW:
        return Metric(f"{prefix}_{name}", "gauge", says, {"": value})
    return Metric(f"{prefix}_{name}_total", "counter", says, {"": value})
