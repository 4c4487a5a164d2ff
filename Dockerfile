# Two images: `shard` without TensorFlow, `worker` for worker, chief and evaluator.
#
#     docker build --target=shard --tag=registry.example/downpour-shard:1.0 .
#     docker build --target=worker --tag=registry.example/downpour-worker:1.0 [--build-arg=ACCELERATOR=gpu] .
#
# ACCELERATOR  cpu, the smaller TensorFlow; or gpu, with the CUDA libraries it needs.
# EXTRAS       of setup.py, with commas: tls, and s3 where checkpoints go to an object store.
# KERNEL_CPU   LLVM's name of the oldest processor that the images shall run on.
# PYTHON       The image to begin from.
#
# Every RUN line is executed in an empty Debian root by tests/launch/kubernetes/test_images.py.

ARG PYTHON=python:3.11.14-slim-bookworm

FROM ${PYTHON} AS runtime
ARG KERNEL_CPU=x86-64-v3
# The loops are compiled here for one processor and loaded on all: numba looks for code of the processor it believes to
# have, and would compile again on any other.
ENV PATH=/opt/downpour/venv/bin:${PATH} \
    NUMBA_CACHE_DIR=/opt/downpour/kernels \
    NUMBA_CPU_NAME=${KERNEL_CPU} \
    NUMBA_CPU_FEATURES= \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp
RUN useradd --uid 65532 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin downpour

FROM runtime AS source
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
COPY setup.py pyproject.toml constraints.txt README.md ./
COPY src src
COPY proto proto
COPY ps ps
COPY worker worker
COPY model model
COPY launch launch
RUN python3 -m venv /opt/downpour/venv

FROM source AS shard-files
ARG EXTRAS=tls
RUN python -m pip install --constraint=constraints.txt ".[${EXTRAS}]"
# Full seconds: numba compares the age of a source file with what it compiled, and layers of an image keep no fractions.
RUN find /opt/downpour/venv -path '*/downpour/*' -name '*.py' -exec touch --date=@1000000000 {} + \
    && python -m compileall -q -f --invalidation-mode=unchecked-hash /opt/downpour/venv/lib/python3.11/site-packages/downpour
RUN python -m downpour.ps.apply.kernels \
    && python -m pip uninstall --quiet --yes setuptools pip \
    && chmod -R a+rX /opt/downpour

FROM source AS worker-files
ARG EXTRAS=tls
ARG ACCELERATOR=cpu
RUN case "${ACCELERATOR}" in cpu) worker=worker-cpu cuda= ;; gpu) worker=worker cuda='tensorflow[and-cuda]' ;; \
        *) echo "ACCELERATOR is ${ACCELERATOR}; give cpu or gpu" >&2; exit 2 ;; esac \
    && python -m pip install --constraint=constraints.txt ".[${worker},${EXTRAS}]" ${cuda}
RUN find /opt/downpour/venv -path '*/downpour/*' -name '*.py' -exec touch --date=@1000000000 {} + \
    && python -m compileall -q -f --invalidation-mode=unchecked-hash /opt/downpour/venv/lib/python3.11/site-packages/downpour
RUN python -m downpour.ps.apply.kernels \
    && python -m downpour.model.vision.resampling \
    && python -m pip uninstall --quiet --yes setuptools pip \
    && chmod -R a+rX /opt/downpour

FROM runtime AS shard
COPY --from=shard-files /opt/downpour /opt/downpour
USER 65532:65532
ENTRYPOINT ["downpour"]
CMD ["--help"]

FROM runtime AS worker
COPY --from=worker-files /opt/downpour /opt/downpour
USER 65532:65532
ENTRYPOINT ["downpour"]
CMD ["--help"]
