# The MLflow server with its PostgreSQL and S3 drivers.
FROM python:3.11.14-slim-bookworm
RUN pip install --no-cache-dir mlflow==3.17.2 psycopg2-binary==2.9.13 boto3==1.44.5 \
    && useradd --create-home --uid 10001 mlflow \
    && install --directory --owner mlflow /srv/mlflow
USER mlflow
WORKDIR /srv/mlflow
EXPOSE 5000
ENTRYPOINT ["mlflow", "server"]
