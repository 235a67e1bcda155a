"""Health and metrics: what they tell is what was done."""

from __future__ import annotations

import re

from quad.serve.metrics import Metric, show
from tests.serve.conftest import Serve
from tests.serve.fake import an_output

LINE = re.compile(r'[a-z_]+(\{[a-z]+="[^"]*"\})? [-+0-9.e]+')


def test_every_line_is_of_the_format_and_counts_what_was_done(serve: Serve) -> None:
    served = serve(real=True)
    served.client()("x")
    for _ in range(2):
        served.call("GET", "/v1/nothing")
    text = served.wire.fetch("GET", "/metrics").decode()
    plain = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(LINE.fullmatch(line) for line in plain)
    facts = dict(line.rsplit(" ", 1) for line in plain)
    assert facts['quad_requests_total{state="done"}'] == "1"
    assert facts['quad_answers_total{code="404"}'] == "2"
    assert (facts["quad_requests_running"], facts["quad_held_bytes"], facts["quad_streams_open"]) == ("0", "0", "0")
    assert int(facts["quad_peak_ram_bytes"]) > 0
    assert all(f"# TYPE {name.partition('{')[0]} " in text for name in facts)


def test_a_label_cannot_break_out_of_its_line() -> None:
    text = show([Metric("m", "gauge", "help", {'a"} 1\nb \\': 2.5}, "l")])
    assert text.splitlines()[2:] == ['m{l="a\\"} 1\\nb \\\\"} 2.5']


def test_health_counts_what_waits_and_what_runs_and_says_when_it_stops(serve: Serve) -> None:
    served = serve()
    served.ask()
    served.ask()
    with served.wire.answer("GET", f"/v1/requests/{served.ask()}/events") as stream:
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
