"""A local web server that delivers a file in every bad way that one meets."""

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGE = b"<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title></html>"


class Handler(BaseHTTPRequestHandler):
    """The first part of an address says how to behave, the last one which file is meant."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        _, how, name = self.path.split("/", 2)
        begin = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.server.asked.append((how, begin))
        content = self.server.files[name]
        if how.isdigit():  # a status such as 404
            self.answer(int(how), PAGE, "text/html")
        elif how == "hang":
            self.server.closing.wait(20)
        elif how == "redirect":
            self.answer(302, b"", Location=f"/good/{name}")
        elif how == "loop":
            self.answer(302, b"", Location=self.path)
        elif how == "page":
            self.answer(200, PAGE, "text/html; charset=utf-8")
        elif how == "disguised":
            self.answer(200, PAGE)
        elif how == "wrong":
            self.answer(200, content[::-1])
        elif how == "whole":  # whatever part is asked for
            self.answer(200, content)
        elif how == "other-part" and begin:
            self.answer(206, content, **{"Content-Range": f"bytes 0-{len(content) - 1}/*"})
        else:
            self.part(how, content, begin)

    def answer(self, status, body, kind="application/octet-stream", **headers):
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": len(body), **headers}.items():
            self.send_header(key, str(value))
        self.end_headers()
        self.wfile.write(body)

    def part(self, how, content, begin):
        """What is asked for, sent at once, slowly, or only in part."""
        body = content[begin:]
        self.send_response(206 if begin else 200)
        if begin:
            last = len(content) - 1
            self.send_header("Content-Range", f"bytes {begin}-{last}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if how == "cut":
            self.wfile.write(body[: len(content) // 3])
            self.close_connection = True
        elif how == "stall":
            self.wfile.write(body[: len(body) // 2])
            self.server.closing.wait(20)
        elif how in ("crawl", "trickle"):
            step = 1 if how == "trickle" else 4000
            for start in range(0, len(body), step):
                if self.server.closing.wait(0.04):
                    return
                self.wfile.write(body[start : start + step])
        else:
            self.wfile.write(body)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # clients that leave are part of the tests


@contextlib.contextmanager
def misbehaving_server(files: dict[str, bytes]):
    """It serves /BEHAVIOUR/NAME; `asked` has the behaviour and the first byte of each request."""
    server = Server(("127.0.0.1", 0), Handler)
    server.files, server.asked, server.closing = files, [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
