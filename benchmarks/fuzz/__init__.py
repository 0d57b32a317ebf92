"""Fuzz: mutations of real files against everything that reads what others have written.

Whatever is wrong with a file, nothing but our own errors may come out, within 5 s, in the memory
that the code states.  Each case is made from (target, seed, index) alone, and runs in a worker
process that may hang or die of it.

    make fuzz FUZZ_ARGS="--cases 1000000 --jobs 8"
    PYTHONPATH=benchmarks .venv/bin/python -m fuzz --target picture --cases 10000 --seed 7
    PYTHONPATH=benchmarks .venv/bin/python -m fuzz --replay build/fuzz/picture-hang-1a2b3c4d.zip

The mutators are our own and small: a case must be made again from its number alone, must be bytes
that can be kept, and may kill its process; a property-testing library shrinks and counts within
one process, and a coverage-guided one needs decoders that are built for it.
"""
