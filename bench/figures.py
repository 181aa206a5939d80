"""What the benchmark measures, as tables."""

from typing import NamedTuple

MODES = {"plain": "without AutoMTLS", "mtls": "with AutoMTLS"}
STRANGERS = ["P-256", "P-521", "no certificate", "no TLS"]
RUNNERS = ["goplugin", "runner"]  # of a Terraform provider on PyPI's tf: goplugin, and tf's own
IMPORTS = "import grpc, grpc_health.v1.health, kv_pb2_grpc"  # what every plugin on grpcio imports

# Rounds of each kind; window: the seconds of one load.
FULL = {"starts": 15, "loads": 11, "window": 0.5, "waits": 7, "commands": 11, "floors": 31}
QUICK = {"starts": 3, "loads": 3, "window": 0.12, "waits": 1, "commands": 3, "floors": 5}


class Load(NamedTuple):
    """Calls, so many at a time, one after the other. size: of the value, in bytes."""

    method: str
    size: int
    flight: int

    @property
    def keys(self) -> list[str]:
        return [f"{self.method.lower()}_{self.size}_{self.flight}_{name}" for name in ("rate", "p50", "p99")]

    @property
    def label(self) -> str:
        size = {100: "100 B", 65536: "64 KiB", 4194304: "4 MiB"}[self.size]
        return f"{self.method} of {size}, {self.flight} at a time"


SHORT_GETS = [Load("Get", 100, flight) for flight in (1, 4, 16, 64)]
LARGE = [Load(method, size, 1) for size in (65536, 4194304) for method in ("Get", "Put")]
LOADS = [*SHORT_GETS, Load("Put", 100, 1), *LARGE]
USUAL, HEAVIEST = SHORT_GETS[2:]
WAITS = {"wait": 64, "wait_many": 1000}

# Label and unit (s, /s or B) of each row of the table. Of the loads, only the latencies of SHORT_GETS are in it.
FIGURES = {
    "ready": ("start to ready", "s"),
    "kill": ("Kill()", "s"),
    "kv_put": ("`kv put`, the whole command", "s"),
}
for load in LOADS:
    rows = [(load.label, "/s"), (f"{load.label}: p50", "s"), (f"{load.label}: p99", "s")]
    FIGURES |= dict(zip(load.keys, rows if load in SHORT_GETS else rows[:1], strict=False))
FIGURES |= {key: (f"{number:,} handlers that wait 100 ms", "s") for key, number in WAITS.items()}
FIGURES |= {
    "resident": ("resident memory, all processes", "B"),
    "proportional": ("the same, shared pages divided by their users (PSS)", "B"),
    "fresh": ("resident memory, just started", "B"),
}
DRAWN = ["ready", "get_100_1_rate", "get_100_16_rate", "get_4194304_1_rate", *WAITS, "resident"]


def written(unit: str, value: float, *spread: float) -> str:
    """The value as people write it, and in brackets its spread in the same unit."""
    scale, name = {"s": (1e3, " ms"), "/s": (1.0, "/s"), "B": (1e-6, " MB")}[unit]
    decimals = 0 if value * scale >= 100 else 1 if value * scale >= 10 else 2
    numbers = [f"{one * scale:,.{decimals}f}" for one in (value, *spread)]
    return f"{numbers[0]}{name} ({'–'.join(numbers[1:])})" if spread else numbers[0] + name
