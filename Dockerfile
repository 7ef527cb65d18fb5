# syntax=docker/dockerfile:1.17@sha256:38387523653efa0039f8e1c89bb74a30504e76ee9f565e25c9a09841f9427b05
# River in three images ("make images" builds and tries the first and the last):
#   docker build --target cpu    -t river-vllm:cpu .      vLLM's CPU build
#   docker build --target cuda   -t river-vllm:cuda .     vLLM's CUDA build
#   docker build --target client -t river-vllm:client .   guidellm with River's loads, without vLLM
ARG PYTHON_IMAGE=python:3.11.15-slim-trixie@sha256:db3ff2e1800a8581e2c48a27c3995339d47bdf046da21c7627accd3d51053a93
ARG CUDA_IMAGE=nvidia/cuda:13.0.2-devel-ubuntu24.04@sha256:5dc1bca23d05bd37b011be68ec470c03b403a5da07ec3a86e41af9470e9d0cc6

# ---- what every image copies -------------------------------------------------------------------
FROM scratch AS source
COPY pyproject.toml setup.py README.md LICENSE /
COPY river_vllm /river_vllm
COPY server /server
COPY tools/install.py /tools/install.py

# ---- environments ------------------------------------------------------------------------------
FROM ${PYTHON_IMAGE} AS build-cpu
# g++ compiles River's kernels here, once, for all instruction sets.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY --from=source / ./
# install.py keeps the CUDA builds of torchaudio and torchcodec out and ends with an import of
# vLLM. It installs River as a link to /src; the second pip puts a copy in its place.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/river/venv \
    && /opt/river/venv/bin/python tools/install.py --extras cpu \
    && /opt/river/venv/bin/python -m pip install --no-deps --force-reinstall .

FROM ${CUDA_IMAGE} AS base-cuda
# The devel image has nvcc and a C++ compiler, which FlashInfer and Triton call when they compile
# kernels for the GPU at hand; python3-dev has the headers that Triton's launcher includes.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-dev python3-venv libnuma1 \
    && rm -rf /var/lib/apt/lists/*

FROM base-cuda AS build-cuda
WORKDIR /src
COPY --from=source / ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/river/venv \
    && /opt/river/venv/bin/python tools/install.py --extras cuda \
    && /opt/river/venv/bin/python -m pip install --no-deps --force-reinstall .

FROM ${PYTHON_IMAGE} AS build-client
COPY deploy/loadtest/requirements.txt tools/install.py /src/
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/river/venv \
    && /opt/river/venv/bin/python /src/install.py --requirements /src/requirements.txt

# ---- images ------------------------------------------------------------------------------------
FROM ${PYTHON_IMAGE} AS client
RUN groupadd --gid 10001 river \
    && useradd --uid 10001 --gid river --no-create-home --home-dir /results river \
    && install --directory --owner=river --group=river /results
COPY --from=build-client /opt/river/venv /opt/river/venv
COPY deploy/loadtest/ /opt/river/loadtest/
# The tokenizer is read where the server's model is, and nothing is fetched.
ENV PATH=/opt/river/venv/bin:$PATH \
    HF_HOME=/models/huggingface \
    HF_HUB_OFFLINE=1 \
    HF_DATASETS_CACHE=/tmp/datasets \
    PYTHONUNBUFFERED=1
USER 10001:10001
VOLUME ["/results"]
WORKDIR /results
HEALTHCHECK NONE
ENTRYPOINT ["python", "/opt/river/loadtest/start.py"]
CMD ["--help"]

FROM base-cuda AS cuda
RUN groupadd --gid 10001 river \
    && useradd --uid 10001 --gid river --no-create-home --home-dir /var/cache/river river \
    && install --directory --owner=river --group=river /models /var/cache/river
COPY --from=build-cuda /opt/river/venv /opt/river/venv
COPY deploy/image/ /opt/river/
ENV PATH=/opt/river/venv/bin:$PATH \
    HOME=/var/cache/river \
    XDG_CACHE_HOME=/var/cache/river \
    HF_HOME=/models/huggingface \
    VLLM_CACHE_ROOT=/var/cache/river/vllm \
    TORCHINDUCTOR_CACHE_DIR=/var/cache/river/inductor \
    TRITON_CACHE_DIR=/var/cache/river/triton \
    VLLM_NO_USAGE_STATS=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
VOLUME ["/models", "/var/cache/river"]
WORKDIR /var/cache/river
EXPOSE 8000
STOPSIGNAL SIGTERM
# Failures within the start period do not count: loading and packing a model takes minutes.
HEALTHCHECK --interval=15s --timeout=10s --start-period=20m --retries=4 \
    CMD ["python", "/opt/river/healthcheck.py"]
ENTRYPOINT ["python", "/opt/river/serve.py"]
CMD ["--help"]

FROM ${PYTHON_IMAGE} AS cpu
# g++ is what torch.compile calls on the CPU, libnuma what vLLM binds its threads with; tcmalloc is
# preloaded below.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libnuma1 libtcmalloc-minimal4t64 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 river \
    && useradd --uid 10001 --gid river --no-create-home --home-dir /var/cache/river river \
    && install --directory --owner=river --group=river /models /var/cache/river
COPY --from=build-cpu /opt/river/venv /opt/river/venv
COPY deploy/image/ /opt/river/
# As vLLM's own CPU image does, for about a tenth of the time per token. libiomp5 comes with vLLM's
# CPU build, which pins intel-openmp, for x86-64 alone; on aarch64:
# --build-arg PRELOAD=/usr/lib/aarch64-linux-gnu/libtcmalloc_minimal.so.4
ARG PRELOAD=/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4:/opt/river/venv/lib/libiomp5.so
RUN /opt/river/venv/bin/python -c "import ctypes, sys; [ctypes.CDLL(path) for path in sys.argv[1].split(':')]" "$PRELOAD"
ENV LD_PRELOAD=$PRELOAD
ENV PATH=/opt/river/venv/bin:$PATH \
    HOME=/var/cache/river \
    XDG_CACHE_HOME=/var/cache/river \
    HF_HOME=/models/huggingface \
    VLLM_CACHE_ROOT=/var/cache/river/vllm \
    TORCHINDUCTOR_CACHE_DIR=/var/cache/river/inductor \
    VLLM_NO_USAGE_STATS=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
VOLUME ["/models", "/var/cache/river"]
WORKDIR /var/cache/river
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=10s --start-period=20m --retries=4 \
    CMD ["python", "/opt/river/healthcheck.py"]
ENTRYPOINT ["python", "/opt/river/serve.py"]
CMD ["--help"]
