"""Operations with more than one implementation. kernels/README.md says how to add one."""
