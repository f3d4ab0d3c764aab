"""The options `--devices` and `--hosts`: a pair split over several devices, of one process or of several."""

import argparse
import os
import re
import socket
import sys
import time
from pathlib import Path

import jax
from jax.sharding import Mesh

from decoding.load import SHIPPED
from gemma4 import Config
from gemma4.checkpoints.directories import read_config
from gemma4.checkpoints.hf_config import read_target
from gemma4.checkpoints.hub import local_directory
from gemma4.sharding import AXIS

HOSTS = "HOST:PORT,COUNT,INDEX"
AUTO = "auto"
CONNECT_SECONDS = 60


def add_options(option: argparse._ActionsContainer, *, hosts: bool) -> None:
    option.add_argument(
        "--devices", metavar="N", type=int, help="split both models over N devices, a divisor of the attention heads"
    )
    if hosts:
        option.add_argument(
            "--hosts",
            metavar=HOSTS,
            help="this is process INDEX of COUNT, each started with the same other arguments; process 0 listens on HOST:PORT "
            "and prints the text. auto: as JAX finds it out, on TPU pods and under Slurm",
        )


def connect(hosts: str | None) -> None:
    """Join the other processes; before JAX looks for devices.  All but process 0 print nothing on standard output.

    Errors: ValueError for another text than HOSTS or AUTO, and if the others cannot be reached.
    """
    if hosts is None:
        return
    found = re.fullmatch(r"([\w.-]+:\d{1,5}),(\d{1,6}),(\d{1,6})", hosts)
    if hosts != AUTO and not (found and int(found[3]) < int(found[2])):
        raise ValueError(f"--hosts: expected {HOSTS} with an INDEX below COUNT, or {AUTO}, got {hosts!r:.80}")
    if found and int(found[3]):
        _wait_for(found[1])
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # on other devices it means nothing
    given = (
        {"coordinator_address": found[1], "num_processes": int(found[2]), "process_id": int(found[3])} if found else {}
    )
    try:
        jax.distributed.initialize(**given, initialization_timeout=CONNECT_SECONDS)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"--hosts {hosts}: the processes cannot be joined ({reason:.200})") from error
    own = os.dup(sys.stdout.fileno()) if jax.process_index() == 0 else os.open(os.devnull, os.O_WRONLY)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # gloo greets on standard output
    sys.stdout = open(own, "w", encoding=sys.stdout.encoding)


def _wait_for(address: str) -> None:
    """Until something listens at `address`: JAX itself would end the program with a stack of C++ functions.

    Errors: ValueError after CONNECT_SECONDS.
    """
    host, _, port = address.rpartition(":")
    end = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
            return
        except (OSError, OverflowError) as error:  # the latter for a port that cannot be
            if time.monotonic() > end:
                raise ValueError(
                    f"--hosts: nothing listens at {address} after {CONNECT_SECONDS} s ({error}); start process 0 there, and "
                    "look for a firewall"
                ) from error
        time.sleep(0.2)


def mesh_of(count: int | None, target: str | os.PathLike | None) -> Mesh | None:
    """A mesh of `count` devices for a target's directory, before it is loaded; None for None.

    Errors: ValueError for more devices than there are, and for a number that does not divide the target's attention heads.
    """
    if count is None:
        return None
    there = jax.device_count()
    if not 1 <= count <= there:
        kind = jax.devices()[0].platform
        raise ValueError(
            f"--devices: expected 1 to {there}, the {kind} devices that JAX finds, got {count}"
            + (
                f" (XLA_FLAGS=--xla_force_host_platform_device_count={count} makes virtual ones)"
                if kind == "cpu"
                else ""
            )
        )
    if (processes := jax.process_count()) > 1 and count != there:
        raise ValueError(f"--devices: expected all {there} of the {processes} processes, got {count}")
    directory = SHIPPED / "target" if target is None else local_directory(target)
    if (directory / "config.json").is_file():  # without one it is a checkpoint of google-deepmind/gemma
        check_divides(count, read_config(Path(directory), read_target))
    return jax.make_mesh((count,), (AXIS,))


def check_divides(count: int, config: Config) -> None:
    """Errors: ValueError unless `count` divides the attention heads: these would be whole on every device otherwise."""
    heads = config.num_attention_heads
    if heads % count:
        divisors = ", ".join(str(number) for number in range(1, heads + 1) if heads % number == 0)
        raise ValueError(
            f"--devices: expected a divisor of the target's {heads} attention heads, which are split: {divisors}; got {count}"
        )
