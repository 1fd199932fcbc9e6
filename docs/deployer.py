"""A deployer that signed webhooks tell of a new champion: MLflow's registry's, mergeops', or both.

    export MERGEOPS_WEBHOOK_SECRET=... MLFLOW_TRACKING_URI=http://mlflow:5000
    python deployer.py 8400 ./deploy.sh

runs ``./deploy.sh`` with MODEL_NAME and MODEL_VERSION each time that @champion moved. It needs
Python and nothing else.
"""

from __future__ import annotations

import base64
import hmac
import json
import os
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer

SECRET, MLFLOW = os.environ["MERGEOPS_WEBHOOK_SECRET"].encode(), os.environ["MLFLOW_TRACKING_URI"]
PORT, COMMAND = int(sys.argv[1]), sys.argv[2:]
FRESH_S, MOST_BYTES = 300, 1 << 20


def is_signed(headers: Mapping[str, str], body: bytes) -> bool:
    """Whether who sent it knows the secret, and sent it just now."""
    if "X-MLflow-Signature" in headers:
        given, at = headers["X-MLflow-Signature"], headers["X-MLflow-Timestamp"]
        signed = f"{headers['X-MLflow-Delivery-Id']}.{at}.".encode() + body
        wanted = "v1," + base64.b64encode(hmac.digest(SECRET, signed, "sha256")).decode()
    else:
        given = headers.get("X-Mergeops-Signature", "")
        at = headers.get("X-Mergeops-Timestamp", "0")
        wanted = "v1=" + hmac.digest(SECRET, f"{at}.".encode() + body, "sha256").hex()
    return hmac.compare_digest(given, wanted) and abs(time.time() - int(at)) < FRESH_S


def champion_of(name: str) -> str:
    """The version that is @champion now: what was told may be late, or come twice."""
    query = urllib.parse.urlencode({"name": name, "alias": "champion"})
    url = f"{MLFLOW}/api/2.0/mlflow/registered-models/alias?{query}"
    request = urllib.request.Request(url)
    if user := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        account = f"{user}:{os.environ['MLFLOW_TRACKING_PASSWORD']}".encode()
        request.add_header("Authorization", f"Basic {base64.b64encode(account).decode()}")
    if workspace := os.environ.get("MLFLOW_WORKSPACE"):
        request.add_header("X-MLFLOW-WORKSPACE", workspace)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return str(json.load(answer)["model_version"]["version"])


class Deployer(BaseHTTPRequestHandler):
    """Answers 500 where the deployment failed: it is told again then."""

    deployed: Mapping[str, str] = {}

    def do_POST(self) -> None:
        body = self.rfile.read(min(int(self.headers["Content-Length"]), MOST_BYTES))
        if not is_signed(self.headers, body):
            return self.answer(401)
        told = json.loads(body)
        # mergeops names the model itself, MLflow in data. Of other events there is no name.
        if name := told.get("name") or told.get("data", {}).get("name"):
            version = champion_of(name)
            if self.deployed.get(name) != version:
                print(f"deploying models:/{name}/{version}", flush=True)
                environment = {**os.environ, "MODEL_NAME": name, "MODEL_VERSION": version}
                if subprocess.run(COMMAND, env=environment, check=False).returncode:
                    return self.answer(500)
                Deployer.deployed = {**self.deployed, name: version}
        self.answer(200)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.end_headers()


HTTPServer(("127.0.0.1", PORT), Deployer).serve_forever()
