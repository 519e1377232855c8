"""The CPU kernel: C++ sources, and finding what was built from them."""
