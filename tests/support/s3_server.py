"""A bucket in memory behind the few requests of S3 that a client of object stores sends; signatures are not checked."""

import hashlib
import io
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]
    uploads: dict[str, dict[int, bytes]]
    lock: threading.Lock
    failing: set[str]
    requests: list[tuple[str, str, str]]

    def parse_request(self):
        if not super().parse_request():
            return False
        self.requests.append((self.command, self._asked()[0], self.headers.get("Range") or ""))
        if self.command in self.failing:
            self._body()
            self._answer(503)
            return False
        return True

    def log_message(self, *arguments):
        pass

    def _asked(self):
        parts = urlsplit(self.path)
        return unquote(parts.path).lstrip("/"), parse_qs(parts.query, keep_blank_values=True)

    def _body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(_chunks(self.rfile))
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):  # with a checksum behind the last chunk
            body = b"".join(_chunks(io.BytesIO(body)))
        return body

    def _answer(self, code, body=b"", **headers):
        self.send_response(code)
        for name, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _xml(self, text):
        self._answer(200, f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode(), Content_Type="application/xml")

    def do_PUT(self):
        name, query = self._asked()
        body = self._body()
        with self.lock:
            if "uploadId" in query:
                self.uploads[query["uploadId"][0]][int(query["partNumber"][0])] = body
            elif source := self.headers.get("x-amz-copy-source"):
                body = self.objects[name] = self.objects[unquote(source).lstrip("/")]
                return self._xml(f"<CopyObjectResult><ETag>{_etag(body)}</ETag></CopyObjectResult>")
            elif self.headers.get("If-None-Match") == "*" and name in self.objects:
                return self._answer(412)
            else:
                self.objects[name] = body
        return self._answer(200, ETag=_etag(body))

    def do_POST(self):
        name, query = self._asked()
        body = self._body().decode()
        with self.lock:
            if "uploads" in query:
                number = secrets.token_hex(8)
                self.uploads[number] = {}
                inner = f"<UploadId>{number}</UploadId>"
                return self._xml(f"<InitiateMultipartUploadResult>{inner}</InitiateMultipartUploadResult>")
            if "uploadId" in query:
                parts = self.uploads.pop(query["uploadId"][0])
                self.objects[name] = b"".join(parts[number] for number in sorted(parts))
                etag = _etag(self.objects[name])
                return self._xml(f"<CompleteMultipartUploadResult><ETag>{etag}</ETag></CompleteMultipartUploadResult>")
            for key in re.findall("<Key>(.*?)</Key>", body):
                self.objects.pop(f"{name.rstrip('/')}/{unescape(key)}", None)
        return self._xml("<DeleteResult></DeleteResult>")

    def do_DELETE(self):
        with self.lock:
            self.objects.pop(self._asked()[0], None)
        self._answer(204)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        name, query = self._asked()
        if "list-type" in query:
            return self._list(name.rstrip("/"), query)
        body = self.objects.get(name)
        if body is None:
            return self._answer(404)
        headers = {"ETag": _etag(body), "Last_Modified": formatdate(0, usegmt=True)}
        if asked := re.match(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or ""):
            first, last = asked[1], asked[2]
            start = int(first) if first else len(body) - int(last)
            end = min(int(last) + 1, len(body)) if first and last else len(body)
            headers["Content_Range"] = f"bytes {start}-{end - 1}/{len(body)}"
            return self._answer(206, body[start:end], **headers)
        return self._answer(200, body, **headers)

    def _list(self, bucket, query):
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        names = sorted(name[len(bucket) + 1 :] for name in self.objects if name.startswith(f"{bucket}/{prefix}"))
        folders, found = set(), []
        for name in names:
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                found.append(name)
        contents = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{len(self.objects[f'{bucket}/{name}'])}</Size>"
            f"<ETag>{_etag(self.objects[f'{bucket}/{name}'])}</ETag><LastModified>1970-01-01T00:00:00.000Z</LastModified>"
            "</Contents>"
            for name in found
        )
        contents += "".join(f"<CommonPrefixes><Prefix>{escape(x)}</Prefix></CommonPrefixes>" for x in sorted(folders))
        count = f"<KeyCount>{len(found) + len(folders)}</KeyCount>"
        self._xml(f"<ListBucketResult><IsTruncated>false</IsTruncated>{count}{contents}</ListBucketResult>")


def _chunks(file):
    while size := int(file.readline().partition(b";")[0], 16):
        yield file.read(size)
        file.readline()
    while file.readline().strip():
        pass  # trailers


def _etag(body):
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'


@contextmanager
def s3_server(
    failing: set[str] | None = None, requests: list[tuple[str, str, str]] | None = None
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The address of a server, and its objects by bucket/name.

    Args:
        failing: the methods that are answered by 503, while they are in the set.
        requests: gets method, bucket/name and range of each request.
    """
    state = {"objects": {}, "uploads": {}, "lock": threading.Lock()}
    state |= {"failing": set() if failing is None else failing, "requests": [] if requests is None else requests}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), state))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", state["objects"]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
