"""The function {{name}}: says hello to the name in the call's body.

The whole contract is here: an HTTP/1.1 server on the unix socket that FN_LISTENER names. The socket is made under
another name and linked when it can be used, because the link is the sign that calls may come.
"""

import os
import socketserver
import sys
from http.server import BaseHTTPRequestHandler


class Call(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        name = self.body().decode().strip() or "World"
        # What a function writes is the log of the call: `kiln logs APP {{name}}` shows it.
        print(f"saying hello to {name}", file=sys.stderr, flush=True)
        answer = f"Hello, {name}!\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return body

    def address_string(self):
        return "caller"

    def log_message(self, *_):
        pass


path = os.environ["FN_LISTENER"].removeprefix("unix:")
real = os.path.join(os.path.dirname(path), "function.sock")
with socketserver.ThreadingUnixStreamServer(real, Call) as server:
    os.chmod(real, 0o666)
    os.symlink(os.path.basename(real), path)
    server.serve_forever()
