"""`pyramid incontext` with a small random model in this process, and over HTTP with a real server of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from lm.llm import Estimate, Kept, LocalModel, ServedModel
from pyramid.data.video import probe, write_video
from tasks import cli


def run(capsys, *args):
    capsys.readouterr()
    code = cli.main([str(arg) for arg in args])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    """A random Llama with a tokenizer of bytes and a chat template, saved to disk."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from lm.vocabulary import train_text_tokenizer

    folder = tmp_path_factory.mktemp("llm")
    text = train_text_tokenizer(["clip layer label caption red blue words"], 300)
    text.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    text.model_max_length = 4096
    text.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(text), max_position_embeddings=4096, eos_token_id=0, pad_token_id=0, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three clips of each of two labels."""
    folder = tmp_path_factory.mktemp("clips")
    draw, rows = np.random.default_rng(0), []
    for number in range(6):
        write_video(folder / f"{number}.mp4", list(draw.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)), fps=8)
        rows.append(
            {"file_name": f"{number}.mp4", "label": "red" if number % 2 else "blue", "caption": f"clip {number}"}
        )
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def arguments(what, clips, llm, tmp_path, *more):
    given = "a red star" if what == "generate" else clips / "0.mp4"
    common = ["--examples", clips, "--llm", llm, "--model", "mini", "--cache", tmp_path / "replies", "--json"]
    return ["incontext", what, given, *common, *more]


def test_a_model_of_this_machine(capsys, clips, llm, tmp_path):
    code, lines, err = run(capsys, *arguments("classify", clips, llm, tmp_path, "--shots", 2, "--price-in", 10))
    (row,) = map(json.loads, lines)
    assert code == 0 and row["label"] in ("red", "blue", "") and row["llm"] == str(llm)
    assert "1 requests, some" in err[-1] and "at these prices" in err[-1]
    (kept,) = (tmp_path / "replies").rglob("*.json")
    request = json.loads(kept.read_text())
    assert request["prompt"].count("label: ") == 4 and request["reply"] == row["reply"]
    kept.write_text(json.dumps(request | {"reply": " blue\nclip:"}))  # it is not asked again
    _, lines, _ = run(capsys, *arguments("classify", clips, llm, tmp_path, "--shots", 2))
    assert (json.loads(lines[0])["label"], json.loads(lines[0])["exact"]) == ("blue", True)
    replies = tmp_path / "captions"
    code, lines, _ = run(capsys, *arguments("caption", clips, llm, tmp_path, "--shots", 9, "--cache", replies))
    assert code == 0 and isinstance(json.loads(lines[0])["caption"], str)
    (kept,) = replies.rglob("*.json")
    prompt = json.loads(kept.read_text())["prompt"]
    assert "clip 0" not in prompt and all(f"clip {other}" in prompt for other in range(1, 6))  # not what is asked


def test_a_clip_is_made_of_its_first_words(capsys, clips, llm, tmp_path):
    more = ["--detail", 1, "--shots", 1, "--words-only", "--out", tmp_path / "a.mkv"]
    code, lines, _ = run(capsys, *arguments("generate", clips, llm, tmp_path, *more))
    assert code == 0 and [len(level) for level in json.loads(lines[0])["words"]] == [2]


def test_a_clip_is_made_of_its_words(capsys, clips, llm, tmp_path):
    more = ["--out", tmp_path / "clip.mkv", "--words-only", "--shots", 1]
    code, lines, _ = run(capsys, *arguments("generate", clips, llm, tmp_path, *more))
    (row,) = map(json.loads, lines)
    assert code == 0 and [len(level) for level in row["words"]] == [2, 8]
    info = probe(tmp_path / "clip.mkv")
    assert (info.width, info.height) == (32, 32)
    replies = list((tmp_path / "replies").rglob("*.json"))
    assert len(replies) == 2  # a request a level
    code, lines, _ = run(capsys, *arguments("generate", clips, llm, tmp_path, *more, "--mend", 1, "--overwrite"))
    asked = [json.loads(path.read_text()) for path in (tmp_path / "replies").rglob("*.json")]
    mended = [request for request in asked if "disturbed" in request["prompt"]]
    assert code == 0 and len(asked) == 4 and len(mended) == 2  # each level is looked over
    mended[0]["reply"] = " red star red star red star red star"
    level = 1 if "layer 2 is disturbed" in mended[0]["prompt"].lower() else 0
    path = next(
        p for p in (tmp_path / "replies").rglob("*.json") if json.loads(p.read_text())["prompt"] == mended[0]["prompt"]
    )
    path.write_text(json.dumps(mended[0]))
    _, lines, _ = run(capsys, *arguments("generate", clips, llm, tmp_path, *more, "--mend", 1, "--overwrite"))
    assert json.loads(lines[0])["words"][level] == (["red", "star"] * 4)[: 8 if level else 2]


@pytest.mark.parametrize(
    ("what", "more", "message"),
    [
        ("judge", [], "expected one of classify, caption, generate, got 'judge'"),
        ("classify", ["--labels", "red,green"], "expected examples of each label, found none of 'green'"),
        ("classify", ["--price-in", "1000000", "--max-cost", "1"], "--max-cost: expected at most 1.0, got an estimate"),
        ("classify", ["--max-cost", "1"], "--max-cost: expected --price-in or --price-out beside it, got none"),
        ("classify", ["--labels", "red,red"], "--labels: expected at least two labels between commas, each once"),
        ("classify", ["--llm", "no/such/folder"], "no/such/folder: expected a causal language model of transformers"),
        ("classify", ["--detail", "3"], "--detail"),
        ("classify", ["--examples", "nowhere"], "--examples: nowhere: expected a folder, found none"),
        ("generate", ["--out", "a.txt"], "a.txt"),
        (
            "classify",
            ["--base-url", "http://127.0.0.1:9/v1", "--retries", "0"],
            "expected a reply, got APIConnectionError",
        ),
    ],
)
def test_errors(capsys, clips, llm, tmp_path, what, more, message):
    code, lines, err = run(capsys, *arguments(what, clips, llm, tmp_path, *more))
    assert (code, lines) == (2, []) and message in err[-1], err


def test_a_prompt_that_does_not_fit_is_said(llm):
    with pytest.raises(ValueError, match="expected a prompt of at most 4091 tokens before 5 of a reply, got"):
        LocalModel(str(llm)).complete("word " * 4096, 5)


def test_over_http_by_a_real_server(capsys, clips, llm, tmp_path):
    """`transformers serve` answers what the same model answers here."""
    pytest.importorskip("fastapi")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(llm)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.3)
        url = ["--base-url", f"http://127.0.0.1:{port}/v1"]
        code, lines, err = run(capsys, *arguments("classify", clips, llm, tmp_path, "--shots", 1, *url))
        assert code == 0, err
        (over,) = map(json.loads, lines)
        _, lines, _ = run(capsys, *arguments("classify", clips, llm, tmp_path, "--shots", 1))
        here = json.loads(lines[0])
        assert over["reply"] == here["reply"] and over["llm"].startswith(f"{llm} at http://127.0.0.1")
    finally:
        server.terminate()
        server.wait(20)


class _Moody(BaseHTTPRequestHandler):
    """Answers what its server's `replies` say, one after the other: a status and a body."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        status, body = self.server.replies.pop(0)
        if status == 0:
            time.sleep(3)
        self.send_response(status or 200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args):
        pass


