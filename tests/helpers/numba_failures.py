"""Ways in which Numba cannot be imported, as lines of Python that bring them about."""

FAILURES = (
    "sys.modules['numba'] = None",  # not installed
    # built for another LLVM, NumPy or Python: its import raises what the first broken library raises
    "class Broken:\n"
    "    def find_spec(self, name, *_):\n"
    "        if name == 'numba': raise OSError('libLLVM.so: cannot open')\n"
    "sys.meta_path.insert(0, Broken())",
)
