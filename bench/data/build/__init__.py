"""Scripts that build the files of `bench/data` from public source packages (see ../README.md)."""
