"""Serves a VARGPT on all machines of a Ray cluster, or on this one: the API of `vargpt serve`, answered by as many replicas as wanted.

pip install "vargpt-hf[ray,serve]"
python examples/ray_serve.py --replicas 2                             # a local Ray; http://localhost:8000/v1
VARGPT_API_KEY=secret python examples/ray_serve.py --model /shared/my-vargpt --replicas 8 --gpus 1 --host 0.0.0.0 --address auto

Each replica batches what waits for it. Addresses of images (`response_format: url`) are those of the replica that drew, so ask for `b64_json`.
Prints the address, and serves until it is interrupted.
"""

import argparse
import contextlib
import os
import threading

import ray
from fastapi import FastAPI
from ray import serve

from vargpt_hf.cli.serve import short_name
from vargpt_hf.serving.settings import KEY_VARIABLE, ServerSettings


def deployment_of(model: str | None, name: str, device: str, settings: ServerSettings) -> type:
    """The class of the replicas."""

    def build() -> FastAPI:
        from vargpt_hf.cli.options import load
        from vargpt_hf.serving.app import Service, create_app

        return create_app(Service(*load(model, device), name, settings))

    @serve.deployment
    @serve.ingress(build)
    class Vargpt:
        """A model, with the engine that answers for it."""

    return Vargpt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder that all machines see, or a Hub id; vargpt-emoji by default")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--replicas", type=int, default=1, help="processes that answer, each with its own model")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each replica")
    parser.add_argument("--address", help='cluster to join, such as "auto"; a Ray of its own by default')
    arguments = parser.parse_args()

    # The replicas get these settings, and with them the key, wherever they run.
    settings = ServerSettings(host=arguments.host, port=arguments.port, api_key=os.environ.get(KEY_VARIABLE))
    name = short_name(arguments.model)
    replicas = deployment_of(arguments.model, name, "cuda" if arguments.gpus else "cpu", settings).options(
        num_replicas=arguments.replicas,
        max_ongoing_requests=settings.max_waiting,
        ray_actor_options={"num_cpus": 1, "num_gpus": arguments.gpus},
    )
    ray.init(address=arguments.address, num_cpus=None if arguments.address else arguments.replicas + 1)
    serve.start(http_options={"host": arguments.host, "port": arguments.port})
    serve.run(replicas.bind(), route_prefix="/")
    print(f"Serving {name} at http://{arguments.host}:{arguments.port}/v1", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    serve.shutdown()


if __name__ == "__main__":
    main()
