"""Today's ClickHouse engine behind the HTTP interface of a ClickHouse server.

The engine (`chdb`) runs inside this process. What a server's HTTP interface adds around it is here: users, parameters, settings,
streaming in both directions, compression, error codes. Needs `chdb-core` and `lz4`.

What it cannot serve:
- access control beyond the one user; `currentUser()` is always `default`
- sessions (`session_id` is accepted and ignored, so temporary tables live for one request), roles, quotas
- `KILL QUERY` and `query_id` as the engine sees it; a query whose client goes away runs to its end
- streaming of results in formats other than RowBinary and RowBinaryWithNamesAndTypes: others are sent when they are complete
- `compress=1` (ClickHouse's own framing of results); `Accept-Encoding: lz4` is served, zstd and gzip are answered uncompressed
- request bodies in zstd; checksums of compressed request bodies are not looked at
- the native protocol
"""

import base64
import json
import os
import re
import sys
import time
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import chdb
import lz4.block
import lz4.frame

PIECE = 64 * 1024
TAG = b"resourcepooltag0"
USER, PASSWORD = os.environ["BRIDGE_USER"], os.environ["BRIDGE_PASSWORD"]
NOT_SETTINGS = {
    "add_http_cors_header", "compress", "database", "decompress", "default_format", "enable_http_compression", "password",
    "query", "query_id", "quota_key", "role", "session_check", "session_id", "session_timeout", "user", "wait_end_of_query",
}
STREAMED = {"RowBinary", "RowBinaryWithNamesAndTypes"}
INSERT = re.compile(r"^(\s*INSERT\b.*?)\s+FORMAT\s+(\w+)\s*;?\s*$", re.IGNORECASE | re.DOTALL)
FORMAT = re.compile(r"\bFORMAT\s+(\w+)\s*;?\s*$", re.IGNORECASE)
SELECT = re.compile(r"^[\s(]*(SELECT|WITH)\b", re.IGNORECASE)
STATUS = {516: 403, 193: 401, 192: 403, 497: 403, 60: 404, 81: 404, 47: 404, 62: 400, 27: 400, 33: 400, 115: 400, 159: 408}


class Refused(Exception):
    """An error that the engine would not raise by itself."""


class Cut(Exception):
    """The client went away in the middle of its request."""


