"""The way of a client to other processes: pickled, spawned and forked."""

from __future__ import annotations

import asyncio
import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import glowserve
from glowserve.images import UInt8Array
from tests.servers import RunServer, StartServer

BLANK = np.zeros((8, 8), np.uint8)

PROGRAM = Path(__file__).parent / "programs" / "fork.py"


def score(client: Any) -> float:
    """The log-likelihood of a blank image, from either kind of client."""
    if isinstance(client, glowserve.AsyncClient):
        return float(asyncio.run(client.score(BLANK)).log_likelihood[0])
    return float(client.score(BLANK).log_likelihood[0])


@pytest.mark.parametrize("kind", [glowserve.Client, glowserve.AsyncClient])
@pytest.mark.parametrize("again", [lambda client: pickle.loads(pickle.dumps(client)), copy.deepcopy])
def test_a_copy_of_a_client_connects_anew_with_its_settings(
    kind: Any, again: Callable[[Any], Any], run_server: RunServer, tmp_path: Path
) -> None:
    token = "t" * 32
    (tmp_path / "tokens").write_text(f"worker {token}\n")
    with run_server(tokens=tmp_path / "tokens") as server:
        client = kind(f"127.0.0.1:{server.port}", token=token, timeout=30)
        expected = score(client)
        other = again(client)
        assert score(other) == pytest.approx(expected)
        assert other._transport._settings == client._transport._settings
        closed = other.close()
        if closed is not None:
            asyncio.run(closed)
        assert score(client) == pytest.approx(expected)
        for each in (client, again(client)):
            closed = each.close()
            if closed is not None:
                asyncio.run(closed)


def test_a_closed_client_stays_closed() -> None:
    client = glowserve.Client("localhost:1")
    client.close()
    client.close()
    for each in (client, pickle.loads(pickle.dumps(client))):
        for call in (lambda c: c.models(), lambda c: c.score(BLANK), lambda c: next(c.iter_samples(1))):
            with pytest.raises(ValueError, match="the client is closed; make another"):
                call(each)


def test_a_copy_of_an_open_bundle_opens_the_same_version(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: UInt8Array
) -> None:
    monkeypatch.chdir(repository)
    client = glowserve.open("digits", device="cpu")
    data = pickle.dumps(client)
    monkeypatch.chdir(tmp_path)
    with client, pickle.loads(data) as other:
        assert other.models() == client.models()
        scores, expected = other.score(digits[:3]), client.score(digits[:3])
        np.testing.assert_array_equal(scores.log_likelihood, expected.log_likelihood)


@pytest.fixture(scope="module")
def target(start_server: StartServer) -> Iterator[str]:
    """HOST:PORT of a service in a process of its own, since forks and gRPC's threads do not mix."""
    with start_server() as server:
        yield server.target


@pytest.mark.parametrize("kind", [glowserve.Client, glowserve.AsyncClient])
def test_spawned_processes_use_a_client_that_they_are_passed(kind: Any, target: str) -> None:
    client = kind(target)
    expected = score(client)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        found = list(pool.map(score, [client] * 4, timeout=120))
    assert found == pytest.approx([expected] * 4)


@pytest.mark.parametrize("program", ["inherited", "fresh", "asynchronous", "ended_loop", "both", "pool"])
@pytest.mark.parametrize("support", [None, "1"])
def test_a_forked_process_may_use_a_client(target: str, program: str, support: str | None) -> None:
    code, printed = run_fork(target, program, support)
    assert (code, printed) == (0, {"ok"})


@pytest.mark.parametrize("program", ["during_a_call", "during_a_call_of_a_loop", "connected"])
def test_a_process_that_was_forked_while_grpc_was_busy_is_told_so(target: str, program: str) -> None:
    """In the children. gRPC may crash even the parent."""
    _, (printed,) = run_fork(target, program, None)
    assert "this process was forked while a call was under way or an AsyncClient" in printed


def run_fork(target: str, program: str, support: str | None) -> tuple[int, set[str]]:
    """The exit code of a program, and the lines that its forked children print; see programs/fork.py."""
    variables = os.environ | ({} if support is None else {"GRPC_ENABLE_FORK_SUPPORT": support})
    command = [sys.executable, str(PROGRAM), target, program]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=variables)
    return ended.returncode, set(ended.stdout.splitlines())
