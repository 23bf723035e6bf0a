"""A small HTTP server that answers as vLLM does, and fails as a test asks it to."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from transformers import AutoModelForCausalLM

from dvpo_lib.rl.sampling.engines import Sampling, SamplingCuts
from dvpo_lib.rl.sampling.token_sampling import BuiltinSampler


class FakeServer(ThreadingHTTPServer):
    """Reads the weights that it is told to and samples by them.

    Attributes:
        fails: Named way in which it fails to complete prompts from the n-th load of weights on; None: in none.
        loads: How often it read weights.
        requests: Bodies of the requests for completions.
    """

    request_queue_size = 128  # all prompts of a batch come at once

    def __init__(self, port: int = 0):
        super().__init__(("127.0.0.1", port), Handler)
        self.fails: str | None = None
        self.fails_after = self.loads = 0
        self.mode, self.version, self.model, self.lock = "processed_logprobs", "default", None, threading.Lock()
        self.requests: list[dict] = []
        self.address = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """Clients that went away are no matter."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.answer({"vllm_config": {"model_config": {"logprobs_mode": self.server.mode}}})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "null")
        server, path = self.server, self.path.partition("?")[0]
        if path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            server.model = AutoModelForCausalLM.from_pretrained(body["kwargs"]["weights_path"])
            server.loads += 1
        elif path == "/update_weight_version":
            server.version = body["new_version"]
        elif path == "/inference/v1/generate":
            return self.complete(body)
        self.answer({})

    def complete(self, body: dict) -> None:
        server, asked = self.server, body["sampling_params"]
        fails = server.fails if server.loads > server.fails_after else None
        if fails == "dies":
            return self.connection.close()
        if fails == "hangs":
            return time.sleep(1.0)
        if fails == "is slow":
            time.sleep(0.05)
        cuts = SamplingCuts(*(asked[name] for name in ("top_p", "top_k", "min_p", "repetition_penalty")))
        how = Sampling(asked["max_tokens"], asked["temperature"], asked["seed"], cuts=cuts)
        with server.lock:
            server.requests.append(body)
            prompt = tuple(body["token_ids"])
            found = BuiltinSampler().complete(server.model, 0, asked["stop_token_ids"], [prompt], how, [0])
        ids, logprobs = found.ids[0], found.logprobs[0]
        if fails == "has few positions":
            ids, logprobs = [i for i in ids if i not in asked["stop_token_ids"]][:1] or [9], logprobs[:1]
        choice = {
            "token_ids": ids,
            "logprobs": {"content": [{"token_id": i, "logprob": x} for i, x in zip(ids, logprobs, strict=True)]},
            "finish_reason": "stop" if ids[-1] in asked["stop_token_ids"] else "length",
            "weight_versions": [{"version": server.version, "start": 0, "end": len(ids)}],
        }
        if fails == "was restarted":
            choice["weight_versions"][0]["version"] = "default"
        if fails == "forgets log-probabilities":
            choice["logprobs"] = None
        if fails == "loses a token":
            choice["token_ids"] = ids[:-1]
        if fails == "has another reason":
            choice["finish_reason"] = "abort"
        if fails == "says no JSON":
            return self.answer("<html>")
        if fails == "refuses":
            return self.answer({"error": "the prompt is too long"}, 400)
        self.answer({"choices": [choice]})

    def answer(self, content, status: int = 200) -> None:
        text = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@contextmanager
def fake_server(port: int = 0):
    """A running server; it is closed afterwards."""
    server = FakeServer(port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
