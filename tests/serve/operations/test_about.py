"""Health and metrics: what they tell is what was done."""

from __future__ import annotations

import re

import pytest

from quad import QuadPipeline
from quad.serve.metrics import Metric, exposition, show
from tests.serve.conftest import Serve
from tests.serve.fake import an_output

LINE = re.compile(r'[a-z_]+(\{[a-z]+="[^"]*"\})? [-+0-9.e]+')


def test_every_line_is_of_the_format_and_counts_what_was_done(serve: Serve) -> None:
    served = serve(real=True)
    served.client()("x")
    for _ in range(2):
        served.call("GET", "/v1/nothing")
    text = served.http.fetch("GET", "/metrics").decode()
    plain = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(LINE.fullmatch(line) for line in plain)
    facts = dict(line.rsplit(" ", 1) for line in plain)
    assert facts['quad_requests_total{state="done"}'] == "1"
    assert facts['quad_answers_total{code="404"}'] == "2"
    assert (facts["quad_requests_running"], facts["quad_held_bytes"], facts["quad_streams_open"]) == ("0", "0", "0")
    assert int(facts["quad_peak_ram_bytes"]) > 0
    assert (facts["quad_adapters_registered"], facts["quad_scheduler_running"]) == ("3", "0")
    for name in (whole.partition("{")[0] for whole in facts):  # what only grows is a counter, and is named as one
        assert f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}\n" in text
    assert {
        "quad_adapters_hits_total",
        "quad_adapters_load_ms_total",
        "quad_scheduler_refused_total",
        "quad_scheduler_waited_s_total",
    } <= facts.keys()


def test_a_fault_is_counted_too(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(real=True)
    monkeypatch.setattr(QuadPipeline, "tasks", property(lambda pipe: {}["nothing"]))
    assert served.call("GET", "/v1/tasks")[0] == 500
    assert 'quad_answers_total{code="500"} 1\n' in served.http.fetch("GET", "/metrics").decode()


def test_answers_may_be_counted_while_they_are_told(serve: Serve) -> None:
    class Code(int):
        def __str__(self) -> str:  # as the loop does, which does not wait
            service.answers[418] = 1
            return "417"

    service = serve(real=True).service
    service.answers[Code(417)] = 1
    assert 'quad_answers_total{code="417"} 1\n' in exposition(service)


def test_a_label_cannot_break_out_of_its_line() -> None:
    text = show([Metric(name="m", kind="gauge", says="help", samples={'a"} 1\nb \\': 2.5}, label="l")])
    assert text.splitlines()[2:] == ['m{l="a\\"} 1\\nb \\\\"} 2.5']


def test_health_counts_what_waits_and_what_runs_and_says_when_it_stops(serve: Serve) -> None:
    served = serve()
    served.ask()
    served.ask()
    with served.http.answer("GET", f"/v1/requests/{served.ask()}/events") as stream:
        served.tickets[2].step()
        stream.readline()
        health = served.client().health
        assert (health.status, health.queued, health.running, health.bundle) == ("ok", 2, 1, "phone")
        served.tickets[2].end("done", an_output())
        stream.read()
    served.service.stop()
    assert served.call("GET", "/health")[0] == 503
    status, body = served.call("POST", "/v1/requests", {})
    assert (status, body["kind"]) == (503, "BusyError")
