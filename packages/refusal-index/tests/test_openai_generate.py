import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("openai")
from refusal_index.openai_generate import OpenAIGenerate


class Endpoint(ThreadingHTTPServer):
    """Speaks /v1/chat/completions on the loopback; answers with the text reversed, failing first where told to."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.requests, self.active, self.most_active = [], 0, 0
        self.failures = []  # statuses to answer with before the first success


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.requests.append((self.path, body))
            server.active += 1
            server.most_active = max(server.most_active, server.active)
            status = server.failures.pop(0) if server.failures else 200
        time.sleep(0.05)
        text = body["messages"][0]["content"]
        message = {"role": "assistant", "content": None if text == "nothing" else text[::-1]}
        reply = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        }
        if status != 200:
            reply = {"error": {"message": f"failed with {status}"}}
        content = json.dumps(reply).encode()
        with server.lock:
            server.active -= 1
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("retry-after-ms", "5")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint():
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def connect(endpoint):
    made = []

    def connect(**settings):
        url = f"http://127.0.0.1:{endpoint.server_port}/v1"
        made.append(OpenAIGenerate("m", base_url=url, api_key="none", **settings))
        return made[-1]

    yield connect
    for generate in made:
        generate.close()


def test_keeps_order_and_bounds_requests_in_flight(endpoint, connect):
    generate = connect(concurrency=3, temperature=0.5, max_tokens=7)
    texts = [f"question {i}" for i in range(12)]
    assert generate(texts) == [text[::-1] for text in texts]
    assert 1 < endpoint.most_active <= 3
    path, body = endpoint.requests[0]
    assert path == "/v1/chat/completions"
    assert (body["model"], body["temperature"], body["max_tokens"], body["top_p"]) == ("m", 0.5, 7, 0.95)
    assert len({body["seed"] for _, body in endpoint.requests}) == 12


def test_retries_what_may_pass_and_names_what_does_not(endpoint, connect):
    endpoint.failures = [429, 503]
    assert connect()(["abc"]) == ["cba"]
    assert len(endpoint.requests) == 3
    endpoint.failures = [500] * 10
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1.*500"):
        connect(retries=1)(["abc"])
    endpoint.failures = [401]
    before = len(endpoint.requests)
    with pytest.raises(ConnectionError, match="401"):
        connect()(["abc"])
    assert len(endpoint.requests) == before + 1


def test_no_content_is_an_empty_response(connect):
    assert connect()(["nothing"]) == [""]


def test_names_a_concurrency_below_one():
    with pytest.raises(ValueError, match="concurrency"):
        OpenAIGenerate("m", base_url="http://127.0.0.1:1/v1", api_key="none", concurrency=0)
