"""Bytes of text to train on, and n-gram tables to compare a model with."""

from .ngram import ngram_loss
from .text import ByteDataset, batches, find_text_files, held_out_windows, standard_library_files

__all__ = ["ByteDataset", "batches", "find_text_files", "held_out_windows", "ngram_loss", "standard_library_files"]
