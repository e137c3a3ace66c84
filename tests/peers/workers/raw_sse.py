"""A worker without any SDK whose event streams are written as a component's name says; stdlib only.

All of them are event streams that a standard reader reads: what a public orchestrator makes of them shows
what it can read.
"""

import http.server
import json
import queue
import sys
import time


def cut_in_a_character(_: bytes, raw: bytes) -> list[bytes]:
    at = raw.index("é".encode()) + 1
    return [b"data: " + raw[:at], raw[at:] + b"\n\n"]


ANSWERS = {
    # The component's name, and the event that holds the answer, in the writes that it goes out with.
    "/plain": lambda text, _: [b"data: " + text + b"\n\n"],
    "/commented": lambda text, _: [b": a comment\n\nid: 1\nevent: message\ndata: " + text + b"\n\n"],
    "/cut_anywhere": lambda text, _: [b"data: " + text[:20], text[20:] + b"\n", b"\n"],
    "/cut_in_a_character": cut_in_a_character,
    "/crlf": lambda text, _: [b"data: " + text + b"\r\n\r\n"],
    "/no_space": lambda text, _: [b"data:" + text + b"\n\n"],
    "/two_lines": lambda text, _: [b"data: " + text.replace(b",", b",\ndata: ", 1) + b"\n\n"],
    "/unfinished": lambda text, _: [b"data: " + text],
}


pending: dict[str, queue.SimpleQueue] = {}
"""The calls that wait for an answer of the orchestrator, by id."""

PATIENCE_S = 0.7


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer({"status": "healthy"})

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["content-length"])))
        match message.get("method"):
            case None:
                pending[message["id"]].put(message)
                self.answer("", 202)
            case "initialize":
                result = {"serverProtocolVersion": 1, "server_protocol_version": 1}
                self.answer({"jsonrpc": "2.0", "id": message["id"], "result": result})
            case "initialized":
                self.answer("", 202)
            case "components/execute" if message["params"]["component"] == "/ask":
                self.ask(message)
            case "components/execute":
                self.stream(message)

    def answer(self, content: object, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, message: dict) -> None:
        answer = {"jsonrpc": "2.0", "id": message["id"], "result": {"output": {"text": "é"}}}
        raw = json.dumps(answer, ensure_ascii=False).encode()
        self.start_stream()
        for text in ANSWERS[message["params"]["component"]](json.dumps(answer).encode(), raw):
            self.write(text)
        self.wfile.write(b"0\r\n\r\n")

    def ask(self, message: dict) -> None:
        """Calls the orchestrator as the input says, and outputs what it answered, if it did."""
        question = {"jsonrpc": "2.0", "id": message["id"] + "-1", **message["params"]["input"]["call"]}
        raw = json.dumps(question, ensure_ascii=False).encode()
        answers = pending[question["id"]] = queue.SimpleQueue()
        self.start_stream()
        for text in cut_in_a_character(b"", raw) if "é" in raw.decode() else [b"data: " + raw + b"\n\n"]:
            self.write(text)
        try:
            output = answers.get(timeout=PATIENCE_S)
        except queue.Empty:
            output = None
        answer = {"jsonrpc": "2.0", "id": message["id"], "result": {"output": {"answer": output}}}
        self.write(b"data: " + json.dumps(answer).encode() + b"\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def start_stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("stepflow-instance-id", "raw")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def write(self, text: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
        self.wfile.flush()
        time.sleep(0.05)  # noqa: TID251 — so that each write is read by itself

    def log_message(self, *_: object) -> None:
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if sys.argv[1:] else 0), Handler)
sys.stdout.write(f'{{"port": {server.server_address[1]}}}\n')
sys.stdout.flush()
server.serve_forever()