GOOD = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": " red"}}]})


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        ([(200, GOOD)], " red"),
        ([(500, "{}"), (429, "{}"), (200, GOOD)], " red"),
        ([(500, "{}")] * 3, "InternalServerError"),
        ([(0, GOOD), (200, GOOD)], " red"),
        ([(400, '{"error": "no such model"}')], "BadRequestError: .*no such model"),
        ([(200, "{}")], ""),
        ([(200, '{"choices": []}')], ""),
        ([(200, '{"choices": [{"message": {"content": null}}]}')], ""),
        ([(200, '{"choices": [{"message": null}]}')], ""),
        ([(200, "no json")], "JSONDecodeError"),
    ],
)
def test_servers_have_their_moods(replies, expected):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Moody)
    server.replies = list(replies)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        model = ServedModel("m", f"http://127.0.0.1:{server.server_port}/v1", "key", timeout=1.0, retries=2)
        if expected and "Error" in expected:
            with pytest.raises(OSError, match=f"m at http://.*: expected a reply, got {expected}"):
                model.complete("why?", 5)
        else:
            assert model.complete("why?", 5) == expected
    finally:
        server.shutdown()


def test_replies_are_kept_and_costs_are_told(tmp_path):
    class Counting:
        name, version = "counting", "1"

        def complete(self, prompt, max_tokens):
            return f"{prompt} {max_tokens}"

        def count(self, text):
            return len(text)

    kept = Kept(Counting(), tmp_path)
    assert [kept.complete("a", 3), kept.complete("a", 3), kept.complete("a", 4)] == ["a 3", "a 3", "a 4"]
    assert kept.asked == 2 and Kept(Counting(), tmp_path).complete("a", 3) == "a 3"
    (damaged,) = [path for path in tmp_path.rglob("*.json") if json.loads(path.read_text())["max_tokens"] == 4]
    for text in ("{", "[]", '{"reply": null}'):
        damaged.write_text(text)
        assert kept.complete("a", 4) == "a 4" and json.loads(damaged.read_text())["reply"] == "a 4"
    kept.model.version = "2"  # another of its name
    kept.model.complete = lambda prompt, max_tokens: " "
    assert kept.complete("a", 3) == " "  # and nothing is kept of nothing
    kept.model.complete = lambda prompt, max_tokens: "b"
    assert kept.complete("a", 3) == "b"
    estimate = Estimate.of(kept, [("abcd", 10), ("ab", 10)], price_in=1.0, price_out=2.0)
    assert (estimate.requests, estimate.tokens_in, estimate.tokens_out) == (2, 6, 20)
    assert estimate.cost == pytest.approx(46e-6) and str(estimate).startswith("2 requests, some 6 tokens in")
