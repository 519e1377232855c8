"""What pyproject.toml cannot say: requirements by heading, the compiled CPU kernels, configurations."""

import contextlib
import re
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

KERNELS = Path("cmb_jax/ops/cpu")
NO_KERNELS = (
    "cmb-jax: the CPU kernels were not built ({}); everything works, but slower on processors. To build "
    "them, install a C++ compiler (g++ or clang++), then: pip install --force-reinstall --no-deps "
    "--no-cache-dir "
)

PYTORCH = ["torch==2.13.0", "monai>=1.6.1,<2"]
DEVELOPMENT = [
    "hypothesis>=6.170,<7",
    "ruff>=0.17.6,<0.18",
    "mypy>=2.4,<3",
    "pre-commit>=4.7,<5",
    "flatbuffers>=25.12,<26",
    "bids-validator-deno>=3.0.2,<4",
    "matplotlib>=3.11,<4",  # pictures of tools/realism.py
    "nbclient>=0.10,<0.12",  # tutorials are run by the tests
    "ipykernel>=6.29,<8",
    "setuptools>=80",
    "setuptools-scm>=10,<11",
    # peers that the tests check our results against; never imported by the package
    "jsonschema>=4.26,<5",
    "playwright>=1.65,<2",  # drives the Chromium of the system through the viewer
    "pyyaml>=6,<7",
    "scikit-learn>=1.9.1,<2",
    "selectolax>=1.0.2,<2",
    *PYTORCH,
]


def requirements():
    """The lines of requirements.txt by heading: "to run" and the names of the extras."""
    found, heading = {}, None
    for line in Path("requirements.txt").read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"# (?:extra )?(to run|\w+)", line):
            heading = found.setdefault(match[1], [])
        elif line and not line.startswith("#"):
            heading.append(line)
    return found


class BuildKernels(build_ext):
    """A failed build is one line, not a failed installation."""

    def get_ext_filename(self, fullname):
        """Without the tag of an interpreter: the library is loaded by ctypes and fits every one."""
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext):
        """Add jaxlib's headers and build; without instructions that the compiler does not know."""
        try:
            import jaxlib

            ext.include_dirs.append(str(Path(jaxlib.__file__).parent / "include"))
            try:
                super().build_extension(ext)
            except Exception as error:
                self.warn(f"built without instructions for bfloat16 ({error})")
                ext.extra_compile_args.append("-DCMB_WITHOUT_BFLOAT16")
                super().build_extension(ext)
        except Exception as error:
            message = NO_KERNELS.format(error) + self.distribution.get_name()
            self.warn(message)
            # pip shows nothing of a build that succeeds; whoever sits there is told all the same
            with contextlib.suppress(OSError), Path("/dev/tty").open("w") as terminal:
                terminal.write(f"{message}\n")


class BuildWithConfigs(build_py):
    """Puts configs/ of the checkout into the package."""

    def _configs(self):
        return {
            path: Path(self.build_lib) / "cmb_jax" / "configs" / path.name
            for path in sorted(Path("configs").glob("*.py"))
        }

    def run(self):
        """Copy the modules, then the configurations; an editable installation reads them where they are."""
        super().run()
        if not self.editable_mode:
            for source, target in self._configs().items():
                self.mkpath(str(target.parent))
                self.copy_file(str(source), str(target))

    def get_outputs(self, include_bytecode=True):
        """What is written, the configurations too."""
        ours = [] if self.editable_mode else [str(target) for target in self._configs().values()]
        return super().get_outputs(include_bytecode) + ours


class WheelForEveryPython(bdist_wheel):
    """The compiled library depends on the platform, not on the interpreter."""

    def get_tag(self):
        """py3-none-PLATFORM; py3-none-any without the library."""
        built = map(Path, self.get_finalized_command("build_ext").get_outputs())
        return "py3", "none", super().get_tag()[2] if any(path.exists() for path in built) else "any"


needed = requirements()
setup(
    install_requires=needed.pop("to run"),
    extras_require={
        **needed,
        "all": needed["dicom"] + needed["compare"],
        "cuda12": ["jax[cuda12]>=0.10.2,<0.11"],
        "cuda13": ["jax[cuda13]>=0.10.2,<0.11"],
        "tpu": ["jax[tpu]>=0.10.2,<0.11"],
        "ablation": ["scikit-learn>=1.9.1,<2"],  # PCA and t-SNE of embeddings
        "bench": PYTORCH,
        # compiles for TPUs ahead of time, on any machine; the version that JAX 0.10.2 goes with
        "tpu-check": ["libtpu==0.0.42.*"],
        "docs": ["mkdocs-material>=9.7,<10", "mkdocs-jupyter>=0.25,<0.27", "mkdocstrings[python]>=0.30,<2"],
        "dev": [*needed["test"], *needed["dicom"], *needed["compare"], *DEVELOPMENT],
    },
    cmdclass={"build_ext": BuildKernels, "build_py": BuildWithConfigs, "bdist_wheel": WheelForEveryPython},
    ext_modules=[
        Extension(
            "cmb_jax.ops.cpu._kernels",
            sources=[str(path) for path in sorted(KERNELS.glob("*.cc"))],
            depends=[str(path) for path in sorted(KERNELS.glob("*.[hi]*"))],
            language="c++",
            extra_compile_args=["-std=c++17", "-O3", "-g0", "-fvisibility=hidden"],
            optional=True,
        )
    ],
)