def quoted(text):
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def header_size(data):
    """The size of the names and types in front of RowBinaryWithNamesAndTypes."""
    position = 0

    def number():
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    for _ in range(2 * number()):
        size = number()
        position += size
    return position


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = PIECE

    def log_message(self, text, *arguments):
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {self.address_string()}:{self.client_address[1]} {text % arguments}", flush=True)

    def do_GET(self):
        self.serve()

    def do_POST(self):
        self.serve()

    def serve(self):
        self.headers_sent = False
        url = urlsplit(self.path)
        self.parameters = dict(parse_qsl(url.query, keep_blank_values=True))
        self.pieces = self.body()
        connection = None
        try:
            if url.path == "/ping" or (self.command == "GET" and not url.query):
                return self.answer([b"Ok.\n"])
            self.check_login()
            self.parse_form()
            connection = chdb.connect(self.server.data)
            self.run(connection)
        except Cut:
            self.close_connection = True
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except Exception as error:  # whatever the engine raises is the client's to see
            self.fail(str(error))
        finally:
            if connection is not None:
                connection.close()
            self.drain()

    def check_login(self):
        user = self.headers.get("X-ClickHouse-User", self.parameters.get("user", "default"))
        password = self.headers.get("X-ClickHouse-Key", self.parameters.get("password", ""))
        basic = self.headers.get("Authorization", "")
        if basic.startswith("Basic "):
            user, _, password = base64.b64decode(basic[6:]).decode().partition(":")
        # Header values come as latin-1.
        if (user.encode("latin-1", "replace"), password.encode("latin-1", "replace")) != (USER.encode(), PASSWORD.encode()):
            raise Refused(
                f"Code: 516. DB::Exception: {user}: Authentication failed: password is incorrect, or there is no user with "
                "such name. (AUTHENTICATION_FAILED)"
            )

    def parse_form(self):
        """Parameters of a query come as the fields of a form, the query among them."""
        message = Message()
        message["content-type"] = self.headers.get("Content-Type", "")
        boundary = message.get_param("boundary")
        if message.get_content_type() != "multipart/form-data" or not boundary:
            return
        for part in b"".join(self.pieces).split(b"--" + boundary.encode())[1:-1]:
            head, _, value = part.partition(b"\r\n\r\n")
            name = re.search(rb'name="([^"]*)"', head).group(1).decode()
            self.parameters[name] = value.removesuffix(b"\r\n").decode()
        self.pieces = iter(())

    def run(self, connection):
        parameters = self.parameters
        if parameters.get("database"):
            connection.query("USE `" + parameters["database"].replace("\\", "\\\\").replace("`", "\\`") + "`")
        for name, value in parameters.items():
            if name not in NOT_SETTINGS:
                if not re.fullmatch(r"\w+", name):
                    raise Refused(f"Code: 115. DB::Exception: Unknown setting '{name}'. (UNKNOWN_SETTING)")
                connection.query(f"SET {name} = {quoted(value)}")
        sql = parameters.get("query", "")
        insert = INSERT.match(sql)
        if insert:
            return self.insert(connection, insert.group(1), insert.group(2))
        sql = (sql + "\n" + b"".join(self.pieces).decode()).strip()
        if not sql:
            raise Refused("Code: 62. DB::Exception: Syntax error: Empty query. (SYNTAX_ERROR)")
        default = parameters.get("default_format", "TabSeparated")
        explicit = FORMAT.search(sql)
        form = explicit.group(1) if explicit else default
        if SELECT.match(sql) and form in STREAMED:
            # A format in the text would be the engine's own business, and its pieces not ours to join.
            return self.stream(connection, sql[: explicit.start()] if explicit else sql, form)
        result = connection.query(sql, default)
        summary = {"read_rows": result.rows_read(), "read_bytes": result.bytes_read(), "written_rows": result.rows_written()}
        self.answer([result.bytes()], summary)

    def insert(self, connection, sql, form):
        writer = connection.send_insert(sql, form)
        try:
            for piece in self.pieces:
                writer.append(piece)
        except BaseException:
            writer.cancel()
            raise
        result = writer.finish()
        self.answer([], {"written_rows": result.rows_written, "written_bytes": result.bytes_written})

    def stream(self, connection, sql, form):
        def pieces():
            head = None
            for piece in connection.send_query(sql, form):
                data = piece.bytes()
                if form == "RowBinaryWithNamesAndTypes":
                    # Every piece repeats the names and types.
                    data, head = (data, header_size(data)) if head is None else (data[head:], head)
                yield data

        found = pieces()
        first = next(found, None)
        if first is None:
            # The engine says nothing at all when there are no rows; a server sends names and types.
            return self.answer([connection.query(sql, form).bytes()])

        def rest():
            yield first
            yield from found

        self.answer(rest())

    def answer(self, pieces, summary=None):
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("X-ClickHouse-Exception-Tag", TAG.decode())
        self.send_header("X-ClickHouse-Summary", json.dumps({name: str(value) for name, value in (summary or {}).items()}))
        self.is_chunked = self.request_version != "HTTP/1.0"
        if self.is_chunked:
            self.send_header("Transfer-Encoding", "chunked")
        wanted = self.headers.get("Accept-Encoding", "") if self.parameters.get("enable_http_compression") != "0" else ""
        encoder = None
        if "lz4" in wanted:
            self.send_header("Content-Encoding", "lz4")
            encoder = lz4.frame.LZ4FrameCompressor(auto_flush=True)
        self.end_headers()
        self.headers_sent = True
        self.encoder = encoder
        if encoder:
            self.chunk(encoder.begin())
        for piece in pieces:
            self.chunk(encoder.compress(piece) if encoder and piece else piece)
        self.finish_body()

    def finish_body(self):
        if self.encoder:
            self.chunk(self.encoder.flush())
        if self.is_chunked:
            self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def chunk(self, data):
        if data:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data) if self.is_chunked else data)
            self.wfile.flush()

    def fail(self, text):
        found = re.search(r"Code: (\d+)\.", text)
        code = int(found.group(1)) if found else 1002
        if found:
            text = text[found.start():]
        text = (text + f" (version {self.server.version} (official build))\n").encode()
        self.log_message("%s", text.decode().strip())
        if self.headers_sent:
            text = b"\r\n__exception__\r\n" + TAG + b"\r\n" + text + b"%d " % len(text) + TAG + b"\r\n__exception__\r\n"
            self.chunk(self.encoder.compress(text) if self.encoder else text)
            return self.finish_body()
        self.send_response(STATUS.get(code, 500))
        self.send_header("Content-Type", "text/plain; charset=UTF-8")
        self.send_header("X-ClickHouse-Exception-Code", str(code))
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
        self.wfile.flush()

    # The request's body.

    def body(self):
        pieces = self.chunks() if self.headers.get("Transfer-Encoding", "").lower() == "chunked" else self.counted()
        self.raw = pieces
        return self.decompress(pieces) if self.parameters.get("decompress") == "1" else pieces

    def read(self, size):
        data = self.rfile.read(size)
        if len(data) < size:
            raise Cut()
        return data

    def counted(self):
        left = int(self.headers.get("Content-Length", 0))
        while left:
            piece = self.read(min(left, PIECE))
            left -= len(piece)
            yield piece

    def chunks(self):
        while True:
            line = self.rfile.readline()
            if not line.endswith(b"\n"):
                raise Cut()
            size = int(line.split(b";")[0], 16)
            if size:
                yield self.read(size)
            self.rfile.readline()
            if not size:
                return

    @staticmethod
    def decompress(pieces):
        """Blocks of: checksum (16), method (1), size with this head (4), size of the content (4), content."""
        data = bytearray()
        for piece in pieces:
            data += piece
            while len(data) >= 25:
                size, content_size = (int.from_bytes(data[at : at + 4], "little") for at in (17, 21))
                if len(data) < 16 + size:
                    break
                method, content = data[16], bytes(data[25 : 16 + size])
                if method == 0x82:
                    content = lz4.block.decompress(content, uncompressed_size=content_size)
                elif method != 0x02:
                    raise Refused(f"Code: 89. DB::Exception: Unknown codec {method:#x}. (UNKNOWN_COMPRESSION_METHOD)")
                yield content
                del data[: 16 + size]
        if data:
            raise Refused("Code: 33. DB::Exception: Cannot read all data: a compressed block is cut. (CANNOT_READ_ALL_DATA)")

    def drain(self):
        """What is left of the body must not be taken for the next request."""
        try:
            for _ in self.raw:
                pass
        except (Cut, OSError):
            self.close_connection = True


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port, data):
        # The engine lives as long as one connection to it does.
        self.keep = chdb.connect(data)
        self.data = data
        self.version = self.keep.query("SELECT version()", "TabSeparated").bytes().decode().strip()
        super().__init__(("127.0.0.1", port), Handler)

    def handle_error(self, request, client_address):
        print(f"{client_address}: {sys.exc_info()[1]!r}", flush=True)


if __name__ == "__main__":
    Server(int(sys.argv[1]), sys.argv[2]).serve_forever()
