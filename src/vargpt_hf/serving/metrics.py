"""Numbers about a server for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counters of one server, in a registry of their own.

    Args:
        waiting: says how many answers wait.
    """

    def __init__(self, waiting: Callable[[], int]):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        own = {"registry": self.registry}
        self.requests = Counter("vargpt_requests", "Requests answered", ["path", "status"], **own)
        self.seconds = Histogram(
            "vargpt_request_seconds", "From a request's arrival to the end of its answer", ["path"], buckets=_SECONDS, **own
        )
        self.batch_rows = Histogram("vargpt_batch_rows", "Answers computed together", buckets=(1, 2, 4, 8, 16, 32, 64), **own)
        self.batch_seconds = Histogram("vargpt_batch_seconds", "Time of a batch", buckets=_SECONDS, **own)
        self.running = Gauge("vargpt_running", "Answers being computed", **own)
        self.images = Counter("vargpt_images_drawn", "Images drawn", **own)
        self.tokens = Counter("vargpt_tokens_generated", "Tokens generated, positions of images included", **own)
        self.abandoned = Counter("vargpt_abandoned", "Answers whose client went away", **own)
        Gauge("vargpt_waiting", "Answers that wait", **own).set_function(waiting)

    def text(self) -> bytes:
        """All of them, in Prometheus's text format."""
        return generate_latest(self.registry)


__all__ = ["Metrics"]
