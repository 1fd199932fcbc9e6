#!/usr/bin/env bash
# MLflow encrypts a webhook's secret with MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY, and without it with a key
# that each process of the server makes for itself: after a restart no webhook can be listed or told of
# anything any more, and with several workers not even before.
#   findings/mlflow-webhook-secrets-die-with-the-server.sh [PYTHON]     exits 0 while that is so
set -euo pipefail
python=${1:-python3}
folder=$(mktemp -d)
server=
trap 'if [ -n "$server" ]; then kill "$server" || true; fi; rm -rf "$folder"' EXIT
cd "$folder"
"$python" -m venv venv
venv/bin/python -m pip install --quiet mlflow==3.17.2
export MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
export MLFLOW_WEBHOOK_ALLOWED_SCHEMES=http,https MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true
port=$(venv/bin/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

start() {
    venv/bin/mlflow server --workers 1 --host 127.0.0.1 --port "$port" \
        --backend-store-uri "sqlite:///$folder/mlflow.db" > server.log 2>&1 &
    server=$!
    for _ in $(seq 120); do
        curl -sf "http://127.0.0.1:$port/health" > /dev/null && return
        sleep 1
    done
    cat server.log
    exit 2
}

start
venv/bin/python - "$port" <<'PY'
import sys
import mlflow

client = mlflow.MlflowClient(f"http://127.0.0.1:{sys.argv[1]}")
client.create_webhook("deploy", "http://127.0.0.1:9/", ["model_version_alias.created"], secret="s")
assert [hook.name for hook in client.list_webhooks()] == ["deploy"]
PY
kill "$server"
wait "$server" || true
start
export MLFLOW_HTTP_REQUEST_MAX_RETRIES=0
venv/bin/python - "$port" <<'PY'
import sys
import mlflow

client = mlflow.MlflowClient(f"http://127.0.0.1:{sys.argv[1]}")
try:
    client.list_webhooks()
except Exception as error:
    assert "500" in str(error), error
    print("after a restart the server fails inside:", str(error)[-80:])
else:
    sys.exit("the webhook is still there: MLflow keeps its secrets now")
PY
