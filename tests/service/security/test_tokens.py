"""Tokens: what a caller must send, files that cannot be used, changed files, and that tokens stay secret."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import grpc
import pytest
from glowserve_service.errors import ForbiddenError, UnauthenticatedError
from glowserve_service.security.tokens import Tokens

import glowserve
from tests.servers import RunServer
from tests.service.credentials import ADMIN, INFER, METRICS, TOKENS, models
from tests.service.log_records import records_of
from tests.service.marks import reads_one_log
from tests.service.metrics import ended
from tests.service.stubs import address
from tests.service.wire import refusal

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
LOGGER = "glowserve_service.security.reloaded_files"


# In the file


def test_a_token_has_the_groups_of_its_line_or_infer_alone(tokens: Path) -> None:
    found = Tokens(tokens)
    groups = {
        token: {group for group in ("infer", "admin", "metrics") if allows(found, token, group)}
        for token in (INFER, ADMIN, METRICS)
    }
    assert groups == {INFER: {"infer"}, ADMIN: {"infer", "admin"}, METRICS: {"metrics"}}
    assert found.has("admin")
    tokens.write_text(f"app {INFER}\n")
    assert not found.has("admin")


@pytest.mark.parametrize(
    "content",
    [
        "app {} # the shop's",
        "app {}  #shop, until März",
        "# who may call: Jörg\r\n\r\napp {} infer # all\r\n",
        "\ufeffapp {}",
        " # indented\n\tapp\t{}\t#tab",
    ],
)
def test_comments_stand_on_lines_of_their_own_or_after_the_last_word(tmp_path: Path, content: str) -> None:
    (tmp_path / "listed").write_bytes(content.format(INFER).encode())
    assert allows(Tokens(tmp_path / "listed"), INFER, "infer")


def test_a_sign_in_a_token_begins_no_comment(tmp_path: Path) -> None:
    (tmp_path / "listed").write_text(f"app {INFER}#1")
    assert allows(Tokens(tmp_path / "listed"), f"{INFER}#1", "infer")


def allows(tokens: Tokens, token: str, group: str) -> bool:
    try:
        tokens.check(f"Bearer {token}", group)
    except ForbiddenError:
        return False
    return True


@pytest.mark.parametrize("sent", ["", "Basic {}", "{}", "Bearer", "Bearer ", "bearer  x{}"])
def test_anything_but_a_bearer_token_is_refused(tokens: Path, sent: str) -> None:
    with pytest.raises(UnauthenticatedError):
        Tokens(tokens).check(sent.format(INFER), "infer")


@pytest.mark.parametrize("sent", ["Bearer {}", "bearer {}", "BEARER {}  "])
def test_the_case_of_the_scheme_and_spaces_do_not_matter(tokens: Path, sent: str) -> None:
    Tokens(tokens).check(sent.format(INFER), "infer")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "tokens FILE cannot be read: No such file or directory"),
        ("", "tokens FILE is empty; write a line NAME TOKEN for each caller"),
        ("# nobody\n\n", "tokens FILE is empty; write a line NAME TOKEN for each caller"),
        ("app short", "tokens FILE, line 1: the token has 5 characters; it needs 20 or more"),
        (f"\napp {INFER}\nalone", "tokens FILE, line 3 has 1 words; write NAME TOKEN, or NAME TOKEN GROUPS"),
        (
            f"app {INFER} infer,all",
            "tokens FILE, line 1: the third word must be one or more of infer,admin,metrics",
        ),
        (f"app {INFER}\napp {ADMIN}", "tokens FILE has the same name twice"),
        (f"app {INFER}\nother {INFER}", "tokens FILE has the same token twice"),
        (f"äpp {INFER}", "tokens FILE, line 1 has characters that are not ASCII; only a comment may"),
        (b"app \xff", "tokens FILE is not UTF-8; save it as UTF-8 or ASCII"),
        (
            "app #token-0123456789-0123456789",
            "tokens FILE, line 1 has 1 words; write NAME TOKEN, or NAME TOKEN GROUPS",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_a_sentence(
    tmp_path: Path, content: str | bytes | None, sentence: str
) -> None:
    path = tmp_path / "listed"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match="tokens") as caught:
        Tokens(path)
    assert str(caught.value) == sentence.replace("FILE", str(path))


def test_a_server_does_not_start_with_a_file_that_cannot_be_used(
    run_server: RunServer, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="cannot be read"), run_server(tokens=tmp_path / "missing"):
        pass


# Over gRPC


async def test_calls_need_a_token_where_tokens_are_listed(run_server: RunServer, tokens: Path) -> None:
    with run_server(tokens=tokens) as server:
        assert models(server, token=INFER) == ["digits"]
        assert refusal(lambda: models(server)) == (
            UNAUTHENTICATED,
            'a token is needed here: send "authorization: Bearer TOKEN"',
        )
        for wrong in (INFER[:-1], INFER + "0", INFER.upper(), "x"):
            assert refusal(lambda wrong=wrong: models(server, token=wrong)) == (
                UNAUTHENTICATED,
                "the token is not one that this service knows",
            )
        assert ended(server, "ListModels", "UNAUTHENTICATED", model="") == 5
        assert [model.name for model in await models_of(server, INFER)] == ["digits"]
        with pytest.raises(glowserve.RequestError, match="UNAUTHENTICATED"):
            await models_of(server, "wrong")
        with pytest.raises(glowserve.RequestError, match="UNAUTHENTICATED"):
            glowserve.Client(address(server), token="wrong").models()


async def models_of(server: Any, token: str) -> Any:
    """The models, asked for by the asynchronous client."""
    async with glowserve.AsyncClient(address(server), token=token) as client:
        return await client.models()


@reads_one_log
def test_changed_tokens_count_at_once_and_a_damaged_file_is_not_used(
    run_server: RunServer, tokens: Path, caplog: pytest.LogCaptureFixture
) -> None:
    new = "another-0123456789-0123456789"
    with run_server(tokens=tokens) as server, glowserve.Client(address(server), token=INFER) as client:
        client.models()
        tokens.write_text(f"app {new}\n")
        with pytest.raises(glowserve.RequestError, match="UNAUTHENTICATED"):
            client.models()
        assert models(server, token=new) == ["digits"]
        caplog.clear()
        with caplog.at_level(logging.INFO, LOGGER):
            tokens.write_text("app short\n")
            assert models(server, token=new) == models(server, token=new) == ["digits"]
            tokens.unlink()
            assert models(server, token=new) == ["digits"]
        levels = [record.levelname for record in records_of(caplog, LOGGER)]
        assert levels == ["ERROR", "ERROR"]


def test_tokens_are_neither_logged_nor_repeated_in_messages(
    run_server: RunServer, tokens: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), run_server(tokens=tokens) as server:
        messages = [
            refusal(lambda token=token: models(server, token=token))[1] for token in (METRICS, INFER + "x")
        ]
        models(server, token=INFER)
        tokens.write_text(f"{TOKENS}\nmore and more words\n")
        models(server, token=INFER)
    assert "words" not in caplog.text.replace("has 4 words", "")
    for secret in (INFER, ADMIN, METRICS):
        assert secret not in caplog.text
        assert secret not in "".join(messages)
