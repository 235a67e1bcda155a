"""The loop of a peer's process: it answers `step`, `switch` and `memory` on its own pipes, a line of JSON behind `ANSWER` each.

Of the standard library alone, as it runs in the peer's environment, which has no quad.
"""

import json
import os
import sys
import time

ANSWER = "@@"  # what libraries print on the same pipe before `serve` begins is no answer


def serve(step, switch, facts=None):
    """Answer until told to stop.

    Args:
        step: runs the U-Net once or more; gives the ms of each call, and those of all processors, which other work moves less.
        switch: changes the adapter; gives ms, or None where that is not measured.
        facts: said once, when all is loaded.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer):
        answers.write(f"{ANSWER}{json.dumps(answer)}\n")
        answers.flush()

    say(facts or {})
    commands = {"step": step, "switch": switch, "memory": peak_bytes}
    for line in sys.stdin:
        if line.strip() == "stop":
            return
        try:
            say({"answer": commands[line.strip()]()})
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}"})


def timed(work):
    """The ms that a call takes."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def timed_call(work):
    """The ms that a call takes, and those of all processors."""
    start = time.process_time()
    ms = timed(work)
    return ms, (time.process_time() - start) * 1e3


def middle(values):
    """The median; of an even number the larger one of the two."""
    return sorted(values)[len(values) // 2]


def peak_bytes():
    """The largest resident size of this process so far."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
