"""The parts of `python benchmarks/gpu.py`: what is measured, how, with which libraries, and how it is shown.

cases        what is measured, in the order of importance, at the sizes of a GPU or tiny
operations   each operation in float64 NumPy: what its results are compared with
networks     the same for an MLP, a GPT and AdamW
measure      the comparison, then the time
on_gpuad, on_torch, on_jax   how a library makes data, computes, differentiates, and reads a clock
worker       one process of one library, which answers with JSON lines
report       the file of results, and the table for a terminal
"""
