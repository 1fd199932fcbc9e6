# The MLflow server with its PostgreSQL and S3 drivers.
FROM python:3.11.14-slim-bookworm
COPY mlflow.lock /mlflow.lock
RUN pip install --no-cache-dir --no-deps --require-hashes -r /mlflow.lock \
    && pip check \
    && useradd --create-home --uid 10001 mlflow \
    && install --directory --owner mlflow /srv/mlflow
USER mlflow
WORKDIR /srv/mlflow
EXPOSE 5000
ENTRYPOINT ["mlflow", "server"]
