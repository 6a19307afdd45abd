# One image for all eight services; what runs in a container is its command (see docker-compose.yml).
FROM python:3.13-slim

WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY broker broker
RUN python -m pip install --no-cache-dir --quiet '.[shop]'
COPY services services

# CRM's e-mails lie in data/, a volume, and databases whose service is given no URL; nothing else is written.
RUN useradd --system --no-create-home shop && mkdir data && chown shop data
USER shop
ENV PYTHONUNBUFFERED=1 BROKER_HEALTH_PORT=8000

# Ready: connected, consuming, its queue healthy. A 503 makes urlopen raise.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]

CMD ["python", "-m", "services.order"]
