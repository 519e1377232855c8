"""Builds the CPU kernels, if there is a C++ compiler; the package works without."""

from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FOLDER = Path("cmb_jax/ops/cpu")


class BuildKernel(build_ext):
    """A failed build is one line, not a failed installation."""

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
            self.warn(f"the CPU kernels were not built ({error}); a slower form in JAX is used")


setup(
    cmdclass={"build_ext": BuildKernel},
    ext_modules=[
        Extension(
            "cmb_jax.ops.cpu._kernels",
            sources=[str(path) for path in sorted(FOLDER.glob("*.cc"))],
            depends=[str(path) for path in sorted(FOLDER.glob("*.[hi]*"))],
            language="c++",
            extra_compile_args=["-std=c++17", "-O3", "-g0", "-fvisibility=hidden"],
            optional=True,
        )
    ],
)
