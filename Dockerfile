FROM python:3.13-slim

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /srv/orderfleet

# The libraries first: they change less often than our code, so their layer is reused.
COPY requirements.lock ./
RUN pip install --require-hashes --requirement requirements.lock

COPY . .
RUN pip install --no-deps --no-build-isolation . \
    && useradd --system --uid 10001 --create-home --home-dir /var/lib/orderfleet orderfleet

USER orderfleet
WORKDIR /var/lib/orderfleet
ENV ORDERFLEET_HOME=/var/lib/orderfleet
EXPOSE 8000 5555
ENTRYPOINT ["orderfleet"]
CMD ["--help"]
