"""Packaging of `slm`; tool settings are in pyproject.toml, tested versions in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

EXTRAS = {
    "speech": ["librosa>=0.11", "soundfile>=0.13", "scikit-learn>=1.6"],
    "eval": ["jiwer>=4.0", "scipy>=1.13"],
    "merge": ["mergekit>=0.1.5"],
    "track": ["wandb>=0.20"],
    "report": ["matplotlib>=3.9", "jinja2>=3.1"],
    # s3fs asks for a dateutil below 3 through aiobotocore, and pip finds no answer unless it is told first
    "remote": ["fsspec>=2025.3", "aiohttp>=3.11", "s3fs>=2025.3", "python-dateutil<3"],
    "cold": ["zstandard>=0.23"],
    "tiny": ["espeakng-loader>=0.2.4"],
    "demo": ["gradio>=6.30"],
    "dev": [
        *("pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "psutil>=6"),
        *("moto[s3]>=5.2", "flask>=3", "flask-cors>=5"),  # the S3 server of the tests
        *("ruff>=0.9", "mypy>=1.13", "types-PyYAML"),
    ],
}
# a page in the browser brings a web server with it: asked for by name only
EVERYTHING = sorted({need for name, needs in EXTRAS.items() if name not in ("dev", "demo") for need in needs})

setup(
    name="slm",
    version="0.1.0",
    description="Trains spoken language models in stages; measures forgetting and prevents it",
    long_description=Path(__file__).with_name("README.md").read_text() if Path("README.md").is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["slm", "slm.*"]),
    package_data={"slm": ["py.typed", "report/*.j2", "report/*.css", "report/*.js", "report/*.html", "speech/*.txt"]},
    install_requires=[
        "torch>=2.10",
        "deepspeed>=0.19.8",
        "transformers>=5.3",
        "peft>=0.21",
        "datasets>=5.0",
        "webdataset>=1.0",
        "pyarrow>=21",
        # crc32 four times as fast as zlib's; wheels for these machines only, and zlib does elsewhere
        "isal>=1.7; platform_machine in 'x86_64 AMD64 aarch64 arm64'",
        "safetensors>=0.5",
        "tokenizers>=0.21",
        "numpy>=1.26",
        "pyyaml>=6.0",
        "pydantic>=2.10",
        "typer>=0.15",
        "rich>=13.9",
    ],
    extras_require={**EXTRAS, "all": EVERYTHING},
    entry_points={"console_scripts": ["slm=slm.cli.app:main"]},
)
