"""The S3 part of moto as a server. moto's own command searches all services of AWS at each request.

Run as `python s3_server.py PORT`.
"""

import sys

from moto.moto_server.werkzeug_app import create_backend_app
from werkzeug.serving import WSGIRequestHandler, run_simple


class SilentHandler(WSGIRequestHandler):
    """It logs no requests."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


if __name__ == "__main__":
    run_simple("127.0.0.1", int(sys.argv[1]), create_backend_app("s3"), threaded=True, request_handler=SilentHandler)
