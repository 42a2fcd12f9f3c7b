"""Operations with more than one implementation; how to add one: kernels/README.md."""
